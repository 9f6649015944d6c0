"""Vision foundation models: an image to a grid of features, through unmodified `timm` models.

A VFM is a module of any class registered in `MODELS`, which normalises and resizes images itself:

    multiple                    what a window's height and width must be multiples of, in pixels: a pair of whole
                                numbers, or one number for both
    grid(height, width)         the rows and columns (h, w) of the features for a window of height × width pixels
    forward(images)             features (B, C, h, w) of images (B, 3, height, width) in 0..1 RGB
    kinds                       the kinds of features that the VFM has; may be left out where 'tokens' is the only one
    forward(images, kind)       features of a kind; needed where there are others than 'tokens'

The kinds, of which CLS and registers are no part:

    'tokens'                    the output that the class describes; the default
    'values', 'keys', 'q+k'     v, k, or q + k of the last block's attention, heads side by side; q and k after the norm
                                that some models have for them, and before any rotary embedding
    'attention'                 what the last block's attention is made of, packed by `ops.affinity.pack_attention`

Its constructor takes `random_weights`: the seed of random weights, or None for trained weights.

Shape legend: B images, C feature channels, (h, w) the VFM's grid; images (B, 3, height, width).
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from timm.layers import RotaryEmbeddingDinoV3
from timm.models import eva, load_pretrained, vision_transformer, vision_transformer_sam
from torch import nn

from fsa_seg.errors import UserError, built, one_line, one_of
from fsa_seg.models.clip import POSITION_OFFSET, loading_weights, resize_position_embedding
from fsa_seg.ops.affinity import LastAttention, pack_attention
from fsa_seg.ops.device import constant
from fsa_seg.ops.types import pair
from fsa_seg.settings import VFM, check_values
from fsa_seg.system.paths import local_path

# of the last block, whose queries, keys and values can be read
BLOCKS = (vision_transformer.Block, eva.EvaBlock, vision_transformer_sam.Block)
ATTENTIONS = (vision_transformer.Attention, eva.EvaAttention, eva.AttentionRope, vision_transformer_sam.Attention)
# offset of the scale factors, see `TimmViT`
POSITION_RULES: dict[str, float | None] = dict(offset=POSITION_OFFSET, size=0, timm=None)


class VisionModel(Protocol):
    """A VFM, as `check_vfm` checks it."""

    multiple: int | tuple[int, int]

    def grid(self, height: int, width: int, /) -> tuple[int, int]: ...

    def __call__(self, images: torch.Tensor, kind: str = ..., /) -> torch.Tensor: ...


def check_vfm(module: nn.Module, name: str) -> None:
    """Raise a UserError unless a module has `multiple` and `grid`, as every VFM has.

    Args:
        module: the VFM.
        name: names the VFM in the message.
    """
    faults, multiple = [], getattr(module, 'multiple', None)
    if multiple is None:
        faults.append('no `multiple`')
    elif not _is_side(multiple) and not (
        isinstance(multiple, (tuple, list)) and len(multiple) == 2 and all(map(_is_side, multiple))
    ):
        faults.append(f'multiple = {multiple!r}')
    if not callable(getattr(module, 'grid', None)):
        faults.append('no method `grid`')
    if faults:
        raise UserError(
            f'the VFM {name!r} of class {type(module).__name__} has {" and ".join(faults)}; a VFM needs '
            "`multiple = (16, 16)` (what a window's height and width must be multiples of: two whole numbers of at "
            'least 1, or one for both), `grid(height, width) -> (h, w)` and `forward(images) -> (B, C, h, w)`'
        )


def build_vfm(config: dict) -> nn.Module:
    """Return the VFM of a config, checked.

    Raises:
        UserError: the VFM cannot be built, or lacks what every VFM has.
    """
    vfm = built(f'the VFM {config["type"]}', lambda: MODELS.build(config))
    check_vfm(vfm, config['type'])
    return vfm


def window_multiple(vfm: VisionModel) -> tuple[int, int]:
    """Return what a window's height and width must be multiples of for a VFM, in pixels."""
    return (vfm.multiple, vfm.multiple) if isinstance(vfm.multiple, int) else pair(vfm.multiple)


def vfm_grid(vfm: VisionModel, height: int, width: int) -> tuple[int, int]:
    """Return the grid (h, w) of a VFM's features for a window of height × width pixels.

    Raises:
        UserError: the VFM's `grid` returns no pair of whole numbers.
    """
    grid = vfm.grid(height, width)
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(side, int) for side in grid):
        raise UserError(
            f'the VFM {type(vfm).__name__}: grid returned {grid!r}; it has to be a pair (h, w) of whole numbers'
        )
    return pair(grid)


def check_kind(vfm: VisionModel, kind: str) -> None:
    """Raise a UserError unless a VFM has features of a kind."""
    kinds = getattr(vfm, 'kinds', ('tokens',))
    if kind not in kinds:
        raise UserError(
            f'the VFM {type(vfm).__name__} has no features of the kind {kind!r}, but {", ".join(map(repr, kinds))}; '
            f'name a VFM that has {kind!r}, such as {"sam" if kind == "attention" else "dino"}_vit-b16'
        )


def run_vfm(vfm: VisionModel, images: torch.Tensor, kind: str = 'tokens') -> torch.Tensor:
    """Return a VFM's features (B, C, h, w) of images (B, 3, height, width) in 0..1 RGB.

    Args:
        vfm, images: see above.
        kind: of the features, such as 'values'.

    Raises:
        UserError: features of another shape than the VFM's `grid` says, or a kind that the VFM does not have.
    """
    check_kind(vfm, kind)
    features = vfm(images) if kind == 'tokens' else vfm(images, kind)
    grid = vfm_grid(vfm, images.shape[2], images.shape[3])
    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if not isinstance(features, torch.Tensor) or len(shape) != 4 or (shape[0], *shape[2:]) != (len(images), *grid):
        raise UserError(
            f'the VFM {type(vfm).__name__} returned {shape} for {len(images)} images of '
            f'{images.shape[2]}×{images.shape[3]} pixels; its grid is {grid}, and `forward` has to return (B, C, h, w)'
        )
    return features


def _is_side(value: object) -> bool:
    """Return whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class TimmModel(nn.Module):
    """A ViT of `timm` with its weights; base of the classes that read the ViT's features.

    Args:
        model: `timm` name with the tag of the weights ('vit_base_patch8_224.dino').
        checkpoint: a local file of weights in place of the download; converted as `timm` converts its own files.
        model_args: arguments of the architecture, such as dict(img_size=...).
        mean, std: 3 floats each, the VFM's normalisation on 0..1 RGB; by default that of the weights' tag in `timm`.
        random_weights: seed of random weights, which replace trained weights.

    Raises:
        UserError: the model is unknown, or its weights are missing or do not fit.
    """

    kinds: tuple[str, ...] = ('tokens',)
    family: str | None = None  # pattern of timm's names
    filter_fn: Callable[..., dict[str, torch.Tensor]] | None = None  # timm's conversion of the publishers' files

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        model_args: dict | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        random_weights: int | None = None,
        **architecture: Any,
    ):
        super().__init__()
        check_values(dict(model_args=model_args), VFM, 'VFM')
        one_of(model.split('.')[0], timm.list_models(self.family), 'timm model')
        checkpoint = checkpoint and local_path(checkpoint, f'checkpoint of the VFM {model}')
        overlay = dict(file=checkpoint, custom_load=False) if checkpoint else None  # no NumPy archive
        arguments = {**architecture, **(model_args or {})}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(random_weights or 0)
                self.vit = timm.create_model(model, pretrained_cfg_overlay=overlay, num_classes=0, **arguments)
        except Exception as error:  # timm: an unknown tag, an unknown argument, an argument that does not fit
            what = f'the VFM {model!r} with model_args {model_args}'
            raise UserError(f'{what} cannot be built: {one_line(error)}') from error
        self.check_architecture(model)
        if random_weights is None:
            with loading_weights(f'VFM {model!r}', checkpoint or model):
                _load_strictly(self.vit, type(self).filter_fn)
        self.vit.eval().requires_grad_(False)
        self.kinds = ('tokens', *_kinds_of_last_block(self.vit))
        tag = self.vit.pretrained_cfg
        self.mean, self.std = (tuple(value or tag[key]) for key, value in (('mean', mean), ('std', std)))

    def check_architecture(self, model: str) -> None:
        """Raise a UserError if the class cannot read features of `self.vit`, before the weights are loaded."""

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, 3, height, width) in 0..1 RGB, less the mean and divided by the std."""
        mean, std = (constant(tuple(values), images.device)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def of_last_block(self, kind: str, tokens: torch.Tensor) -> torch.Tensor:
        """Return features (B, channels, h, w) of a kind other than 'tokens'.

        Args:
            kind: one of `kinds`.
            tokens (B, h, w, C): patch tokens that enter the last block.
        """
        block = self.vit.blocks[-1]
        tokens = block.norm1(tokens)
        letters = dict(values='v', keys='k').get(kind, 'qkv' if kind == 'attention' else 'qk')
        parts = [_projection(block.attn, letter, tokens) for letter in letters]
        if kind != 'attention':
            return sum(parts[1:], parts[0]).flatten(3).permute(0, 3, 1, 2)
        query, key, value = parts
        positions = _relative_positions(block.attn, query)
        return pack_attention(LastAttention(query * block.attn.scale, key, value, *positions))


class PatchTokens(TimmModel):
    """A ViT of `timm` whose features are the last block's normalised patch tokens; base of such classes."""

    family = 'vit_*'

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        model_args: dict | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        random_weights: int | None = None,
    ):
        super().__init__(model, checkpoint, model_args, mean, std, random_weights, dynamic_img_size=True)
        self.multiple = self.vit.patch_embed.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of features for a window of height × width pixels."""
        return height // self.multiple[0], width // self.multiple[1]

    def forward(self, images: torch.Tensor, kind: str = 'tokens') -> torch.Tensor:
        """Return features (B, C, h, w) of images (B, 3, height, width) in 0..1 RGB.

        Args:
            images: see above.
            kind: one of `kinds`.

        Raises:
            UserError: a side is no multiple of the patch size.
        """
        height, width = images.shape[-2:]
        grid = self.grid(height, width)
        if not all(grid) or height % self.multiple[0] or width % self.multiple[1]:
            raise UserError(
                f'a window of {height}×{width} pixels does not divide into the patches of the VFM, '
                f'{self.multiple[0]}×{self.multiple[1]}'
            )
        images = self.normalised(images).to(self.vit.patch_embed.proj.weight.dtype)
        if kind != 'tokens':
            return self.of_last_block(kind, self.entering(images, grid).unflatten(1, grid))
        tokens = self.tokens(images, grid)
        return tokens[:, self.vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return all tokens (B, T, C) after the last block and its norm, of normalised images on a grid of patches."""
        return self.vit.forward_features(images)

    def entering(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return the patch tokens (B, h·w, C) that enter the last block, of normalised images on a grid of patches."""
        return _output_before_last(self.vit, images, output_fmt='NLC')


@MODELS.register_module()
class TimmViT(PatchTokens):
    """A plain ViT of `timm`; the features are the last block's normalised patch tokens.

    Args:
        model, checkpoint, model_args, mean, std, random_weights: as of `TimmModel`.
        pos_embed: how position embeddings are resized to another grid: 'offset' bicubically with scale factors
            (n + 0.1)/s, 'size' bicubically to size, 'timm' as `timm` does (bicubically to size, antialiased). A
            VFM's config has the publisher's rule.

    Raises:
        UserError: the model or an option is unknown, or the weights are missing or do not fit.
    """

    filter_fn = vision_transformer.checkpoint_filter_fn

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        model_args: dict | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pos_embed: str = 'offset',
        random_weights: int | None = None,
    ):
        self.pos_embed = one_of(pos_embed, POSITION_RULES, 'pos_embed')
        super().__init__(model, checkpoint, model_args, mean, std, random_weights)

    def check_architecture(self, model: str) -> None:
        """Raise a UserError if `self.vit`, called `model`, is no plain ViT."""
        if not isinstance(self.vit, vision_transformer.VisionTransformer) or self.vit.pos_embed is None:
            raise UserError(f'{model!r} is no plain ViT with absolute position embeddings; it needs a class of its own')

    def tokens(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return all tokens (B, T, C) after the last block, with position embeddings resized by `pos_embed`."""
        if self.pos_embed == 'timm':
            return super().tokens(images, grid)
        return self.vit.norm(self.vit.blocks(self._embed(images, grid)))

    def entering(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return the patch tokens (B, h·w, C) that enter the last block, with position embeddings by `pos_embed`."""
        if self.pos_embed == 'timm':
            return super().entering(images, grid)
        return self.vit.blocks[:-1](self._embed(images, grid))[:, self.vit.num_prefix_tokens :]

    def _embed(self, images: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return the tokens (B, T, C) that enter the first block, with position embeddings resized by `pos_embed`."""
        vit, offset = self.vit, POSITION_RULES[self.pos_embed]
        assert offset is not None  # the rule is not `timm`
        x = vit.patch_embed(images).flatten(1, 2)  # (B, h, w, C) -> (B, N, C)
        prefix = [t.expand(len(x), -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        embedded_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        position = resize_position_embedding(vit.pos_embed[0], vit.patch_embed.grid_size, grid, embedded_prefix, offset)
        if vit.no_embed_class:
            x = torch.cat([*prefix, x + position], 1)
        else:
            x = torch.cat([*prefix, x], 1) + position
        return vit.norm_pre(x)


def _dinov3_state(state: dict, model: nn.Module) -> dict:
    """Return a file's state as `timm` names it; refuse what the conversion would drop: positions, biases of q and v."""
    tensors = state.get('model', state)
    if 'pos_embed' in tensors:
        raise RuntimeError('state_dict: the file has position embeddings, which the model lacks (pos_embed)')
    with contextlib.redirect_stdout(io.StringIO()):  # timm prints each missing bias
        converted = eva.checkpoint_filter_fn(state, model)
    for key, value in tensors.items():
        q_and_v = [value.chunk(3)[part] for part in (0, 2)] if key.endswith('attn.qkv.bias') else []  # k's is 0
        if key.replace('qkv.bias', 'q_bias') not in converted and any(bias.any() for bias in q_and_v):
            raise RuntimeError(f'state_dict: the model has no place for {key}; timm has such models as ..._qkvb')
    return converted


@MODELS.register_module()
class TimmRoPEViT(PatchTokens):
    """A ViT of `timm` with rotary position embeddings alone, such as DINOv3.

    The features are the last block's normalised patch tokens. The rotary embeddings follow the window's grid, and stay
    float32 in half precision.

    Args:
        model, checkpoint, model_args, mean, std, random_weights: as of `TimmModel`.

    Raises:
        UserError: the model is unknown, or its weights are missing or do not fit.
    """

    filter_fn = _dinov3_state

    def check_architecture(self, model: str) -> None:
        """Raise a UserError if `self.vit`, called `model`, has other position embeddings than DINOv3's."""
        if not isinstance(getattr(self.vit, 'rope', None), RotaryEmbeddingDinoV3) or self.vit.pos_embed is not None:
            raise UserError(
                f"{model!r} is no ViT with DINOv3's rotary position embeddings alone; it needs another class"
            )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> 'TimmRoPEViT':
        """Move or cast the module; the periods of the rotary embeddings stay float32, which older timm casts."""
        periods = self.vit.rope.periods
        super()._apply(fn, recurse)
        self.vit.rope.periods = periods.to(self.vit.rope.periods.device)
        return self


@MODELS.register_module()
class TimmSAM(TimmModel):
    """The image tower of SAM in `timm`; the features are the neck's channels.

    A window of any size is resized bilinearly (align_corners=False) to the tower's input, 1024×1024 pixels, as in the
    published code. The grid is the same for all windows.

    Args:
        model, checkpoint, model_args, mean, std, random_weights: as of `TimmModel`.

    Raises:
        UserError: the model is unknown, or its weights are missing or do not fit.
    """

    family = 'samvit_*'
    filter_fn = vision_transformer_sam.checkpoint_filter_fn
    multiple = (1, 1)

    def __init__(
        self,
        model: str,
        checkpoint: str | None = None,
        model_args: dict | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        random_weights: int | None = None,
    ):
        super().__init__(model, checkpoint, model_args, mean, std, random_weights)
        self.input_side = max(self.vit.patch_embed.img_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of features, (64, 64), whatever the window's height and width in pixels."""
        return self.vit.patch_embed.grid_size

    def forward(self, images: torch.Tensor, kind: str = 'tokens') -> torch.Tensor:
        """Return features (B, C, h, w) of images (B, 3, height, width) in 0..1 RGB; C is 256 for tokens.

        Args:
            images: see above.
            kind: one of `kinds`.
        """
        images = self.normalised(images)
        images = F.interpolate(images, self.vit.patch_embed.img_size, mode='bilinear', align_corners=False)
        images = images.to(self.vit.patch_embed.proj.weight.dtype)
        if kind != 'tokens':
            return self.of_last_block(kind, _output_before_last(self.vit, images).permute(0, 2, 3, 1))
        return self.vit.forward_features(images)


def position_differences(
    config: dict, windows: Sequence[int], random_weights: int | None = 0, seed: int = 0
) -> list[float]:
    """Return the differences of a ViT's features between the publisher's rule for position embeddings and `timm`'s.

    The figure for each window is ‖f − f_timm‖ / ‖f_timm‖ over random pixels.

    Args:
        config: config of a registered `TimmViT`.
        windows: sides of the windows, in pixels.
        random_weights: seed of random weights; None for trained weights.
        seed: seed of the pixels.

    Raises:
        UserError: trained weights are missing or do not fit.
    """
    vfm: Any = build_vfm(dict(config, random_weights=random_weights))
    publishers, figures = vfm.pos_embed, []
    for window in windows:
        image = torch.rand(1, 3, window, window, generator=torch.Generator().manual_seed(seed))
        features = {}
        for rule in (publishers, 'timm'):
            vfm.pos_embed = rule
            features[rule] = vfm(image)
        expected = features['timm']
        figures.append(float((features[publishers] - expected).norm() / expected.norm()))
    return figures


def _kinds_of_last_block(vit: Any) -> tuple[str, ...]:
    """Return the kinds of features that can be read off a ViT's last block."""
    block = vit.blocks[-1]
    attn = getattr(block, 'attn', None)
    known = isinstance(block, BLOCKS) and isinstance(attn, ATTENTIONS) and getattr(attn, 'num_kv_groups', 1) == 1
    if not known or len(vit.blocks) < 2:
        return ()
    rotary = isinstance(block, eva.EvaBlock) or getattr(attn, 'rope', None) is not None
    attends_all = not rotary and getattr(block, 'window_size', 0) == 0
    return 'values', 'keys', 'q+k', *(['attention'] if attends_all else [])


def _output_before_last(vit: Any, images: torch.Tensor, **options: str) -> torch.Tensor:
    """Return what the last block but one gives, by `timm`: patches alone, and no state is left on the module."""
    indices = [len(vit.blocks) - 2]
    [tokens] = vit.forward_intermediates(images, indices, stop_early=True, intermediates_only=True, **options)
    return tokens


def _projection(attn: Any, letter: str, tokens: torch.Tensor) -> torch.Tensor:
    """Return q, k or v (B, h, w, H, d) of tokens (B, h, w, C), before any rotary embedding.

    Args:
        attn: an attention of `timm`, one of ATTENTIONS.
        letter: 'q', 'k' or 'v'.
        tokens: normalised by the block.
    """
    if attn.qkv is None:
        projected = getattr(attn, f'{letter}_proj')(tokens)
    else:
        part, bias = 'qkv'.index(letter), getattr(attn, f'{letter}_bias', None)
        if bias is None and attn.qkv.bias is not None:
            bias = attn.qkv.bias.chunk(3)[part]
        projected = F.linear(tokens, attn.qkv.weight.chunk(3)[part], bias)
    projected = projected.unflatten(-1, (attn.num_heads, -1))
    return projected if letter == 'v' else getattr(attn, f'{letter}_norm')(projected)


def _relative_positions(attn: Any, query: torch.Tensor) -> list[torch.Tensor]:
    """Return what relative positions add to the logits of queries (B, h, w, H, d): (B, h, w, H, h) and (.., w)."""
    grid = query.shape[1:3]
    if not getattr(attn, 'use_rel_pos', False):
        return [query.new_zeros(*query.shape[:4], side) for side in grid]
    tables = [
        vision_transformer_sam.get_rel_pos(side, side, table)
        for side, table in zip(grid, (attn.rel_pos_h, attn.rel_pos_w))
    ]
    return [torch.einsum(f'bhwnd,{axis}kd->bhwnk', query, table) for axis, table in zip('hw', tables)]


def _load_strictly(vit: Any, filter_fn: Callable[..., dict[str, torch.Tensor]] | None) -> None:
    """Load a ViT's pretrained weights through `timm`; missing and surplus keys, which `timm` allows, are an error."""
    assert filter_fn is not None, 'the class has no `filter_fn`'
    loads: list[Any] = []  # the missing and surplus keys of each load
    hook = vit.register_load_state_dict_post_hook(lambda _, keys: loads.append(keys))

    def checked_filter(state: Mapping[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
        """Convert a file's state; refuse patches or a grid of another size, which timm would resize in silence."""
        expected = model.state_dict()
        converted = filter_fn(dict(state), model)
        for key, value in state.get('model', state).items():
            name = key.removeprefix('image_encoder.')
            if name in expected and (
                name == 'patch_embed.proj.weight'
                and value.shape != expected[name].shape
                or (name == 'pos_embed' and value.shape[1] - expected[name].shape[1] not in (0, 1))
            ):
                raise RuntimeError(
                    f'size mismatch for {key}: {tuple(value.shape)} in the file, {tuple(expected[name].shape)} in '
                    'the model'
                )
        return converted

    try:
        load_pretrained(vit, num_classes=0, filter_fn=checked_filter, strict=False)
    finally:
        hook.remove()
    missing = [key for keys in loads for key in keys.missing_keys]
    surplus = [key for keys in loads for key in keys.unexpected_keys if not key.startswith(('head.', 'fc_norm.'))]
    if missing or surplus or not loads:
        raise RuntimeError(
            f'state_dict: {len(missing)} keys missing ({", ".join(missing[:5])}), '
            f'{len(surplus)} surplus ({", ".join(surplus[:5])})'
        )
