"""Attention maps of CLIP's last block, as operators on values.

A map is held as what it does to values, not as a matrix: softmax maps run through `scaled_dot_product_attention`, the
identity costs nothing, and a proxy map, which all heads share, is one (N, N) matrix for all of them.

Each map is registered under its name by `attention_map`; a file configs/attentions/NAME.py that does the same adds one.

Shape legend: B images, H heads, T tokens (CLS included), N patches, D width, C feature channels, (h, w) a grid.
"""

import functools
import runpy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError, one_of
from fsa_seg.system.paths import part_files

PROXY_BETA = 1.2  # ProxyCLIP's published default
PROXY_GAMMA = 3.0  # ProxyCLIP's published default
KEPT_ENTRIES = 2**24  # of a batch's proxy maps that are kept whole: N = 4096, 64 MiB in float32
GPU_KEPT_ENTRIES = 2**28  # the same on a GPU, of all images of a batch: 1 GiB
MIN_BLOCK = 256  # rows of a block, at least
BLOCK_ENTRIES = 2**19  # of the rows that are held at once of any other map: 2 MiB in float32, which a CPU's caches hold
GPU_BLOCK_ENTRIES = 2**25  # the same on a GPU: 128 MiB
SELF_MAPS = dict(qk=('q', 'k'), qq=('q', 'q'), kk=('k', 'k'), vv=('v', 'v'))
ATTENTIONS = {}  # name -> (function of a `Block` that returns an AttentionMap, whether it needs VFM features)


class Block:
    """What an attention map can be made of: each projection is computed when it is asked for.

    Attributes:
        q, k, v (B, T, D): projections of the last block's ln_1(tokens), biases included, CLS first.
        heads (int): number of heads.
        grid (int, int): (h, w) of CLIP's patches.
        features (B, C, I, J): of the VFM; None without one.

    Args:
        tokens (B, T, D): ln_1 of the tokens that enter the block.
        attn: the block's `nn.MultiheadAttention`.
        grid, features: see above.
    """

    def __init__(self, tokens, attn, grid, features=None):
        self.heads, self.grid, self.features = attn.num_heads, grid, features
        self._tokens, self._attn = tokens, attn

    q = functools.cached_property(lambda self: self._project(0))
    k = functools.cached_property(lambda self: self._project(1))
    v = functools.cached_property(lambda self: self._project(2))

    def _project(self, index):
        weight, bias = (p.chunk(3)[index] for p in (self._attn.in_proj_weight, self._attn.in_proj_bias))
        return F.linear(self._tokens, weight, bias)


class AttentionMap(NamedTuple):
    """An attention map A.

    Attributes:
        apply: values (B, T, D) -> A·values (B, T, D), each head on its own D/H columns.
        mass: the sum of every row of A (1, or 2 for a sum of two softmax maps).
        cls: whether the first token is CLS; a proxy map attends patches alone.
        shared: whether all heads share the map, so that values may have any number of columns.
    """

    apply: Callable[[Tensor], Tensor]
    mass: float
    cls: bool
    shared: bool = False


def attention_map(name, vfm=False):
    """Return a decorator that registers a function (block: `Block`) -> `AttentionMap` under a name.

    Args:
        name (str): by which a config asks for the map.
        vfm (bool): whether it needs a VFM's features. Such a map attends patches alone, on the VFM's grid, and the
            values come resized to it.
    """

    def register(function):
        if name in ATTENTIONS:
            raise UserError(f'there is an attention map {name!r} already; give another name')
        ATTENTIONS[name] = (function, vfm)
        return function

    return register


def find_attention(name):
    """Return the function of the attention map `name`, and whether it needs a VFM.

    Raises:
        UserError: no such map (the nearest name is given), or a file that registers none of its own name.
    """
    if name in ATTENTIONS:  # no look at the disk: it is asked for at every window
        return ATTENTIONS[name]
    files = attention_files()
    if name in files:
        try:
            runpy.run_path(files[name])
        except Exception as error:  # the file is executed: anything can be raised
            raise UserError(f'{files[name]} cannot be run: {type(error).__name__}: {error}') from error
        if name not in ATTENTIONS:
            raise UserError(
                f'{files[name]} registers no attention map {name!r}; decorate its function with '
                f'@fsa_seg.ops.attention.attention_map({name!r})'
            )
    return ATTENTIONS[one_of(name, {*ATTENTIONS, *files}, 'attention map')]


def attention_files():
    """Return the files that add attention maps, as a dict of name -> path; one named as a built-in map is a UserError."""
    files = part_files('attentions')
    for name in BUILT_IN:
        if name in files:
            raise UserError(f'{files[name]}: {name!r} is the name of a built-in attention map; rename the file')
    return files


def map_rows(apply, index, values, heads):
    """Return row `index` of the matrix that an operator on values stands for: (H, T).

    The operator is applied to unit vectors, as many at once as a head has columns, so that it is seen as it acts.

    Args:
        apply: function of values (1, T, D), linear and on each head's D/H columns apart.
        index (int): of the row, from 0 to T − 1.
        values (1, T, D): any, of the shape and type that the operator takes.
        heads (int): H.
    """
    count, size = values.shape[1], values.shape[2] // heads
    rows = []
    for start in range(0, count, size):
        some = min(size, count - start)
        unit = values.new_zeros(1, count, heads, size)
        unit[0, start : start + some, :, :some] = torch.eye(some)[:, None].to(unit)
        rows.append(apply(unit.flatten(2))[0, index].unflatten(0, (heads, size))[:, :some])
    return torch.cat(rows, 1).float()


def self_map(name, q, k, v, heads):
    """Return the attention map `name` made of the block's own queries, keys and values.

    Args:
        name (str): 'qk', 'qq', 'kk', 'vv' (softmax(xyᵀ/√d) per head), 'qq+kk' (their sum) or 'identity'.
        q, k, v (B, T, D): projections of ln_1 of the tokens, biases included; None where the name does not ask for it.
        heads (int): number of heads.
    """
    if name == 'identity':
        return AttentionMap(lambda values: values, 1.0, True)
    parts = dict(q=q, k=k, v=v)
    pairs = [SELF_MAPS[part] for part in name.split('+')]

    def apply(values):
        values = _split_heads(values, heads)
        mixed = sum(
            F.scaled_dot_product_attention(_split_heads(parts[x], heads), _split_heads(parts[y], heads), values)
            for x, y in pairs
        )
        return mixed.transpose(1, 2).flatten(2)

    return AttentionMap(apply, float(len(pairs)), True)


def proxy_map(features, beta=PROXY_BETA, gamma=PROXY_GAMMA, block=None):
    """Return ProxyCLIP's attention map of VFM features, one for all heads.

    s = FᵀF of unit columns; s ← (s − β·mean(s))·γ; entries below 0 become −∞; row softmax. The mean is each image's
    own, and computed as ‖Σ f‖²/N². The diagonal, a row's largest entry, is never pruned: where features are all but
    alike (mean above 1/β) the published formula prunes whole rows, and its softmax is no number.

    Args:
        features (B, C, h, w): VFM features of any dtype; the map is computed in float32.
        beta (float), gamma (float): see above.
        block (int): rows that are held at once; by default all of a map up to KEPT_ENTRIES, else as `by_rows` says.
            Where they are not all, they are made anew at each use.
    """
    unit = F.normalize(features.float().flatten(2), dim=1)
    mean = unit.mean(2).square().sum(1)[:, None, None]

    def rows(span):
        similarity = torch.baddbmm(beta * mean, unit[:, :, span].transpose(1, 2), unit, beta=-gamma, alpha=gamma)
        diagonal = similarity.diagonal(span.start, 1, 2).clone()
        similarity.masked_fill_(similarity < 0, float('-inf'))
        similarity.diagonal(span.start, 1, 2).copy_(diagonal)
        return similarity.softmax(-1)

    count, kept = unit.shape[2], KEPT_ENTRIES if unit.device.type == 'cpu' else GPU_KEPT_ENTRIES
    operator = by_rows(rows, unit.transpose(1, 2), block or (count if len(unit) * count**2 <= kept else None))
    return AttentionMap(lambda values: operator(values)[0], 1.0, False, True)


def by_rows(rows, like, block=None):
    """Return the operator (values (B, N, D), ...) -> [A·values, ...] of a map that is made in blocks of rows.

    A map of one block is made once and kept; otherwise no more than a block of it is ever held, and each is made once for
    all values that are given.

    Args:
        rows: function of a slice of rows -> these rows of A, (B, n, N).
        like (B, N, any): a tensor that tells the images, the rows in all, and the device.
        block (int): rows of a block; by default as many as the device's limit allows, and at least MIN_BLOCK.
    """
    images, count = like.shape[:2]
    entries = BLOCK_ENTRIES if like.device.type == 'cpu' else GPU_BLOCK_ENTRIES
    block = block or max(MIN_BLOCK, entries // (images * count))
    if block >= count:
        matrix = rows(slice(0, count))
        return lambda *values: [matrix.to(one.dtype) @ one for one in values]

    def apply(*values):
        out = [torch.empty_like(one) for one in values]
        for start in range(0, count, block):
            span = slice(start, min(start + block, count))
            some = rows(span).to(values[0].dtype)
            for one, value in zip(out, values):
                one[:, span] = some @ value
        return out

    return apply


def resize_tokens(tokens, grid, new_grid):
    """Return patch tokens (B, N, D) of grid (h, w) on another grid, resized bilinearly (align_corners=False)."""
    if tuple(grid) == tuple(new_grid):
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    image = F.interpolate(image, tuple(new_grid), mode='bilinear', align_corners=False)
    return image.flatten(2).transpose(1, 2)


def _split_heads(x, heads):
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


for _name in (*SELF_MAPS, 'qq+kk', 'identity'):
    attention_map(_name)(
        lambda block, name=_name: self_map(
            name, *(getattr(block, part) if part in name else None for part in 'qkv'), block.heads
        )
    )
attention_map('proxy', vfm=True)(lambda block: proxy_map(block.features))
BUILT_IN = tuple(ATTENTIONS)
