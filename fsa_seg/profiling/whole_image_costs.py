"""Costs of what sees a whole image: stages of LPOSS, Trident and CorrCLIP, and a VFM that runs once per image.

Features, regions and text are random: the features of a region's cells are one random direction, and noise.

Shape legend: n patches of all windows of an image, N cells of a window or of a VFM's grid, Q queries.
"""

import functools
import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fsa_seg.apps.evaluate import evaluate
from fsa_seg.evaluation.label_files import labels_folder
from fsa_seg.methods.base import WindowCosines
from fsa_seg.models.regions import CELLS, SEEDS
from fsa_seg.models.segmentor import PRECISIONS
from fsa_seg.models.whole_image import WholeImages
from fsa_seg.ops.affinity import GREATEST_THRESHOLD, affinity_product, unpack_attention
from fsa_seg.ops.attention import resize_tokens
from fsa_seg.ops.label_propagation import GAMMA, NEIGHBOURS, SIGMA, STEPS, patch_graph, propagate_pixels, rgb_to_lab
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.regions import correct_labels, feature_regions, nearest
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import Layout, Window, WindowPlace, cut_window, splice, windows

IMAGES = ((224, 336), (448, 672), (896, 1344))  # pixels of resized images, from the smallest
AFFINITY_IMAGE = (448, 672)  # whose shape Trident's product has; SAM sees 1024 pixels of an image of any size
WINDOW, STRIDE = 224, 112  # LPOSS's
SAMPLE = 3  # windows of an image that trunk, VFM and CorrCLIP run on; all windows are of one size
QUERIES, FEW_QUERIES = 171, 21  # of COCO-Stuff164k and VOC21
REGIONS = 50  # of an image
NOISE = 0.02  # of a channel of a unit feature
ALPHA = 1.2  # Trident's
AFFINITY_VFM = 'sam_vit-b16'
LIMIT = 60.0  # seconds; a run that would take longer is left out
DENSE_BYTES = 2**33  # a dense evaluation that would hold more is left out
SCOPES = (((336, 448), 336, 112), ((448, 896), 224, 80))  # image, window, stride
TOY_DATASETS = ('voc21', 'cityscapes')


class Scene:
    """A random image with a region map, cut into windows.

    Attributes:
        size (int, int): height and width, in pixels.
        regions (height, width): int64 labels from 0.
        places (list of WindowPlace): of the windows.
        sample (list of WindowPlace): of the windows that are measured.
        share (float): number of windows over that of `sample`.

    Args:
        size: see above.
        device: of all tensors.
    """

    def __init__(self, size: tuple[int, int], device: torch.device):
        generator = torch.Generator().manual_seed(0)
        self.size, self._generator, self._device = size, generator, device
        self.image = torch.rand(3, *size, generator=generator).to(device)
        centres = torch.rand(REGIONS, 2, generator=generator) * torch.tensor(size)
        pixels = torch.cartesian_prod(*(torch.arange(float(side)) for side in size))
        self.regions = torch.cdist(pixels, centres).argmin(1).unflatten(0, size).to(device)
        self.places = [WindowPlace(*place) for place in windows(*size, WINDOW, STRIDE)]
        step = max(1, len(self.places) // SAMPLE)
        self.sample = self.places[::step][:SAMPLE]
        self.share = len(self.places) / len(self.sample)

    def random(self, *shape: int) -> Tensor:
        """Return random numbers of a normal distribution."""
        return torch.randn(*shape, generator=self._generator).to(self._device)

    def features(self, place: WindowPlace, grid: tuple[int, int], channels: int) -> Tensor:
        """Return features (1, C, h, w) of a window on a grid (h, w)."""
        directions = torch.randn(REGIONS, channels, generator=torch.Generator().manual_seed(0)).to(self._device)
        cells = F.normalize(directions)[nearest(self.window_regions(place), grid)[0]]
        return (cells + NOISE * self.random(*cells.shape)).movedim(2, 0)[None]

    def window_regions(self, place: WindowPlace) -> Tensor:
        """Return a window's region map (1, height, width)."""
        return self.regions[None, slice(*place.rows), slice(*place.columns)]


class Stage(NamedTuple):
    """A stage to measure.

    Attributes:
        name: in the table; alike for all images.
        work: what the stage works on.
        run: function (); it does the stage's work once.
        amount: of work, in any unit; a larger image's time is estimated by it.
        dense: function () of the direct evaluation; None without a direct evaluation.
        dense_bytes: what the direct evaluation holds, roughly.
        share: of `Scene`, where `run` works on the measured windows alone; 1 for the whole image.
    """

    name: str
    work: str
    run: Callable[[], Any]
    amount: float = 1.0
    dense: Callable[[], Any] | None = None
    dense_bytes: int = 0
    share: float = 1.0


class WholeImageSections:
    """Sections of `fsa_seg.profiling.costs.CostTables`, whose methods they use."""

    def whole_image(self) -> list[dict]:
        """Stages on whole images, against trunk, VFM and SAM's encoder, and against dense evaluations.

        LPOSS's VFM stops before its last block. Trunk, VFM and CorrCLIP are measured on some windows of an image, and
        their times multiplied by all windows over the measured windows.
        """
        rows, known = [], {}  # stage -> seconds and amount of work of the image before
        with torch.no_grad():
            for size in IMAGES:
                scene = Scene(size, self.device)
                for reference, run, share, stages in self._groups(scene):
                    rows += self._stage_rows(scene, reference, Stage(reference, '', run, share=share), stages, known)
        return rows

    def _groups(self, scene: Scene) -> Iterator[tuple[str, Callable, float, list[Stage]]]:
        """Yield the name of a reference, its function and its `share`, and the stages that are set against it."""
        lposs = self._member('lposs', None).segmentor
        crops = [cut_window(scene.image, *place, lposs.multiple) for place in scene.sample]

        def trunk():
            return [lposs.trunk(lposs.visual, crop) for crop in crops]

        def trunk_and_vfm():
            return trunk(), [lposs.features(crop) for crop in crops]

        channels, *grid = lposs.features(crops[0])['graph'].shape[1:]
        yield 'trunk + VFM', trunk_and_vfm, scene.share, self._patch_stages(scene, lposs, pair(grid), channels)
        yield 'trunk + VFM', trunk_and_vfm, scene.share, self._pixel_stages(scene)
        yield 'trunk', trunk, scene.share, self._corrclip_stages(scene, pair(grid), channels)
        if scene.size == AFFINITY_IMAGE:
            trident = self._member('trident', None, f'proxy={self.vfm},affinity={AFFINITY_VFM}').segmentor
            side = getattr(trident.vfms['affinity'], 'input_side', max(scene.size))
            pixels = scene.random(1, 3, side, side).sigmoid()
            attention = trident.run('affinity', pixels)
            fine = pair(side * count // WINDOW for side, count in zip(scene.size, grid))
            spliced = scene.random(1, fine[0] * fine[1], lposs.visual.proj.shape[0])
            stages = self._affinity_stages(scene, attention, spliced, fine)
            yield "SAM's encoder", lambda: trident.run('affinity', pixels), 1.0, stages

    def _patch_stages(self, scene, lposs, grid, channels):
        """Return the stages on the patches of all windows: LPOSS's graph, Trident's splice; and GramSeg's regions."""
        features = torch.cat([scene.features(place, grid, channels)[0].flatten(1).T for place in scene.places])
        layout = Layout(scene.size, scene.size, WINDOW, STRIDE, lposs.multiple, patch=lposs.visual.patch_size)
        found = [Window(*place, features, grid) for place in scene.places]
        centres = torch.cat([layout.centres(window, grid) for window in found])
        count = f'n = {len(features)}'
        scores, width = scene.random(len(features), QUERIES), lposs.visual.proj.shape[0]
        dtype = PRECISIONS[self.precision]
        tokens = scene.random(grid[0] * grid[1], width).to(dtype)
        parts = [(*place, tokens, grid) for place in scene.places]
        cells = [round(side * CELLS / max(scene.size)) for side in scene.size]
        seen = scene.features(WindowPlace((0, scene.size[0]), (0, scene.size[1])), pair(cells), channels)[0].flatten(1)

        def dense():
            graph, z = dense_graph(features, centres), scores
            for _ in range(STEPS):
                z = graph @ z

        return [
            Stage('LPOSS: patch graph', count, lambda: patch_graph(features, centres), len(features) ** 2),
            Stage(
                f'LPOSS: graph + propagation, Q = {QUERIES}',
                count,
                lambda: patch_graph(features, centres).propagate(scores),
                len(features) ** 2,
                dense,
                24 * len(features) ** 2,
            ),
            Stage(
                'Trident: splice',
                count,
                lambda: splice(parts, scene.size, layout.cell(found[0]), lposs.multiple),
                len(features),
            ),
            Stage('GramSeg: regions', f'{seen.shape[1]} cells', lambda: feature_regions(seen, SEEDS), seen.shape[1]),
        ]

    def _pixel_stages(self, scene):
        """Return LPOSS+'s propagation between pixels; its scores are overwritten by each run."""
        lab, stages = rgb_to_lab(scene.image), []
        for queries in (FEW_QUERIES, QUERIES):
            run = functools.partial(propagate_pixels, scene.random(queries, *scene.size), lab)
            stages.append(Stage(f'LPOSS+: pixels, Q = {queries}', f'{lab[0].numel()} pixels', run, lab.numel()))
        return stages

    def _corrclip_stages(self, scene, grid, channels):
        """Return CorrCLIP's last block with its three branches, and the correction of labels."""
        model, text = self._member('corrclip', None, queries=QUERIES)
        blocks, inputs = model.visual.transformer.resblocks, []
        for place in scene.sample:
            crop = cut_window(scene.image, *place, model.multiple)
            features = {'proxy': scene.features(place, grid, channels).to(PRECISIONS[self.precision])}
            inputs.append((*model.trunk(model.visual, crop, model.inner_blocks), features, scene.window_regions(place)))

        def branches():
            for tokens, patches, inner, features, regions in inputs:
                earlier = {index: Projections(blocks[index], before) for index, before in inner.items()}
                block = LastBlock(model.visual, tokens, patches, features, earlier, regions=regions)
                _ = WindowCosines(model.method, block, text.rows).first

        count = sum(len(scene.window_regions(place).unique()) for place in scene.sample) / len(scene.sample)
        labels = (scene.random(*scene.size).sigmoid() * QUERIES).long().clamp(max=QUERIES - 1)
        return [
            Stage('CorrCLIP: three branches', f'{count:.0f} regions a window', branches, share=scene.share),
            Stage(
                'CorrCLIP: correction',
                f'{labels.numel()} pixels',
                lambda: correct_labels(labels, scene.regions),
                labels.numel(),
            ),
        ]

    def _affinity_stages(self, scene, attention, spliced, grid):
        """Return Trident's stages C and D: an attention (1, channels, I, J) and a splice (1, h·w, D) on its grid."""
        longest = max(scene.size)
        valid = pair(max(1, side * count // longest) for side, count in zip(scene.size, attention.shape[2:]))
        values = resize_tokens(spliced, grid, valid)[0]

        def product():
            return affinity_product(attention, valid, resize_tokens(spliced, grid, valid)[0], ALPHA)

        return [
            Stage(
                'Trident: C + D',
                f'{valid[0]}×{valid[1]} cells',
                product,
                valid[0] * valid[1],
                lambda: dense_affinity_product(attention, valid, values, ALPHA),
            )
        ]

    def _stage_rows(
        self,
        scene: Scene,
        reference: str,
        base: Stage,
        stages: list[Stage],
        known: dict[tuple[str, ...], tuple[float, float]],
    ) -> list[dict]:
        """Return the rows of stages that take turns with their reference.

        Args:
            scene: the image.
            reference: name of the reference.
            base: the reference.
            stages: see above.
            known: stage -> seconds and amount of work of an earlier image; the stages of this image are put in.
        """
        functions, left_out = {base: base.run}, {}
        for stage in stages:
            for key, run in ((stage, stage.run), ((stage, 'dense'), stage.dense)):
                seconds, before = known.get(_name(key), (0.0, 1.0))
                expected = seconds * stage.amount / before
                if run is None:
                    left_out[key] = '–'
                elif expected > LIMIT:
                    left_out[key] = f'left out: some {expected:.0f} s'
                elif key != stage and stage.dense_bytes > DENSE_BYTES:
                    left_out[key] = f'left out: {stage.dense_bytes / 2**30:.0f} GiB'
                else:
                    functions[key] = run
        costs, rows = self._costs(functions, most=2), []
        for key, cost in costs.items():
            share = key.share if isinstance(key, Stage) else 1.0
            costs[key] = cost = cost._replace(times=[share * seconds for seconds in cost.times])
            known[_name(key)] = cost.seconds, (key if isinstance(key, Stage) else key[0]).amount
        for stage in stages:
            ours, dense = costs.get(stage), costs.get((stage, 'dense'))
            rows.append(
                {
                    'image': f'{scene.size[0]}×{scene.size[1]}',
                    'windows': len(scene.places),
                    'stage': stage.name,
                    'of': stage.work,
                    'time': str(ours) if ours else left_out[stage],
                    'memory, MiB': ours.mebibytes if ours else '–',
                    'reference': f'{reference}: {costs[base]}',
                    'of the reference': ours.over(costs[base], 100, 1) + ' %' if ours else '–',
                    'dense': str(dense) if dense else left_out[stage, 'dense'],
                    'dense, MiB': dense.mebibytes if dense else '–',
                    'times faster': dense.over(ours, digits=1) if ours and dense else '–',
                }
            )
        return rows

    def image_scope(self) -> list[dict]:
        """A VFM on overlapping windows, against once per image: time with random weights, labels of the toy world."""
        rows = [row for scope in SCOPES for row in self._scope_rows(*scope)]
        for dataset in TOY_DATASETS:
            rows += self._toy_rows(dataset)
        return rows

    def _scope_rows(self, size, window, stride):
        """Return the rows of time and memory of an image, without labels: those of random weights tell nothing."""
        models = []
        for scope in ('', '@image'):
            model = self._member('proxyclip', None, self.vfm + scope).segmentor
            model.window, model.stride = window, stride
            models.append(model)
        windowed, once = models
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)).to(self.device)
        places = [WindowPlace(*place) for place in windows(*size, window, stride)]
        sample = places[:: max(1, len(places) // SAMPLE)][:SAMPLE]
        share = len(places) / len(sample)

        def on_windows():
            for place in sample:
                windowed.features(cut_window(image, *place, windowed.multiple))

        def once_and_cut():
            seen = WholeImages([image]).of(once, 0)
            for place in places:
                seen.cut('proxy', place)

        costs = self._costs({'windows': on_windows, 'once': once_and_cut}, most=2)
        on_all = costs['windows']._replace(times=[share * seconds for seconds in costs['windows'].times])
        return [
            {
                'what': f'{self.vfm}, {size[0]}×{size[1]}, window {window}, stride {stride}: {unit}',
                'windows': len(places),
                'on windows': on_windows_text,
                'once per image': once_text,
                'windows over once': ratio,
                'equal labels': '–',
            }
            for unit, on_windows_text, once_text, ratio in (
                ('time', str(on_all), str(costs['once']), on_all.over(costs['once'])),
                ('memory, MiB', costs['windows'].mebibytes, costs['once'].mebibytes, '–'),
            )
        ]

    def _toy_rows(self, dataset):
        """Return the rows of mIoU and labels under ProxyCLIP, each feedback on its own protocol."""
        with tempfile.TemporaryDirectory() as folder:
            results = evaluate(
                dataset,
                'proxyclip',
                [False, True],
                vfm=['toy', 'toy@image'],
                data_root=self.mini,
                mini=True,
                work_dir=folder,
                save_labels=True,
                precision=self.precision,
            )
            labels = [read_labels(labels_folder(folder, row['path'])) for row in results]
        rows = []
        for i in range(0, len(results), 2):
            (before, after), (ours, other) = results[i : i + 2], labels[i : i + 2]
            equal = sum(int((ours[name] == other[name]).sum()) for name in ours)
            rows.append(
                {
                    'what': f'toy world, {dataset}, {before["row"]}: mIoU',
                    'windows': '–',
                    'on windows': f'{before["mIoU"]:.2f}',
                    'once per image': f'{after["mIoU"]:.2f}',
                    'windows over once': '–',
                    'equal labels': f'{100 * equal / sum(image.size for image in ours.values()):.2f} %',
                }
            )
        return rows


def read_labels(folder: str) -> Mapping[str, np.ndarray]:
    """Return the label maps of a folder, by the names of their files."""
    paths = glob.glob(os.path.join(folder, '**', '*.png'), recursive=True)
    return {os.path.relpath(path, folder): np.asarray(Image.open(path)) for path in paths}


def dense_graph(features: Tensor, centres: Tensor) -> Tensor:
    """Return LPOSS's graph Ŵ as a matrix (n, n); arguments as of `fsa_seg.ops.label_propagation.patch_graph`."""
    unit = F.normalize(features.float())
    cosines, index = (unit @ unit.T).topk(min(NEIGHBOURS, len(unit)))
    graph = cosines.new_zeros(len(unit), len(unit)).scatter_(1, index, cosines.clamp(min=0) ** GAMMA)
    graph = graph * torch.exp(-SIGMA * torch.cdist(centres, centres))
    graph = (graph + graph.T).fill_diagonal_(0)
    scale = graph.sum(1).rsqrt()
    return scale[:, None] * graph * scale


def dense_affinity_product(attention: Tensor, valid: tuple[int, int], values: Tensor, alpha: float) -> Tensor:
    """Return Trident's M·values with the maps of all heads at once; arguments as of `ops.affinity.affinity_product`."""
    query, key, value, rows, columns = (part[0].movedim(2, 0).float() for part in unpack_attention(attention))
    grid = attention.shape[2:]
    logits = query.flatten(1, 2) @ key.flatten(1, 2).transpose(1, 2)
    logits = logits.unflatten(2, grid).unflatten(1, grid) + rows[..., None] + columns[..., None, :]
    maps = logits.flatten(3).softmax(-1).unflatten(3, grid)
    maps = maps[:, : valid[0], : valid[1], : valid[0], : valid[1]].flatten(3).flatten(1, 2)
    unit = F.normalize(value[:, : valid[0], : valid[1]].flatten(1, 2), dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    threshold = (alpha * cosines.mean((0, 2))).clamp(max=GREATEST_THRESHOLD)
    pruned = (maps * (cosines > threshold[:, None])).mean(0)
    return (pruned / pruned.sum(1, keepdim=True)) @ values.float()


def _name(key: Stage | tuple[Stage, str]) -> tuple[str, ...]:
    """Return the name of a stage, or of its dense evaluation."""
    return (key.name,) if isinstance(key, Stage) else (key[0].name, key[1])
