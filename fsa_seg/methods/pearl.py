"""PEARL: keys turned towards queries, and key-key attention about their means."""

import torch
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, softmax_map
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.settings import is_number, whole

EPSILON = 1e-6  # added to the weights' sum, and to the diagonal before Newton–Schulz


class PEARL(Method):
    """PEARL (arXiv 2603.21528): softmax((q(kR)ᵀ + α(k − μ_k)(k − μ_k)ᵀ)/√d), no residual, no MLP.

    Per head: patches weigh ‖q‖ and CLS 0, over their sum; μ_q and μ_k are the weighted means, R is the polar factor of
    (k − μ_k)ᵀ(q − μ_q). Five Newton–Schulz steps do not converge to it: R is no rotation, as in the published code.
    The map is computed in float32.

    Args:
        alpha (float): α, at least 0. Published: 0.08, and 0.3 on ADE20K and Cityscapes.
        steps (int): of Newton–Schulz, at least 1. Published: 5.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'PEARL'
    publication = 'CVPR 2026, arXiv 2603.21528'
    protocol = 'pearl'

    def __init__(self, alpha: float = 0.08, steps: int = 5):
        if not is_number(alpha) or alpha < 0:
            raise UserError(f'PEARL: alpha is {alpha!r}; it has to be a number, at least 0 (published: 0.08 and 0.3)')
        if not whole(1).fits(steps):
            raise UserError(f'PEARL: steps is {steps!r}; it has to be a whole number, at least 1 (published: 5)')
        self.alpha, self.steps = alpha, steps

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the map; queries and keys are laid side by side with the centred keys, 2·D columns each."""
        q, k = (x.float().unflatten(2, (block.heads, -1)) for x in (block.q, block.k))  # (B, T, H, d)
        weights = q.norm(dim=-1, keepdim=True)
        weights[:, 0] = 0
        weights = weights / (weights.sum(1, keepdim=True) + EPSILON)
        centred_q, centred_k = (x - (weights * x).sum(1, keepdim=True) for x in (q, k))
        turn = polar_factor(torch.einsum('bthc,bthd->bhcd', centred_k, centred_q), self.steps)
        turned = torch.einsum('bthc,bhcd->bthd', k, turn)
        own = self.alpha**0.5 * centred_k
        queries, keys = (torch.cat([x, own], -1).flatten(2) for x in (q, turned))

        return _scaled(queries, keys, block.heads)


def _scaled(queries: Tensor, keys: Tensor, heads: int, factor: float = 1.0, bias: Tensor | None = None) -> AttentionMap:
    """Return the softmax map of queries and keys (B, T, D), whose logits are scaled before a bias is added."""
    return AttentionMap(
        lambda values: softmax_map(queries, keys, values.float(), heads, bias, factor).to(values.dtype),
        1.0,
        True,
        with_logits=lambda further, added: _scaled(queries, keys, heads, factor * further, added),
    )


def polar_factor(matrix: Tensor, steps: int) -> Tensor:
    """Return M(MᵀM)^(−1/2) by coupled Newton–Schulz steps on MᵀM/‖MᵀM‖ + 1e-6·I; few steps do not converge.

    Args:
        matrix (..., d, d): M.
        steps: number of steps.
    """
    eye = torch.eye(matrix.shape[-1], device=matrix.device)
    square = matrix.mT @ matrix
    norm = square.flatten(-2).norm(dim=-1)[..., None, None].clamp(min=torch.finfo(square.dtype).tiny)
    root, inverse = square / norm + EPSILON * eye, eye
    for _ in range(steps):
        correction = (3 * eye - inverse @ root) / 2
        root, inverse = root @ correction, correction @ inverse
    return matrix @ (inverse / norm.sqrt())
