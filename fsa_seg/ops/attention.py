"""Attention maps of CLIP's last block, as operators on values.

A map is held as what it does to values, not as a matrix: softmax maps run through `scaled_dot_product_attention`, the
identity costs nothing, and a proxy map, which all heads share, is one (N, N) matrix for all of them.

Shape legend: B images, H heads, T tokens (CLS included), N patches, D width, C feature channels, (h, w) a grid.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError, one_of
from fsa_seg.ops.types import pair

PROXY_BETA = 1.2  # ProxyCLIP's published default
PROXY_GAMMA = 3.0  # ProxyCLIP's published default
KEPT_ENTRIES = 2**24  # of a batch's proxy maps that are kept whole: N = 4096, 64 MiB in float32
GPU_KEPT_ENTRIES = 2**28  # the same on a GPU, of all images of a batch: 1 GiB
MIN_BLOCK = 256  # rows of a block, at least
BLOCK_ENTRIES = 2**19  # of the rows that are held at once of any other map: 2 MiB in float32, which a CPU's caches hold
GPU_BLOCK_ENTRIES = 2**25  # the same on a GPU: 128 MiB
PAIRS = dict(qk=('q', 'k'), qq=('q', 'q'), kk=('k', 'k'), vv=('v', 'v'))


class AttentionMap(NamedTuple):
    """An attention map A.

    Attributes:
        apply: values (B, T, D) -> A·values (B, T, D), each head on its own D/H columns.
        row_sum: the sum of every row of A (1, or 2 for a sum of two softmax maps).
        covers_cls: whether the first token is CLS; a proxy map attends patches alone.
        shared: whether all heads share the map, so that values may have any number of columns.
        grid (int, int): (h, w) of the patches it attends; None for CLIP's own. Values come resized to another grid.
    """

    apply: Callable[[Tensor], Tensor]
    row_sum: float
    covers_cls: bool
    shared: bool = False
    grid: tuple[int, int] | None = None


class Attended(Protocol):
    """A block whose queries, keys and values (B, T, D) an attention map is made of; `heads` is H."""

    heads: int

    @property
    def q(self) -> Tensor: ...

    @property
    def k(self) -> Tensor: ...

    @property
    def v(self) -> Tensor: ...


def map_rows(apply: Callable[[Tensor], Tensor], index: int, values: Tensor, heads: int) -> Tensor:
    """Return row `index` of the matrix that an operator on values stands for: (H, T).

    The operator is applied to unit vectors, as many at once as a head has columns.

    Args:
        apply: function of values (1, T, D), linear, which treats each head's D/H columns apart.
        index: of the row, from 0 to T − 1.
        values (1, T, D): any, of the shape and type that the operator takes.
        heads: H.
    """
    count, size = values.shape[1], values.shape[2] // heads
    rows = []
    for start in range(0, count, size):
        columns = min(size, count - start)
        unit = values.new_zeros(1, count, heads, size)
        unit[0, start : start + columns, :, :columns] = torch.eye(columns)[:, None].to(unit)
        rows.append(apply(unit.flatten(2))[0, index].unflatten(0, (heads, size))[:, :columns])
    return torch.cat(rows, 1).float()


def named_map(name: str, block: Attended, bias: Tensor | None = None) -> AttentionMap:
    """Return an attention map by its name.

    Args:
        name: a sum such as 'qq+kk' of 'qk', 'qq', 'kk' and 'vv', or 'identity'; see `self_map`.
        block: anything with q, k, v (B, T, D) and `heads`, such as `fsa_seg.ops.last_block.LastBlock`.
        bias: as of `self_map`.

    Raises:
        UserError: another name.
    """
    check_map_name(name)
    letters = {letter: getattr(block, letter) for letter in 'qkv' if name != 'identity' and letter in name}
    return self_map(name, letters, block.heads, bias)


def check_map_name(name: str) -> None:
    """Raise a UserError unless `named_map` knows the name."""
    if name == 'identity':
        return
    if not isinstance(name, str):
        raise UserError(f'the attention map is {name!r}; name it by a text, such as "qq"')
    terms = name.split('+')
    for term in terms:
        one_of(term, {*PAIRS, *(['identity'] if len(terms) == 1 else [])}, 'attention map')


def self_map(name: str, projections: dict[str, Tensor], heads: int, bias: Tensor | None = None) -> AttentionMap:
    """Return the attention map `name` made of the block's own queries, keys and values.

    Args:
        name: a sum of softmax(xyᵀ/√d) per head, such as 'qk', 'qq' or 'qq+kk', or 'identity'.
        projections: 'q', 'k', 'v' -> (B, T, D), as many as the name asks for: of ln_1 of the tokens, biases included.
        heads: H.
        bias (T, T): added inside each softmax after the scaling by 1/√d, shared by heads and images.
    """
    if name == 'identity':
        return AttentionMap(lambda values: values, 1.0, True)
    pairs = [PAIRS[term] for term in name.split('+')]

    def apply(values: Tensor) -> Tensor:
        values = _split_heads(values, heads)
        mask = None if bias is None else bias.to(values.dtype)
        mixed = sum(
            F.scaled_dot_product_attention(
                _split_heads(projections[x], heads), _split_heads(projections[y], heads), values, mask
            )
            for x, y in pairs
        )
        return cast(Tensor, mixed).transpose(1, 2).flatten(2)

    return AttentionMap(apply, float(len(pairs)), True)


def neighbour_bias(grid: tuple[int, int], sigma: float, device: torch.device | str | None = None) -> Tensor:
    """Return NACLIP's bias (1 + h·w, 1 + h·w): exp(−‖p_i − p_j‖² / 2σ²) of patches, 0 in CLS's row and column.

    Args:
        grid (int, int): (h, w) of the patches.
        sigma: σ, in patches.
        device: of the result.
    """
    bumps = []
    for side in grid:  # the exponential of a sum is a product: one factor for rows, one for columns
        place = torch.arange(side, dtype=torch.float32, device=device)
        bumps.append((-(place[:, None] - place).square() / (2 * sigma**2)).exp())
    bias = torch.einsum('ab,cd->acbd', *bumps).flatten(2).flatten(0, 1)
    return F.pad(bias, (1, 0, 1, 0))


def proxy_map(
    features: Tensor, beta: float = PROXY_BETA, gamma: float = PROXY_GAMMA, block: int | None = None
) -> AttentionMap:
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

    def rows(span: slice) -> Tensor:
        similarity = torch.baddbmm(beta * mean, unit[:, :, span].transpose(1, 2), unit, beta=-gamma, alpha=gamma)
        diagonal = similarity.diagonal(span.start, 1, 2).clone()
        similarity.masked_fill_(similarity < 0, float('-inf'))
        similarity.diagonal(span.start, 1, 2).copy_(diagonal)
        return similarity.softmax(-1)

    count, kept = unit.shape[2], KEPT_ENTRIES if unit.device.type == 'cpu' else GPU_KEPT_ENTRIES
    operator = by_rows(rows, unit.transpose(1, 2), block or (count if len(unit) * count**2 <= kept else None))
    return AttentionMap(lambda values: operator(values)[0], 1.0, False, True, pair(features.shape[2:]))


def by_rows(rows: Callable[[slice], Tensor], like: Tensor, block: int | None = None) -> Callable[..., list[Tensor]]:
    """Return the operator (values (B, N, D), ...) -> [A·values, ...] of a map that is made in blocks of rows.

    A map of one block is made once and kept. Of a larger map one block is held at a time, made once for all values.

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
        return lambda *values: [matrix.to(tensor.dtype) @ tensor for tensor in values]

    def apply(*values: Tensor) -> list[Tensor]:
        products = [torch.empty_like(tensor) for tensor in values]
        for start in range(0, count, block):
            span = slice(start, min(start + block, count))
            block_rows = rows(span).to(values[0].dtype)
            for product, tensor in zip(products, values):
                product[:, span] = block_rows @ tensor
        return products

    return apply


def resize_tokens(tokens: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Return patch tokens (B, N, D) of grid (h, w) on another grid, resized bilinearly (align_corners=False)."""
    if tuple(grid) == tuple(new_grid):
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, tuple(grid))
    image = F.interpolate(image, tuple(new_grid), mode='bilinear', align_corners=False)
    return image.flatten(2).transpose(1, 2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
