"""GEM: a stream of self-self attention beside the last blocks of a tower that is left as it is."""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import DEPTH, AttentionMap, softmax_map
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.settings import whole

LAYERS = 6  # published, of 12 blocks


class GEM(Method):
    """GEM (arXiv 2312.00878): y ← y + out_proj(A·v) over the last blocks, y starting as their input; no MLP.

    A is the mean of softmax(c·uuᵀ) for u of v, k and q, where u ← unit(softmax(c·uuᵀ)·u) of unit rows was taken once,
    and c is the mean ‖ln_1(t)‖ of a window's tokens over √d. FSA adapts A of the last block. Position embeddings are
    resized as the suite's trunk does; the published code resizes them to size with antialiasing.

    GEM published no segmentation protocol; ClearCLIP's is that of later runs of it.

    Args:
        layers (int): how many of the last blocks y passes. None is the published 6, and the last half of a tower of
            fewer than 12 blocks, which is ours.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'GEM'
    publication = 'Bousselham et al., CVPR 2024, arXiv 2312.00878'
    protocol = 'clearclip'

    def __init__(self, layers: int | None = None):
        if layers is not None and not whole(1).fits(layers):
            raise UserError(
                f'GEM: layers is {layers!r}; it has to be None or a whole number, at least 1 (published: 6)'
            )
        self.layers = layers

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the indices of the blocks, but for the last, that y passes."""
        layers = self.layers or (LAYERS if depth >= DEPTH else max(1, depth // 2))
        if layers > depth:
            raise UserError(f'GEM: layers is {layers}, and the image tower has {depth} blocks; give at most those')
        return tuple(range(depth - layers, depth - 1))

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return A of the last block."""
        return _self_self(block)

    def attend(self, block: LastBlock, attention: AttentionMap | None) -> Tensor:
        """Return y of the patches, with the last block's map adapted or not."""
        assert attention is not None
        if 'stream' not in block.kept:
            earlier = [block.inner[index] for index in self.inner_blocks(block.depth)]
            stream = earlier[0].tokens if earlier else block.tokens
            for part in earlier:
                stream = stream + part.out(_self_self(part).apply(part.v))
            block.kept['stream'] = stream
        return (block.kept['stream'] + block.out(attention.apply(block.v)))[:, 1:]


def _self_self(part: Projections) -> AttentionMap:
    """Return A of one block; the scale is each window's own, and goes into the queries."""
    heads, width = part.heads, part.v.shape[2] // part.heads
    scale = part.normed.float().norm(dim=-1).mean(1)[:, None, None] / width**0.5
    rows = []
    for x in (part.v, part.k, part.q):
        x = _unit(x.float(), heads)
        rows.append(_unit(softmax_map(scale * x, x, x, heads, None, width**0.5), heads))

    return _scaled(scale, rows, heads, width**0.5)


def _scaled(
    scale: Tensor, rows: Sequence[Tensor], heads: int, factor: float, bias: Tensor | None = None
) -> AttentionMap:
    """Return the mean of the maps softmax(factor·scale·x·xᵀ + bias), x (B, T, D) one of `rows`."""

    def apply(values: Tensor) -> Tensor:
        mixed = sum(softmax_map(scale * x, x, values.float(), heads, bias, factor) for x in rows)
        return (cast(Tensor, mixed) / len(rows)).to(values.dtype)

    return AttentionMap(
        apply, 1.0, True, with_logits=lambda further, added: _scaled(scale, rows, heads, factor * further, added)
    )


def _unit(x: Tensor, heads: int) -> Tensor:
    """Return (B, T, D) with unit rows in each head."""
    return F.normalize(x.unflatten(2, (heads, -1)), dim=-1).flatten(2)
