"""CLIP: load an `open_clip` model, and run its image tower up to the last block (the trunk).

Shape legend: B images, T = 1 + N tokens (CLS first), N = h·w patches, D width; images (B, 3, height, width).
"""

import hashlib
import inspect
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import nn

from fsa_seg.errors import UserError, one_line, one_of
from fsa_seg.ops.types import ImageTower
from fsa_seg.system.paths import local_path
from fsa_seg.system.progress import note

CONFIG_FILE = 'open_clip_config.json'
ARCHIVE_KEYS = ('input_resolution', 'context_length', 'vocab_size')  # of OpenAI's archives, beside the weights
POSITION_OFFSET = 0.1  # the published numbers were made with scale factors (n + 0.1) / s


def load_clip(
    model: str,
    pretrained: str | None = None,
    checkpoint: str | None = None,
    quick_gelu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache_dir: str | None = None,
    random_weights: int | None = None,
) -> tuple[open_clip.CLIP, Callable]:
    """Return an `open_clip` model in float32 and evaluation mode, and its tokenizer.

    The image normalisation (`model.visual.preprocess_cfg`) is that of the weights: their tag gives it, or the
    open_clip_config.json in the folder or beside the file, or else it is OpenAI's.

    Args:
        model: an `open_clip` architecture ('ViT-B-16-quickgelu'), or 'local-dir:PATH' of a folder with
            open_clip_config.json and weights. A relative PATH starts in the working directory or in the repository.
        pretrained: a tag of `open_clip` ('openai').
        checkpoint: a local file of weights, read in place of a download, of the tag's weights or of others. Formats
            are those that `open_clip` loads, and OpenAI's TorchScript archives.
        quick_gelu: whether a checkpoint without a tag was trained with QuickGELU, where the file does not say.
        mean, std: 3 floats each, the normalisation on 0..1 RGB in place of what tag, file or folder gives.
        cache_dir: folder of downloads; by default `open_clip`'s cache.
        random_weights: seed of random weights, which replace trained weights.

    Raises:
        UserError: a name is unknown; the weights are missing and cannot be downloaded, do not fit the architecture,
            or were trained with the other activation; or the methods cannot run on the image tower.
    """
    options: dict[str, Any] = dict(device=str(torch.empty(0).device), cache_dir=cache_dir)
    source: str | None
    override = {key: tuple(value) for key, value in (('mean', mean), ('std', std)) if value}
    if model.startswith('local-dir:'):
        source = local_path(model.removeprefix('local-dir:'), 'folder of a CLIP model')
        if pretrained or checkpoint:
            raise UserError(f'{model}: the folder holds the weights; leave out pretrained and checkpoint')
        model = f'local-dir:{source}'
        options['force_preprocess_cfg'] = override
    else:
        tag = _pretrained_tag(model, pretrained)
        if checkpoint:
            checkpoint = local_path(checkpoint, f'checkpoint of the backbone {model}')
        if not pretrained and not checkpoint and random_weights is None:
            raise UserError(f'{model}: name its weights, by `pretrained` (a tag) or `checkpoint` (a local file)')
        beside = _config_beside(checkpoint)
        if pretrained or random_weights is None:
            _check_activation(model, pretrained, tag, checkpoint, quick_gelu, beside)
        preprocess = {**(tag or beside.get('preprocess_cfg', {})), **override}
        options['force_preprocess_cfg'] = {key: tuple(preprocess[key]) for key in ('mean', 'std') if key in preprocess}
        source = checkpoint or pretrained
        options['pretrained'] = pretrained
    tokenizer = _check_architecture(model)
    if random_weights is not None:
        options.update(pretrained=None, load_weights=False)
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(random_weights)
            return open_clip.create_model(model, **options).eval().requires_grad_(False), tokenizer
    assert source is not None  # without a tag and a checkpoint the weights are random
    with loading_weights(f'CLIP {model!r}', source, cache_dir):
        if checkpoint:
            clip = open_clip.create_model(model, **dict(options, pretrained=None))
            _load_checkpoint(clip, checkpoint)
        else:
            clip = open_clip.create_model(model, require_pretrained=True, **options)
    return clip.eval().requires_grad_(False), tokenizer


BACKBONE_KEYS = tuple(inspect.signature(load_clip).parameters)


@contextmanager
def loading_weights(subject: str, source: str, cache_dir: str | None = None) -> Iterator[None]:
    """Turn every error of a library that loads weights into a UserError, and hold back the library's log.

    Args:
        subject: names the model in the message.
        source: file, folder or tag of the weights.
        cache_dir: folder of downloads.

    Raises:
        UserError: the weights are absent and cannot be downloaded, or do not fit (the message names the keys).
    """
    if not os.path.exists(source):
        note(
            f'loading {subject}, {source} (downloaded where it is not cached; without a network that gives up after a '
            'minute, with HF_HUB_OFFLINE=1 at once)'
        )
    try:
        with _quiet():
            yield
    except Exception as error:  # the libraries and their downloaders raise many kinds of errors
        text = one_line(error, 800)
        if 'state_dict' in text or 'size mismatch' in text:
            raise UserError(f'the weights {source} do not fit {subject}: {text}') from error
        if os.path.exists(source):
            raise UserError(
                f'{subject}: the file {source} cannot be read ({text[:300]}); it may be damaged or no file of '
                'weights: give another, or get it again'
            ) from error
        raise UserError(
            f'{subject}: the weights {source} could not be loaded ({text[:300]}). Looked in '
            f'{cache_dir or constants.HF_HUB_CACHE} and at their source. Either download '
            'them on a machine with network and copy that cache, or give the path of a local file in the config '
            '(`checkpoint` of a backbone or a VFM)'
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' logs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def weights_digest(module: nn.Module, leave_out: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 of a module's parameters and buffers, as a hexadecimal string.

    Args:
        module: the module.
        leave_out: beginnings of names that do not count, such as 'visual.'.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not name.startswith(leave_out):
            digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
            content = (
                tensor.contiguous().view(torch.uint8).cpu().numpy() if tensor.ndim else str(tensor.item()).encode()
            )
            digest.update(content)
    return digest.hexdigest()


def architecture_digest(module: nn.Module, leave_out: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 of what a module computes beside its weights: classes, plain attributes, unsaved buffers.

    Two text towers of the same weights that differ in mask, pooling, heads or activation differ here.

    Args:
        module, leave_out: as of `weights_digest`.
    """
    digest, saved = hashlib.sha256(), module.state_dict().keys()
    for name, child in module.named_modules():
        if f'{name}.'.startswith(leave_out):
            continue
        plain = {key: repr(value) for key, value in vars(child).items() if key != 'training' and _is_plain(value)}
        row = [name, type(child).__module__, type(child).__qualname__, plain]
        digest.update(json.dumps(row, sort_keys=True).encode())
    for name, buffer in module.named_buffers():
        if name not in saved and not name.startswith(leave_out):
            digest.update(f'{name} {buffer.dtype} {tuple(buffer.shape)}'.encode())
            digest.update(buffer.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_finite(module: nn.Module, subject: str, precision: str = 'fp32') -> None:
    """Raise a UserError that names the first tensor of weights with a value that is not finite.

    Args:
        module: the model.
        subject: the model's name and the source of its weights, for the message.
        precision: the weights' present precision; large weights do not fit into half precision.
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            wrong = int((~tensor.isfinite()).sum())
            mend = (
                'the file is damaged: get it again, or name another by `checkpoint`'
                if precision == 'fp32'
                else f'they do not fit into {precision}: use --precision fp32 or bf16'
            )
            raise UserError(
                f'the weights of {subject}: {wrong} of {tensor.numel()} values of {name!r} are no finite numbers '
                f'(NaN or infinite); {mend}'
            )


def check_tower(visual: object) -> None:
    """Raise a UserError that names what an image tower lacks, if the methods cannot run on the tower."""
    missing = []
    blocks = getattr(getattr(visual, 'transformer', None), 'resblocks', None)
    if not blocks:
        missing.append('transformer.resblocks')
    elif getattr(getattr(blocks[-1], 'attn', None), 'in_proj_weight', None) is None:
        missing.append('attn.in_proj_weight in the last block')
    for name in ('conv1', 'class_embedding', 'positional_embedding', 'ln_pre', 'ln_post', 'proj'):
        if getattr(visual, name, None) is None:
            missing.append(name)
    if getattr(visual, 'attn_pool', None) is not None:
        missing.append('a CLS readout (it pools by attention)')
    if missing:
        raise UserError(
            f'the image tower {type(visual).__name__} lacks {", ".join(missing)}; '
            "use an open_clip ViT with a class token, such as 'ViT-B-16'"
        )


def trunk(visual: ImageTower, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the tokens that enter the last block, CLS first, and the patch grid: ((B, 1 + h·w, D), (h, w)).

    Args:
        visual: an `open_clip` image tower.
        images: (B, 3, height, width), normalised; sides are multiples of the patch size.

    Raises:
        UserError: the methods cannot run on the tower, or a side is no multiple of the patch size.
    """
    return trunk_and_inner(visual, images)[:2]


def trunk_and_inner(
    visual: ImageTower, images: torch.Tensor, blocks: Sequence[int] = ()
) -> tuple[torch.Tensor, tuple[int, int], dict[int, torch.Tensor]]:
    """Return what `trunk` does, and the tokens (B, 1 + h·w, D) that enter some earlier blocks, by their index.

    The output of block i is what enters block i + 1.

    Args:
        visual, images: as of `trunk`.
        blocks: indices of earlier blocks, from 0.

    Raises:
        UserError: as of `trunk`, or a block that the tower does not have.
    """
    check_tower(visual)
    check_inner_blocks(blocks, len(visual.transformer.resblocks))
    patch_height, patch_width = visual.patch_size
    height, width = images.shape[-2:]
    grid = (height // patch_height, width // patch_width)
    if not all(grid) or height % patch_height or width % patch_width:
        raise UserError(
            f'a window of {height}×{width} pixels does not divide into patches of '
            f'{patch_height}×{patch_width}; its sides have to be multiples of them'
        )
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
    position = resize_position_embedding(visual.positional_embedding, visual.grid_size, grid)
    x = visual.ln_pre(x + position.to(x.dtype))
    inner = {}
    for index, block in enumerate(visual.transformer.resblocks[:-1]):
        if index in blocks:
            inner[index] = x
        x = block(x)
    return x, grid, inner


def check_inner_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the indices of earlier blocks; what is no block of a tower of `depth` blocks is a UserError."""
    if not isinstance(blocks, (tuple, list, range)) or not all(isinstance(index, int) for index in blocks):
        raise UserError(f'inner_blocks returned {blocks!r}; it has to be indices of blocks, such as (6, 7)')
    outside = [index for index in blocks if not 0 <= index < depth - 1]
    if outside:
        raise UserError(
            f'the image tower has {depth} blocks, of which 0 to {depth - 2} are earlier ones; the method reads block '
            f'{outside[0]}'
        )
    return tuple(blocks)


def resize_position_embedding(
    embedding: torch.Tensor,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    prefix: int = 1,
    offset: float = POSITION_OFFSET,
) -> torch.Tensor:
    """Return a position embedding (prefix + h·w, D) for another grid, resized bicubically; the prefix stays.

    The scale factors are (n + offset) / s, as in the published implementations; without an offset (0) the resize is
    to size.

    Args:
        embedding: (prefix + h·w, D), as trained.
        grid: rows and columns (h, w) of the trained grid.
        new_grid: rows and columns of the wanted grid.
        prefix: number of tokens before the patches.
        offset: see above.
    """
    if tuple(grid) == tuple(new_grid):
        return embedding
    patches = embedding[prefix:].float().T.unflatten(1, tuple(grid))[None]
    if offset:
        scale = tuple((n + offset) / s for n, s in zip(new_grid, grid))
        patches = F.interpolate(patches, scale_factor=scale, mode='bicubic', align_corners=False)
    else:
        patches = F.interpolate(patches, tuple(new_grid), mode='bicubic', align_corners=False)
    if tuple(patches.shape[2:]) != tuple(new_grid):
        raise RuntimeError(f'position embeddings of {tuple(grid)} became {tuple(patches.shape[2:])}, not {new_grid}')
    return torch.cat([embedding[:prefix].float(), patches[0].flatten(1).T]).to(embedding.dtype)


def _is_plain(value: object) -> bool:
    """Return whether a value prints the same in every process."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _pretrained_tag(model: str, pretrained: str | None) -> dict[str, Any] | None:
    """Return `open_clip`'s description of a tag's weights, or None without a tag; unknown names are UserErrors."""
    one_of(model, open_clip.list_models(), 'open_clip architecture')
    if not pretrained:
        return None
    family = model.removesuffix('-quickgelu')
    tags = {
        tag: name
        for name in (family + '-quickgelu', family, model)
        for tag in open_clip.list_pretrained_tags_by_model(name)
    }
    if pretrained not in tags and os.path.splitext(pretrained)[1]:
        raise UserError(f'pretrained={pretrained!r} is no tag of {model}; a local file is named by `checkpoint`')
    one_of(pretrained, tags, f'pretrained tag of {model}')
    return open_clip.get_pretrained_cfg(model, pretrained) or open_clip.get_pretrained_cfg(tags[pretrained], pretrained)


def _check_architecture(model: str) -> Callable:
    """Return a model's tokenizer; raise a UserError, before a download, if the methods cannot run on the tower."""
    try:
        with torch.device('meta'), _quiet():  # shapes alone
            clip = open_clip.create_model(model, load_weights=False, device='meta')
    except Exception as error:  # a missing library, a text tower of another library, ...
        raise UserError(f'CLIP {model!r} cannot be built: {one_line(error)}') from error
    check_tower(clip.visual)
    try:
        return open_clip.get_tokenizer(model)
    except Exception as error:
        raise UserError(
            f'the tokenizer of CLIP {model!r} cannot be made: {one_line(error)}. Use a model '
            "with open_clip's own tokenizer"
        ) from error


def _config_beside(checkpoint: str | None) -> dict[str, dict[str, Any]]:
    """Return model_cfg and preprocess_cfg of an open_clip_config.json beside a file of weights; {} without the file."""
    path = checkpoint and os.path.join(os.path.dirname(checkpoint), CONFIG_FILE)
    if not path or not os.path.exists(path):
        return {}
    try:
        with open(path, encoding='utf-8') as f:
            config = json.load(f)
        return dict(model_cfg=dict(config['model_cfg']), preprocess_cfg=dict(config.get('preprocess_cfg', {})))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is no config of open_clip ({error!r}); mend it, or move the weights elsewhere'
        ) from error


def _check_activation(
    model: str,
    pretrained: str | None,
    tag: dict[str, Any] | None,
    checkpoint: str | None,
    quick_gelu: bool | None,
    beside: dict[str, dict[str, Any]],
) -> None:
    """Raise a UserError unless the architecture has the activation (QuickGELU or GELU) of the weights.

    Sources of the weights' activation are the tag, `quick_gelu` of the config, the code of a TorchScript archive, and
    the open_clip_config.json beside a checkpoint.
    """
    quick_by_source = {}  # where the activation is said -> whether it is QuickGELU
    if tag:
        quick_by_source[f'the tag {pretrained!r}'] = bool(tag.get('quick_gelu', False))
    if quick_gelu is not None:
        quick_by_source['`quick_gelu` of the config'] = quick_gelu
    code = checkpoint and _script_code(checkpoint)
    if code and ('torch.sigmoid(' in code or 'torch.gelu(' in code):
        quick_by_source[f'the code in {checkpoint}'] = 'torch.sigmoid(' in code  # QuickGELU is x·sigmoid(1.702·x)
    elif checkpoint and beside:
        quick_by_source[os.path.join(os.path.dirname(checkpoint), CONFIG_FILE)] = bool(
            beside['model_cfg'].get('quick_gelu', False)
        )
    if not quick_by_source:
        raise UserError(
            f'{checkpoint} does not say which activation its weights were trained with: name the tag whose '
            'weights they are (`pretrained`), or set quick_gelu=True or False in the backbone'
        )
    model_quick = bool(open_clip.get_model_config(model).get('quick_gelu', False))
    for source, quick in quick_by_source.items():
        if quick != model_quick:
            family = model.removesuffix('-quickgelu')
            fitting = family + '-quickgelu' if quick else family
            names = ('GELU', 'QuickGELU')
            raise UserError(
                f'the weights and {model!r} differ in their activation: {source} says {names[quick]}, the '
                f'architecture has {names[model_quick]}. '
                + (
                    f'Use {fitting!r}'
                    if fitting in open_clip.list_models()
                    else f'open_clip has no {fitting!r}; a folder with open_clip_config.json can spell it out '
                    '(model="local-dir:PATH")'
                )
            )


def _load_checkpoint(clip: nn.Module, path: str) -> None:
    """Load a file of weights; raise an error for position embeddings that `open_clip` would resize."""
    script = _script_code(path)
    if script:
        state = torch.jit.load(path, map_location='cpu').state_dict()
        state = {key: value for key, value in state.items() if key not in ARCHIVE_KEYS}
    else:
        state = open_clip.factory.load_state_dict(path)
    for key, value in clip.state_dict().items():
        if key.endswith('positional_embedding') and key in state and state[key].shape != value.shape:
            raise RuntimeError(
                f'size mismatch for {key}: {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the model'
            )
    if script:
        clip.load_state_dict(state)
    else:
        open_clip.load_checkpoint(clip, path)


def _script_code(path: str) -> str:
    """Return the code in a TorchScript archive; an empty string for any other file."""
    if not zipfile.is_zipfile(path):
        return ''
    with zipfile.ZipFile(path) as archive:
        return '\n'.join(
            archive.read(name).decode() for name in archive.namelist() if '/code/' in name and name.endswith('.py')
        )
