"""LPOSS: identity attention, and propagation of its cosines between the patches of all windows of an image."""

import functools
from typing import Any

import torch

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, named_map, resize_tokens
from fsa_seg.ops.label_propagation import NEIGHBOURS, patch_graph, pixel_planes_bytes, propagate_pixels, rgb_to_lab
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import Layout, OverlapAdd, PixelMap, Window
from fsa_seg.settings import whole

GRAPH = 'graph'


class LPOSS(Method):
    """LPOSS (arXiv 2503.19777): MaskCLIP's identity map with residual and MLP, and a graph over all windows' patches.

    The graph is of a VFM's values: see `fsa_seg.ops.label_propagation.patch_graph`. With `pixels` it is LPOSS+: the
    pixels of the resized image propagate after the patches. Where CLIP's grid is not the VFM's, cosines are resized
    bilinearly; the published code resizes embeddings. As a stage, LPOSS propagates the cosines of any host.

    FSA adapts the identity map inside each window; propagation follows. That is ours.

    Args:
        pixels (bool): whether pixels propagate too.
        neighbours (int): k of the graph, at least 1; an image of fewer patches has them all. Published: 400.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'LPOSS'
    publication = 'Stojnić et al., CVPR 2025, arXiv 2503.19777'
    protocol = 'lposs'
    roles = {GRAPH: 'window'}
    stage_roles = {GRAPH: 'window'}
    kinds = {GRAPH: 'values'}
    vfms = {GRAPH: 'dino_vit-b16'}
    residual = mlp = True
    has_logits = False

    def __init__(self, pixels: bool = False, neighbours: int = NEIGHBOURS):
        if not isinstance(pixels, bool):
            raise UserError(f'LPOSS: pixels is {pixels!r}; it has to be True (LPOSS+) or False')
        if not whole(1).fits(neighbours):
            raise UserError(f'LPOSS: neighbours is {neighbours!r}; it has to be a whole number, at least 1')
        self.pixels, self.neighbours = pixels, neighbours

    @functools.cached_property
    def row_title(self) -> str:
        """'LPOSS', or 'LPOSS+' with pixels, and the neighbours where they are not the published number."""
        name = 'LPOSS+' if self.pixels else self.title
        return name if self.neighbours == NEIGHBOURS else f'{name} neighbours={self.neighbours}'

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the identity map."""
        return named_map('identity', block)

    def keep(self, block: LastBlock) -> list:
        """Return each window's VFM features, (C, I, J)."""
        return list(block.features[GRAPH])

    def merge(self, windows: list[Window], layout: Layout) -> Any:
        """Return the propagated cosines of an image's pixels."""
        grid = pair(windows[0].kept.shape[1:])
        features = torch.cat([window.kept.flatten(1).T for window in windows])
        centres = torch.cat([layout.centres(window, grid) for window in windows])
        cosines = torch.cat([resize_tokens(window.cosines[None], window.grid, grid)[0] for window in windows])
        place = layout.window, layout.stride, layout.multiple, self.neighbours
        graph = layout.image.once(GRAPH, place, lambda: patch_graph(features, centres, self.neighbours))
        propagated = graph.propagate(cosines)
        content = layout.content or layout.shape
        overlap = OverlapAdd(layout._replace(size=content) if self.pixels else layout)
        for window, part in zip(windows, propagated.split(grid[0] * grid[1])):
            overlap.add(window._replace(cosines=part, grid=grid))
        if not self.pixels:
            return overlap
        scores = propagate_pixels(overlap.strip()().contiguous(), rgb_to_lab(layout.image.rgb()))
        return PixelMap(scores, layout.size)

    def memory(self, windows: int, patches: int, queries: int, pixels: int) -> tuple[int, str]:
        """Return the bytes of graph and propagation, of which pixels take the most, and what lowers them."""
        count = windows * patches
        graph = 40 * count * min(self.neighbours, count) + 24 * count * queries
        if not self.pixels:
            return graph, 'a smaller `neighbours`'
        return graph + pixel_planes_bytes(pixels) + 8 * pixels * queries, '`pixels=False`'
