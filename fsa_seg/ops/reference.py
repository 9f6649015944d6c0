"""The dense reference: methods and FSA step by step from the formulae, slow, and written apart from the fast code.

Every map is a (B, H, T, T) matrix, KL a (B, N, N, Q) tensor, pruning a walk down each sorted row.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.types import ImageTower


class Disagreement(ValueError):
    """Entries were kept or left out that no correct evaluation keeps or leaves out."""


METHODS: dict[str, dict[str, Any]] = dict(  # name -> attention map, readout, and constants
    clip=dict(attention='qk', residual=True, mlp=True),
    maskclip=dict(attention='identity'),
    sclip=dict(attention='qq+kk', residual=True, mlp=True),
    clearclip=dict(attention='qq'),
    proxyclip=dict(attention='proxy'),
    naclip=dict(attention='kk', sigma=5.0),
)


def attention_matrix(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    features: Tensor | None = None,
    support: Tensor | None = None,
    tolerance: float = 1e-5,
    grid: tuple[int, int] | None = None,
    sigma: float | None = None,
) -> Tensor:
    """Return the attention map (B, H or 1, T, T).

    With `sigma` each softmax is of the logits plus exp(−‖p_i − p_j‖² / 2σ²) between patches of the grid. `support`
    (B, N, N) says which entries of a proxy map are above 0, where they lie within the tolerance of it.
    """
    if name == 'proxy':
        assert features is not None
        f = features.flatten(2) / features.flatten(2).norm(dim=1, keepdim=True)
        s = torch.einsum('bcn,bcm->bnm', f, f)
        s = (s - 1.2 * s.mean((1, 2), keepdim=True)) * 3.0
        if support is not None:
            if ((s >= 0) != support)[s.abs() > tolerance].any():
                raise Disagreement('the proxy map has other entries')
            s[~support] = float('-inf')
        else:
            s[s < 0] = float('-inf')
        return s.softmax(-1)[:, None]
    if name == 'identity':
        return torch.eye(q.shape[1], device=q.device)[None, None].expand(len(q), 1, -1, -1)
    split = lambda x: x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)  # noqa: E731
    parts = dict(q=split(q), k=split(k), v=split(v))
    pairs = [tuple(part) for part in name.split('+')]
    bias = torch.zeros(q.shape[1], q.shape[1], device=q.device)
    if sigma is not None:
        assert grid is not None
        place = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid)).to(bias)
        bias[1:, 1:] = (-(place[:, None] - place[None]).pow(2).sum(-1) / (2 * sigma**2)).exp()
    maps = ((parts[a] @ parts[b].transpose(2, 3) / parts[a].shape[-1] ** 0.5 + bias).softmax(-1) for a, b in pairs)
    return cast(Tensor, sum(maps))


def kl(probs: Tensor) -> Tensor:
    """Return KL(i‖j) with log(p + 1e-10), clamped at 0: (B, N, N)."""
    logs = (probs + 1e-10).log()
    return (probs[:, :, None] * (logs[:, :, None] - logs[:, None])).sum(-1).clamp(min=0)


def pruned(similarity: Tensor, p: float) -> Tensor:
    """Return S with −∞ outside what is kept, entry by entry."""
    out = torch.full_like(similarity, float('-inf'))
    for b in range(len(similarity)):
        for i, row in enumerate(similarity[b]):
            probs = row.softmax(0)
            total, threshold = 0.0, row.max()  # the first entry is always kept
            for j in row.argsort(descending=True).tolist():
                total += float(probs[j])
                if total > p:
                    break
                threshold = row[j]
            keep = row >= threshold
            out[b, i, keep] = row[keep]
    return out


def threshold(similarity: Tensor, p: float) -> Tensor:
    """Return the least value that each row keeps (B, N, 1), by sorting it; values that equal it are kept too."""
    ordered = similarity.sort(dim=-1, descending=True).values
    fits = ordered.softmax(-1).cumsum(-1) <= p
    fits[..., 0] = True  # always the first
    return ordered.masked_fill(~fits, float('inf')).amin(-1, keepdim=True)


def kept_by_order(similarity: Tensor, p: float) -> Tensor:
    """Return the mask of what each row keeps, by sorting it and scattering what is kept back to its place."""
    ordered, index = similarity.sort(dim=-1, descending=True)
    fits = ordered.softmax(-1).cumsum(-1) <= p
    fits[..., 0] = True
    return torch.zeros_like(fits).scatter(-1, index, fits)


def check_kept(similarity: Tensor, keep: Tensor, p: float, tolerance: float = 1e-5) -> None:
    """Raise a `Disagreement` unless `keep` (B, N, N) is a mask that a correct evaluation may give.

    Two correct evaluations agree on entries that a mass of p ± tolerance keeps or prunes alike, but for those whose
    values are within the tolerance of such a threshold.
    """
    least, most = threshold(similarity, p + tolerance) - tolerance, threshold(similarity, p - tolerance) + tolerance
    if not keep[similarity > most].all():
        raise Disagreement('an entry above the threshold was pruned')
    if keep[similarity < least].any():
        raise Disagreement('an entry below the threshold was kept')


def similarities(
    z: Tensor,
    z_uniform: Tensor,
    isolation: bool = True,
    scale: float = 20,
    uniform_scale: float = 35,
    similarity: str = 'kl',
) -> Tensor:
    """Return S (B, N, N) of steps 1 and 2."""
    delta = scale * z - (uniform_scale * z_uniform if isolation else 0)
    probs = delta.softmax(-1)
    if similarity == 'cosine':
        return torch.cosine_similarity(probs[:, :, None], probs[:, None], dim=-1)
    divergence = kl(probs)
    if similarity == 'jeffreys':
        divergence = (divergence + divergence.transpose(1, 2)) / 2
    return 1 / (1 + divergence)


def adapted_attention(
    z: Tensor,
    z_uniform: Tensor,
    lam: float = 3.0,
    p: float = 0.45,
    keep: Tensor | None = None,
    heads: int | None = None,
    **settings: Any,
) -> Tensor:
    """Return W (B, N, N); `keep` is a mask to prune by, in place of the one that p gives.

    With `heads` it is (B, H, N, N), each head's made by itself, and equal values at the threshold are not all kept.
    """
    s = similarities(z, z_uniform, **settings)
    if heads:
        s = s[:, None].repeat(1, heads, 1, 1)
        keep = kept_by_order(s, p)
    s = s.masked_fill(~(s >= threshold(s, p) if keep is None else keep), float('-inf'))
    weighted = s * (lam * s).exp()
    return weighted.masked_fill(s == float('-inf'), float('-inf')).softmax(-1)


def logits(
    visual: ImageTower,
    tokens: Tensor,
    grid: tuple[int, int],
    text: Tensor,
    attention: str,
    residual: bool = False,
    mlp: bool = False,
    fsa: dict[str, Any] | None = None,
    features: Tensor | None = None,
    keep: Sequence[Tensor] | None = None,
    support: Tensor | None = None,
    per_head: bool = False,
    sigma: float | None = None,
) -> Tensor:
    """Return the cosines (B, N, Q) of a method, from the trunk's tokens (B, 1 + N, D).

    Args:
        fsa (dict): settings of the feedback; None for the bare method.
        keep (list of (B, N, N)), support (B, N, N): what to prune by in each round, and which entries a proxy map has;
            they have to be such as a correct evaluation may come to.
        per_head (bool): hold a map for each head, also where all share it.
    """
    block = visual.transformer.resblocks[-1]
    heads = block.attn.num_heads
    q, k, v = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    a = attention_matrix(attention, q, k, v, heads, features, support, grid=grid, sigma=sigma)
    cls = attention != 'proxy'
    if per_head:
        a = a.repeat(1, heads // a.shape[1], 1, 1)
    if not cls:

        def resize(x: Tensor) -> Tensor:
            assert features is not None
            image = x[:, 1:].transpose(1, 2).reshape(len(x), -1, *grid)
            return F.interpolate(image, features.shape[2:], mode='bilinear').flatten(2).transpose(1, 2)

        v, tokens = resize(v), resize(tokens)
    mass = 1.0 + attention.count('+')

    def cosines(matrix: Tensor) -> Tensor:
        """R(matrix) as cosines with the text; the matrix is (B, H or 1, T, T)."""
        values = v.reshape(*v.shape[:2], heads, -1).permute(0, 2, 1, 3)
        x = (matrix @ values).permute(0, 2, 1, 3).flatten(2)
        x = block.attn.out_proj(x)
        if residual:
            x = x + tokens
        if mlp:
            x = x + block.mlp(block.ln_2(x))
        x = visual.ln_post(x) @ visual.proj
        return F.normalize(x, dim=-1)[:, int(cls) :] @ text.T

    z = cosines(a)
    if fsa is None:
        return z
    fsa = dict(fsa)
    lam, p, terms, rounds = (
        fsa.pop(key, default)
        for key, default in (('lam', 3.0), ('p', 0.45), ('terms', ('WA', 'AW', 'W')), ('rounds', 1))
    )
    count = a.shape[-1]
    uniform = cosines(torch.full((len(v), 1, count, count), mass / count, device=v.device))
    for i in range(rounds):
        if keep is not None:
            check_kept(similarities(z, uniform, **fsa), keep[i], p)
        w = adapted_attention(
            z, uniform, lam, p, keep[i] if keep is not None else None, heads if per_head else None, **fsa
        )
        w = w if per_head else w[:, None]
        if cls:
            extended = torch.zeros(*w.shape[:2], count, count, device=v.device)
            extended[..., 0, 0], extended[..., 1:, 1:] = 1, w
            w = extended
        products = dict(WA=lambda w=w: w @ (a / mass), AW=lambda w=w: (a / mass) @ w, W=lambda w=w: w)
        mixed = cast(Tensor, sum(products[term]() for term in terms))
        z = cosines(mass * mixed / len(terms))
    return z
