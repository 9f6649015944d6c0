"""What passes cost, without a run: FLOPs and memory by the models' shapes, hours by a device's rate, and schedules.

A FLOP is a multiplication or an addition: a product of (n, m) and (m, k) has 2·n·m·k. Steps that are no products take
time as well; this file counts them as the FLOPs that trunk and VFM would do in that time, on the CPU of
docs/performance.md: see ENTRY_FLOPS, SCORE_FLOPS and PAMR_FLOPS. On a GPU these three are a guess.

Not counted: decoding, the metric, text embeddings, and stages on whole images but for their VFMs (LPOSS's graph,
CorrCLIP's regions, refinements but PAMR). A rate of finished tasks holds them.

Shape legend: T tokens, N patches, D width, E embedding, C feature channels, Q queries.
"""

import collections
import functools
import glob
import heapq
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine import Config

from fsa_seg.config.fingerprint import _clip_files
from fsa_seg.errors import UserError, one_line, warn_once
from fsa_seg.methods.base import Method, sees_windows
from fsa_seg.models.segmentor import (
    PRECISIONS,
    configured_method,
    resolve_precision,
    stretched_size,
    vfm_config,
    vfms_by_role,
)
from fsa_seg.models.vfm import build_vfm, vfm_grid, window_multiple
from fsa_seg.ops.attention import GPU_BLOCK_ENTRIES, GPU_KEPT_ENTRIES
from fsa_seg.ops.pamr import DILATIONS, STEPS
from fsa_seg.ops.windows import windows
from fsa_seg.system.markdown import markdown_table

SIZES = dict(
    cityscapes=(1024, 2048),
    ade20k=(512, 683),
    ade20k847=(512, 683),
    coco_object=(480, 640),
    coco_stuff10k=(480, 640),
    coco_stuff164k=(480, 640),
)  # usual (height, width) of a data set's images, for a plan without the data
USUAL_SIZE = (375, 500)  # of VOC's and Context's images, and of a data set that SIZES lacks
ENTRY_FLOPS = 3000  # for each entry of FSA's N×N map: fitted to 21, 171 and 847 queries at N = 1764, and to N = 4096
SCORE_FLOPS = 750  # for each pixel of the original and query: overlap-add, softmax, labels; of the table by stage
PAMR_FLOPS = 35  # for each pixel of the original, query, neighbour and step: measured beside the trunk, one CPU thread
MAPS = 2  # softmax maps of a method without a VFM's map: SCLIP's number; others have one to three
TOKEN_VALUES = 16  # values that a tower holds at once for each token and channel: 22 MiB at T = 442, D = 768
TILE_BYTES = 2 * 2**26  # of the scores of a tile of pixels, on a GPU
LOAD_SECONDS = 20.0  # a process's start and its models: 9 s with ViT-B/16, 31 s with ViT-H/14, both with DINO ViT-B/8
# and random weights on 2 CPU cores; weights from a cold disk, or words that are not embedded yet, take longer
SHARE_OF_A_PART = 4  # a part is at most a quarter of a worker's fair share
LEAST_IMAGES = 20  # of a part
LEAST_TASKS = 20  # images of a finished task whose own rate counts
GPUS = (1, 8, 64, 512)


class Work(NamedTuple):
    """What a pass costs.

    Attributes:
        flops: of an image, the mean.
        windows: of an image, the mean.
        memory: bytes on the device with one window at a time; `--window-batch auto` takes more where there is more.
    """

    flops: float
    windows: float
    memory: int


class Rate(NamedTuple):
    """How fast a device works through the FLOPs of `pass_work`.

    Attributes:
        device: name of the device.
        flops_per_second: the middle.
        low, high: the range in which other passes are expected.
        source: where the figure comes from.
    """

    device: str
    flops_per_second: float
    low: float
    high: float
    source: str


class Schedule(NamedTuple):
    """A plan on some workers.

    Attributes:
        makespan: seconds until the last task ends.
        idle: share of the workers' time without a task, from 0 to 1.
        longest: seconds of the longest task.
    """

    makespan: float
    idle: float
    longest: float


class PassCost(NamedTuple):
    """A pass of a plan: names for the table, number of cells and of images, and `Work`."""

    backbone: str
    dataset: str
    cells: int
    images: int
    work: Work


class Tower(NamedTuple):
    """The shapes of a ViT.

    Attributes:
        patch (int, int): in pixels.
        prefix (int): tokens before the patches.
        blocks (tuple of (int, int, int)): of each block, the weights of its attention's matrices and of its other
            matrices, and the side of its windows of attention in patches; 0 where all tokens attend all.
        around (int): weights of the patch embedding and of convolutions after the blocks, each used once per patch.
        width (int), mlp (int), embedding (int): D, the MLP's hidden width, E.
        parameters (int), text_parameters (int): of the tower, and of all else in the model.
    """

    patch: tuple[int, int]
    prefix: int
    blocks: tuple[tuple[int, int, int], ...]
    around: int
    width: int
    mlp: int
    embedding: int
    parameters: int
    text_parameters: int

    def flops(self, patches: int, blocks: int | None = None, grid: tuple[int, int] | None = None) -> float:
        """Return the FLOPs of the first `blocks` blocks, by default all, on N patches."""
        tokens = patches + self.prefix
        total = 2.0 * patches * self.around
        for attention, other, side in self.blocks[:blocks]:
            count, attended = 1, tokens
            if side and grid:  # the patches are padded to whole windows, for the attention alone
                count, attended = math.prod(-(-length // side) for length in grid), side**2
            total += 2 * tokens * other + count * (2 * attended * attention + 4 * attended**2 * self.width)
        return total


class _Role(NamedTuple):
    """A role's VFM: its config as JSON, the kind of its features, whether it sees windows, and whether the image."""

    vfm: str
    kind: str
    window: bool
    image: bool


class _Member(NamedTuple):
    """A cell of a pass: `method` is None for a segmentor of another base."""

    method: Method | None
    roles: dict[str, _Role]
    feedback: bool
    rounds: int
    queries: int
    key: tuple


def pass_work(configs: Sequence[Config], sizes: Sequence[tuple[int, int]]) -> Work:
    """Return the `Work` of a pass: trunk, and each VFM, once for all cells; of each cell its last block.

    Args:
        configs: composed configs of the cells, of one `shared_key`.
        sizes: original (height, width) of images of the data set, in pixels; a sample.

    Raises:
        UserError: no sizes.
    """
    if not sizes:
        raise UserError('the cost of a pass needs the size of one image at least')
    model = configs[0].model
    tower = _clip(model.backbone.model)
    members = [_member(config.model) for config in configs]
    window, stride, fit = model.get('window', 336), model.get('stride', 112), model.get('fit')
    steps = configs[0].test_dataloader.dataset.pipeline
    scale = next((tuple(step.scale) for step in steps if step.type == 'Resize' and 'scale' in step), None)
    crops: collections.Counter[tuple[int, int]] = collections.Counter()
    images: collections.Counter[tuple[int, int]] = collections.Counter()
    for size, count in collections.Counter(map(tuple, sizes)).items():
        shape = _seen_shape(size, scale, fit, tower.patch, window)
        images[shape] += count
        for crop, number in _crops(shape, window, stride):
            crops[crop] += number * count
    flops = sum(count * _window_flops(tower, members, crop, window == 0) for crop, count in crops.items())
    flops += sum(count * _image_flops(members, shape) for shape, count in images.items())
    flops += sum(_pixel_flops(config.model) for config in configs) * sum(math.prod(size) for size in sizes)
    largest = max(images, key=math.prod)
    count = sum(number for _, number in _crops(largest, window, stride))
    memory = _memory(tower, members, model, max(crops, key=math.prod), largest, count)
    return Work(flops / len(sizes), sum(crops.values()) / len(sizes), memory)


def trunk_flops(backbone: Mapping[str, Any], sides: tuple[int, int]) -> float:
    """Return the FLOPs of CLIP's trunk on one window.

    Args:
        backbone: config of a backbone.
        sides: height and width of the window, multiples of the patch, in pixels.
    """
    tower = _clip(backbone['model'])
    return tower.flops(math.prod(_grid(sides, tower.patch)), len(tower.blocks) - 1)


def vfm_flops(vfm: Mapping[str, Any], sides: tuple[int, int], kind: str = 'tokens') -> float:
    """Return the FLOPs of one run of a VFM; 0 for a VFM that cannot be built without weights.

    Args:
        vfm: config of a VFM.
        sides: height and width of what the VFM sees, in pixels.
        kind: of its features.
    """
    return _vfm_flops(json.dumps(vfm, sort_keys=True), kind, tuple(sides))


@functools.lru_cache(4096)
def _seen_shape(size, scale, fit, patch, window):
    """Return the height and width from which windows are cut, of an original's size."""
    if scale:
        factor = min(max(scale) / max(size), min(scale) / min(size))
        size = tuple(round(side * factor) for side in size)
    if fit == 'stretch':
        return stretched_size(size, patch, window)
    return tuple(-(-side // count) * count for side, count in zip(size, patch)) if fit == 'pad' else size


@functools.lru_cache(4096)
def _crops(shape, window, stride):
    """Return ((height, width), number) of the windows of an image."""
    sizes = ((rows[1] - rows[0], columns[1] - columns[0]) for rows, columns in windows(*shape, window, stride))
    return tuple(collections.Counter(sizes).items())


def _member(model):
    """Return the `_Member` of a segmentor's config."""
    chosen = {key: model.get(key) for key in ('type', 'method', 'stage', 'vfm')}
    method, roles, key = _method(json.dumps(chosen))
    feedback = model.get('feedback')
    words = model.get('words') or ()
    key = (key, tuple(map(tuple, words)))
    return _Member(method, roles, bool(feedback), (feedback or {}).get('rounds', 1), sum(map(len, words)), key)


@functools.cache
def _method(chosen):
    """Return method, roles, and what decides the last block, of the keys of a segmentor's config, as JSON."""
    model = json.loads(chosen)
    method = configured_method({key: value for key, value in model.items() if value is not None})
    if method is None:
        return None, {}, chosen
    roles = {}
    for role, config in vfms_by_role(method, model['vfm']).items():
        scope = method.roles[role]
        kind = config.get('features') or method.kinds.get(role, 'tokens')
        image = config.get('scope') == 'image' or not sees_windows(scope)
        roles[role] = _Role(json.dumps(vfm_config(config), sort_keys=True), kind, sees_windows(scope), image)
    return method, roles, method.key() + json.dumps(roles)


@functools.cache
def _clip(name):
    """Return the `Tower` of an architecture's name; its config tells all, and no model is built."""
    architecture = _clip_files(name, None)[0]
    architecture = architecture.get('model_cfg', architecture)
    vision, text = architecture['vision_cfg'], architecture['text_cfg']
    embedding, width, patch = architecture['embed_dim'], vision['width'], _pair(vision['patch_size'])
    mlp = int(width * vision.get('mlp_ratio', 4.0))
    block = 4 * width**2, 2 * width * mlp, 0
    conv = 3 * width * math.prod(patch)
    positions = math.prod(side // count for side, count in zip(_pair(vision['image_size']), patch))
    parameters = vision['layers'] * sum(block) + conv + width * (positions + embedding)
    text_width = text.get('width', width)  # a text tower from elsewhere tells no shapes
    rows = text.get('vocab_size', 49408) + text.get('context_length', 77) + embedding
    text_parameters = text.get('layers', 12) * 12 * text_width**2 + rows * text_width
    return Tower(patch, 1, (block,) * vision['layers'], conv, width, mlp, embedding, parameters, text_parameters)


@functools.cache
def _vfm(config):
    """Return a VFM of a config, as JSON, without storage, and its `Tower`; (None, None) where that cannot be built.

    Of a class without a ViT of timm's form, each weight counts once for each cell of its grid.
    """
    settings = {key: value for key, value in json.loads(config).items() if key != 'checkpoint'}
    try:
        with torch.device('meta'):
            vfm = build_vfm({**settings, 'random_weights': 0})
        count = _parameters(vfm)
    except Exception as error:  # a user's class may need real tensors
        warn_once(f'the cost of the VFM {settings["type"]} is left out: no model without weights ({one_line(error)})')
        return None, None
    vit = getattr(vfm, 'vit', None)
    if not hasattr(vit, 'blocks') or not hasattr(vit, 'embed_dim'):
        return vfm, Tower(window_multiple(vfm), 0, (), count, 0, 0, 0, count, 0)
    blocks = tuple((*_matrices(block), int(getattr(block, 'window_size', 0))) for block in vit.blocks)
    parts = [vit.patch_embed, *([vit.neck] if hasattr(vit, 'neck') else [])]
    around = sum(p.numel() for part in parts for p in part.parameters() if p.ndim == 4)
    prefix = getattr(vit, 'num_prefix_tokens', 0)
    return vfm, Tower(window_multiple(vfm), prefix, blocks, around, vit.embed_dim, 0, vit.num_features, count, 0)


def _pair(side):
    """Return (height, width) of a config's entry, which may be one number for both."""
    return (side, side) if isinstance(side, int) else tuple(side)


def _matrices(block):
    """Return the weights of the matrices of a ViT's block: of its attention, and the others."""
    weights = {name: p.numel() for name, p in block.named_parameters() if p.ndim == 2 and 'rel_pos' not in name}
    attention = sum(count for name, count in weights.items() if name.startswith('attn.'))
    return attention, sum(weights.values()) - attention


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@functools.cache
def _vfm_flops(config, kind, sides):
    """Return the FLOPs of one run of a VFM on sides (height, width) in pixels, for a kind of its features."""
    vfm, tower = _vfm(config)
    if vfm is None:
        return 0.0
    grid = vfm_grid(vfm, *sides)
    patches = math.prod(grid)
    if kind == 'tokens' or not tower.blocks:
        return tower.flops(patches, None, grid)
    letters = 3 if kind == 'attention' else 2 if kind == 'q+k' else 1  # the last block gives projections alone
    return tower.flops(patches, len(tower.blocks) - 1, grid) + 2 * letters * patches * tower.width**2


def _grid(sides, patch):
    """Return the rows and columns of patches of a window."""
    return tuple(side // count for side, count in zip(sides, patch))


def _padded(sides, multiple, whole):
    """Return the sides of a window as the models see them."""
    if whole:
        return tuple(max(side // count, 1) * count for side, count in zip(sides, multiple))
    return tuple(-(-side // count) * count for side, count in zip(sides, multiple))


def _multiple(tower, member):
    """Return what the sides of a member's windows are multiples of."""
    vfms = [_vfm(role.vfm)[0] for role in member.roles.values() if role.window]
    sides = [tower.patch, *(window_multiple(vfm) for vfm in vfms if vfm is not None)]
    return tuple(math.lcm(*pair) for pair in zip(*sides))


def _window_flops(tower, members, crop, whole):
    """Return the FLOPs of one window for all members: what they share counts once."""
    runs, first, feedback = {}, {}, 0.0
    for member in members:
        sides = _padded(crop, _multiple(tower, member), whole)
        grid = _grid(sides, tower.patch)
        runs['trunk', sides] = tower.flops(math.prod(grid), len(tower.blocks) - 1)
        for role in member.roles.values():
            if role.window and not role.image:
                runs[role.vfm, role.kind, sides] = _vfm_flops(role.vfm, role.kind, sides)
        if member.method is None:
            continue
        key = member.key, sides
        if key not in first:
            first[key] = _last_block(tower, member, sides, grid)
        feedback += member.feedback * member.rounds * first[key][1]
    return sum(runs.values()) + sum(once for once, _ in first.values()) + feedback


def _last_block(tower, member, sides, grid):
    """Return the FLOPs of the last block of one window without feedback, and of one round of FSA.

    Args:
        tower (Tower): of CLIP.
        member (_Member): whose method runs.
        sides (int, int): of the padded window, in pixels.
        grid (int, int): of CLIP's patches.
    """
    method, width = member.method, tower.width
    clip_patches = math.prod(grid)
    tokens = clip_patches + 1
    vfms = {role: _vfm(part.vfm) for role, part in member.roles.items() if part.window}
    grids = {role: vfm_grid(vfm, *sides) for role, (vfm, _) in vfms.items() if vfm is not None}
    shared = method.overrides('grid') and 0 < len(grids) == len(vfms)  # a VFM's map, which all heads share
    patches = math.prod(method.grid(grid, grids)) if shared else clip_patches
    columns = min(width, clip_patches) if patches != clip_patches else width  # see LastBlock._prepare
    inner = len(method.inner_blocks(len(tower.blocks))) * (6 * tokens * width**2 + 4 * tokens**2 * width)
    if shared:
        channels = max(part.embedding for _, part in vfms.values() if part is not None)
        made, applied = 2 * patches**2 * channels, 2 * patches**2 * columns
        out = 2 * patches * columns * width if columns < width else 0
        projections = 4 * clip_patches * width**2  # values, and the out-projection, which comes first
    else:
        maps = MAPS if method.has_logits else 0  # the identity is free
        made, applied = 0, maps * 4 * tokens**2 * width
        out, projections = 2 * tokens * width**2, (6 if maps else 2) * tokens * width**2
    mlp = 4 * patches * width * tower.mlp if method.mlp else 0
    readout = out + mlp + 2 * patches * tower.embedding * (width + member.queries)
    adapted = 2 * patches**2 * (member.queries + 2 * columns) + 2 * applied + readout + ENTRY_FLOPS * patches**2
    return inner + projections + made + applied + readout, adapted + (readout if method.residual else 0)


def _pixel_flops(model):
    """Return what a cell does for each pixel of the original, as FLOPs: scores, labels, PAMR."""
    refinement, queries = model.get('refinement') or {}, sum(map(len, model.get('words') or ()))
    if refinement.get('type') != 'PAMR':
        return SCORE_FLOPS * queries
    neighbours = 8 * len(refinement.get('dilations', DILATIONS))
    return (SCORE_FLOPS + PAMR_FLOPS * refinement.get('steps', STEPS) * neighbours) * queries


def _image_flops(members, shape):
    """Return the FLOPs of the VFMs that see a whole image."""
    runs = {}
    for member in members:
        for role in member.roles.values():
            if role.image and (vfm := _vfm(role.vfm)[0]) is not None:
                sides = _padded(shape, window_multiple(vfm), False)
                runs[role.vfm, role.kind] = _vfm_flops(role.vfm, role.kind, sides)
    return sum(runs.values())


def _memory(tower, members, model, crop, image, count):
    """Return the bytes of weights, text tower, one window of the largest member, and stages on the largest image."""
    size = torch.empty(0, dtype=PRECISIONS[resolve_precision(model.get('precision', 'auto'))]).element_size()
    towers, largest, stages = {}, 0, 0
    for member in members:
        sides = _padded(crop, _multiple(tower, member), False)
        clip_patches = math.prod(_grid(sides, tower.patch))
        patches, held = clip_patches, [TOKEN_VALUES * (clip_patches + 1) * tower.width * size]
        for role in member.roles.values():
            vfm, part = _vfm(role.vfm)
            if vfm is None:
                continue
            seen = _padded(image, window_multiple(vfm), False) if role.image else sides
            cells = math.prod(vfm_grid(vfm, *seen))
            towers[role.vfm] = part.parameters
            held.append(TOKEN_VALUES * cells * part.width * size)
            patches = max(patches, math.prod(vfm_grid(vfm, *sides))) if role.window else patches
        entries = patches**2
        held.append(4 * min(entries, GPU_KEPT_ENTRIES) + 12 * min(entries, GPU_BLOCK_ENTRIES))
        largest = max(largest, *held)
        parts = member.method.parts if member.method else []
        stages = max([stages, *(part.memory(count, patches, member.queries, math.prod(image))[0] for part in parts)])
    weights = size * (tower.parameters + sum(towers.values())) + 4 * tower.text_parameters
    return int(weights + largest + stages + TILE_BYTES)


def parse_rate(text: str) -> Rate:
    """Return the `Rate` of a text such as 'A100=90': a device's name, and TFLOP/s of `pass_work`'s FLOPs.

    Raises:
        UserError: another form, or a rate that is not above 0.
    """
    device, _, number = text.rpartition('=')
    try:
        rate = float(number) * 1e12
    except ValueError:
        rate = math.nan
    if not device or not 0 < rate < math.inf:
        raise UserError(f'the rate {text!r} has to be DEVICE=TFLOP/s with a number above 0, such as A100=90')
    return Rate(device, rate, rate, rate, 'as given')


def measured_rates(work_dir: str) -> list[Rate]:
    """Return the rates of devices that a folder of results tells, the best known first.

    Finished tasks of sweeps come before the section `rates` of `fsa-seg measure`; a device stands once.

    Args:
        work_dir: folder that holds sweep/*/*.json and measure/rates_*.json.
    """
    found: dict[str, Rate] = {}
    for rate in (*_rates_of_tasks(work_dir), *_rates_of_measure(work_dir)):
        found.setdefault(rate.device, rate)
    return list(found.values())


def _rates_of_tasks(work_dir):
    """Return the rates of finished tasks, by device."""
    tasks = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(work_dir), 'sweep', '*', '*.json'))):
        outcome = _read(path)
        if isinstance(outcome, dict) and outcome.get('state') == 'done' and isinstance(outcome.get('device'), str):
            figures = [outcome.get(key) for key in ('seconds', 'flops', 'images')]
            if all(isinstance(figure, (int, float)) and figure > 0 for figure in figures):
                tasks.setdefault(outcome['device'], []).append(outcome)
    rates = []
    for device, outcomes in tasks.items():
        long = [task for task in outcomes if task['images'] >= LEAST_TASKS]
        own = sorted(task['flops'] / task['seconds'] for task in long or outcomes)
        low, high = (_percentile(own, 0.1), _percentile(own, 0.9)) if long else (own[0], own[-1])
        middle = sum(task['flops'] for task in outcomes) / sum(task['seconds'] for task in outcomes)
        rates.append(Rate(device, middle, min(low, middle), max(high, middle), f'{len(outcomes)} finished tasks'))
    return rates


def _rates_of_measure(work_dir):
    """Return the rates of the measured sections, the newest first: a whole image's rate, all rows' range."""
    rates = []
    paths = sorted(glob.glob(os.path.join(glob.escape(work_dir), 'measure', 'rates_*.json')), key=os.path.getmtime)
    for rows in map(_read, reversed(paths)):
        rows = [row for row in rows or () if isinstance(row, dict) and row.get('rate')]
        if rows:
            values = [row['rate'] for row in rows]
            rates.append(Rate(rows[-1]['device'], values[-1], min(values), max(values), 'fsa-seg measure'))
    return rates


def _read(path):
    """Return the contents of a JSON file, or None."""
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError, RecursionError):
        return None


def _percentile(ordered, share):
    """Return the value at a share of an ordered list, between its neighbours."""
    place = share * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def simulate(seconds: Sequence[float], workers: int) -> Schedule:
    """Return the `Schedule` of tasks on workers that each take the longest task left.

    Args:
        seconds: of each task, its start included.
        workers: number of workers, at least 1.
    """
    if workers < 1:
        raise UserError(f'the number of workers is {workers}; it has to be at least 1')
    ends = [0.0] * workers
    for task in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + task)
    makespan = max(ends)
    busy = sum(seconds) / (makespan * workers) if makespan else 1.0
    return Schedule(makespan, max(0.0, 1 - busy), max(seconds, default=0.0))


def parts_for(seconds: float, images: int, workers: int, total: float) -> int:
    """Return into how many parts by images a pass is split, so that no task bounds the whole plan.

    Workers that take the longest task left end at most one task's length after the fair share `total / workers`
    (Graham 1969). Parts of at most a quarter of the fair share hence cost at most a quarter more than the least time.
    Where estimates are off by 30 % from pass to pass, a quarter was within 3 % of the best of 1, 1/2, 1/4 and 1/8 in
    simulations of the suite `paper` on 64 and 512 GPUs; larger parts ended up to a quarter later. Each part loads the
    models again, so that a part works at least twice as long as it loads. Nor has it fewer than LEAST_IMAGES images,
    whose seconds would vary too much.

    Args:
        seconds: of the pass.
        images: of the pass.
        workers: number of workers.
        total: seconds of all passes.
    """
    if workers == 1:
        return 1
    share = max(total / workers / SHARE_OF_A_PART, 2 * LOAD_SECONDS)
    return max(1, min(math.ceil(seconds / share), images // LEAST_IMAGES))


def task_seconds(passes: Sequence[PassCost], rate: Rate, workers: int | None = None) -> list[float]:
    """Return the seconds of each task of passes, LOAD_SECONDS included; with `workers`, passes are split for them."""
    times = [cost.images * cost.work.flops / rate.flops_per_second for cost in passes]
    total, tasks = sum(times), []
    for cost, seconds in zip(passes, times):
        parts = parts_for(seconds, cost.images, workers, total) if workers else 1
        tasks += [seconds / parts + LOAD_SECONDS] * parts
    return tasks


def costs_table(passes: Sequence[PassCost], rates: Sequence[Rate]) -> str:
    """Return a Markdown table of passes by backbone and data set: cells, passes, images, hours by device, memory."""
    groups: dict[tuple[str, str], list[PassCost]] = {}
    for cost in passes:
        groups.setdefault((cost.backbone, cost.dataset), []).append(cost)
    rows = [[*key, *_sums(group, rates)] for key, group in groups.items()]
    hours = [f'hours, {rate.device}' for rate in rates]
    columns = ['cells', 'passes', 'images', *hours, 'GPU memory, GB']
    total = [['all', '', *_sums(passes, rates)]] if len(rows) > 1 else []
    return markdown_table(['backbone', 'data set', *columns], rows + total, right=columns)


def _sums(passes, rates):
    """Return the figures of a row of `costs_table`."""
    flops = sum(cost.images * cost.work.flops for cost in passes)
    return [
        sum(cost.cells for cost in passes),
        len(passes),
        sum(cost.images for cost in passes),
        *(_hours(flops, rate) for rate in rates),
        f'{max(cost.work.memory for cost in passes) / 1e9:.1f}',
    ]


def _hours(flops, rate):
    """Return hours at a rate as text, with their range where there is one."""
    middle, least, most = (flops / value / 3600 for value in (rate.flops_per_second, rate.high, rate.low))
    digits = 2 if middle < 10 else 0
    return f'{middle:.{digits}f}' + (f' ({least:.{digits}f}–{most:.{digits}f})' if rate.low < rate.high else '')


def schedule_table(passes: Sequence[PassCost], rate: Rate, workers: Iterable[int] = GPUS) -> str:
    """Return a Markdown table of the time to finish on numbers of GPUs, with passes whole, and split by images."""
    rows = []
    for count in workers:
        for split in (False, True):
            tasks = task_seconds(passes, rate, count if split else None)
            schedule = simulate(tasks, count)
            rows.append(
                [
                    count,
                    'by images' if split else 'no',
                    len(tasks),
                    clock(schedule.makespan),
                    f'{100 * schedule.idle:.1f} %',
                    clock(schedule.longest),
                ]
            )
    columns = ['GPUs', 'tasks', 'finished after', 'idle', 'longest task']
    return markdown_table(['GPUs', 'passes split', *columns[1:]], rows, right=columns)


def clock(seconds: float) -> str:
    """Return a time as text.

    >>> clock(45), clock(600), clock(9000)
    ('45 s', '10.0 min', '2.5 h')
    """
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.1f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'
