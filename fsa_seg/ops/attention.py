"""Attention maps of CLIP's last block, as operators on values.

A map is held as what it does to values, not as a matrix: softmax maps run through `scaled_dot_product_attention`, the
identity costs nothing, and a proxy map, which all heads share, is one (N, N) matrix for all of them.

Shape legend: B images, H heads, T tokens (CLS included), N patches, D width, C feature channels, (h, w) a grid.
"""

from collections.abc import Callable, Sequence
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
DEPTH = 12  # blocks of ViT-B/16, for which the newer methods' layers were published
PAIRS = dict(qk=('q', 'k'), qq=('q', 'q'), kk=('k', 'k'), vv=('v', 'v'))


class AttentionMap(NamedTuple):
    """An attention map A.

    Attributes:
        apply: values (B, T, D) -> A·values (B, T, D), each head on its own D/H columns.
        row_sum: the sum of every row of A (1, or 2 for a sum of two softmax maps); None where rows differ in it.
        covers_cls: whether the first token is CLS; a proxy map attends patches alone.
        shared: whether all heads share the map, so that values may have any number of columns.
        grid (int, int): (h, w) of the patches it attends; None for CLIP's own. Values come resized to another grid.
        values (B, N or T, any): what the map is applied to, where that is not the last block's own values.
        with_logits: of a map that is a softmax of logits s: (factor, bias (B, T, T)) -> the map of factor·s + bias; it
            may overwrite the bias, which is (B, N, N) where CLS is not covered. None for any other map.
        scope: a slice of n rows -> (B, n, N) bool, where a patch may attend; of a map that covers patches alone. Every
            patch may attend itself. None where all may attend all.
    """

    apply: Callable[[Tensor], Tensor]
    row_sum: float | None
    covers_cls: bool
    shared: bool = False
    grid: tuple[int, int] | None = None
    values: Tensor | None = None
    with_logits: 'Callable[[float, Tensor], AttentionMap] | None' = None
    scope: Callable[[slice], Tensor] | None = None


class WindowsUnderMethod(Protocol):
    """A batch of windows under a method, as a feedback sees it; `fsa_seg.methods.base.WindowCosines` is one.

    Attributes:
        title (str): of the method.
        grid (int, int): (h, w) of the patches.
        images (B, 3, height, width): the windows' normalised pixels; None where they are not at hand.
        uniform (B, N or 1, Q): the cosines z(U) under the uniform map.
    """

    @property
    def title(self) -> str: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    @property
    def images(self) -> Tensor | None: ...

    @property
    def uniform(self) -> Tensor: ...

    def cosines(self, attention: AttentionMap | None, /) -> Tensor:
        """Return the cosines (B, N, Q) under a map."""
        ...


class Attended(Protocol):
    """A block whose queries, keys and values (B, T, D) an attention map is made of; `heads` is H."""

    heads: int

    @property
    def q(self) -> Tensor: ...

    @property
    def k(self) -> Tensor: ...

    @property
    def v(self) -> Tensor: ...


def dense_map(apply: Callable[[Tensor], Tensor], values: Tensor, heads: int) -> Tensor:
    """Return the matrix (T, T) float32 that an operator on values stands for, the mean of its heads.

    The operator is applied to unit vectors, as many at once as a head has columns.

    Args:
        apply: function of values (1, T, D), linear, which treats each head's D/H columns apart.
        values (1, T, D): any, of the shape and type that the operator takes.
        heads: H.
    """
    count, size = values.shape[1], values.shape[2] // heads
    parts = []
    for start in range(0, count, size):
        columns = min(size, count - start)
        unit = values.new_zeros(1, count, heads, size)
        unit[0, start : start + columns, :, :columns] = torch.eye(columns)[:, None].to(unit)
        parts.append(apply(unit.flatten(2))[0].unflatten(1, (heads, size)).float().mean(1)[:, :columns])
    return torch.cat(parts, 1)


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


def check_map_name(name: str, others: Sequence[str] = ()) -> None:
    """Raise a UserError unless `named_map` knows the name; `others` are further names, for the message."""
    if name == 'identity':
        return
    if not isinstance(name, str):
        raise UserError(f'the attention map is {name!r}; name it by a text, such as "qq"')
    terms = name.split('+')
    for term in terms:
        one_of(term, {*PAIRS, *(['identity', *others] if len(terms) == 1 else [])}, 'attention map')


def self_map(
    name: str, projections: dict[str, Tensor], heads: int, bias: Tensor | None = None, factor: float = 1.0
) -> AttentionMap:
    """Return the attention map `name` made of the block's own queries, keys and values.

    Args:
        name: a sum of softmax(factor·xyᵀ/√d + bias) per head, such as 'qk', 'qq' or 'qq+kk', or 'identity'.
        projections: 'q', 'k', 'v' -> (B, T, D), as many as the name asks for: of ln_1 of the tokens, biases included.
        heads: H.
        bias (T, T) or (B, T, T): see above; shared by heads, and (T, T) by images.
        factor: see above.
    """
    if name == 'identity':
        return AttentionMap(lambda values: values, 1.0, True)
    pairs = [PAIRS[term] for term in name.split('+')]

    def apply(values: Tensor) -> Tensor:
        return cast(
            Tensor, sum(softmax_map(projections[x], projections[y], values, heads, bias, factor) for x, y in pairs)
        )

    def with_logits(scale: float, added: Tensor) -> AttentionMap:
        added = added if bias is None else added.add_(bias)  # the map's own bias is not scaled
        return self_map(name, projections, heads, added, factor * scale)

    return AttentionMap(apply, float(len(pairs)), True, with_logits=with_logits)


def softmax_map(
    x: Tensor, y: Tensor, values: Tensor, heads: int, bias: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """Return softmax(factor·xyᵀ/√d + bias)·values, head by head: (B, T, D).

    d is the width of a head of `values`; x and y may have wider heads.

    Args:
        x, y (B, T, at least D), values (B, T, D): of `heads` heads each.
        bias, factor: as of `self_map`.
    """
    query, key, value = (_split_heads(tensor.to(values.dtype), heads) for tensor in (x, y, values))
    width, wider = value.shape[-1], query.shape[-1] - value.shape[-1]
    value = F.pad(value, (0, wider)) if wider else value  # of unlike widths torch would hold a (H, T, T) matrix
    mask = None if bias is None else (bias if bias.ndim == 2 else bias[:, None]).to(value.dtype)
    mixed = F.scaled_dot_product_attention(query, key, value, mask, scale=factor / width**0.5)
    return mixed[..., :width].transpose(1, 2).flatten(2)


def weighted_sum(parts: Sequence[tuple[float, AttentionMap]]) -> AttentionMap:
    """Return Σ weight·A of maps A that attend the same tokens; no matrix is made.

    Its `with_logits` adapts the maps that are a softmax of logits, and leaves the others as they are. It has no scope.

    Args:
        parts (sequence of (weight, map)): see above.
    """

    def apply(values: Tensor) -> Tensor:
        return cast(Tensor, sum(weight * attention.apply(values) for weight, attention in parts))

    def with_logits(factor: float, bias: Tensor) -> AttentionMap:
        adapted = []
        for i, (weight, part) in enumerate(parts):
            if part.with_logits is not None:
                own = bias if i == adaptable[-1] else bias.clone()  # a map may overwrite it
                part = part.with_logits(factor, own)
            adapted.append((weight, part))
        return weighted_sum(adapted)

    adaptable = [i for i, (_, part) in enumerate(parts) if part.with_logits is not None]
    return parts[0][1]._replace(
        apply=apply,
        row_sum=_weighted([(weight, attention.row_sum) for weight, attention in parts]),
        shared=all(attention.shared for _, attention in parts),
        with_logits=with_logits if adaptable else None,
        scope=None,
    )


def _weighted(sums: list[tuple[float, float | None]]) -> float | None:
    """Return the sum of a row of weighted maps; None where one of them has no constant."""
    if any(value is None for _, value in sums):
        return None
    return sum(weight * cast(float, value) for weight, value in sums)


def blocks_at(blocks: Sequence[int], depth: int, least: int = 4) -> tuple[int, ...]:
    """Return the indices of blocks of a tower that lie as deep as some blocks of a tower of 12: ⌊b·depth/12⌋ each.

    An index may come twice in a tower of less than 12 blocks. The last block is not among them.

    >>> blocks_at((5, 6, 7, 8), 24)
    (10, 12, 14, 16)
    >>> blocks_at((5, 6, 7, 8), 5)
    (2, 2, 2, 3)

    Args:
        blocks: indices from 0 to 10, of earlier blocks among 12.
        depth: number of the tower's blocks.
        least: the least number of blocks; a shallower tower is a UserError.
    """
    if depth < least:
        raise UserError(
            f'the image tower has {depth} blocks, and the method needs at least {least}: it reads blocks that lie as '
            f'deep as {", ".join(map(str, sorted(set(blocks))))} of {DEPTH} (from 0)'
        )
    return tuple(min(block * depth // DEPTH, depth - 2) for block in blocks)


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


def proxy_mean(features: Sequence[Tensor]) -> Tensor:
    """Return the mean of s = FᵀF of unit columns over several windows, a number: what Trident's windows share.

    It is the mean over all entries of the windows' s, computed as Σ‖Σ f‖² / Σ N², in float32.

    Args:
        features: of (B, C, h, w) each; with as many patches in each, the windows weigh alike.
    """
    sums = [F.normalize(part.float().flatten(2), dim=1).sum(2).square().sum() for part in features]
    return torch.stack(sums).sum() / sum(len(part) * part[0, 0].numel() ** 2 for part in features)


def proxy_map(
    features: Tensor,
    beta: float = PROXY_BETA,
    gamma: float = PROXY_GAMMA,
    block: int | None = None,
    mean: float | Tensor | None = None,
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
        mean (a number or (B,)): the mean of s, in place of each image's own.
    """
    unit = F.normalize(features.float().flatten(2), dim=1)
    mean = unit.mean(2).square().sum(1) if mean is None else torch.as_tensor(mean, device=unit.device).float()
    mean = mean.expand(len(unit))[:, None, None]

    def rows(span: slice, factor: float = 1.0, bias: Tensor | None = None) -> Tensor:
        similarity = torch.baddbmm(beta * mean, unit[:, :, span].transpose(1, 2), unit, beta=-gamma, alpha=gamma)
        diagonal = similarity.diagonal(span.start, 1, 2).clone()
        similarity.masked_fill_(similarity < 0, float('-inf'))
        similarity.diagonal(span.start, 1, 2).copy_(diagonal)
        if bias is not None:
            similarity.mul_(factor).add_(bias[:, span])
        return similarity.softmax(-1)

    count, kept = unit.shape[2], KEPT_ENTRIES if unit.device.type == 'cpu' else GPU_KEPT_ENTRIES
    held = block or (count if len(unit) * count**2 <= kept else None)

    def attention(make: Callable[[slice], Tensor]) -> AttentionMap:
        operator = by_rows(make, unit.transpose(1, 2), held)
        return AttentionMap(lambda values: operator(values)[0], 1.0, False, True, pair(features.shape[2:]))

    def with_logits(factor: float, bias: Tensor) -> AttentionMap:
        return attention(lambda span: rows(span, factor, bias))

    return attention(rows)._replace(with_logits=with_logits)


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
