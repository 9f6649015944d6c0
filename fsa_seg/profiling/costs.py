"""What the suite costs: time and memory by stage, against named references in the same run, and how they grow.

Models have random weights, text and pixels are random: neither changes what is computed. Functions that are compared
take turns after one run that is not counted; a time is the median, with the least and the most, and so is a ratio of each
turn's times.

Shape legend: N patches, Q queries.
"""

import functools
import itertools
import math
import platform
import statistics
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
from fsa_seg.ops import reference
from fsa_seg.ops.device import device_name
from fsa_seg.ops.feedback import FSA, threshold
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.windows import Layout, cut_window, windows
from fsa_seg.profiling.measured import measured, tensor_peak
from fsa_seg.system.machine import cpu_name
from fsa_seg.system.markdown import markdown_table

PROTOCOL = 'proxyclip'  # of all measurements: windows, stride
ROWS = list(
    itertools.product(('maskclip', 'sclip', 'clearclip', 'proxyclip'), (None, 'fsa'))
)  # of one backbone's column
IMAGE = (336, 448)  # pixels of a resized image
GROWTH = dict(N=[(side, 21) for side in (21, 28, 42, 64)], Q=[(42, queries) for queries in (21, 60, 171, 400, 847)])
QUERIES = (
    21,
    171,
    847,
)  # of VOC21, COCO-Stuff164k and ADE20K's longest list; dense references run for all but the last
AGREEMENT = 10  # images whose labels are compared in half precision
AGREEING = (('proxyclip', 'fsa'), ('sclip', 'fsa'), ('clip', None))  # method and feedback of each comparison
PRUNED = (42, 21)  # side of the grid, and queries, whose similarities are pruned
LARGE = (128, 847)  # side of the grid of a 1024-pixel window at patch 8, and ADE20K's longest list of queries


class Cost(NamedTuple):
    """What a function cost.

    Attributes:
        times (list of float): seconds of each run.
        bytes (int): of tensors at their peak, beyond what was held before.
    """

    times: list
    bytes: int

    seconds = property(lambda self: statistics.median(self.times))
    mebibytes = property(lambda self: f'{self.bytes / 2**20:.0f}')

    def over(self, other, factor=1.0, digits=2):
        """Return factor × this time over another's, turn by turn: the median, with the least and the most, as text."""
        ratios = [factor * mine / theirs for mine, theirs in zip(self.times, other.times)]
        spread = f' ({min(ratios):.{digits}f}–{max(ratios):.{digits}f})' if len(ratios) > 1 else ''
        return f'{statistics.median(ratios):.{digits}f}{spread}'

    def __str__(self):
        digits = 3 if self.seconds < 1 else 2
        spread = f' ({min(self.times):.{digits}f}–{max(self.times):.{digits}f})' if len(self.times) > 1 else ''
        return f'{self.seconds:.{digits}f} s{spread}'


def _attended(windows):
    """Return A·values of a batch of windows under a method."""
    return windows.attention.apply(windows.block.values(windows.attention))


class CostTables:
    """The sections of measurements, each a method that returns a list of rows (dicts with the same keys).

    Args:
        backbone (str), vfm (str): names of components; models get random weights.
        precision (str): 'fp32', 'fp16' or 'bf16'.
        device (str): where to run.
        repeats (int): runs of each function; what takes long runs at most 3 times, the last block at its largest once.
        mini (str): a data root with the toy world, whose images are decoded.
        vfms (list of str): VFMs of the eleven attention maps; by default those of the suite `attention33`.
        step: function () called after each timed run, to show progress.
    """

    def __init__(self, backbone, vfm, precision, device, repeats, mini, vfms=None, step=lambda: None):
        self.backbone, self.vfm, self.precision, self.device = backbone, vfm, precision, torch.device(device)
        self.repeats, self.mini, self.vfms, self.step = repeats, mini, vfms, step
        self._models, self._texts = {}, {}

    def stages(self):
        """One image under ProxyCLIP + FSA, stage by stage, 21 queries: its windows one at a time."""
        member = self._member('proxyclip', 'fsa')
        model, text = member
        dataset = DATASETS.build(
            compose('voc21', data_root=self.mini, backbone='toy', vfm='toy').test_dataloader.dataset
        )
        data = dataset[0]
        image = model.data_preprocessor(dict(inputs=[data['inputs']]))['inputs'][0]
        truth = data['data_samples'].gt_sem_seg.data[0].to(self.device)
        crops = [Crop(0, image, *place) for place in windows(*image.shape[1:], model.window, model.stride)]
        cut = [cut_window(image, crop.rows, crop.columns, model.multiple) for crop in crops]
        inputs = [(*model.trunk(model.visual, window)[:2], model.features(window)) for window in cut]

        def under_the_method(tokens, grid, features):
            return WindowCosines(model.method, LastBlock(model.visual, tokens, grid, features), text.rows)

        blocks = [under_the_method(*window) for window in inputs]
        done = [list(window_results([member], [crop]))[0][1] for crop in crops]
        for block in blocks:
            _ = block.first  # FSA is timed without the method's own map and readout, which are kept
        layout = Layout(tuple(image.shape[1:]), tuple(truth.shape), model.window, model.stride, model.multiple)
        merged = model.method.merge(done, layout)
        labels = model.labels(merged, text, image)[0]
        costs = self._costs(
            {
                'decode and resize': lambda: dataset[0],
                'trunk': lambda: [model.trunk(model.visual, window) for window in cut],
                'VFM': lambda: [model.features(window) for window in cut],
                'attention map': lambda: [_attended(under_the_method(*window)) for window in inputs],
                'readout': lambda: [block.cosines(block.attention) for block in blocks],
                'FSA': lambda: [list(block.rounds(model.feedback)) for block in blocks],
                'overlap-add': lambda: model.method.merge(done, layout),
                'post-processing': lambda: model.labels(merged, text, image),
                'metric': lambda: confusion(truth, labels, 21),
            }
        )
        rate = self._matmul_rate()
        flops = {
            'trunk': self._flops(lambda: [model.trunk(model.visual, window) for window in cut]),
            'VFM': self._flops(lambda: [model.features(window) for window in cut]),
        }
        total = sum(cost.seconds for cost in costs.values())
        rows = []
        for name, cost in costs.items():
            own = flops.get(name)
            rows.append(
                {
                    'stage': name,
                    'time': str(cost),
                    'share': f'{100 * cost.seconds / total:.1f} %',
                    'memory, MiB': cost.mebibytes,
                    'GFLOP': f'{own / 1e9:.0f}' if own else '–',
                    'of the matmul rate': f'{100 * own / cost.seconds / rate:.0f} %' if own else '–',
                }
            )
        rows.append(
            {
                'stage': f'one image, {len(crops)} windows',
                'time': f'{total:.3f} s',
                'share': '100 %',
                'memory, MiB': '',
                'GFLOP': '',
                'of the matmul rate': f'{rate / 1e9:.0f} GFLOP/s',
            }
        )
        return rows

    def fsa(self):
        """The last block with FSA on one window, against trunk + VFM, and against the dense evaluation of `fsa_seg.ops.reference`.

        The latter, in float32 alone, has two forms: one map where all heads share it; and a map per head throughout, and
        pruning by a sort whose indices are scattered back, as direct implementations do.
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
            floor = cost['floor']
            count = features.shape[2] * features.shape[3]
            row = {
                'N': count,
                'Q': queries,
                'trunk + VFM': str(floor),
                'map + readout': str(cost[None]),
                'map + readout + FSA': str(cost[True]),
                'of trunk + VFM': cost[True].over(floor, 100, 1) + ' %',
                'memory, MiB': cost[True].mebibytes,
                '4·N·max(N, Q), MiB': f'{16 * count * max(count, queries) / 2**20:.0f}',
                **{
                    key: '–'
                    for name in ('dense', 'per head')
                    for key in (name, f'{name}, MiB', f'{name}: times faster')
                },
            }
            if queries != QUERIES[-1] and self.precision == 'fp32':  # at the last it would hold 20 GiB
                formula = reference.METHODS['proxyclip']
                dense = functools.partial(reference.logits, *arguments, **formula, features=features, fsa={})
                sides = self._costs(
                    {'ours': functions[True], 'dense': dense, 'per head': functools.partial(dense, per_head=True)},
                    most=3,
                )
                for name in ('dense', 'per head'):
                    row.update(
                        {
                            name: str(sides[name]),
                            f'{name}, MiB': sides[name].mebibytes,
                            f'{name}: times faster': sides[name].over(sides['ours'], digits=1),
                        }
                    )
            rows.append(row)
        return rows

    def pruning(self):
        """Ways to find the threshold of pruning (p = 0.45) in each row of S: the first is used."""
        model, _ = self._member('proxyclip', 'fsa')
        side, queries = PRUNED
        z = F.normalize(torch.randn(1, side**2, 64, device=self.device), dim=-1) @ self._text(model, queries)[:, :64].T
        similarity = FSA().similarities(z, z.mean(1, keepdim=True))

        def by_sort():
            ordered = similarity.sort(-1, descending=True).values
            kept = (ordered.softmax(-1).cumsum(-1) <= 0.45).sum(-1, keepdim=True).clamp(min=1)
            return ordered.gather(-1, kept - 1)

        def by_bisection(steps=24):
            probs, (low, high) = similarity.softmax(-1), similarity.aminmax(dim=-1, keepdim=True)
            for _ in range(steps):
                middle = (low + high) / 2
                fits = (probs * (similarity >= middle)).sum(-1, keepdim=True) <= 0.45
                low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
            return high

        functions = {
            'top-k of 0.45·N': functools.partial(threshold, similarity, 0.45),
            'sort': by_sort,
            'bisection of the mass': by_bisection,
        }
        kept = {name: similarity >= function() for name, function in functions.items()}
        costs = self._costs(functions)
        return [
            {
                'way': name,
                'N': side**2,
                'time': str(cost),
                'memory, MiB': cost.mebibytes,
                'entries kept unlike sort': int((kept[name] != kept['sort']).sum()),
            }
            for name, cost in costs.items()
        ]

    def large(self):
        """The last block with FSA in blocks of rows, at the grid of a 1024-pixel window: no N×N map is held."""
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

    def shared_pass(self):
        """Several cells in one pass over a window, against one after the other, and against trunk + VFMs."""
        column = [self._member(method, fsa) for method, fsa in ROWS]
        chosen = {'vfm': self.vfms} if self.vfms else {}
        suite = suite_cells(load_suite('attention33'), backbone=[self.backbone], **chosen)
        maps = [self._member(cell['method'], cell['feedback'], cell.get('vfm')) for cell in suite]
        return [
            self._shared(f'{len(column)}: four methods, with and without FSA', column),
            self._shared(f'{len(maps)}: eleven attention maps, with and without FSA', maps),
        ]

    def _shared(self, name, members):
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

    def batches(self):
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

    def precision_agreement(self):
        """The share of pixels that get float32's labels in half precision: toy models, the mini split of VOC21."""
        return [
            {
                'method': name,
                'pixels': pixels,
                **{f'{key} as fp32': f'{100 * (1 - count / pixels):.2f} %' for key, count in moved.items()},
            }
            for name, pixels, moved in self.moved_labels()
        ]

    def moved_labels(self, rows=AGREEING, images=None, precisions=('fp16', 'bf16')):
        """Yield (row's name, pixels labelled, {precision: pixels whose label is not float32's}).

        Toy models label the mini split of VOC21.

        Args:
            rows (sequence of (str, str)): method and feedback.
            images (int): of the split, by default AGREEMENT.
            precisions (sequence of str): that are compared with float32.
        """
        for method, fsa in rows:
            config = compose('voc21', method, fsa, 'toy', 'toy', protocol=PROTOCOL, data_root=self.mini)
            dataset, labels = DATASETS.build(config.test_dataloader.dataset), {}
            for precision in ('fp32', *precisions):
                model = MODELS.build(dict(config.model, precision=precision)).to(self.device)
                maps = []
                for i in range(min(images or AGREEMENT, len(dataset))):
                    data = dataset[i]
                    out = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
                    maps.append(out.pred_sem_seg.data.flatten())
                    self.step()
                labels[precision] = torch.cat(maps)
            moved = {precision: int((labels[precision] != labels['fp32']).sum()) for precision in precisions}
            yield row_name(config.cell), len(labels['fp32']), moved

    def growth(self):
        """The last block with FSA over N and over Q; exponents are fitted to the last three of each.

        Up to N = 4096 the proxy map is kept whole; beyond, it is made anew at each use.
        """
        (model, _), rows = self._member('proxyclip', 'fsa'), []
        for over, points in GROWTH.items():
            costs = [self._costs({'': self._random_block(model, *point)}, most=3)[''] for point in points]
            x = [side**2 if over == 'N' else queries for side, queries in points]
            time_, memory = (_exponent(x, [getattr(cost, key) for cost in costs]) for key in ('seconds', 'bytes'))
            rows += [
                {
                    'over': over,
                    'N': side**2,
                    'Q': queries,
                    'time': str(cost),
                    'memory, MiB': cost.mebibytes,
                    'exponent of time': time_,
                    'exponent of memory': memory,
                    'seconds': cost.seconds,
                    'bytes': cost.bytes,
                }
                for (side, queries), cost in zip(points, costs)
            ]
        return rows

    @torch.no_grad()
    def compiled(self):
        """Trunk and VFM under `torch.compile`, against themselves."""
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
    def bf16(self):
        """Trunk and VFM in bf16, against float32."""
        plain, half = (self._member('proxyclip', None, precision=precision).segmentor for precision in ('fp32', 'bf16'))
        return [
            {'model': name, 'fp32': str(before), 'bf16': str(after), 'times faster': before.over(after)}
            for name, before, after in self._trunk_and_vfm(plain, half)
        ]

    def _trunk_and_vfm(self, plain, other):
        """Yield ('trunk', `Cost` of one segmentor's, of another's) on one window, then those of their VFMs."""
        crop = self._window(plain)
        for name, run in (('trunk', lambda m: m.trunk(m.visual, crop)), ('VFM', lambda m: m.features(crop))):
            cost = self._costs({m: functools.partial(run, m) for m in (plain, other)}, memory=[])
            yield name, cost[plain], cost[other]

    @torch.no_grad()
    def window(self, most=2, once=False):
        """One window under ProxyCLIP + FSA: bytes of weights, peak of memory beyond them, and rates.

        Returns:
            dict: `weights` and `peak` (bytes; NaN where the system does not tell), and `rates`: windows at once -> (images
            of 336×448 pixels per second, without loading and post-processing; trunk and VFM's share of the matmul rate).

        Args:
            most (int): windows at once on a CPU, beside one; on a GPU as many as half of its free memory holds.
            once (bool): time the one run whose memory is measured, no batch and no further run.
        """
        member = self._member('proxyclip', 'fsa')
        model, _ = member
        crop, each = self._crop(model), len(windows(*IMAGE, model.window, model.stride))

        def run(size):
            return list(window_results([member], [crop] * size))

        window = self._window(model)
        flops = self._flops(lambda: (model.trunk(model.visual, window), model.features(window)))  # it warms up as well
        results, (seconds, peak) = measured(functools.partial(run, 1), self.device)
        if not results[0][1].cosines.isfinite().all():
            raise RuntimeError('some cosines are not finite')
        del results
        times, rate = {1: seconds}, self._matmul_rate()
        if not once:
            most = most if self.device.type == 'cpu' else model.batch_size(functools.partial(run, 1))
            sizes = {size: functools.partial(run, size) for size in dict.fromkeys((1, most))}
            times = {size: cost.seconds for size, cost in self._costs(sizes, memory=[]).items()}
        weights = sum(
            p.numel() * p.element_size() for component in (model.visual, model.vfms) for p in component.parameters()
        )
        return dict(
            weights=weights,
            peak=peak,
            rates={size: (size / each / seconds, flops * size / seconds / rate) for size, seconds in times.items()},
        )

    def throughput(self):
        """Images of 336×448 pixels per second under ProxyCLIP + FSA, without loading and metric: batches of windows."""
        member = self._member('proxyclip', 'fsa')
        model, text = member
        list(merged_images([member], [torch.rand(3, *IMAGE, device=self.device)], [IMAGE]))
        fitting, rate = model.windows_at_once, self._matmul_rate()
        each = len(windows(*IMAGE, model.window, model.stride))
        images = -(-max(8, 2 * fitting) // each)  # they fill two batches
        inputs = [torch.rand(3, *IMAGE, device=self.device) for _ in range(images)]

        def run(size):
            model.window_batch = size
            return model.predict(inputs, [SegDataSample(metainfo=dict(ori_shape=IMAGE)) for _ in inputs], text)

        costs = self._costs({size: functools.partial(run, size) for size in dict.fromkeys((1, fitting))}, memory=[])
        crop = self._window(model)
        flops = self._flops(lambda: (model.trunk(model.visual, crop), model.features(crop)))
        count = each * images
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

    def _member(self, method, feedback, vfm=None, queries=21, **options):
        """Return a segmentor with random weights, and random text; models are shared by all that are made here."""
        components = load_components(method, feedback, self.backbone, vfm or self.vfm)
        settings = protocol_settings(load_protocol(PROTOCOL, components), None)
        config = model_config(components, settings, self.precision, self.device, random_weights=0)
        model = MODELS.build(dict(config, models={} if options else self._models, **options)).to(self.device)
        names = tuple(map(str, range(queries)))
        return Member(model, Text(self._text(model, queries), (1,) * queries, names))

    def _text(self, model, queries):
        """Return random unit rows; those of one number and tower are one tensor."""
        key = queries, model.visual.proj.shape[1]
        if key not in self._texts:
            rows = torch.randn(*key, generator=torch.Generator().manual_seed(0))
            self._texts[key] = F.normalize(rows, dim=-1).to(self.device)
        return self._texts[key]

    def _crop(self, model):
        """Return a window of random pixels, to be cut."""
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
        """Return the rate of a product of large square matrices, the best of several, in FLOP per second."""
        side = 8192 if self.device.type == 'cuda' else 2048
        a = torch.randn(side, side, device=self.device, dtype=PRECISIONS[self.precision])
        return 2 * side**3 / min(self._times({'': lambda: a @ a}, max(5, self.repeats))[''])

    def _flops(self, run):
        """Return the FLOPs of the products in a function.

        Torch's fused attention is switched off: which of its forms the counter knows differs between torch's versions.
        """
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                run()
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        return counter.get_total_flops()

    @torch.no_grad()
    def _costs(self, functions, most=math.inf, memory=None):
        """Return the `Cost` of each function of a dict; they take turns, and memory is seen in a run of its own.

        Args:
            functions (dict): name -> function ().
            most (int): of the repeats.
            memory (list): names whose memory is wanted; by default all.
        """
        times = self._times(functions, min(self.repeats, most))
        peaks = {name: tensor_peak(functions[name], self.device) for name in (functions if memory is None else memory)}
        return {name: Cost(times[name], peaks.get(name)) for name in functions}

    @torch.no_grad()
    def _times(self, functions, repeats):
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
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)


SECTIONS = (
    'stages',
    'fsa',
    'pruning',
    'large',
    'shared_pass',
    'batches',
    'precision_agreement',
    'growth',
    'compiled',
    'throughput',
)


def report(sections, where):
    """Return Markdown of measured sections: dict of name -> rows, under a line that says `where` they were measured."""
    blocks = [where]
    for name, rows in sections.items():
        title = getattr(CostTables, name).__doc__.splitlines()[0]
        keys = [key for key in rows[0] if key not in ('seconds', 'bytes')]
        blocks += [title, markdown_table(keys, [[row[key] for key in keys] for row in rows])]
    return '\n\n'.join(blocks)


def plot_growth(rows, path):
    """Draw the growth of time and memory over N and over Q, of the rows of `CostTables.growth`, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure = Figure((9, 3.6), layout='constrained')
    for axes, over in zip(figure.subplots(1, 2), 'NQ'):
        some = [row for row in rows if row['over'] == over]
        other = 'Q' if over == 'N' else 'N'
        x = [row[over] for row in some]
        twin = axes.twinx()
        lines = axes.loglog(
            x,
            [row['seconds'] for row in some],
            'o-',
            color='tab:blue',
            label=f'time, ∝ {over}^{some[0]["exponent of time"]}',
        )
        lines += twin.loglog(
            x,
            [row['bytes'] / 2**20 for row in some],
            's--',
            color='tab:red',
            label=f'memory, ∝ {over}^{some[0]["exponent of memory"]}',
        )
        for line, one in zip(lines, (axes, twin)):  # a factor of two around, so that slopes are not exaggerated
            one.set_ylim(min(line.get_ydata()) / 2, max(line.get_ydata()) * 2)
            one.yaxis.set_major_formatter(ScalarFormatter())
            one.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(x, [str(value) for value in x])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(
            xlabel='patches N' if over == 'N' else 'queries Q', ylabel='seconds', title=f'{other} = {some[0][other]}'
        )
        twin.set_ylabel('MiB beyond the inputs')
        axes.legend(lines, [line.get_label() for line in lines], loc='upper left')
    figure.savefig(path, dpi=100)


def machine(device, precision):
    """Return a line about the machine and the libraries."""
    cpu = f'{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}), ' if torch.device(device).type == 'cpu' else ''
    return f'{cpu}{device_name(device)}; {precision}; torch {torch.__version__}, Python {platform.python_version()}.'


def _exponent(x, y):
    """Return the exponent of a power law through the last three points, as text."""
    x, y = x[-3:], y[-3:]
    return f'{np.polyfit(np.log(x), np.log(y), 1)[0]:.2f}'
