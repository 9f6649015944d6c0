"""The suite's costs: time and memory by stage, against named references in the same run, and their growth.

Weights, text and pixels are random, which does not change the computation. The functions of a comparison take turns,
after one run without a clock. A time is the median of the turns, with the least and the most; so is a ratio of times.

Shape legend: N patches, Q queries.
"""

import functools
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from fsa_seg.config.components import load_components, load_protocol, protocol_settings
from fsa_seg.config.compose import compose, model_config
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.errors import UserError
from fsa_seg.evaluation.metric import confusion
from fsa_seg.evaluation.results import row_name
from fsa_seg.methods.base import WindowCosines
from fsa_seg.models.segmentor import PRECISIONS
from fsa_seg.models.shared_pass import Crop, Member, merged_images, window_results
from fsa_seg.models.text import Text
from fsa_seg.models.window import token_logits
from fsa_seg.ops import reference, reference_methods
from fsa_seg.ops.device import device_name
from fsa_seg.ops.feedback import FSA, threshold
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.sfr import SFR
from fsa_seg.ops.windows import Layout, cut_window, windows
from fsa_seg.profiling.measured import measured, product_flops, tensor_peak
from fsa_seg.profiling.whole_image_costs import WholeImageSections
from fsa_seg.sweep.estimate import pass_work, trunk_flops, vfm_flops
from fsa_seg.system.machine import cpu_name
from fsa_seg.system.markdown import markdown_table

Row = dict[str, object]  # column -> value, of a table
PROTOCOL = 'proxyclip'  # gives window and stride of all measurements
ROWS = list(itertools.product(('maskclip', 'sclip', 'clearclip', 'proxyclip'), (None, 'fsa')))  # method, feedback
IMAGE = (336, 448)  # pixels of a resized image
GROWTH = dict(N=[(side, 21) for side in (21, 28, 42, 64)], Q=[(42, queries) for queries in (21, 60, 171, 400, 847)])
QUERIES = (21, 171, 847)  # of VOC21, COCO-Stuff164k, ADE20K's longest list; dense references run for all but the last
DENSE = ('dense', 'per head')  # the forms of the dense reference
AGREEMENT = 10  # images in the comparison of labels in half precision
AGREEING = (('proxyclip', 'fsa'), ('sclip', 'fsa'), ('clip', None))  # method, feedback
NEWER = (('pearl', None), ('resclip', 'sfr'), ('scclip', 'fsa'), ('sfp', None), ('gem', None))  # likewise
METHOD_SIDES = (21, 42)  # of the grids of the newer methods' windows
FIELD: dict[str, tuple] = {  # name -> method, arguments of the dense reference, feedback
    'SCLIP': ('sclip', None, None),
    'PEARL': ('pearl', dict(name='pearl'), None),
    'ResCLIP': ('resclip', dict(name='resclip'), None),
    'ResCLIP + SFR': ('resclip', dict(name='resclip'), dict(type='SFR')),
    'SC-CLIP': ('scclip', dict(name='scclip'), None),
    'SFP': ('sfp', dict(name='sfp'), None),
    'GEM': ('gem', dict(name='gem'), None),
    'qq+kk+vv': (dict(attention='qq+kk+vv', residual=True, mlp=True), dict(name='cliptrase'), None),
    'itaclip': (dict(attention='itaclip', residual=True), dict(name='itaclip'), None),
}
PRUNED = (42, 21)  # side of the grid, and queries, of the similarities to prune
LARGE = (128, 847)  # side of the grid of a 1024-pixel window at patch 8, and ADE20K's longest list of queries


class Cost(NamedTuple):
    """The cost of a function.

    Attributes:
        times: seconds of each run.
        bytes: peak of the tensors during a run, beyond the tensors before the run; None without a measurement.
    """

    times: list[float]
    bytes: int | None

    seconds = property(lambda self: statistics.median(self.times))
    mebibytes = property(lambda self: f'{self.bytes / 2**20:.0f}')

    def over(self, base: 'Cost', factor: float = 1.0, digits: int = 2) -> str:
        """Return the ratio factor × time / base's time over the turns: the median, the least and the most, as text."""
        ratios = [factor * seconds / base_seconds for seconds, base_seconds in zip(self.times, base.times)]
        spread = f' ({min(ratios):.{digits}f}–{max(ratios):.{digits}f})' if len(ratios) > 1 else ''
        return f'{statistics.median(ratios):.{digits}f}{spread}'

    def __str__(self):
        digits = 3 if self.seconds < 1 else 2
        spread = f' ({min(self.times):.{digits}f}–{max(self.times):.{digits}f})' if len(self.times) > 1 else ''
        return f'{self.seconds:.{digits}f} s{spread}'


def _attended(windows):
    """Return A·values of a batch of windows under a method."""
    return windows.attention.apply(windows.block.values(windows.attention))


class CostTables(WholeImageSections):
    """The sections of measurements: each section is a method that returns a list of rows with the same keys.

    Args:
        backbone: name of a component; the model gets random weights.
        vfm: name of a component; the model gets random weights.
        precision: 'fp32', 'fp16' or 'bf16'.
        device: device of models and tensors.
        repeats: runs of each function; long functions run at most 3 times, the last block at its largest once.
        mini: a data root with the toy world, for images to decode.
        vfms: VFMs of the eleven attention maps; by default the VFMs of the suite `attention33`.
        step: function that is called after each timed run, to show progress.
    """

    def __init__(
        self,
        backbone: str,
        vfm: str,
        precision: str,
        device: str,
        repeats: int,
        mini: str,
        vfms: Sequence[str] | None = None,
        step: Callable[[], object] = lambda: None,
    ):
        self.backbone, self.vfm, self.precision, self.device = backbone, vfm, precision, torch.device(device)
        self.repeats, self.mini, self.vfms, self.step = repeats, mini, vfms, step
        self._models, self._texts = {}, {}

    def stages(self) -> list[Row]:
        """One image under ProxyCLIP + FSA, stage by stage, 21 queries: its windows one at a time."""
        functions, count = self._stage_functions()
        costs = self._costs(functions)
        rate = self._matmul_rate()
        flops = {name: product_flops(functions[name]) for name in ('trunk', 'VFM')}
        total = sum(cost.seconds for cost in costs.values())
        rows = [
            {
                'stage': name,
                'time': str(cost),
                'share': f'{100 * cost.seconds / total:.1f} %',
                'memory, MiB': cost.mebibytes,
                'GFLOP': f'{flops[name] / 1e9:.0f}' if name in flops else '–',
                'of the matmul rate': f'{100 * flops[name] / cost.seconds / rate:.0f} %' if name in flops else '–',
            }
            for name, cost in costs.items()
        ]
        image_row = {
            'stage': f'one image, {count} windows',
            'time': f'{total:.3f} s',
            'share': '100 %',
            'memory, MiB': '',
            'GFLOP': '',
            'of the matmul rate': f'{rate / 1e9:.0f} GFLOP/s',
        }
        return [*rows, image_row]

    def _stage_functions(self):
        """Return the functions of the stages of one image, name -> function (), and the number of windows."""
        member = self._member('proxyclip', 'fsa')
        model, text = member
        config = compose('voc21', data_root=self.mini, backbone='toy', vfm='toy')
        dataset = DATASETS.build(config.test_dataloader.dataset)
        data = dataset[0]
        image = model.data_preprocessor(dict(inputs=[data['inputs']]))['inputs'][0]
        truth = data['data_samples'].gt_sem_seg.data[0].to(self.device)
        crops = [Crop(0, image, *place) for place in windows(*image.shape[1:], model.window, model.stride)]
        images = [cut_window(image, crop.rows, crop.columns, model.multiple) for crop in crops]
        inputs = [(*model.trunk(model.visual, window)[:2], model.features(window)) for window in images]

        def window_cosines(tokens, grid, features):
            return WindowCosines(model.method, LastBlock(model.visual, tokens, grid, features), text.rows)

        blocks = [window_cosines(*window) for window in inputs]
        results = [list(window_results([member], [crop]))[0][1] for crop in crops]
        for block in blocks:
            _ = block.first  # keeps the method's own map and readout, so that FSA is timed without them
        layout = Layout(tuple(image.shape[1:]), tuple(truth.shape), model.window, model.stride, model.multiple)
        [(pixels,)] = merged_images([member], [image], [layout.size])
        labels = model.labels(pixels, text, image)[0]
        functions = {
            'decode and resize': lambda: dataset[0],
            'trunk': lambda: [model.trunk(model.visual, window) for window in images],
            'VFM': lambda: [model.features(window) for window in images],
            'attention map': lambda: [_attended(window_cosines(*window)) for window in inputs],
            'readout': lambda: [block.cosines(block.attention) for block in blocks],
            'FSA': lambda: [list(block.rounds(model.feedback)) for block in blocks],
            'overlap-add': lambda: model.method.merge(results, layout),
            'post-processing': lambda: model.labels(pixels, text, image),
            'metric': lambda: confusion(truth, labels, 21),
        }
        return functions, len(crops)

    def fsa(self) -> list[Row]:
        """The last block with FSA on one window, against trunk + VFM, and against the dense reference.

        The dense reference, `fsa_seg.ops.reference`, runs in float32 alone, in two forms. The first form has one map if
        all heads share the map. The second form has a map per head, and sorts and scatters to prune, as direct
        implementations do.
        """
        model, _ = self._member('proxyclip', 'fsa')
        crop = self._window(model)
        tokens, grid, _ = model.trunk(model.visual, crop)
        features, rows = model.features(crop)['proxy'], []
        for queries in QUERIES:
            arguments = (model.visual, tokens, grid, self._text(model, queries))
            functions = {
                fsa: functools.partial(
                    token_logits, *arguments, method='proxyclip', feedback=fsa, vfm_features=features
                )
                for fsa in (None, True)
            }
            cost = self._costs({**functions, 'floor': lambda: (model.trunk(model.visual, crop), model.features(crop))})
            count = features.shape[2] * features.shape[3]
            row = {
                'N': count,
                'Q': queries,
                'trunk + VFM': str(cost['floor']),
                'map + readout': str(cost[None]),
                'map + readout + FSA': str(cost[True]),
                'of trunk + VFM': cost[True].over(cost['floor'], 100, 1) + ' %',
                'memory, MiB': cost[True].mebibytes,
                '4·N·max(N, Q), MiB': f'{16 * count * max(count, queries) / 2**20:.0f}',
                **{key: '–' for name in DENSE for key in (name, f'{name}, MiB', f'{name}: times faster')},
            }
            if queries != QUERIES[-1] and self.precision == 'fp32':  # at the last it would hold 20 GiB
                row.update(self._dense_costs(functions[True], arguments, features))
            rows.append(row)
        return rows

    def _dense_costs(self, fsa, arguments, features):
        """Return the entries of the dense references in a row of `fsa`.

        Args:
            fsa (function): the last block with FSA.
            arguments (tuple): tower, tokens, grid and text rows.
            features (B, C, I, J): of the VFM.
        """
        dense = functools.partial(
            reference.logits, *arguments, **reference.METHODS['proxyclip'], features=features, fsa={}
        )
        forms = dict(zip(DENSE, (dense, functools.partial(dense, per_head=True))))
        costs, entries = self._costs({'ours': fsa, **forms}, most=3), {}
        for name in DENSE:
            entries[name] = str(costs[name])
            entries[f'{name}, MiB'] = costs[name].mebibytes
            entries[f'{name}: times faster'] = costs[name].over(costs['ours'], digits=1)
        return entries

    def methods(self) -> list[Row]:
        """Each newer method's last stage on one window, beyond the trunk that all share, against a dense evaluation.

        The dense reference, `fsa_seg.ops.reference_methods`, holds each head's map, and runs in float32 alone.
        """
        model = self._member('clip', None).segmentor
        text, depth, rows = self._text(model, 21), len(model.visual.transformer.resblocks), []
        for side in METHOD_SIDES:
            pixels = [side * patch for patch in model.visual.patch_size]
            image = torch.rand(1, 3, *pixels, generator=torch.Generator().manual_seed(0)).to(self.device)
            tokens, grid, inner = model.trunk(model.visual, image, range(depth - 1))
            floor = {'trunk': functools.partial(model.trunk, model.visual, image)}
            for name, (method, dense, feedback) in FIELD.items():
                run = functools.partial(
                    token_logits, model.visual, tokens, grid, text, method=method, inner=inner, images=image
                )
                functions = {'ours': functools.partial(run, feedback=feedback)}
                if dense and self.precision == 'fp32':
                    layers = [*(inner[i] for i in range(depth - 1)), tokens]
                    sfr = feedback and vars(SFR())
                    functions['dense'] = functools.partial(
                        reference_methods.logits, model.visual, layers, grid, text, images=image, sfr=sfr, **dense
                    )
                if feedback is None:
                    functions['FSA'] = functools.partial(run, feedback=True)
                costs = self._costs({**floor, **functions}, most=3)
                ours, direct, fsa = (costs.get(key) for key in ('ours', 'dense', 'FSA'))
                rows.append(
                    {
                        'N': side**2,
                        'method': name,
                        'time': str(ours),
                        'of the trunk': ours.over(costs['trunk'], 100, 1) + ' %',
                        'with FSA, of the trunk': fsa.over(costs['trunk'], 100, 1) + ' %' if fsa else '–',
                        'memory, MiB': ours.mebibytes,
                        'dense': str(direct) if direct else '–',
                        'dense, MiB': direct.mebibytes if direct else '–',
                        'times faster': direct.over(ours, digits=1) if direct else '–',
                    }
                )
        return rows

    def pruning(self) -> list[Row]:
        """Ways to find the threshold of pruning (p = 0.45) in each row of S: FSA uses the first way."""
        model, _ = self._member('proxyclip', 'fsa')
        side, queries = PRUNED
        z = F.normalize(torch.randn(1, side**2, 64, device=self.device), dim=-1) @ self._text(model, queries)[:, :64].T
        similarity = FSA().similarities(z, z.mean(1, keepdim=True))

        def by_sort():
            ordered = similarity.sort(-1, descending=True).values
            count = (ordered.softmax(-1).cumsum(-1) <= 0.45).sum(-1, keepdim=True).clamp(min=1)
            return ordered.gather(-1, count - 1)

        def by_bisection(steps=24):
            probs, (low, high) = similarity.softmax(-1), similarity.aminmax(dim=-1, keepdim=True)
            for _ in range(steps):
                middle = (low + high) / 2
                within = (probs * (similarity >= middle)).sum(-1, keepdim=True) <= 0.45
                low, high = torch.where(within, low, middle), torch.where(within, middle, high)
            return high

        functions = {
            'top-k of 0.45·N': functools.partial(threshold, similarity, 0.45),
            'sort': by_sort,
            'bisection of the mass': by_bisection,
        }
        masks = {name: similarity >= function() for name, function in functions.items()}
        costs = self._costs(functions)
        return [
            {
                'way': name,
                'N': side**2,
                'time': str(cost),
                'memory, MiB': cost.mebibytes,
                'entries kept unlike sort': int((masks[name] != masks['sort']).sum()),
            }
            for name, cost in costs.items()
        ]

    def large(self) -> list[Row]:
        """The last block with FSA in blocks of rows, at the grid of a 1024-pixel window, without an N×N map."""
        side, queries = LARGE
        model, _ = self._member('proxyclip', 'fsa')
        cost = self._costs({'': self._random_block(model, side, queries)}, most=1)['']
        return [
            {
                'N': side**2,
                'Q': queries,
                'time': str(cost),
                'memory, MiB': cost.mebibytes,
                'one N×N map, MiB': f'{4 * side**4 / 2**20:.0f}',
            }
        ]

    def shared_pass(self) -> list[Row]:
        """Several cells in one pass over a window, against one after the other, and against trunk + VFMs."""
        column = [self._member(method, fsa) for method, fsa in ROWS]
        vfms = {'vfm': self.vfms} if self.vfms else {}
        cells = suite_cells(load_suite('attention33'), backbone=[self.backbone], **vfms)
        maps = [self._member(cell['method'], cell['feedback'], cell.get('vfm')) for cell in cells]
        return [
            self._shared(f'{len(column)}: four methods, with and without FSA', column),
            self._shared(f'{len(maps)}: eleven attention maps, with and without FSA', maps),
        ]

    def _shared(self, name, members):
        """Return the row of a pass over one window by several members."""
        crop, first = self._crop(members[0].segmentor), members[0].segmentor
        segmentors = (member.segmentor for member in members)
        vfms = {id(vfm): segmentor for segmentor in segmentors for vfm in segmentor.vfms.values()}.values()

        def floor():
            first.trunk(first.visual, self._window(first))
            for segmentor in vfms:
                segmentor.features(self._window(segmentor))

        functions = {
            'floor': floor,
            'one pass': lambda: list(window_results(members, [crop])),
            'alone': lambda: [list(window_results([member], [crop])) for member in members],
        }
        cost = self._costs(functions, most=3, memory=['one pass'])
        return {
            'rows': name,
            'VFMs': len(vfms),
            'floor: trunk + VFMs': str(cost['floor']),
            'one pass': str(cost['one pass']),
            'one after the other': str(cost['alone']),
            'one pass / floor': cost['one pass'].over(cost['floor']),
            'one after the other / floor': cost['alone'].over(cost['floor']),
            'memory of the pass, MiB': cost['one pass'].mebibytes,
        }

    def batches(self) -> list[Row]:
        """Windows of ProxyCLIP + FSA in batches, against one at a time."""
        member, sizes = self._member('proxyclip', 'fsa'), (1, 2, 4)
        crop = self._crop(member.segmentor)
        costs = self._costs(
            {size: lambda size=size: list(window_results([member], [crop] * size)) for size in sizes}, most=3
        )
        return [
            {
                'windows at once': size,
                'time': str(cost),
                'windows per second': f'{size / cost.seconds:.2f}',
                'over one at a time': costs[1].over(cost, size),
                'memory, MiB': cost.mebibytes,
            }
            for size, cost in costs.items()
        ]

    def precision_agreement(self) -> list[Row]:
        """The share of pixels that get float32's labels in half precision: toy models, the mini split of VOC21."""
        return [
            {
                'method': name,
                'pixels': pixels,
                **{f'{key} as fp32': f'{100 * (1 - count / pixels):.2f} %' for key, count in moved.items()},
            }
            for name, pixels, moved in self.moved_labels((*AGREEING, *NEWER))
        ]

    def moved_labels(
        self,
        rows: Sequence[tuple[str, str | None]] = AGREEING,
        images: int | None = None,
        precisions: Sequence[str] = ('fp16', 'bf16'),
    ) -> Iterator[tuple[str, int, dict[str, int]]]:
        """Yield for each row its name, the number of pixels, and precision -> pixels with another label than float32's.

        Toy models label the mini split of VOC21.

        Args:
            rows: method and feedback of each row.
            images: number of the split's images, by default AGREEMENT.
            precisions: precisions to compare with float32.
        """
        for method, fsa in rows:
            config = compose('voc21', method, fsa, 'toy', 'toy', protocol=PROTOCOL, data_root=self.mini)
            dataset, labels = DATASETS.build(config.test_dataloader.dataset), {}
            for precision in ('fp32', *precisions):
                model = MODELS.build(dict(config.model, precision=precision)).to(self.device)
                maps = []
                for i in range(min(images or AGREEMENT, len(dataset))):
                    data = dataset[i]
                    prediction = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
                    maps.append(prediction.pred_sem_seg.data.flatten())
                    self.step()
                labels[precision] = torch.cat(maps)
            moved = {precision: int((labels[precision] != labels['fp32']).sum()) for precision in precisions}
            yield row_name(config.cell), len(labels['fp32']), moved

    def growth(self) -> list[Row]:
        """The last block with FSA over N and over Q; exponents are fitted to the last three points of each.

        Up to N = 4096 FSA keeps the proxy map whole; beyond, FSA computes the map anew at each use.
        """
        (model, _), rows = self._member('proxyclip', 'fsa'), []
        for over, points in GROWTH.items():
            costs = [self._costs({'': self._random_block(model, *point)}, most=3)[''] for point in points]
            x = [side**2 if over == 'N' else queries for side, queries in points]
            exponent, exponent_of_memory = (
                _exponent(x, [getattr(cost, key) for cost in costs]) for key in ('seconds', 'bytes')
            )
            rows += [
                {
                    'over': over,
                    'N': side**2,
                    'Q': queries,
                    'time': str(cost),
                    'memory, MiB': cost.mebibytes,
                    'exponent of time': exponent,
                    'exponent of memory': exponent_of_memory,
                    'seconds': cost.seconds,
                    'bytes': cost.bytes,
                }
                for (side, queries), cost in zip(points, costs)
            ]
        return rows

    @torch.no_grad()
    def compiled(self) -> list[Row]:
        """Trunk and VFM under `torch.compile`, against trunk and VFM without it."""
        plain, _ = self._member('proxyclip', None)
        try:
            fast, _ = self._member('proxyclip', None, compile=True)
        except UserError as error:
            return [{'model': 'trunk, VFM', 'plain': '–', 'compiled': str(error), 'times faster': '–'}]
        crop = self._window(plain)
        start = time.perf_counter()
        fast.trunk(fast.visual, crop), fast.features(crop)
        seconds = time.perf_counter() - start
        rows = [
            {'model': name, 'plain': str(before), 'compiled': str(after), 'times faster': before.over(after)}
            for name, before, after in self._trunk_and_vfm(plain, fast)
        ]
        return [*rows, {'model': 'both', 'plain': '', 'compiled': f'{seconds:.0f} s to compile', 'times faster': ''}]

    @torch.no_grad()
    def bf16(self) -> list[Row]:
        """Trunk and VFM in bf16, against float32."""
        plain, half = (self._member('proxyclip', None, precision=precision).segmentor for precision in ('fp32', 'bf16'))
        return [
            {'model': name, 'fp32': str(before), 'bf16': str(after), 'times faster': before.over(after)}
            for name, before, after in self._trunk_and_vfm(plain, half)
        ]

    def _trunk_and_vfm(self, plain, variant):
        """Yield ('trunk', plain's `Cost`, variant's `Cost`) of two segmentors on one window, then ('VFM', ...)."""
        crop = self._window(plain)
        for name, run in (
            ('trunk', lambda model: model.trunk(model.visual, crop)),
            ('VFM', lambda model: model.features(crop)),
        ):
            cost = self._costs({model: functools.partial(run, model) for model in (plain, variant)}, memory=[])
            yield name, cost[plain], cost[variant]

    @torch.no_grad()
    def window(self, most: int = 2, once: bool = False) -> dict:
        """One window under ProxyCLIP + FSA: bytes of weights, peak of memory beyond the weights, and rates.

        Args:
            most: size of the larger batch on a CPU; on a GPU half of the free memory gives the size.
            once: whether the run that measures the memory is the only run, and gives the time as well.

        Returns:
            `weights` and `peak` in bytes (NaN if the system does not tell the peak), and `rates`: windows at once ->
            (images of 336×448 pixels per second without loading and post-processing, share of the matmul rate).
        """
        member = self._member('proxyclip', 'fsa')
        model, _ = member
        crop, windows_per_image = self._crop(model), len(windows(*IMAGE, model.window, model.stride))

        def run(size):
            return list(window_results([member], [crop] * size))

        window = self._window(model)
        flops = product_flops(
            lambda: (model.trunk(model.visual, window), model.features(window))
        )  # the first run warms up
        results, (seconds, peak) = measured(functools.partial(run, 1), self.device)
        if not results[0][1].cosines.isfinite().all():
            raise RuntimeError('some cosines are not finite')
        del results
        times, rate = {1: seconds}, self._matmul_rate()
        if not once:
            most = most if self.device.type == 'cpu' else model.batch_size(functools.partial(run, 1))
            sizes = {size: functools.partial(run, size) for size in dict.fromkeys((1, most))}
            times = {size: cost.seconds for size, cost in self._costs(sizes, memory=[]).items()}
        parameters = [*model.visual.parameters(), *model.vfms.parameters()]
        return dict(
            weights=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            peak=peak,
            rates={
                size: (size / windows_per_image / seconds, flops * size / seconds / rate)
                for size, seconds in times.items()
            },
        )

    def throughput(self) -> list[Row]:
        """Images of 336×448 pixels per second under ProxyCLIP + FSA, without loading and metric: batches of windows."""
        member = self._member('proxyclip', 'fsa')
        model, text = member
        list(merged_images([member], [torch.rand(3, *IMAGE, device=self.device)], [IMAGE]))
        fitting, rate = model.windows_at_once, self._matmul_rate()
        windows_per_image = len(windows(*IMAGE, model.window, model.stride))
        images = -(-max(8, 2 * fitting) // windows_per_image)  # enough for two batches
        inputs = [torch.rand(3, *IMAGE, device=self.device) for _ in range(images)]

        def run(size):
            model.window_batch = size
            return model.predict(inputs, [SegDataSample(metainfo=dict(ori_shape=IMAGE)) for _ in inputs], text)

        costs = self._costs({size: functools.partial(run, size) for size in dict.fromkeys((1, fitting))}, memory=[])
        crop = self._window(model)
        flops = product_flops(lambda: (model.trunk(model.visual, crop), model.features(crop)))
        count = windows_per_image * images
        return [
            {
                'windows at once': size,
                'images': images,
                'time': str(cost),
                'images per second': f'{images / cost.seconds:.2f}',
                'over one at a time': costs[1].over(cost),
                'trunk and VFM, of the matmul rate': f'{100 * flops * count / cost.seconds / rate:.0f} %',
            }
            for size, cost in costs.items()
        ]

    def rates(self) -> list[Row]:
        """The rates by which hours are estimated: of trunk, VFM, and a whole image of ProxyCLIP + FSA, the last row.

        FLOPs are those of `fsa_seg.sweep.estimate`, so that an estimate of these works gives these times.
        """
        member = self._member('proxyclip', 'fsa')
        model, text = member
        list(merged_images([member], [torch.rand(3, *IMAGE, device=self.device)], [IMAGE]))
        config = compose(
            'voc21', 'proxyclip', 'fsa', self.backbone, self.vfm, PROTOCOL, data_root=self.mini, random_weights=0
        )
        config.model.update(words=[[query] for query in text.queries], window=model.window, stride=model.stride)
        work, at_once = pass_work([config], [IMAGE]), model.windows_at_once
        images = max(1, round(at_once / work.windows))
        inputs = [torch.rand(3, *IMAGE, device=self.device) for _ in range(images)]
        crops = self._window(model).expand(at_once, -1, -1, -1)
        sides = (crops.shape[2], crops.shape[3])
        flops = dict(
            trunk=at_once * trunk_flops(config.model.backbone, sides),
            VFM=at_once * vfm_flops(config.model.vfm['proxy'], sides),
        )
        flops['whole image'] = images * work.flops
        costs = self._costs(
            {
                'trunk': lambda: model.trunk(model.visual, crops),
                'VFM': lambda: model.features(crops),
                'whole image': lambda: model.predict(inputs, None, text),
            },
            memory=[],
        )
        return [
            {
                'device': device_name(self.device),
                'precision': self.precision,
                'work': name,
                'windows at once': at_once,
                'GFLOP': f'{flops[name] / 1e9:.0f}',
                'time': str(cost),
                'GFLOP/s': f'{flops[name] / cost.seconds / 1e9:.0f}',
                'rate': flops[name] / cost.seconds,
            }
            for name, cost in costs.items()
        ]

    def _member(self, method, feedback, vfm=None, queries=21, **options):
        """Return a segmentor with random weights, and random text; without `options`, members share their models."""
        components = load_components(method, feedback, self.backbone, vfm or self.vfm)
        settings = protocol_settings(load_protocol(PROTOCOL, components), None)
        config = model_config(components, settings, self.precision, self.device, random_weights=0)
        model = MODELS.build(dict(config, models={} if options else self._models, **options)).to(self.device)
        names = tuple(map(str, range(queries)))
        return Member(model, Text(self._text(model, queries), (1,) * queries, names))

    def _text(self, model, queries):
        """Return random unit rows (Q, E); an equal number of queries and an equal width give the same tensor."""
        key = queries, model.visual.proj.shape[1]
        if key not in self._texts:
            rows = torch.randn(*key, generator=torch.Generator().manual_seed(0))
            self._texts[key] = F.normalize(rows, dim=-1).to(self.device)
        return self._texts[key]

    def _crop(self, model):
        """Return an image of random pixels with a window that covers the image."""
        image = torch.rand(3, model.window, model.window, generator=torch.Generator().manual_seed(0)).to(self.device)
        return Crop(0, image, (0, model.window), (0, model.window))

    def _window(self, model):
        """Return the pixels (1, 3, height, width) of `_crop`, padded for a segmentor."""
        crop = self._crop(model)
        return cut_window(crop.image, crop.rows, crop.columns, model.multiple)

    def _random_block(self, model, side, queries):
        """Return a function that runs map, readout and FSA on a grid of features of `side`, twice as fine as CLIP's."""
        generator = torch.Generator().manual_seed(0)
        half, width = max(1, side // 2), model.visual.proj.shape[0]
        tokens = torch.randn(1, 1 + half**2, width, generator=generator)
        coarse = F.interpolate(torch.randn(1, width, 6, 6, generator=generator), (side, side))
        features = 0.5 * coarse + torch.randn(1, width, side, side, generator=generator)
        dtype, text = PRECISIONS[self.precision], self._text(model, queries)
        tokens, features = tokens.to(self.device, dtype), features.to(self.device, dtype)
        return lambda: token_logits(
            model.visual, tokens, (half, half), text, method='proxyclip', feedback=True, vfm_features=features
        )

    def _matmul_rate(self):
        """Return the best rate of several products of large square matrices, in FLOP per second."""
        side = 8192 if self.device.type == 'cuda' else 2048
        matrix = torch.randn(side, side, device=self.device, dtype=PRECISIONS[self.precision])
        return 2 * side**3 / min(self._times({'': lambda: matrix @ matrix}, max(5, self.repeats))[''])

    @torch.no_grad()
    def _costs(self, functions, most=math.inf, memory=None):
        """Return the `Cost` of each function; the functions take turns, and a further run measures the memory.

        Args:
            functions (dict): name -> function ().
            most (int): limit of the repeats.
            memory (list): names of the functions whose memory is measured; by default all.
        """
        times = self._times(functions, min(self.repeats, most))
        peaks = {name: tensor_peak(functions[name], self.device) for name in (functions if memory is None else memory)}
        return {name: Cost(times[name], peaks.get(name)) for name in functions}

    @torch.no_grad()
    def _times(self, functions, repeats):
        """Return name -> seconds of each run; the functions take turns, and the first turn does not count."""
        times = {name: [] for name in functions}
        for i, (name, function) in itertools.product(range(repeats + 1), functions.items()):
            self._wait()
            start = time.perf_counter()
            function()
            self._wait()
            times[name] += [time.perf_counter() - start] if i else []
            self.step()
        return times

    def _wait(self):
        """Wait until a GPU has finished its work."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)


SECTIONS = (
    'stages',
    'fsa',
    'methods',
    'whole_image',
    'image_scope',
    'pruning',
    'large',
    'shared_pass',
    'batches',
    'precision_agreement',
    'growth',
    'compiled',
    'throughput',
    'rates',
)


def report(sections: Mapping[str, Sequence[Row]], where: str) -> str:
    """Return Markdown of measured sections, name -> rows, under a line about the machine, `where`."""
    blocks = [where]
    for name, rows in sections.items():
        title = getattr(CostTables, name).__doc__.splitlines()[0]
        keys = [key for key in rows[0] if key not in ('seconds', 'bytes', 'rate')]
        blocks += [title, markdown_table(keys, [[row[key] for key in keys] for row in rows])]
    return '\n\n'.join(blocks)


def plot_growth(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Draw the growth of time and memory over N and over Q as a PNG; the rows are those of `CostTables.growth`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure((9, 3.6), layout='constrained')
    for axes, over in zip(figure.subplots(1, 2), 'NQ'):
        points = [row for row in rows if row['over'] == over]
        fixed = 'Q' if over == 'N' else 'N'
        x = [row[over] for row in points]
        twin = axes.twinx()
        lines = axes.loglog(
            x,
            [row['seconds'] for row in points],
            'o-',
            color='tab:blue',
            label=f'time, ∝ {over}^{points[0]["exponent of time"]}',
        )
        lines += twin.loglog(
            x,
            [row['bytes'] / 2**20 for row in points],
            's--',
            color='tab:red',
            label=f'memory, ∝ {over}^{points[0]["exponent of memory"]}',
        )
        for line, side in zip(lines, (axes, twin)):  # a factor of two above and below keeps slopes honest
            side.set_ylim(min(line.get_ydata()) / 2, max(line.get_ydata()) * 2)
            side.yaxis.set_major_formatter(ScalarFormatter())
            side.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(x, [str(value) for value in x])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(
            xlabel='patches N' if over == 'N' else 'queries Q', ylabel='seconds', title=f'{fixed} = {points[0][fixed]}'
        )
        twin.set_ylabel('MiB beyond the inputs')
        axes.legend(lines, [line.get_label() for line in lines], loc='upper left')
    figure.savefig(path, dpi=100)


def machine(device: str, precision: str) -> str:
    """Return a line about the machine and the libraries."""
    cpu = f'{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}), ' if torch.device(device).type == 'cpu' else ''
    return f'{cpu}{device_name(device)}; {precision}; torch {torch.__version__}, Python {platform.python_version()}.'


def _exponent(x, y):
    """Return the exponent of a power law through the last three points, as text."""
    x, y = x[-3:], y[-3:]
    return f'{np.polyfit(np.log(x), np.log(y), 1)[0]:.2f}'
