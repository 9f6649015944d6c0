"""SC-CLIP: repaired outliers, and attention among patches that CLIP's middle blocks find alike."""

import torch
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, blocks_at, by_rows, proxy_map, softmax_map
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.repair import cut_similarities, density_outliers, repaired
from fsa_seg.settings import is_number

LOW, MIDDLE = 4, 9  # what enters these of 12 blocks: outputs of blocks 4 and 9 if the first counts as 1
LEVELS = (4, 5, 6, 7, 8, 9, 10)  # whose sum is the second branch's input
NEIGHBOURS = 30  # that tell how dense the tokens lie about a patch
OUTLIERS = 0.05  # share of the patches
GAMMA = 3.0  # factor on the similarities before the softmax


class SCCLIP(Method):
    """SC-CLIP (arXiv 2411.15869): two branches, each S_low·(out_proj(A·v) + 0.3·CLS), no residual, no MLP.

    A = ½(softmax((S_mid − mean)·3, negatives → −∞) + softmax(kkᵀ/√d)) over patches alone. S_mid and S_low are the
    cosines of patches after blocks 9 and 4 of 12; entries of S_low below β are 0, and its rows are divided by their
    sum. The first branch sees the last block's input, outliers repaired and mixed by S_mid cut likewise; the second the
    sum of the outputs of blocks 4 to 10. FSA adapts S_low·A in both. Of a tower of another depth, layers are taken
    that lie as deep, which is ours.

    Args:
        beta (float): β, from 0 and below 1. Published: 0.4.
        cls_weight (float): of CLS, at least 0. Published: 0.3.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'SCCLIP'
    publication = 'Bai et al., IEEE TIP 2025, arXiv 2411.15869'
    protocol = 'scclip'
    least_patches = NEIGHBOURS + 1
    has_logits = False
    lost_become_zero = False  # outliers without a sound neighbour

    def __init__(self, beta: float = 0.4, cls_weight: float = 0.3):
        if not is_number(beta) or not 0 <= beta < 1:
            raise UserError(f'{self.title}: beta is {beta!r}; it has to be at least 0 and below 1 (published: 0.4)')
        if not is_number(cls_weight) or cls_weight < 0:
            raise UserError(f'{self.title}: cls_weight is {cls_weight!r}; it has to be at least 0 (published: 0.3)')
        self.beta, self.cls_weight = beta, cls_weight

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the indices of the blocks whose input the method reads."""
        return tuple(sorted(set(blocks_at((LOW, MIDDLE, *LEVELS), depth))))

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return S_low·A of both branches, of patches alone; the branches' values lie side by side, 2·D columns."""
        low, middle, *levels = (block.inner[index].tokens for index in blocks_at((LOW, MIDDLE, *LEVELS), block.depth))
        outliers = self.outliers(block)
        middle, own = (repaired(x[:, 1:], outliers, block.grid, self.lost_become_zero) for x in (middle, block.tokens))
        cut, low_cut = cut_similarities(middle, self.beta), cut_similarities(low[:, 1:], self.beta)
        (mixed,) = by_rows(cut, middle)(own)
        total = sum(levels[1:], levels[0])
        first, second = (block.of(tokens) for tokens in (mixed.to(total.dtype), total[:, 1:]))
        block.kept['cls'] = self.cls_weight * (block.tokens[:, :1] + total[:, :1])
        similar, smooth = self.similar(middle, block.grid), by_rows(low_cut, low[:, 1:], low.shape[1])

        def apply(values: Tensor) -> Tensor:
            return smooth(self.mix(similar, first, second, values))[0]

        return AttentionMap(apply, 1.0, False, values=torch.cat([first.v, second.v], 2))

    def attend(self, block: LastBlock, attention: AttentionMap | None) -> Tensor:
        """Return both branches' sum."""
        assert attention is not None
        mixed = attention.apply(block.values(attention))
        total = sum(block.out(branch) for branch in mixed.chunk(2, 2))
        return total + block.kept['cls']

    def outliers(self, block: LastBlock) -> Tensor:
        """Return which patches of the last block's input are outliers, (B, N) bool."""
        return density_outliers(block.tokens[:, 1:], NEIGHBOURS, OUTLIERS)

    def similar(self, middle: Tensor, grid: tuple[int, int]) -> AttentionMap:
        """Return the map of the similarities of the middle layer's patches (B, N, D)."""
        return proxy_map(middle.transpose(1, 2).unflatten(2, grid), beta=1.0, gamma=GAMMA)

    def mix(self, similar: AttentionMap, first: Projections, second: Projections, values: Tensor) -> Tensor:
        """Return A·values of both branches side by side, (B, N, 2·D)."""
        keys = torch.cat([first.k, second.k], 2)
        return (similar.apply(values) + softmax_map(keys, keys, values, 2 * first.heads)) / 2
