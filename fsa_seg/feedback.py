"""Feedback self-adaptive attention (FSA, arXiv 2508.20265): the output's patch similarities adapt the attention.

Steps and constants as in the method's published implementation; what concerns CLS and rows that sum to two is ours,
after the paper's description. All of it runs in float32, whatever the model's precision: log(p + 1e-10) is no number
in half precision.

Shape legend: B images, N patches, T tokens attended, D width, Q queries.
"""
import torch
from torch import Tensor

from fsa_seg.attention import AttentionMap
from fsa_seg.errors import UserError

SCALE = 20.0  # of z(A) in step 1; published default
UNIFORM_SCALE = 35.0  # of z(U) in step 1; published default
EPSILON = 1e-10  # inside the logarithms of step 2


def isolate(z: Tensor, z_uniform: Tensor):
    """Return Δ = 20·z(A) − 35·z(U), what attention itself contributes (FSA, step 1).

    Args:
        z (B, N, Q): cosines of the patch embeddings under the method's attention map.
        z_uniform (B, N or 1, Q): the same under the uniform map.
    """
    return SCALE * z.float() - UNIFORM_SCALE * z_uniform.float()


def coherence(delta: Tensor):
    """Return S = 1 / (1 + KL(i‖j)) of P = softmax(Δ) over queries: (B, N, N), in (0, 1] (FSA, step 2).

    KL is an entropy term less P·log Pᵀ, so that no (N, N, Q) tensor is needed.

    Args:
        delta (B, N, Q): the isolated logits.
    """
    probs = delta.softmax(-1)
    log_probs = (probs + EPSILON).log()
    divergence = torch.baddbmm((probs * log_probs).sum(-1, keepdim=True), probs, log_probs.transpose(1, 2), alpha=-1)
    return divergence.clamp_(min=0).add_(1).reciprocal_()


def prune(similarity: Tensor, p: float):
    """Return S with all but each row's most probable entries at −∞ (FSA, step 3).

    Per row, entries are kept in falling order while the sum of their softmax is at most p: always the first, and all
    that equal the last one kept.

    Args:
        similarity (B, N, N): S of step 2.
        p (float): share of the row's probability to keep, above 0 and at most 1; 1 keeps all.
    """
    if p >= 1:
        return similarity
    count = similarity.shape[-1]
    # the n most probable entries weigh at least n/N together, so that no more than p·N of them can be kept
    ordered = similarity.topk(min(count, int(p * count) + 2), -1).values
    probs = (ordered - similarity.logsumexp(-1, keepdim=True)).exp_()
    kept = (probs.cumsum(-1) <= p).sum(-1, keepdim=True).clamp_(min=1)
    threshold = ordered.gather(-1, kept - 1)
    return similarity.masked_fill(similarity < threshold, float('-inf'))


def adapt(similarity: Tensor, lam: float):
    """Return W, the row softmax of S·exp(λ·S) over what pruning kept: (B, N, N), rows sum to 1 (FSA, step 4).

    Args:
        similarity (B, N, N): S with pruned entries at −∞.
        lam (float): λ.
    """
    weighted = similarity.mul(lam).exp_().mul_(similarity)
    return weighted.masked_fill_(similarity == float('-inf'), float('-inf')).softmax(-1)


def ensemble(attention: AttentionMap, adapted: Tensor, values: Tensor):
    """Return Â·values with Â = (W·A + A·W + W)/3, without the product of two maps (FSA, step 5).

    Where A covers CLS, W is extended to it by the identity. Where A's rows sum to g ≠ 1, Â is that of A/g, times g.

    Args:
        attention: the method's map A.
        adapted (B, N, N): W.
        values (B, T, D): T = N, or N + 1 where A covers CLS.
    """
    matrix = adapted.to(values.dtype)

    def apply_adapted(x):
        if not attention.cls:
            return matrix @ x
        return torch.cat([x[:, :1], matrix @ x[:, 1:]], 1)

    attended = attention.apply(values) / attention.mass
    mixed_values = apply_adapted(values)
    mixed = apply_adapted(attended) + attention.apply(mixed_values) / attention.mass + mixed_values
    return mixed * (attention.mass / 3)


class FSA:
    """The feedback loop with its settings.

    Args:
        lam (float): λ of step 4, at least 0. Published: 3.0 (ViT-B/16, ViT-L/14), 2.3 (ViT-H/14), 4.5 with MAE.
        p (float): share of probability that pruning keeps (step 3), above 0 and at most 1.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(self, lam=3.0, p=0.45):
        if not lam >= 0:
            raise UserError(f'FSA: lam is {lam}; it has to be at least 0 (published: 3.0, 2.3 for ViT-H/14)')
        if not 0 < p <= 1:
            raise UserError(f'FSA: p is {p}; it has to be above 0 and at most 1 (published: 0.45; 1 prunes nothing)')
        self.lam, self.p = lam, p

    def adapted_attention(self, z, z_uniform):
        """Return W (B, N, N) from the cosines under the method's map (B, N, Q) and under the uniform one."""
        return adapt(prune(coherence(isolate(z, z_uniform)), self.p), self.lam)
