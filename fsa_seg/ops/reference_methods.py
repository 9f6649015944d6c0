"""The dense reference of the newer methods, from their formulae: slow, and written apart from the fast code.

Every map is a (B, H, T, T) matrix, or (B, H, N, N) where patches alone are attended; outliers are repaired one by one.
Layers are named by the index of the block whose input they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.pamr import pamr
from fsa_seg.ops.reference import adapted_attention
from fsa_seg.ops.types import Block, ImageTower

Cosines = Callable[[Tensor], Tensor]  # a map -> the cosines (B, N, Q) under it
HOSTS = dict(naclip='k', clearclip='q', sclip='qk')  # of ResCLIP: the letters u of the softmaxes of uuᵀ
NAMES = ('pearl', 'resclip', 'scclip', 'sfp', 'gem', 'itaclip', 'cliptrase')


def blocks_of(depth: int) -> dict[str, Any]:
    """Return the argument `blocks` of `logits` for a tower of some depth."""

    def share(block: int) -> int:
        return min(math.floor(block * depth / 12), depth - 2)

    return dict(
        resclip=(5, 6, 7, 8) if depth in (12, 24) else tuple(map(share, (5, 6, 7, 8))),
        itaclip=tuple(map(share, (6, 7, 9))),
        low=share(4),
        middle=share(9),
        levels=tuple(map(share, range(4, 11))),
        first=depth - 6 if depth >= 12 else depth - depth // 2,
    )


def logits(
    visual: ImageTower,
    layers: Sequence[Tensor],
    grid: tuple[int, int],
    text: Tensor,
    name: str,
    host: str = 'naclip',
    sfr: Mapping[str, Any] | None = None,
    fsa: Mapping[str, Any] | None = None,
    images: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """Return the cosines (B, N, Q) of a method.

    Args:
        layers (list of (B, T, D)): what enters each block.
        name: of NAMES.
        host: of ResCLIP.
        sfr, fsa (dict): settings of the feedbacks; None without.
        images (B, 3, height, width): for SFR.
        settings: of the method.
    """
    last, blocks = visual.transformer.resblocks[-1], blocks_of(len(layers))
    if name in ('scclip', 'sfp'):
        a, cosines = _two_branches(visual, layers, grid, text, name == 'sfp', blocks)
        return _with_fsa(a, cosines(a), cosines, 1.0, 0, fsa)
    host = host if name == 'resclip' else 'clip'
    mass = dict(itaclip=2.0, cliptrase=3.0).get(name, 1.0)
    if name == 'resclip':
        tau, lam = settings.get('tau', 2.0), settings.get('lam', 0.3)
        mass = tau * ((1 - lam) * len(HOSTS[host]) + lam)

    def make(m: Tensor | None) -> Tensor:
        if name == 'gem':
            return gem_map(last, layers[-1])
        if name == 'pearl':
            return pearl_map(last, layers[-1], m, sfr, **settings)
        letters = dict(cliptrase='qkv', itaclip='qk').get(name) or HOSTS[host]
        bias = _neighbours(grid) if host == 'naclip' else None
        a = cast(Tensor, sum(_softmax(last, layers[-1], x + x, m, sfr, bias) for x in letters))
        if name == 'cliptrase':
            return a
        maps = [self_maps(visual.transformer.resblocks[i], layers[i]) for i in blocks[name]]
        if name == 'itaclip':
            return a / 2 + sum(part['qq'] + part['kk'] for part in maps) / (2 * len(maps))
        return tau * ((1 - lam) * a + lam * sum(part['qk'] for part in maps) / len(maps))

    stream = _stream(visual, layers, blocks['first']) if name == 'gem' else None
    if host == 'sclip' or name in ('itaclip', 'cliptrase'):
        stream = layers[-1]

    def read_out(matrix: Tensor) -> Tensor:
        x = last.attn.out_proj(_apply(matrix, _project(last, layers[-1])['v'], last.attn.num_heads))
        x = x if stream is None else x + stream
        x = x + last.mlp(last.ln_2(x)) if host == 'sclip' or name == 'cliptrase' else x
        return F.normalize(visual.ln_post(x) @ visual.proj, dim=-1)[:, 1:] @ text.T

    a = make(None)
    z = read_out(a)
    if sfr is not None:
        assert images is not None
        m = torch.stack([affinity(patch_labels(z[b], grid, images[b], sfr), grid) for b in range(len(z))])
        a = make(F.pad(m, (1, 0, 1, 0))[:, None])
        z = read_out(a)
    return _with_fsa(a, z, read_out, mass, 1, fsa)


def _with_fsa(a: Tensor, z: Tensor, cosines: Cosines, mass: float, first: int, fsa: Mapping | None) -> Tensor:
    """Return z, or the cosines under Â."""
    if fsa is None:
        return z
    count = a.shape[-1]
    w = adapted_attention(z, cosines(torch.full_like(a, mass / count)), **fsa)
    extended = torch.zeros(len(w), 1, count, count)
    extended[:, :, :first, :first] = torch.eye(first)
    extended[:, 0, first:, first:] = w
    return cosines(mass / 3 * (extended @ (a / mass) + (a / mass) @ extended + extended))


def _project(block: Block, tokens: Tensor) -> dict[str, Tensor]:
    """Return q, k, v (B, T, D) of a block."""
    return dict(
        zip('qkv', F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1))
    )


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)


def _apply(matrix: Tensor, values: Tensor, heads: int) -> Tensor:
    return (matrix @ _split(values, heads)).permute(0, 2, 1, 3).flatten(2)


def _softmax(
    block: Block,
    tokens: Tensor,
    pair: Sequence[str],
    m: Tensor | None = None,
    sfr: Mapping | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return softmax(xyᵀ/√d) per head, with SFR's M before and a bias after the scaling, or without."""
    parts = {key: _split(x, block.attn.num_heads) for key, x in _project(block, tokens).items()}
    s = parts[pair[0]] @ parts[pair[1]].transpose(2, 3) / parts['q'].shape[-1] ** 0.5
    s = s if m is None else _sfr_logits(s, m, sfr)
    return (s if bias is None else s + bias).softmax(-1)


def _sfr_logits(s: Tensor, m: Tensor, sfr: Mapping | None) -> Tensor:
    assert sfr is not None
    return sfr['tau'] * ((1 - sfr['lam']) * s + sfr['lam'] * m)


def self_maps(block: Block, tokens: Tensor) -> dict[str, Tensor]:
    """Return the maps 'qk', 'qq' and 'kk' of a block, (B, H, T, T) each."""
    return {name: _softmax(block, tokens, name) for name in ('qk', 'qq', 'kk')}


def _neighbours(grid: tuple[int, int], sigma: float = 5.0) -> Tensor:
    place = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid))
    return F.pad((-(place[:, None] - place[None]).pow(2).sum(-1) / (2 * sigma**2)).exp(), (1, 0, 1, 0))


def pearl_map(
    block: Block,
    tokens: Tensor,
    m: Tensor | None = None,
    sfr: Mapping | None = None,
    alpha: float = 0.08,
    steps: int = 5,
) -> Tensor:
    """Return PEARL's map (B, H, T, T)."""
    q, k = (_split(_project(block, tokens)[key], block.attn.num_heads) for key in 'qk')
    weights = q.norm(dim=-1)
    weights[..., 0] = 0
    weights = (weights / (weights.sum(-1, keepdim=True) + 1e-6))[..., None]
    centred_q, centred_k = (x - (weights * x).sum(-2, keepdim=True) for x in (q, k))
    product = centred_k.mT @ centred_q
    square, eye = product.mT @ product, torch.eye(q.shape[-1])
    norm = square.flatten(-2).norm(dim=-1)[..., None, None]
    y, z = square / norm + 1e-6 * eye, eye.expand_as(square)
    for _ in range(steps):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    turn = product @ z / norm.sqrt()
    s = (q @ (k @ turn).mT + alpha * centred_k @ centred_k.mT) / q.shape[-1] ** 0.5
    return (s if m is None else _sfr_logits(s, m, sfr)).softmax(-1)


def gem_map(block: Block, tokens: Tensor) -> Tensor:
    """Return GEM's map of one block (B, H, T, T)."""
    parts, heads = _project(block, tokens), block.attn.num_heads
    c = block.ln_1(tokens).norm(dim=-1).mean(1)[:, None, None, None] / (tokens.shape[2] // heads) ** 0.5
    a = 0.0
    for x in parts.values():
        u = F.normalize(_split(x, heads), dim=-1)
        u = F.normalize((c * u @ u.mT).softmax(-1) @ u, dim=-1)
        a = a + (c * u @ u.mT).softmax(-1) / 3
    return cast(Tensor, a)


def _stream(visual: ImageTower, layers: Sequence[Tensor], first: int) -> Tensor:
    """Return GEM's y before the last block."""
    y = layers[first]
    for i in range(first, len(layers) - 1):
        block = visual.transformer.resblocks[i]
        y = y + block.attn.out_proj(
            _apply(gem_map(block, layers[i]), _project(block, layers[i])['v'], block.attn.num_heads)
        )
    return y


def _two_branches(
    visual: ImageTower, layers: Sequence[Tensor], grid: tuple[int, int], text: Tensor, sfp: bool, blocks: Mapping
) -> tuple[Tensor, Cosines]:
    """Return S_low·A of both branches as (B, 2·H, N, N), and the cosines under such a matrix (SC-CLIP, SFP)."""
    block, heads = visual.transformer.resblocks[-1], visual.transformer.resblocks[-1].attn.num_heads
    total = cast(Tensor, sum(layers[i] for i in blocks['levels']))
    cls = 0.3 * (layers[-1][:, :1] + total[:, :1])
    maps, values = [], []
    for b in range(len(total)):
        if sfp:
            a = self_maps(visual.transformer.resblocks[-2], layers[-2][b : b + 1])['qk'][0].mean(0)
            outliers = sfp_outliers(a)
        else:
            outliers = scclip_outliers(layers[-1][b, 1:])
        middle = repair(layers[blocks['middle']][b, 1:], outliers, grid, sfp)
        similar = _cosine(middle)
        cut = similar.where(similar >= 0.4, 0)
        base = cut if sfp else similar
        base = (base - base.mean()) * 3
        shared = base.masked_fill(base < 0, -math.inf).softmax(-1)
        own = _row_normalised(cut) @ repair(layers[-1][b, 1:], outliers, grid, sfp)
        low = _cosine(layers[blocks['low']][b, 1:])
        smooth = _row_normalised(low.where(low >= 0.4, 0))
        for branch, tokens in enumerate((own, total[b, 1:])):
            kk, qq = (_softmax(block, tokens[None], name)[0] for name in ('kk', 'qq'))
            if not sfp:
                a = (shared + kk) / 2
            else:
                a = (shared + kk + qq) / 3 if branch == 0 else shared.expand_as(kk)
            maps.append(smooth @ a)
            values.append(_split(_project(block, tokens[None])['v'], heads)[0])
    a, v = (torch.stack(parts).view(len(total), 2 * heads, *parts[0].shape[1:]) for parts in (maps, values))

    def cosines(matrix: Tensor) -> Tensor:
        mixed = (matrix @ v).unflatten(1, (2, heads)).permute(1, 0, 3, 2, 4).flatten(3)
        x = block.attn.out_proj(mixed[0]) + block.attn.out_proj(mixed[1]) + cls
        return F.normalize(visual.ln_post(x) @ visual.proj, dim=-1) @ text.T

    return a, cosines


def _cosine(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).T


def _row_normalised(x: Tensor) -> Tensor:
    return x / (x.sum(-1, keepdim=True) + 1e-6)


def scclip_outliers(x: Tensor, neighbours: int = 30, share: float = 0.05) -> Tensor:
    """Return which of the patches (N, D) are outliers by their density, (N,) bool."""
    distances = torch.cdist(x.double(), x.double()).square().fill_diagonal_(math.inf)
    values, index = distances.sort(-1)
    density = 1 / values[:, neighbours - 1]
    factor = (density[index[:, :neighbours]] / density[:, None]).mean(-1)
    return factor > factor.quantile(1 - share)


def sfp_outliers(a: Tensor, count: int = 10) -> Tensor:
    """Return the patches that CLS attends most, of a map (T, T), where 1.5 times that exceeds their own, (N,) bool."""
    candidates = [i for i in range(1, len(a)) if 1.5 * a[0, i] > a[i, i]]
    chosen = sorted(candidates, key=lambda i: -float(a[0, i]))[:count]
    return torch.tensor([i in chosen for i in range(1, len(a))])


def repair(x: Tensor, outliers: Tensor, grid: tuple[int, int], zero: bool) -> Tensor:
    """Return patches (N, D) with outliers as the mean of their sound neighbours."""
    out, (height, width) = x.clone(), grid
    for n in outliers.nonzero().flatten().tolist():
        row, column = divmod(n, width)
        near = [
            r * width + c
            for r in range(max(0, row - 1), min(height, row + 2))
            for c in range(max(0, column - 1), min(width, column + 2))
        ]
        sound = [i for i in near if i != n and not outliers[i]]
        if sound:
            out[n] = x[sound].mean(0)
        elif zero:
            out[n] = 0
    return out


def patch_labels(z: Tensor, grid: tuple[int, int], image: Tensor, sfr: Mapping) -> Tensor:
    """Return SFR's label of each patch, (N,), of cosines (N, Q); the patches divide the image."""
    pixels = F.interpolate(z.T.unflatten(1, grid)[None], image.shape[1:], mode='bilinear')[0]
    probs = (sfr.get('scale', 40.0) * pamr(pixels, image)).softmax(0)
    top, labels = probs.max(0)
    labels[top < sfr['threshold']] = 0
    high, wide = (side // count for side, count in zip(labels.shape, grid))
    patches = [
        labels[r * high : (r + 1) * high, c * wide : (c + 1) * wide] for r in range(grid[0]) for c in range(grid[1])
    ]
    return torch.stack([patch.flatten().bincount().argmax() for patch in patches])


def affinity(labels: Tensor, grid: tuple[int, int], sigma: float = 5.0, taps: int = 31) -> Tensor:
    """Return SFR's M (N, N): every step between all patches as an (N, N) matrix of points."""
    (height, width), count = grid, len(labels)
    rows, columns = (torch.arange(count) // width).float(), (torch.arange(count) % width).float()
    most = max(height, width) - 1
    distance = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    same = labels[:, None] == labels
    unbroken = torch.ones_like(same)
    for step in range(most + 1):
        f = torch.tensor(step / most)
        row, column = ((x[:, None] * (1 - f) + x * f).round().long() for x in (rows, columns))
        unbroken &= (labels[row * width + column] == labels[:, None]) | (distance < step)
    m = torch.where(same, torch.where(unbroken, 1.0, (-distance / most).exp()), 0.0)
    kernel = (-((torch.arange(taps) - taps // 2).float() ** 2) / (2 * sigma**2)).exp()
    offsets = torch.arange(count)[:, None] - torch.arange(count)
    band = torch.where(offsets.abs() <= taps // 2, kernel[(offsets + taps // 2).clamp(0, taps - 1)], 0.0)
    m = m @ band / kernel.sum()
    m = m / (m.sum(-1, keepdim=True) + 1e-8)
    return m / m.max()
