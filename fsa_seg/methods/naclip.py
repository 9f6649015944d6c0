"""NACLIP: key-key attention that favours neighbouring patches."""

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, named_map, neighbour_bias
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.settings import is_number

LEAST_SIGMA = 0.1  # neighbours have no weight then


class NACLIP(Method):
    """NACLIP (arXiv 2404.08181): softmax(kkᵀ/√d + ω), no residual, no MLP.

    ω_ij = exp(−‖p_i − p_j‖² / 2σ²) for patches at grid positions p, and 0 in CLS's row and column. The publication's
    protocol refines cosines by PAMR, and sees VOC21 and VOC20 as whole images.

    Args:
        sigma (float): σ, in patches, at least LEAST_SIGMA. Published: 5.

    Raises:
        UserError: a sigma out of its range.
    """

    title = 'NACLIP'
    publication = 'Hajimiri et al., WACV 2025, arXiv 2404.08181'
    protocol = 'naclip'

    def __init__(self, sigma: float = 5.0):
        if not is_number(sigma) or sigma < LEAST_SIGMA:
            raise UserError(f'NACLIP: sigma is {sigma!r}; it has to be a number, at least {LEAST_SIGMA} (published: 5)')
        self.sigma = sigma

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return softmax(kkᵀ/√d + ω)."""
        return named_map('kk', block, neighbour_bias(block.grid, self.sigma, block.tokens.device))
