"""Outlier patches of CLIP's last layers, their repair, and maps of the similarities of patches (SC-CLIP, SFP).

Sources: SC-CLIP (arXiv 2411.15869), SFP (ICCV 2025) and their published code, which takes a patch's row for its column
on grids that are not square, and works on one window at a time; neither is so here.

Shape legend: B windows, N = h·w patches, D width, H heads, T = 1 + N tokens (CLS first).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.attention import AttentionMap, by_rows

SPAN = 512  # rows of an N × N matrix that are worked on at once
EPSILON = 1e-6  # added to the sum of a row
LEAST_DISTANCE = 1e-12  # squared; tokens that are equal have a density all the same


def density_outliers(tokens: Tensor, neighbours: int, share: float) -> Tensor:
    """Return which patches lie in a place less dense than that of their neighbours, (B, N) bool.

    A patch's density is 1 / (its squared distance to the last of its nearest neighbours); its factor the mean of its
    neighbours' densities over its own. Outliers are the patches whose factor exceeds the quantile 1 − share, linearly
    interpolated: always about that share.

    Args:
        tokens (B, N, D): patches.
        neighbours: how many count as near; N has to be larger.
        share: of outliers.
    """
    tokens = tokens.float()
    tokens = tokens - tokens.mean(1, keepdim=True)  # distances of small differences keep their digits
    norms = tokens.square().sum(2)
    nearest = []
    for span in _spans(tokens):
        squares = torch.baddbmm(norms[:, None], tokens[:, span], tokens.transpose(1, 2), alpha=-2)
        squares.add_(norms[:, span, None]).diagonal(span.start, 1, 2).fill_(float('inf'))
        nearest.append(squares.topk(neighbours, 2, largest=False))
    furthest = torch.cat([values[..., -1] for values, _ in nearest], 1).clamp(min=LEAST_DISTANCE)
    density = 1 / furthest
    index = torch.cat([index for _, index in nearest], 1)
    near = density.gather(1, index.flatten(1)).view(index.shape)
    factor = (near / density[..., None]).mean(2)
    return factor > factor.quantile(1 - share, 1, keepdim=True)


def attended_outliers(q: Tensor, k: Tensor, heads: int, count: int, factor: float) -> Tensor:
    """Return the patches that CLS attends most among those it attends more than they do themselves, (B, N) bool.

    a is the mean of the heads' softmax(qkᵀ/√d); candidates have factor·a(CLS → i) > a(i → i).

    Args:
        q, k (B, T, D): of one block.
        heads: H.
        count: outliers, at most.
        factor: see above.
    """
    by_cls: Tensor | float = 0.0
    by_self: Tensor | float = 0.0
    for query, key in zip(*(x.float().unflatten(2, (heads, -1)).unbind(2) for x in (q, k))):  # (B, T, d)
        query = query / query.shape[2] ** 0.5
        totals = torch.cat([(query[:, span] @ key.transpose(1, 2)).logsumexp(2) for span in _spans(query)], 1)
        by_self += ((query * key).sum(2) - totals)[:, 1:].exp() / heads
        by_cls += ((query[:, :1] * key).sum(2) - totals[:, :1])[:, 1:].exp() / heads
    assert isinstance(by_cls, Tensor)  # a block has heads
    ranked = by_cls.masked_fill(factor * by_cls <= by_self, -1.0)
    top = ranked.topk(min(count, ranked.shape[1]), 1)
    return torch.zeros_like(ranked, dtype=torch.bool).scatter(1, top.indices, top.values >= 0)


def repaired(tokens: Tensor, outliers: Tensor, grid: tuple[int, int], zero: bool = False) -> Tensor:
    """Return patches in which an outlier is the mean of its up to 8 neighbours that are none, (B, N, D) float32.

    Args:
        tokens (B, N, D): patches.
        outliers (B, N): bool.
        grid (int, int): (h, w).
        zero: whether an outlier without such a neighbour becomes 0; else it stays.
    """
    tokens = tokens.float()
    sound = (~outliers).float()[..., None]
    sums = _neighbour_sums(tokens * sound, grid)
    counts = _neighbour_sums(sound, grid)
    means = torch.where(counts > 0, sums / counts.clamp(min=1), 0 if zero else tokens)
    return torch.where(outliers[..., None], means, tokens)


def cut_similarities(tokens: Tensor, beta: float) -> Callable[[slice], Tensor]:
    """Return a function of a slice of rows -> these rows of the cosines of patches, (B, n, N) float32.

    Entries below β are 0, and each row is divided by its sum.

    Args:
        tokens (B, N, D): patches.
        beta: β.
    """
    rows = _similarities(tokens, beta)

    def cut(span: slice) -> Tensor:
        similarities = rows(span)
        return similarities.div_(similarities.sum(2, keepdim=True) + EPSILON)

    return cut


def thresholded_map(tokens: Tensor, beta: float, gamma: float) -> AttentionMap:
    """Return softmax((S − mean S)·γ, negatives → −∞), S the cosines of patches with those below β at 0.

    Args:
        tokens (B, N, D): patches.
        beta, gamma: β and γ.
    """
    rows = _similarities(tokens, beta)
    means = torch.cat([rows(span).mean(2) for span in _spans(tokens)], 1).mean(1)[:, None, None]

    def attention(span: slice) -> Tensor:
        similarities = rows(span).sub_(means).mul_(gamma)
        similarities.diagonal(span.start, 1, 2).clamp_(min=0)  # never all of a row is pruned
        return similarities.masked_fill_(similarities < 0, float('-inf')).softmax(2)

    operator = by_rows(attention, tokens, tokens.shape[1])
    return AttentionMap(lambda values: operator(values)[0], 1.0, False, True)


def _similarities(tokens: Tensor, beta: float) -> Callable[[slice], Tensor]:
    unit = F.normalize(tokens.float(), dim=2)

    def rows(span: slice) -> Tensor:
        similarities = unit[:, span] @ unit.transpose(1, 2)
        return similarities.masked_fill_(similarities < beta, 0)

    return rows


def _spans(tokens: Tensor) -> list[slice]:
    """Return slices of rows of N × N matrices that are worked on at once."""
    count = tokens.shape[1]
    return [slice(start, min(start + SPAN, count)) for start in range(0, count, SPAN)]


def _neighbour_sums(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the sums (B, N, any) of the 8 neighbours of each patch, outside of the grid 0."""
    image = values.transpose(1, 2).unflatten(2, grid)
    sums = F.avg_pool2d(image, 3, 1, 1, divisor_override=1) - image
    return sums.flatten(2).transpose(1, 2)
