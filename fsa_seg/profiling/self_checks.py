"""Self-checks of a machine's computed values: each check is a generator of findings, and takes whether to be quick.

A finding is (part, verdict, detail). A verdict is whether the check passes, an exception, which means WRONG, or a text.
The checks import their libraries themselves: a missing library is a finding, and the other checks run.
"""

import contextlib
import functools
import glob
import importlib
import importlib.metadata
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from fsa_seg.errors import one_line
from fsa_seg.system.machine import ROOT, nvidia_smi

if TYPE_CHECKING:
    from torch import Tensor, nn

Finding = tuple[str, object, str]  # part, verdict and detail
GOLDEN_SFR = dict(type='SFR', tau=2.2, lam=0.7, threshold=0.115)
GOLDEN_MAPS = dict(
    cliptrase=dict(attention='qq+kk+vv', residual=True, mlp=True), itaclip=dict(attention='itaclip', residual=True)
)
GOLDEN = os.path.join(ROOT, 'tests', 'golden')
MINI = os.path.join(ROOT, 'data', 'mini')
LIBRARIES = (
    'torch',
    'torchvision',
    'numpy',
    'cv2',
    'PIL',
    'safetensors',
    'huggingface_hub',
    'ftfy',
    'open_clip',
    'timm',
    'mmengine',
    'mmcv',
    'mmseg',
)
EXACT = 1e-5  # limit of the difference between float32 cosines and their golden or dense values
LABELS = dict(fp16=99.5, bf16=99.0)  # percent of the toy's pixels that must keep float32's label
ROUNDED = 1 + 2**-12  # a float32 number that TF32 (10 bits behind the point) and bf16 (7) round to 1
SHAPES = ((12, 442, 64), (16, 577, 80), (12, 1765, 64))  # heads, tokens, width at 336 pixels: ViT-B/16, H/14, DINO B/8
ATTENTION = dict(float32=1e-5, float16=2e-3, bfloat16=2e-2)  # limit of a back end's difference from float64
BACKENDS = dict(flash='FLASH_ATTENTION', efficient='EFFICIENT_ATTENTION', math='MATH', cudnn='CUDNN_ATTENTION')
NO_KERNEL = ('No available kernel', 'No viable backend')  # torch's errors if a back end lacks a device or type
# environment variables that let float32 be rounded
FASTER = ('TORCH_ALLOW_TF32_CUBLAS_OVERRIDE', 'NVIDIA_TF32_OVERRIDE', 'ONEDNN_DEFAULT_FPMATH_MODE')
WORDS = [['sky', 'wall'], ['cat'], ['grass'], ['road']]


class Skip(Exception):
    """Raised by a check that cannot run here, or whose remaining parts cannot; the message says why."""


def packages(quick: bool) -> Iterator[Finding]:
    """Libraries can be imported, and their versions are in the ranges of the requirements."""
    broken = False
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except Exception as error:
            broken = True
            yield name, error, ''
    from packaging.requirements import Requirement  # after the findings about libraries, which may include packaging

    path, outside = os.path.join(ROOT, 'requirements.txt'), []
    if not os.path.exists(path):
        raise Skip(f'{path} is missing: no ranges to compare versions with')
    with open(path, encoding='utf-8') as f:
        lines = [line.split('#')[0].strip() for line in f]
    requirements = [Requirement(line) for line in lines if line and not line.startswith('-')]
    requirements = [
        requirement for requirement in requirements if not requirement.marker or requirement.marker.evaluate()
    ]
    for requirement in requirements:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # another distribution of the same library
            version = importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                outside.append(f'{requirement.name} {version} is outside {requirement.specifier}')
    if not broken:
        yield 'imports', True, f'{len(LIBRARIES)} libraries can be imported'
    mend = '; pip install -r requirements.txt' if outside else ''
    yield 'versions', not outside, (', '.join(outside) or f'{len(requirements)} requirements are met') + mend


def gpu(quick: bool) -> Iterator[Finding]:
    """Each GPU that the driver knows computes."""
    import torch

    driver_gpus = nvidia_smi()
    if not torch.cuda.is_available():
        if driver_gpus and os.environ.get('CUDA_VISIBLE_DEVICES') is None:
            yield (
                '',
                False,
                (
                    f'the driver knows {driver_gpus[0]}, but torch {torch.__version__} (CUDA {torch.version.cuda}) '
                    'cannot use it: install a torch for this driver, or a newer driver'
                ),
            )
            return
        raise Skip('CUDA_VISIBLE_DEVICES hides it' if driver_gpus else 'no GPU')
    for i in range(torch.cuda.device_count()):
        fine = int(torch.arange(1024, device=f'cuda:{i}').sum()) == 1023 * 512
        yield f'GPU {i}', fine, torch.cuda.get_device_name(i)


def tf32(quick: bool) -> Iterator[Finding]:
    """Float32 is exact after the suite has built a model: no product or convolution rounds to TF32 or bf16."""
    import torch
    import torch.nn.functional as F

    device, _ = used_device(), _toy()
    value = torch.full((1, 512, 512), ROUNDED, device=device)
    eye, kernel = torch.eye(512, device=device), torch.zeros(64, 1, 16, 16, device=device)
    kernel[:, :, 0, 0] = 1
    results = dict(
        matmul=torch.matmul(value[0], eye),
        bmm=torch.bmm(value, eye[None]),
        linear=F.linear(value, eye),
        conv2d=F.conv2d(value[None], kernel, stride=16),
    )
    rounded = [name for name, result in results.items() if not float((result - ROUNDED).abs().max()) < 2**-14]
    flags = {
        'matmul precision': _flag(torch.get_float32_matmul_precision),
        'cuda.matmul.allow_tf32': _flag(lambda: torch.backends.cuda.matmul.allow_tf32),
        'cudnn.allow_tf32': _flag(lambda: torch.backends.cudnn.allow_tf32),
    }
    fine = not rounded and not any(value in (True, 'high', 'medium') for value in flags.values())
    detail = f'rounded: {", ".join(rounded)}' if rounded else f'{", ".join(results)} keep 1 + 2^-12'
    states = ', '.join(f'{name} {value}' for name, value in flags.items())
    mend = '' if fine else f'; unset {", ".join(FASTER)}'
    yield '', fine, f'{detail}; {states}{mend}'


def golden(quick: bool) -> Iterator[Finding]:
    """The methods, with and without FSA, give the golden numbers in float32."""
    needs(GOLDEN)
    import torch

    from fsa_seg.models.window import patch_logits

    device, _ = used_device(), _toy()
    for path in sorted(glob.glob(os.path.join(GOLDEN, '*.safetensors'))):
        visual, tensors = load_golden(path)
        visual, tensors = visual.to(device), {key: value.to(device) for key, value in tensors.items()}
        differences = {}
        with torch.no_grad():
            for name, (method, feedback, expected) in golden_cases(tensors).items():
                logits, _ = patch_logits(
                    visual,
                    tensors['images'],
                    tensors['text'],
                    method=method,
                    feedback=feedback,
                    vfm_features=tensors.get('vfm_features'),
                )
                differences[name] = float((logits - expected).abs().max())
            if 'boxes' in tensors:
                differences = whole_image_differences(visual, tensors)
        yield os.path.basename(path)[:-12], *_within(differences, EXACT)


def golden_cases(tensors: 'Mapping[str, Tensor]') -> dict[str, tuple]:
    """Return the golden numbers of a file: name -> (method, feedback, logits (B, N, Q)).

    GEM's are left out: they were made with position embeddings that are resized in another way than the suite's trunk
    resizes them.
    """
    cases: dict[str, tuple] = {}
    for key, value in tensors.items():
        name = key.removeprefix('logits.')
        if name == key or name == 'gem':
            continue
        method, fsa = name.removesuffix('+fsa'), name.endswith('+fsa')
        if method.startswith('resclip.'):
            cases[name] = dict(type='resclip', host=method.split('.')[1]), GOLDEN_SFR, value
        else:
            cases[name] = GOLDEN_MAPS.get(method, method), fsa, value
    return cases


class GoldenImage:
    """The golden image, as hooks on whole images see it: the affinity's attention is the golden one.

    Attributes:
        shape, size, path: see `fsa_seg.ops.windows.WholeImage`.
    """

    path = None

    def __init__(self, tensors: 'Mapping[str, Tensor]'):
        self._tensors, self.shape, self.size = tensors, tuple(tensors['image'].shape[1:]), (9, 13)

    def original(self) -> 'Tensor':
        """Return the image (3, height, width)."""
        return self._tensors['image']

    def window_features(self, role: str) -> 'list[Tensor]':
        """Return the features (1, C, I, J) of each window."""
        return list(self._tensors['vfm_features'].split(1))

    def input_side(self, role: str) -> None:
        """Return None: any size is seen."""

    def multiple(self, role: str) -> tuple[int, int]:
        """Return (1, 1): any height and width."""
        return 1, 1

    def once(self, role: str, key: tuple, make) -> 'Tensor':
        """Return the packed attention, whose logits are the logarithms of the golden probabilities."""
        import torch

        from fsa_seg.ops.affinity import LastAttention, pack_attention

        attention, value = self._tensors['trident.attention'], self._tensors['trident.values']
        key = torch.zeros(1, *self.size, *attention.shape[::2])
        key[0] = attention.log().permute(2, 0, 1).unflatten(0, self.size)
        query = torch.eye(len(key[0].flatten(0, 1)))[None, :, None].expand(1, -1, key.shape[3], -1)
        value = torch.nn.functional.pad(value, (0, key.shape[4] - value.shape[2])).transpose(0, 1)
        zeros = [torch.zeros(*key.shape[:4], side) for side in self.size]
        parts = query.unflatten(1, self.size), key, value[None].unflatten(1, self.size), *zeros
        return pack_attention(LastAttention(*(part.to(value.device) for part in parts)))


def whole_image_differences(visual: 'nn.Module', tensors: 'Mapping[str, Tensor]') -> dict[str, float]:
    """Return the largest differences of the methods that see whole images from golden numbers, by what is compared.

    Methods run as in a pass: windows first, then the merge. LPOSS's differences are relative to the largest value.

    Args:
        visual, tensors: of `load_golden`, of the file with `boxes`.
    """
    import torch

    from fsa_seg.methods import make_method
    from fsa_seg.methods.base import WindowCosines
    from fsa_seg.models.clip import trunk_and_inner
    from fsa_seg.ops.label_propagation import patch_graph, propagate_pixels
    from fsa_seg.ops.last_block import LastBlock, Projections
    from fsa_seg.ops.readout import embeddings
    from fsa_seg.ops.regions import correct_labels, merge_regions
    from fsa_seg.ops.windows import Layout, Window

    t, boxes, image = tensors, tensors['boxes'].tolist(), GoldenImage(tensors)
    crops = torch.stack([t['image'][:, top:bottom, left:right] for top, left, bottom, right in boxes])
    blocks = visual.transformer.resblocks
    tokens, grid, entering = trunk_and_inner(visual, crops, range(len(blocks) - 1))
    inner = {index: Projections(blocks[index], before) for index, before in entering.items()}

    def windows_of(method, **seen):
        features = dict.fromkeys(method.roles, t['vfm_features'])
        return WindowCosines(method, LastBlock(visual, tokens, grid, features, inner, **seen), t['text'])

    found = {'LPOSS cosines': (windows_of(make_method('lposs')).first.flatten(0, 1), t['lposs.cosines'])}
    graph = patch_graph(t['lposs.features'], t['lposs.centres'], 20)
    found['LPOSS'] = graph.propagate(t['lposs.cosines']), t['lposs.propagated_k20']
    pixels = t['lposs.pixel_scores'].T.unflatten(1, t['lposs.lab'].shape[1:]).contiguous()
    found['LPOSS+'] = propagate_pixels(pixels, t['lposs.lab']).flatten(1).T, t['lposs.pixels']
    for name, alpha, negative in (('kept', 1.2, None), ('replaced', 3.0, 0.6)):
        trident = make_method(dict(type='trident', alpha=alpha, negative=negative))
        windows = windows_of(trident, whole=[trident.whole(image)] * len(boxes))
        spans = [((top, bottom), (left, right)) for top, left, bottom, right in boxes]
        parts = zip(spans, windows.first, windows.last)
        layout = Layout(
            image.shape,
            image.size,
            96,
            48,
            image=image,
            patch=(16, 16),
            read_out=lambda left: embeddings(visual, left) @ t['text'].T,
        )
        done = [Window(*span, cosines, windows.grid, None, left) for span, cosines, left in parts]
        found[f'Trident {name}'] = trident.merge(done, layout).strip()().flatten(1).T, t[f'trident.logits.{name}']
    regions = t['corrclip.regions'].long()
    found['CorrCLIP'] = windows_of(make_method('corrclip'), regions=regions).first, t['corrclip.logits']
    merged = merge_regions(t['vfm_features'], regions)
    found['CorrCLIP merging'] = merged.float(), t['corrclip.merged'].float()
    found['CorrCLIP correction'] = (
        correct_labels(t['corrclip.labels'], t['corrclip.label_regions']),
        t['corrclip.corrected'],
    )
    scale = {name: float(pair[1].abs().max()) if name.startswith('LPOSS') else 1.0 for name, pair in found.items()}
    return {name: float((a - b).abs().max()) / scale[name] for name, (a, b) in found.items()}


def load_golden(path: str) -> 'tuple[nn.Module, dict[str, Tensor]]':
    """Return the image tower and the named tensors of a file of golden numbers; see tests/golden.

    The tensors are `images`, `text`, `vfm_features`, and `logits.METHOD` and `logits.METHOD+fsa` of each method.
    """
    from open_clip.model import CLIP
    from safetensors import safe_open

    with safe_open(path, 'pt') as f:
        config = json.loads(f.metadata()['config'])
        tensors = {key: f.get_tensor(key) for key in f.keys()}
    vision = {key: config[key] for key in ('image_size', 'layers', 'width', 'head_width', 'patch_size')}
    text = dict(vocab_size=64, width=32, heads=2, layers=1)
    clip = CLIP(config['embed_dim'], vision, text, quick_gelu=config['quick_gelu'])
    visual = clip.eval().requires_grad_(False).visual
    visual.load_state_dict({key[7:]: value for key, value in tensors.items() if key.startswith('visual.')})
    return visual, tensors


def dense(quick: bool) -> Iterator[Finding]:
    """The methods, with and without FSA, agree with the dense reference on one window of toy models."""
    import torch

    from fsa_seg.methods import make_method
    from fsa_seg.models.window import resolve_feedback, token_logits
    from fsa_seg.ops.reference import METHODS, Disagreement
    from fsa_seg.profiling.architectures import compare

    device, model = used_device(), _toy('proxyclip')
    squares = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))  # noise would give equal features
    image = torch.nn.functional.interpolate(squares, (224, 224)).to(device)
    differences = {}
    with torch.no_grad():
        tokens, grid, _ = model.trunk(model.visual, image)
        features = model.features(image)
        for name, fsa in itertools.product(METHODS, (None, True)):
            arguments = dict(method=make_method(name), feedback=resolve_feedback(fsa), vfm_features=features)
            logits, _ = token_logits(model.visual, tokens, grid, model.text.rows, **arguments)
            try:
                difference = compare(model.visual, tokens, grid, model.text.rows, logits, **arguments)['difference']
            except (Disagreement, RuntimeError) as error:  # entries that cannot be kept, or a large difference
                difference = one_line(error)
            differences[name + ('+fsa' if fsa else '')] = difference
    yield '', *_within(differences, EXACT)


def labels(quick: bool) -> Iterator[Finding]:
    """Half precision keeps almost all of float32's labels of toy models on the mini split."""
    rows, images = ((('proxyclip', 'fsa'),), 1) if quick else (None, 3)
    for name, pixels, moved in moved_labels(rows, images, tuple(LABELS)):
        for precision, count in moved.items():
            share = 100 * (1 - count / pixels)
            yield (
                f'{name}, {precision}',
                share >= LABELS[precision],
                (f'{share:.2f} % of {pixels} pixels keep their label, {count} do not (at least {LABELS[precision]} %)'),
            )


def sync(quick: bool) -> Iterator[Finding]:
    """No step inside an image waits for the GPU: all methods share a pass under `set_sync_debug_mode('error')`."""
    device = used_device()
    if device != 'cuda':
        raise Skip('no GPU')
    import torch
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    from fsa_seg.methods import method_names

    cells = list(itertools.product(method_names(users=False), (None, 'fsa')))
    for size in (1, 4):
        options = dict(words=WORDS, window=100, stride=64, window_batch=size)
        members = [dict(_toy_config(*cell, 'auto'), **options) for cell in cells]
        model = MODELS.build(dict(type='SharedPass', members=members)).to(device)
        data = model.data_preprocessor(
            dict(
                inputs=[torch.randint(256, (3, *shape), dtype=torch.uint8) for shape in ((132, 180), (90, 203))],
                data_samples=[SegDataSample(metainfo=dict(ori_shape=shape)) for shape in ((50, 71), (96, 33))],
            )
        )
        model.predict(**data)  # the first call may wait: it makes the constants
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        try:
            model.predict(**data)
        finally:
            torch.cuda.set_sync_debug_mode('default')
        torch.cuda.synchronize()
        yield f'{size} at a time', True, f'{len(cells)} rows, 2 images: nothing waits'


def sdpa(quick: bool) -> Iterator[Finding]:
    """Each back end of `scaled_dot_product_attention` that runs agrees with float64 at the suite's shapes."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device, contexts = used_device(), dict(default=contextlib.nullcontext)
    contexts.update(
        {
            name: functools.partial(sdpa_kernel, [SDPBackend.__members__[member]])
            for name, member in BACKENDS.items()
            if member in SDPBackend.__members__
        }
    )
    differences_of, failures = {name: {} for name in contexts}, {}
    for shape, dtype in itertools.product(SHAPES[: 1 if quick else None], ATTENTION):
        inputs = _attention_inputs(shape, getattr(torch, dtype), device)
        expected = torch.stack([_attention64(*(x[0, head] for x in inputs)) for head in range(shape[0])])
        for name, context in contexts.items():
            try:
                with context():
                    attended = torch.nn.functional.scaled_dot_product_attention(*inputs)
            except RuntimeError as error:
                if not any(text in str(error) for text in NO_KERNEL):
                    failures[name] = f'{dtype} {tuple(inputs[0].shape)}: {one_line(error)}'
                continue
            difference = float((attended[0].double() - expected).abs().max())
            differences_of[name][dtype] = _worse(differences_of[name].get(dtype, 0.0), difference)
    for name, differences in differences_of.items():
        if name in failures:
            yield name, False, failures[name]
        elif differences:
            yield (
                name,
                all(value <= ATTENTION[dtype] for dtype, value in differences.items()),
                ', '.join(
                    f'{dtype} {value:.1e} (limit {ATTENTION[dtype]:.0e})' for dtype, value in differences.items()
                ),
            )
        else:
            yield name, 'skipped (not for this device)', ''


def used_device() -> str:
    """Return the suite's device: 'cuda' on a machine with a GPU, else 'cpu' or another device that mmengine knows."""
    from mmengine.device import get_device

    return get_device()


def needs(*paths: str) -> None:
    """Raise a Skip unless all paths exist, which ship with the package."""
    for path in paths:
        if not os.path.exists(path):
            raise Skip(f'{os.path.relpath(path, ROOT)} is missing, which ships with the package: install it again')


def _toy_config(method, feedback, precision):
    """Return the config of a toy segmentor."""
    needs(MINI)
    from fsa_seg.config.compose import compose

    return compose('voc21', method, feedback, 'toy', 'toy', precision=precision, data_root=MINI).model


def _toy(method='maskclip'):
    """Return a toy segmentor in float32 on the used device; building a segmentor switches TF32 off."""
    from mmseg.registry import MODELS

    return MODELS.build(_toy_config(method, None, 'fp32')).to(used_device())


def moved_labels(
    rows: Sequence[tuple[str, str | None]] | None, images: int | None, precisions: Sequence[str]
) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield the values of `CostTables.moved_labels` on the used device; `rows` None stands for AGREEING."""
    needs(MINI)
    from fsa_seg.profiling.costs import AGREEING, CostTables

    toy = CostTables('toy', 'toy', 'fp32', used_device(), 1, MINI)
    yield from toy.moved_labels(rows or AGREEING, images, precisions)


def _within(differences, limit):
    """Return whether all differences are within the limit, and a detail.

    Args:
        differences (dict): name -> number, or the text of an error.
        limit (float): largest difference that passes.
    """
    failures = {name: value for name, value in differences.items() if isinstance(value, str) or not value <= limit}
    if failures:
        texts = {name: value if isinstance(value, str) else f'{value:.1e}' for name, value in failures.items()}
        return False, f'{"; ".join(map(": ".join, texts.items()))} (limit {limit:.0e})'[:300]
    largest = max(differences.values())
    return True, f'{len(differences)} comparisons, largest difference {largest:.1e} (limit {limit:.0e})'


def _attention_inputs(shape, dtype, device):
    """Return random q, k and v, each (1, heads, T, d)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, *shape, generator=generator).to(device, dtype) for _ in 'qkv']


def _attention64(q, k, v):
    """Return softmax(qkᵀ/√d)·v in float64; q, k, v and the result are (T, d)."""
    q, k, v = (x.double() for x in (q, k, v))
    return (q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v


def _worse(a, b):
    """Return the larger of two differences; NaN is the largest."""
    return b if not b <= a else a


def _flag(read):
    """Return the value of a flag of torch's, or 'unknown' if torch does not tell."""
    try:
        return read()
    except RuntimeError:  # torch reads a flag through the interface that set the flag alone
        return 'unknown'
