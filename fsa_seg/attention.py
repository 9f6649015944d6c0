"""Attention maps of CLIP's last block, as operators on values.

A map is held as what it does to values, not as a matrix: softmax maps run through `scaled_dot_product_attention`, the
identity costs nothing, and a proxy map, which all heads share, is one (N, N) matrix for all of them.

Shape legend: B images, H heads, T tokens (CLS included), N patches, D width, C feature channels, (h, w) a grid.
"""
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PROXY_BETA = 1.2  # ProxyCLIP's published default
PROXY_GAMMA = 3.0  # ProxyCLIP's published default
SELF_MAPS = dict(qk=('q', 'k'), qq=('q', 'q'), kk=('k', 'k'), vv=('v', 'v'))
ATTENTIONS = (*SELF_MAPS, 'qq+kk', 'identity', 'proxy')


class AttentionMap(NamedTuple):
    """An attention map A.

    Attributes:
        apply: values (B, T, D) -> A·values (B, T, D), each head on its own D/H columns.
        mass: the sum of every row of A (1, or 2 for a sum of two softmax maps).
        cls: whether the first token is CLS; a proxy map attends patches alone.
    """
    apply: Callable[[Tensor], Tensor]
    mass: float
    cls: bool


def self_map(name, q, k, v, heads):
    """Return the attention map `name` made of the block's own queries, keys and values.

    Args:
        name (str): 'qk', 'qq', 'kk', 'vv' (softmax(xyᵀ/√d) per head), 'qq+kk' (their sum) or 'identity'.
        q, k, v (B, T, D): projections of ln_1 of the tokens, biases included.
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
            for x, y in pairs)
        return mixed.transpose(1, 2).flatten(2)

    return AttentionMap(apply, float(len(pairs)), True)


def proxy_map(features, beta=PROXY_BETA, gamma=PROXY_GAMMA):
    """Return ProxyCLIP's attention map of VFM features, one for all heads.

    s = FᵀF of unit columns; s ← (s − β·mean(s))·γ; entries below 0 become −∞; row softmax. The mean is each image's
    own, and computed as ‖Σ f‖²/N². The diagonal, a row's largest entry, is never pruned: where features are all but
    alike (mean above 1/β) the published formula prunes whole rows, and its softmax is no number.

    Args:
        features (B, C, h, w): VFM features of any dtype; the map is computed in float32.
        beta (float), gamma (float): see above.
    """
    unit = F.normalize(features.float().flatten(2), dim=1)
    mean = unit.mean(2).square().sum(1)[:, None, None]
    similarity = (unit.transpose(1, 2) @ unit).sub_(beta * mean).mul_(gamma)
    diagonal = similarity.diagonal(dim1=1, dim2=2).clone()
    similarity.masked_fill_(similarity < 0, float('-inf'))
    similarity.diagonal(dim1=1, dim2=2).copy_(diagonal)
    matrix = similarity.softmax(-1)
    return AttentionMap(lambda values: (matrix.to(values.dtype) @ values), 1.0, False)


def resize_tokens(tokens, grid, new_grid):
    """Return patch tokens (B, N, D) of grid (h, w) on another grid, resized bilinearly (align_corners=False)."""
    if tuple(grid) == tuple(new_grid):
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    image = F.interpolate(image, tuple(new_grid), mode='bilinear', align_corners=False)
    return image.flatten(2).transpose(1, 2)


def _split_heads(x, heads):
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
