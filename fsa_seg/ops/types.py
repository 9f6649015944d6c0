"""Types that several files share, among them what the suite reads of an `open_clip` image tower.

Shape legend: T = 1 + N tokens (CLS first), D width, E embedding.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

Tile = tuple[tuple[slice, slice], Tensor]  # rows and columns of an image, and the values (any, rows, columns) there


def pair(sides: Iterable[int]) -> tuple[int, int]:
    """Return two sides, such as the last two of a shape, as a tuple."""
    first, second = sides
    return first, second


class Layer(Protocol):
    """A function of one tensor."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Weighted(Layer, Protocol):
    """A layer with a weight."""

    weight: Tensor


class Linear(Weighted, Protocol):
    """A linear layer with a bias."""

    bias: Tensor


class Attention(Protocol):
    """The attention of a residual block.

    Attributes:
        num_heads (int): number of heads.
        in_proj_weight (3·D, D), in_proj_bias (3·D): the projections to queries, keys and values.
        out_proj: the out-projection.
    """

    num_heads: int
    in_proj_weight: Tensor
    in_proj_bias: Tensor
    out_proj: Linear


class Block(Layer, Protocol):
    """A residual block."""

    ln_1: Layer
    attn: Attention
    ls_1: Layer
    ln_2: Layer
    mlp: Layer
    ls_2: Layer


class Transformer(Protocol):
    """The residual blocks of an image tower, the first one first."""

    resblocks: Sequence[Block]


class ImageTower(Protocol):
    """An image tower of `open_clip`; `fsa_seg.models.clip.check_tower` checks a tower when the suite runs.

    Attributes:
        class_embedding (D), positional_embedding (T, D), proj (D, E): weights.
        patch_size (int, int): height and width of a patch, in pixels.
        grid_size (int, int): (h, w) of the grid that the position embeddings were trained for.
    """

    conv1: Weighted
    class_embedding: Tensor
    positional_embedding: Tensor
    ln_pre: Layer
    transformer: Transformer
    ln_post: Layer
    proj: Tensor
    patch_size: tuple[int, int]
    grid_size: tuple[int, int]
