"""CorrCLIP: a VFM's attention inside the regions of a region map, and one token for each region."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, resize_tokens
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.probes import region_probes
from fsa_seg.ops.regions import correct_labels, merge_regions, nearest, scope_map
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import WholeImage
from fsa_seg.settings import is_number

SPATIAL = {12: 5, 24: 12, 32: 28}  # depth of the tower -> number of layers of the spatial branch; published


class CorrCLIP(Method):
    """CorrCLIP (arXiv 2411.10086): the sum of three branches after `ln_post`.

    The main branch is out_proj(A·v), A being the attention of a VFM's features inside regions; see
    `fsa_seg.ops.regions.scope_map`. Regions of similar features are merged before. The spatial branch is the same with
    the mean of earlier layers' outputs in place of the last block's input. The semantic branch is one token per merged
    region, see `fsa_seg.ops.probes.region_probes`. Regions come to CLIP's grid, and tokens from there to the VFM's, by
    nearest neighbour. Labels are corrected last: each region takes its most frequent class.

    FSA adapts A in the main and in the spatial branch, with W inside the scope; its z(A) and z(U) are of all three
    branches. That is ours.

    Args:
        regions (dict): source of the region maps, such as dict(type='files', folder=...); see
            `fsa_seg.models.regions`. By default dict(type='vfm'), regions of a VFM's features.
        semantic_weight (float), spatial_weight (float): of these branches, at least 0. Published: 0.5 and 1.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'CorrCLIP'
    publication = 'Zhang et al., ICCV 2025, arXiv 2411.10086'
    protocol = 'corrclip'
    roles = {'proxy': 'window'}
    kinds = {'proxy': 'q+k'}
    vfms = {'regions': 'dino_vit-b16'}

    def __init__(
        self, regions: dict[str, Any] | None = None, semantic_weight: float = 0.5, spatial_weight: float = 1.0
    ):
        regions = dict(type='vfm') if regions is None else regions
        if not isinstance(regions, dict) or not isinstance(regions.get('type'), str):
            raise UserError(
                f'{self.title}: regions is {regions!r}; it has to be a dict that names the source of the region maps, '
                "such as dict(type='vfm') or dict(type='files', folder='data/regions')"
            )
        for key, weight in (('semantic_weight', semantic_weight), ('spatial_weight', spatial_weight)):
            if not is_number(weight) or weight < 0:
                raise UserError(
                    f'{self.title}: {key} is {weight!r}; it has to be at least 0 (published: 0.5 for the semantic '
                    'branch, 1 for the spatial one)'
                )
        self.regions, self.semantic_weight, self.spatial_weight = regions, semantic_weight, spatial_weight
        if regions['type'] == 'vfm':
            self.roles = {**self.roles, 'regions': 'asked'}

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the indices of all earlier blocks, which the region tokens go through."""
        return tuple(range(depth - 1))

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the map, whose values are the columns of the resize from CLIP's grid to the VFM's."""
        features = block.features['proxy']
        if block.regions is None:
            raise UserError(
                f'{self.title} needs region maps, which come with a pass over images (fsa-seg test, '
                'Segmenter); give `patch_logits` the argument regions'
            )
        grid = pair(features.shape[2:])
        merged = merge_regions(features, nearest(block.regions, grid)).unflatten(1, grid)
        block.kept['regions'] = merged
        patches = block.grid[0] * block.grid[1]
        eye = torch.eye(patches, device=block.tokens.device, dtype=block.tokens.dtype)[None]
        columns = resize_tokens(eye, block.grid, grid).expand(len(block.tokens), -1, -1)
        return scope_map(features, merged)._replace(values=columns)

    def embed(self, block: LastBlock, attention: AttentionMap | None) -> Tensor:
        """Return the unit embeddings of the branches' sum."""
        assert attention is not None
        visual, kept = block.visual, block.kept
        if 'semantic' not in kept:
            kept['main'], kept['spatial'] = self._patches(block)
            kept['semantic'] = self.semantic_weight * self._semantic(block)
        mixed = attention.apply(block.values(attention))
        total = visual.ln_post(mixed @ kept['main'])
        total = total + self.spatial_weight * visual.ln_post(mixed @ kept['spatial'])
        return F.normalize((total @ visual.proj + kept['semantic']).float(), dim=-1)

    def grid(self, clip: tuple[int, int], vfms: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """Return the VFM's grid."""
        return vfms['proxy']

    def correct(self, labels: Tensor, image: WholeImage) -> Tensor:
        """Return corrected labels (height, width); see `fsa_seg.ops.regions.correct_labels`."""
        return correct_labels(labels, image.regions())

    def _patches(self, block: LastBlock) -> tuple[Tensor, Tensor]:
        """Return out_proj of both branches' values on CLIP's grid, (B, N, D) each.

        Rows of resize and map sum to 1, so that the out-projection, bias included, may come first.
        """
        inputs = [block.inner[index].tokens for index in spatial_blocks(block.depth)]
        mean = sum(inputs[1:], inputs[0]) / len(inputs)
        return block.out(block.v[:, 1:]), block.out(block.of(mean[:, 1:]).v)

    def _semantic(self, block: LastBlock) -> Tensor:
        """Return the region tokens after `ln_post @ proj`, spread over the map's grid: (B, cells, E)."""
        regions, visual = block.kept['regions'], block.visual
        layers = [*(block.inner[index].tokens for index in range(block.depth - 1)), block.tokens]
        probes, index = region_probes(visual, layers, nearest(regions, block.grid).flatten(1))
        cells = nearest(index.unflatten(1, block.grid), pair(regions.shape[1:])).flatten(1)
        projected = visual.ln_post(probes) @ visual.proj
        return projected.gather(1, cells[..., None].expand(-1, -1, projected.shape[2]))


def spatial_blocks(depth: int) -> range:
    """Return the blocks whose input the spatial branch takes: L − 1 − m to L − 2 of L, from 0; m is 5 of 12.

    m is published for towers of 12, 24 and 32 blocks. Of another depth it is ⌊5·L/12⌋, at least 1, which is ours.

    Raises:
        UserError: a tower of less than 3 blocks.
    """
    if depth < 3:
        raise UserError(f'the image tower has {depth} blocks, and CorrCLIP needs at least 3')
    count = SPATIAL.get(depth, max(1, 5 * depth // 12))
    return range(depth - 1 - count, depth - 1)
