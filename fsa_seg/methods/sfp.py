"""SFP: SC-CLIP with outliers that CLS attends, and queries beside keys in the first branch."""

from torch import Tensor

from fsa_seg.methods.scclip import GAMMA, SCCLIP
from fsa_seg.ops.attention import AttentionMap, softmax_map
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.repair import attended_outliers, thresholded_map

COUNT = 10  # outliers, at most
FACTOR = 1.5  # on CLS's attention


class SFP(SCCLIP):
    """SFP, as its released code computes it: SC-CLIP but for outliers, their repair, and the maps of both branches.

    Outliers are the at most 10 patches that CLS attends most among those where 1.5 times CLS's attention exceeds the
    patch's own, in the head mean of the block before the last. An outlier without sound neighbours becomes 0. The first
    branch has A = ⅓(P + softmax(kkᵀ/√d) + softmax(qqᵀ/√d)) and the second P alone; P is SC-CLIP's softmax of
    similarities, where those below β count as 0.

    Args:
        beta (float), cls_weight (float): as of SC-CLIP.
    """

    title = 'SFP'
    publication = '"Feature Purification Matters", ICCV 2025'
    protocol = 'sfp'
    least_patches = 1
    lost_become_zero = True

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return SC-CLIP's blocks, and the one before the last."""
        return tuple(sorted({*super().inner_blocks(depth), depth - 2}))

    def outliers(self, block: LastBlock) -> Tensor:
        """Return which patches are outliers, (B, N) bool."""
        before = block.inner[block.depth - 2]
        return attended_outliers(before.q, before.k, before.heads, COUNT, FACTOR)

    def similar(self, middle: Tensor, grid: tuple[int, int]) -> AttentionMap:
        """Return P."""
        return thresholded_map(middle, self.beta, GAMMA)

    def mix(self, similar: AttentionMap, first: Projections, second: Projections, values: Tensor) -> Tensor:
        """Return A·values of both branches side by side, (B, N, 2·D)."""
        mixed, width = similar.apply(values), first.v.shape[2]
        for x in (first.k, first.q):
            mixed[..., :width] += softmax_map(x, x, values[..., :width], first.heads)
        mixed[..., :width] /= 3
        return mixed
