"""Feedback self-adaptive attention (FSA, arXiv 2508.20265): the output's patch similarities adapt the attention.

Steps and constants as in the method's published implementation; what concerns CLS and rows that sum to two is ours,
after the paper's description. All of it runs in float32, whatever the model's precision: log(p + 1e-10) is no number
in half precision.

Shape legend: B images, N patches, T tokens attended, D width, Q queries.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError, one_of
from fsa_seg.ops.attention import AttentionMap, WindowsUnderMethod, by_rows
from fsa_seg.settings import is_number

SCALE = 20.0  # of z(A) in step 1; published default
UNIFORM_SCALE = 35.0  # of z(U) in step 1; published default
EPSILON = 1e-10  # inside the logarithms of step 2
MAX_LAMBDA = 80  # float32 ends at exp(88.7)
SIMILARITIES = ('kl', 'jeffreys', 'cosine')
TERMS = ('WA', 'AW', 'W')  # of step 5


def isolate(z: Tensor, z_uniform: Tensor | None, scale: float = SCALE, uniform_scale: float = UNIFORM_SCALE) -> Tensor:
    """Return Δ = 20·z(A) − 35·z(U), what attention itself contributes (FSA, step 1).

    Args:
        z (B, N, Q): cosines of the patch embeddings under the method's attention map.
        z_uniform (B, N or 1, Q): the same under the uniform map; None leaves the second term out.
        scale (float), uniform_scale (float): the two factors.
    """
    if z_uniform is None:
        return scale * z.float()
    return (scale * z.float()).sub_(uniform_scale * z_uniform.float())


def coherence(delta: Tensor, similarity: str = 'kl') -> Tensor:
    """Return how alike the patches' distributions P = softmax(Δ) over queries are: S (B, N, N) (FSA, step 2).

    S = 1 / (1 + KL(i‖j)), in (0, 1]. KL is an entropy term less P·log Pᵀ, so that no (N, N, Q) tensor is needed.

    Args:
        delta (B, N, Q): the isolated logits.
        similarity (str): 'kl'; 'jeffreys', with (KL(i‖j) + KL(j‖i))/2 in place of KL(i‖j); or 'cosine', the cosine of
            the rows of P.
    """
    return coherence_rows(delta, similarity)(slice(None))


def coherence_rows(delta: Tensor, similarity: str = 'kl') -> Callable[[slice], Tensor]:
    """Return a function of a slice of rows -> these rows of S, (B, n, N); see `coherence`."""
    probs = delta.softmax(-1)
    del delta
    if similarity == 'cosine':
        unit = F.normalize(probs, dim=-1)
        return lambda rows: unit[:, rows] @ unit.transpose(1, 2)
    log_probs = (probs + EPSILON).log_()
    negentropy = (probs * log_probs).sum(-1, keepdim=True)

    def similarity_rows(rows: slice) -> Tensor:
        divergence = torch.baddbmm(negentropy[:, rows], probs[:, rows], log_probs.transpose(1, 2), alpha=-1)
        divergence.clamp_(min=0)
        if similarity == 'jeffreys':
            reverse = torch.baddbmm(negentropy.transpose(1, 2), log_probs[:, rows], probs.transpose(1, 2), alpha=-1)
            divergence = divergence.add_(reverse.clamp_(min=0)).div_(2)
        return divergence.add_(1).reciprocal_()

    return similarity_rows


def prune(similarity: Tensor, p: float) -> Tensor:
    """Return S with all but each row's most probable entries at −∞ (FSA, step 3).

    Per row, entries are kept in falling order while the sum of their softmax is at most p: always the first, and all
    that equal the last one kept.

    Args:
        similarity (B, N, N): S of step 2.
        p (float): share of the row's probability to keep, above 0 and at most 1; 1 keeps all.
    """
    return similarity.masked_fill(similarity < threshold(similarity, p), float('-inf'))


def threshold(similarity: Tensor, p: float) -> Tensor:
    """Return each row's pruning threshold (B, N, 1): the least value that `prune` keeps.

    The n most probable entries of N weigh at least n/N together, so that at most p·N of them are kept. The threshold
    is finite: entries at −∞, outside a map's scope, are never kept.
    """
    least = torch.finfo(similarity.dtype).min
    if p >= 1:
        return similarity.new_full((1, 1, 1), least)
    count = similarity.shape[-1]
    ordered = similarity.topk(min(count, int(p * count) + 2), -1).values
    probs = (ordered - similarity.logsumexp(-1, keepdim=True)).exp_()
    kept = (probs.cumsum(-1) <= p).sum(-1, keepdim=True).clamp_(min=1)
    return ordered.gather(-1, kept - 1).clamp_(min=least)


def within(similarity: Tensor, attention: AttentionMap, rows: slice) -> Tensor:
    """Return some rows of S (B, n, N), overwritten with −∞ outside the map's scope, where the map has a scope."""
    if attention.scope is None:
        return similarity
    return similarity.masked_fill_(~attention.scope(rows), float('-inf'))


def adapt(similarity: Tensor, lam: float, p: float) -> Tensor:
    """Return W, the row softmax of S·exp(λ·S) over what pruning keeps: (B, N, N), rows sum to 1 (FSA, step 4).

    Args:
        similarity (B, N, N): S, not pruned; −∞ outside a map's scope.
        lam (float): λ.
        p (float): as of `prune`.
    """
    weighted = similarity.mul(lam).exp_().mul_(similarity)
    return weighted.masked_fill_(similarity < threshold(similarity, p), float('-inf')).softmax(-1)


def ensemble(
    attention: AttentionMap, apply_adapted: Callable[..., list[Tensor]], values: Tensor, terms: Sequence[str] = TERMS
) -> Tensor:
    """Return Â·values with Â = (W·A + A·W + W)/3, without the product of two maps (FSA, step 5).

    Where A covers CLS, W is extended to it by the identity. Where A's rows sum to g ≠ 1, Â is that of A/g, times g.

    Args:
        attention: the method's map A.
        apply_adapted: (patches (B, N, any), ...) -> [W·patches, ...].
        values (B, T, D): T = N, or N + 1 where A covers CLS.
        terms (sequence of str): those of 'WA', 'AW' and 'W' whose mean is taken.
    """
    inputs, mass = [], attention.row_sum
    assert mass is not None  # FSA.loop checks it
    if 'WA' in terms:
        attended = attention.apply(values)
        inputs.append(attended if mass == 1 else attended / mass)
    if 'AW' in terms or 'W' in terms:
        inputs.append(values)
    mixed = apply_adapted(*(tokens[:, int(attention.covers_cls) :] for tokens in inputs))  # W is gone through once
    if attention.covers_cls:
        mixed = [torch.cat([tokens[:, :1], patches], 1) for tokens, patches in zip(inputs, mixed)]
    if 'AW' in terms:
        mixed.append(attention.apply(mixed[-1]) / mass)
        if 'W' not in terms:
            del mixed[-2]
    return cast(Tensor, sum(mixed) * (mass / len(mixed)))


class FSA:
    """The feedback loop with its settings; those after `p` are ablations, with what was published as their defaults.

    Args:
        lam (float): λ of step 4, from 0 to 80. Published: 3.0 (ViT-B/16, ViT-L/14), 2.3 (ViT-H/14), 4.5 with MAE.
        p (float): share of probability that pruning keeps (step 3), above 0 and at most 1; 1 prunes nothing.
        isolation (bool): False leaves z(U) out of step 1: Δ = 20·z(A).
        scale (float), uniform_scale (float): the factors of step 1, above 0 and at least 0.
        similarity (str): of step 2: 'kl', 'jeffreys' or 'cosine', see `coherence`.
        terms (sequence of str): of step 5, any of 'WA', 'AW', 'W'; their mean is taken.
        rounds (int): how often the loop is run, at least 1: round n makes W of round n − 1's z(Â), while A stays the
            method's own.
        block (int): rows of S and W that are held at once, see `fsa_seg.ops.attention.by_rows`; it cannot change a
            result beyond rounding.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        lam: float = 3.0,
        p: float = 0.45,
        isolation: bool = True,
        scale: float = SCALE,
        uniform_scale: float = UNIFORM_SCALE,
        similarity: str = 'kl',
        terms: str | Sequence[str] = TERMS,
        rounds: int = 1,
        block: int | None = None,
    ):
        _check(
            is_number(lam) and 0 <= lam <= MAX_LAMBDA,
            'lam',
            lam,
            f'from 0 to {MAX_LAMBDA}, beyond which exp(λ) overflows (published: 3.0, 2.3 for ViT-H/14)',
        )
        _check(is_number(p) and 0 < p <= 1, 'p', p, 'above 0 and at most 1 (published: 0.45; 1 prunes nothing)')
        _check(isinstance(isolation, bool), 'isolation', isolation, 'True or False')
        _check(is_number(scale) and scale > 0, 'scale', scale, 'above 0 (published: 20)')
        _check(
            is_number(uniform_scale) and uniform_scale >= 0,
            'uniform_scale',
            uniform_scale,
            'at least 0 (published: 35)',
        )
        one_of(similarity, SIMILARITIES, 'similarity of FSA')
        terms = (terms,) if isinstance(terms, str) else terms
        known = isinstance(terms, (list, tuple)) and [term for term in TERMS if term in terms]
        _check(
            known and len(known) == len(terms),
            'terms',
            terms,
            f'a choice of {", ".join(TERMS)}, at least one, each once',
        )
        _check(
            isinstance(rounds, int) and rounds >= 1 and rounds is not True,
            'rounds',
            rounds,
            'a whole number, at least 1',
        )
        _check(block is None or isinstance(block, int) and block >= 1, 'block', block, 'a whole number, at least 1')
        self.block = block
        self.lam, self.p, self.isolation, self.similarity = lam, p, isolation, similarity
        self.scale, self.uniform_scale, self.terms, self.rounds = scale, uniform_scale, tuple(terms), rounds

    def loop(self, windows: WindowsUnderMethod, attention: AttentionMap, z: Tensor) -> Iterator[Tensor]:
        """Yield the cosines (B, N, Q) after each round; before them those of `start`, where it changed them.

        Args:
            windows: the batch of windows.
            attention: the method's map A.
            z (B, N, Q): z(A).

        Raises:
            UserError: the rows of A do not sum to one constant.
        """
        if attention.row_sum is None:
            raise UserError(
                f'{windows.title}: the rows of its attention map do not sum to one constant, which FSA needs; '
                'leave the feedback out (--no-fsa)'
            )
        attention, before = self.start(windows, attention, z)
        if before is not z:
            yield before
        z, z_uniform = before, windows.uniform if self.isolation else None
        for _ in range(self.rounds):
            z = windows.cosines(self.adapted_map(attention, z, z_uniform))
            yield z

    def start(self, windows: WindowsUnderMethod, attention: AttentionMap, z: Tensor) -> tuple[AttentionMap, Tensor]:
        """Return the map that FSA adapts, and the cosines (B, N, Q) under it; arguments as of `loop`."""
        return attention, z

    def adapted_map(self, attention: AttentionMap, z: Tensor, z_uniform: Tensor | None) -> AttentionMap:
        """Return Â as a map, see `ensemble`; of S and W, no more than a block of rows is held.

        Where the map has a scope, W is pruned and normalised among the cells inside it, and 0 outside. That is ours.

        Args:
            attention: the method's map A.
            z (B, N, Q), z_uniform (B, N or 1, Q): as of `isolate`.
        """
        rows = coherence_rows(self._isolated(z, z_uniform), self.similarity)

        def adapted(span: slice) -> Tensor:
            return adapt(within(rows(span), attention, span), self.lam, self.p)

        apply_adapted = by_rows(adapted, z, self.block)
        return attention._replace(
            apply=lambda values: ensemble(attention, apply_adapted, values, self.terms), with_logits=None
        )

    def similarities(self, z: Tensor, z_uniform: Tensor | None) -> Tensor:
        """Return S (B, N, N) from the cosines under the method's map (B, N, Q) and under the uniform map."""
        return coherence(self._isolated(z, z_uniform), self.similarity)

    def _isolated(self, z: Tensor, z_uniform: Tensor | None) -> Tensor:
        """Return Δ without NaN, which pruning could not order; what came of NaN stays NaN in the values."""
        return isolate(z, z_uniform if self.isolation else None, self.scale, self.uniform_scale).nan_to_num_()


def _check(fits: object, key: str, value: object, allowed: str) -> None:
    if not fits:
        raise UserError(f'FSA: {key} is {value}; it has to be {allowed}')
