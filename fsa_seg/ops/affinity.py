"""Trident's affinity: a segmenter's last attention, pruned by the similarities of its values, applied to values.

Source: Trident (ICCV 2025, arXiv 2411.09219), in whose published code the numbers below were found.

Shape legend: B images, (I, J) the grid of a VFM, (r, c) its valid top left cells, n = r·c of them, H heads of width d,
D columns of values.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GREATEST_THRESHOLD = 0.9  # so that a cell, whose cosine with itself is 1, keeps itself
BLOCK_ENTRIES = 2**21  # of the rows of one head that are held at once: 8 MiB in float32; measured
GPU_BLOCK_ENTRIES = 2**25  # the same on a GPU: 128 MiB


class LastAttention(NamedTuple):
    """What the last block's attention is made of, on a grid; CLS and registers are left out.

    The logits are query·key + rows + columns, where `rows` and `columns` are decomposed relative positions: of each
    query, one number for each row of keys and one for each column. They are 0 in a model without relative positions.

    Attributes:
        query, key, value (B, I, J, H, d): query times the attention's scale.
        rows (B, I, J, H, I), columns (B, I, J, H, J): see above.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    rows: Tensor
    columns: Tensor


def pack_attention(attention: LastAttention) -> Tensor:
    """Return an attention as features (B, 1 + H·(3·d + I + J), I, J); the first channel is H."""
    heads = torch.full_like(attention.query[..., 0, :1], attention.query.shape[3])
    return torch.cat([heads, *(part.flatten(3) for part in attention)], 3).permute(0, 3, 1, 2)


def unpack_attention(features: Tensor) -> LastAttention:
    """Return the attention that `pack_attention` made features (B, channels, I, J) of."""
    grid = tuple(features.shape[2:])
    heads = int(features[0, 0, 0, 0])
    width = ((features.shape[1] - 1) // heads - sum(grid)) // 3
    sides = [heads * side for side in (width, width, width, *grid)]
    parts = features[:, 1:].permute(0, 2, 3, 1).split(sides, 3)
    return LastAttention(*(part.unflatten(3, (heads, -1)) for part in parts))


def affinity_product(
    attention: Tensor, valid: tuple[int, int], values: Tensor, alpha: float, negative: float | None = None
) -> Tensor:
    """Return M·values (n, D) float32 on the valid cells of an image's attention; see `pruned_product`.

    P_h is the softmax over all of the grid, cut to the valid cells; padding has its share in a row, as published.

    Args:
        attention (1, channels, I, J): of `pack_attention`.
        valid (int, int): rows and columns (r, c) of cells, from the top left, that show the image.
        values (n, D): of the valid cells, row by row.
        alpha, negative: as of `pruned_product`.
    """
    whole = unpack_attention(attention)
    key = _by_heads(whole.key).transpose(1, 2)
    cut = LastAttention(*(part[:, : valid[0], : valid[1]] for part in whole))
    query, rows, columns = (_by_heads(part) for part in (cut.query, cut.rows, cut.columns))
    block = _block(key)
    logits, probabilities = (key.new_empty(block, *attention.shape[2:]) for _ in range(2))

    def of_head(head: int, span: slice) -> Tensor:
        count = span.stop - span.start
        torch.add(rows[head, span, :, None], columns[head, span, None], out=logits[:count])
        flat, out = logits[:count].flatten(1), probabilities[:count]
        torch.softmax(flat.addmm_(query[head, span], key[head]), 1, out=out.flatten(1))
        return out[:, : valid[0], : valid[1]]

    return pruned_product(of_head, _by_heads(cut.value), values, alpha, negative, block)


def pruned_product(
    attention: Callable[[int, slice], Tensor],
    value: Tensor,
    values: Tensor,
    alpha: float,
    negative: float | None = None,
    block: int | None = None,
) -> Tensor:
    """Return M·values (n, D) float32, with M the mean of attention maps P_h, pruned by cosines of the heads' values.

    c_h(i, j) is the cosine of rows i and j of a head's `value`. θ_i = α · the mean of c_h(i, j) over heads and columns.
    M = mean over heads of P_h·1(c_h > θ), rows divided by their sum. A row without an entry, which the published code
    makes no number of, keeps its own cell.

    Heads are summed one at a time, in blocks of rows: no n × n matrix is made. Nor is one for θ, as the mean of c_h
    over columns is a product with the mean of unit rows.

    Args:
        attention: function of a head and a slice of rows -> these rows of P_h, (b, n) or (b, r, c); it may give the
            same memory each time.
        value (H, n, d): of each head.
        values (n, D): that M is applied to.
        alpha: α.
        negative: what a negative θ becomes; None keeps it.
        block: rows of a block; by default as many as the device's limit allows.
    """
    unit = F.normalize(value.float(), dim=2)
    threshold = alpha * (unit * unit.mean(1, keepdim=True)).sum(2).mean(0)
    if negative is not None:
        threshold = threshold.masked_fill_(threshold < 0, negative)
    threshold = threshold.clamp_(max=GREATEST_THRESHOLD)[:, None]
    values, count, block = values.float(), len(values), block or _block(unit.transpose(1, 2))
    product = torch.empty_like(values)
    total, kept = (unit.new_empty(block, count) for _ in range(2))
    for start in range(0, count, block):
        span = slice(start, min(start + block, count))
        total, kept = total[: span.stop - start], kept[: span.stop - start]
        total.zero_()
        for head, rows in enumerate(unit):
            torch.mm(rows[span], rows.T, out=kept).gt_(threshold[span])
            shares = attention(head, span)
            total.view(shares.shape).addcmul_(shares, kept.view(shares.shape))
        sums = total.sum(1, keepdim=True)
        lost = (sums == 0).float()
        product[span] = (total @ values).addcmul_(lost, values[span]).div_(sums.add_(lost))
    return product


def _by_heads(part: Tensor) -> Tensor:
    """Return a part of one image's attention (1, r, c, H, d) as (H, r·c, d) float32, heads apart in memory."""
    return part[0].flatten(0, 1).transpose(0, 1).float().contiguous()


def _block(columns: Tensor) -> int:
    """Return how many rows of an attention of (H, any, N) columns are held at once."""
    entries = BLOCK_ENTRIES if columns.device.type == 'cpu' else GPU_BLOCK_ENTRIES
    return min(columns.shape[2], max(1, entries // columns.shape[2]))
