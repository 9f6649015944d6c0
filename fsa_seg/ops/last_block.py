"""CLIP's last block on the trunk's tokens: what an attention map is made of, and patch embeddings under a map.

Shape legend: B windows, T = 1 + N tokens (CLS first), N = h·w patches, D width, E embedding, C feature channels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.ops.attention import AttentionMap, resize_tokens
from fsa_seg.ops.readout import readout, stream
from fsa_seg.ops.types import Block, ImageTower, pair
from fsa_seg.ops.windows import WindowPlace


class Projections:
    """Queries, keys and values of one block, each computed when it is first asked for.

    Attributes:
        tokens (B, T, D): that enter the block, CLS first. normed (B, T, D): ln_1 of them.
        q, k, v (B, T, D): projections of `normed`, biases included.
        heads (int): number of heads.

    Args:
        block: a residual block of an `open_clip` image tower.
        tokens (B, T, D): that enter the block.
    """

    def __init__(self, block: Block, tokens: Tensor):
        self.tokens, self.heads, self._block = tokens, block.attn.num_heads, block

    q: functools.cached_property[Tensor] = functools.cached_property(lambda self: self._project(0))
    k: functools.cached_property[Tensor] = functools.cached_property(lambda self: self._project(1))
    v: functools.cached_property[Tensor] = functools.cached_property(lambda self: self._project(2))
    normed: functools.cached_property[Tensor] = functools.cached_property(lambda self: self._block.ln_1(self.tokens))

    def out(self, attended: Tensor) -> Tensor:
        """Return what the block adds to its input for attended values (B, any, D): out-projection and layer scale."""
        return self._block.ls_1(self._block.attn.out_proj(attended))

    def _project(self, index: int) -> Tensor:
        attn = self._block.attn
        weight, bias = (parameter.chunk(3)[index] for parameter in (attn.in_proj_weight, attn.in_proj_bias))
        return F.linear(self.normed, weight, bias)


class LastBlock(Projections):
    """CLIP's last block on a batch of windows; what several maps and feedbacks share is computed once.

    Attributes:
        tokens (B, T, D): the trunk's tokens, which enter the block.
        grid (int, int): (h, w) of CLIP's patches.
        features (dict): role -> features (B, C, I, J) of the VFM that sees each window.
        image_features (dict): role -> a list with the features (1, C, I, J) of each window's whole image.
        inner (dict): index of an earlier block -> its `Projections`; those that the method's `inner_blocks` names.
        windows (list of WindowPlace): where the windows lie in their images; None outside of a pass over images.
        images (B, 3, height, width): the windows' normalised pixels, where they are at hand.
        whole (list): of each window what the method's hook `whole` made of its image; empty outside of a pass.
        regions (B, height, width): the windows' region maps, of the same pixels; None where the method needs none.
        depth (int): number of the tower's blocks.
        kept (dict): what a method keeps from one hook to the next; it is empty at first.

    Args:
        visual: an `open_clip` image tower.
        tokens, grid, features, image_features, inner, windows, images, whole, regions: see above.
    """

    def __init__(
        self,
        visual: ImageTower,
        tokens: Tensor,
        grid: tuple[int, int],
        features: dict[str, Tensor] | None = None,
        inner: dict[int, Projections] | None = None,
        image_features: dict[str, list[Tensor]] | None = None,
        windows: list[WindowPlace] | None = None,
        images: Tensor | None = None,
        whole: list[Any] | None = None,
        regions: Tensor | None = None,
    ):
        super().__init__(visual.transformer.resblocks[-1], tokens)
        self.visual, self.grid, self.features = visual, pair(grid), features or {}
        self.inner, self.image_features, self.windows = inner or {}, image_features or {}, windows
        self.images, self.depth = images, len(visual.transformer.resblocks)
        self.whole, self.regions = whole or [], regions
        self.kept: dict[str, Tensor] = {}
        self._prepared: dict[tuple[bool, bool, tuple[int, int]], _Inputs] = {}

    def of(self, tokens: Tensor) -> Projections:
        """Return the block's projections of other tokens (B, any, D)."""
        return Projections(self._block, tokens)

    def values(self, attention: AttentionMap) -> Tensor:
        """Return what a map is applied to: (B, N, ·), or (B, T, ·) where the map covers CLS."""
        return self._inputs(attention).values if attention.values is None else attention.values

    def value_heads(self, attention: AttentionMap) -> int:
        """Return how many heads the columns of `values` belong to: 1 where all heads share the map."""
        size = self.tokens.shape[2] // self.heads
        return 1 if attention.shared else self.values(attention).shape[2] // size

    def embed(self, attention: AttentionMap, residual: bool = False, mlp: bool = False) -> Tensor:
        """Return unit patch embeddings (B, N, E) under a map.

        Args:
            attention: the map.
            residual, mlp: whether the block's residual and its MLP follow.
        """
        return self._read_out(attention, self._mixed(attention), residual, mlp)

    def attend(self, attention: AttentionMap, residual: bool = False, mlp: bool = False) -> Tensor:
        """Return the patch tokens (B, N, D) that leave the block under a map, before `ln_post`; as of `embed`."""
        inputs = self._inputs(attention)
        tokens = inputs.tokens() if residual else None
        left = stream(self.visual, inputs.project(self._mixed(attention)), tokens, mlp)
        return left[:, int(attention.covers_cls) :]

    def _mixed(self, attention: AttentionMap) -> Tensor:
        values = self.values(attention)
        mixed = attention.apply(values)
        if mixed.shape != values.shape:
            raise UserError(
                f'the attention map turned values of shape {tuple(values.shape)} into {tuple(mixed.shape)}; '
                '`apply` has to keep the shape'
            )
        return mixed

    def embed_uniform(self, attention: AttentionMap, residual: bool = False, mlp: bool = False) -> Tensor:
        """Return what `embed` does under the uniform map over all tokens that a map attends.

        Without a residual all patches are alike: the result is (B, 1, E).
        """
        assert attention.row_sum is not None  # a feedback checks it
        values = self.values(attention)
        uniform = attention.row_sum * values.mean(1, keepdim=True)
        rows = uniform.expand_as(values) if residual else uniform.expand(-1, 1 + attention.covers_cls, -1)
        return self._read_out(attention, rows, residual, mlp)

    def _read_out(self, attention: AttentionMap, mixed: Tensor, residual: bool, mlp: bool) -> Tensor:
        inputs = self._inputs(attention)
        tokens = inputs.tokens() if residual else None
        return readout(self.visual, inputs.project(mixed), tokens, mlp)[:, int(attention.covers_cls) :]

    def _inputs(self, attention: AttentionMap) -> '_Inputs':
        grid = attention.grid or self.grid
        key = attention.covers_cls, attention.shared, pair(grid)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(attention, pair(grid))
        return self._prepared[key]

    def _prepare(self, attention: AttentionMap, grid: tuple[int, int]) -> '_Inputs':
        """Return values, projection and tokens for maps of one kind.

        A map that all heads share commutes with the out-projection, which then comes first. Where patches come from
        a coarser grid of fewer patches than D, the map mixes the columns of the resize instead: (N, h·w) in place of
        (N, D).

        The functions hold the tokens and not the block, which holds them: a cycle would keep all tensors until Python
        looks for cycles.
        """
        out, entering, own_grid, covers_cls = self._block.attn.out_proj, self.tokens, self.grid, attention.covers_cls
        project: Callable[[Tensor], Tensor] = out
        values = self.v if attention.covers_cls else self.v[:, 1:]
        if attention.shared:
            values, project = F.linear(values, out.weight), lambda mixed: mixed + out.bias
        if grid == self.grid:
            return _Inputs(values, project, lambda: entering if covers_cls else entering[:, 1:])
        tokens = functools.cache(lambda: resize_tokens(entering[:, 1:], own_grid, grid))
        if attention.shared and values.shape[1] < values.shape[2]:
            eye = torch.eye(values.shape[1], device=values.device, dtype=values.dtype)[None]
            columns = resize_tokens(eye, self.grid, grid).expand(len(values), -1, -1)
            return _Inputs(columns, lambda mixed: mixed @ values + out.bias, tokens)
        return _Inputs(resize_tokens(values, self.grid, grid), project, tokens)


class _Inputs(NamedTuple):
    values: Tensor
    project: Callable[[Tensor], Tensor]  # A·values -> what the out-projection gives
    tokens: Callable[[], Tensor]  # of the residual
