"""LPOSS: propagation of scores between the patches of all windows of an image, and between its pixels.

Source of the formulas: LPOSS and LPOSS+ (CVPR 2025, arXiv 2503.19777) and their published code, from whose description
in formulas this file was written.

Shape legend: n patches of all windows; C width of their features; k neighbours of a patch; Q queries; height and width
in pixels; L = height·(width + radius), the pixels with a margin at the right.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.device import constant, count_labels

BLOCK_VALUES = dict(cpu=2**21, cuda=2**26)  # cosines, or values of pixels, that are made at once: 8 MiB, 256 MiB
NEIGHBOURS, GAMMA, SIGMA = 400, 3.0, 0.01  # of a patch; LPOSS's published settings, σ per pixel of distance
RADIUS, TAU = 6, 0.01  # of a pixel; LPOSS+'s published settings, in pixels and in scaled Lab
GROUP = 4  # columns of which the greatest is looked at first
ALPHA, STEPS = 0.95, 10  # of both; the published settings
TOLERANCE = 1e-6  # of the residual's norm over that of the scores, where a column stops
SRGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees
LAB_SCALE = (100.0, 128.0, 128.0)


class PatchGraph:
    """The normalised graph Ŵ of an image's patches, by rows; `patch_graph` builds it.

    Attributes:
        starts (n + 1,): int32; where each row's entries start, and their number.
        columns (entries,): int32; at most 2·n·k, in order within a row.
        weights (entries,): float32.
    """

    def __init__(self, starts: Tensor, columns: Tensor, weights: Tensor):
        self.starts, self.columns, self.weights = starts, columns, weights

    def product(self, values: Tensor) -> Tensor:
        """Return Ŵ·values (n, Q); a bag of weighted embeddings is the fastest such product of torch on a CPU.

        Args:
            values (n, Q): float32.
        """
        return F.embedding_bag(
            self.columns, values, self.starts, mode='sum', per_sample_weights=self.weights, include_last_offset=True
        )

    def propagate(self, scores: Tensor, alpha: float = ALPHA, steps: int = STEPS) -> Tensor:
        """Return Z (n, Q) float32, which conjugate gradients from 0 give for (I − α·Ŵ)·Z = scores.

        Each column has its own step lengths. A column stops before a step where the norm of its residual is at most
        1e-6 of its scores' norm. The published solution has no factor 1 − α.

        Everything is float32. Five tensors (n, Q) are held beside the scores, Z among them.

        Args:
            scores (n, Q): cosines of patches and queries.
            alpha: α, at least 0 and below 1.
            steps: conjugate-gradient steps at most. They are part of the method: 10 end before convergence.
        """
        return _solved(self.product, scores.float(), 0, alpha, steps)


def patch_graph(
    features: Tensor, centres: Tensor, neighbours: int = NEIGHBOURS, gamma: float = GAMMA, sigma: float = SIGMA
) -> PatchGraph:
    """Return the graph of the patches of all windows of an image.

    1. The neighbours of a patch are the k patches with the greatest cosines, itself among them. k is `neighbours`, or
       n where an image has fewer patches. Of equal cosines at the end of the list, any are taken.
    2. g_ij = max(cos_ij, 0)^γ·exp(−σ·d_ij) for a neighbour j of a patch i, else 0; d is the distance of the centres.
    3. W = G + Gᵀ with diagonal 0, and Ŵ = D^−½·W·D^−½ with D the sums of W's rows. A patch with D = 0 has a row of
       zeros; the published code divides by 0 there.

    Cosines are made for a block of rows at a time, and never held for all pairs. At its peak the function holds some 75
    bytes for each of the k·n neighbours. As cosine and distance are symmetric, G's two entries for a pair of patches
    are equal, or one is 0: the graph is built from pairs, which are counted once or twice.

    Args:
        features (n, C): of a VFM; they are L2-normalised here.
        centres (n, 2): row and column of the patches' centres, in pixels of the resized image.
        neighbours, gamma, sigma: see above.
    """
    low, high, cosines, count = _pairs(*_nearest(F.normalize(features.float(), dim=1), neighbours))
    centres = centres.float()
    distances = (centres[low] - centres[high]).square_().sum(1).sqrt_()
    weights = cosines.clamp_(min=0).pow_(gamma).mul_(distances.mul_(-sigma).exp_()).mul_(count)
    return _graph(low, high, weights, len(features))


def _nearest(unit: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return cosines (n, k) of the nearest neighbours of unit features (n, C), and their indices, in any order."""
    total = len(unit)
    neighbours = min(neighbours, total)
    cosines = unit.new_empty(total, neighbours)
    index = torch.empty(total, neighbours, dtype=torch.int32, device=unit.device)
    rows = max(1, BLOCK_VALUES.get(unit.device.type, BLOCK_VALUES['cuda']) // total)
    for start in range(0, total, rows):
        block = _greatest(unit[start : start + rows] @ unit.T, neighbours)
        cosines[start : start + rows], index[start : start + rows] = block
    return cosines, index


def _greatest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the greatest values (rows, count) of each row, in any order, and their columns.

    They lie in the `count` groups of columns that have the greatest maxima. Most columns need not be ordered.

    Args:
        values (rows, n): above -inf.
        count: at most n.
    """
    width = -(-values.shape[1] // GROUP)  # group i has the columns i, i + width, ...
    if width <= count:
        return values.topk(count, 1, sorted=False)
    values = F.pad(values, (0, GROUP * width - values.shape[1]), value=float('-inf'))
    groups = values.unflatten(1, (GROUP, width)).amax(1).topk(count, 1, sorted=False).indices
    columns = (groups[:, None] + width * torch.arange(GROUP, device=values.device)[:, None]).flatten(1)
    greatest, place = values.gather(1, columns).topk(count, 1, sorted=False)
    return greatest, columns.gather(1, place)


def _pairs(cosines: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the pairs of different patches of which one is a neighbour of the other, ordered by both.

    Args:
        cosines, index: of `_nearest`.

    Returns:
        the lower patch, the higher patch, their cosine, and how many of both have the other as a neighbour: 1 or 2.
    """
    total = len(index)
    own = torch.arange(total, dtype=index.dtype, device=index.device)[:, None]
    wide = index.dtype if total**2 < 2**31 else torch.int64
    key = torch.minimum(own, index).to(wide).mul_(total).add_(torch.maximum(own, index)).flatten()
    key, order = key.sort(stable=True)
    new = key.diff(prepend=key.new_full((1,), -1)) != 0
    twice = ~new.roll(-1)
    low, high = key.div(total, rounding_mode='floor'), key.remainder(total)
    kept = (new & (low != high)).nonzero()[:, 0]
    return low[kept], high[kept], cosines.flatten()[order[kept]], 1 + twice[kept].to(torch.int8)


def _graph(low: Tensor, high: Tensor, weights: Tensor, total: int) -> PatchGraph:
    """Return the normalised graph of n patches with a weight for each pair.

    Args:
        low, high, weights (pairs,): ordered by low, then high.
        total: n.
    """
    rows, order = torch.cat([high, low]).sort(stable=True)  # so that columns are in order too
    counts = count_labels(rows.long(), total)
    columns = torch.cat([low, high])[order].int()
    weights = weights.repeat(2)[order]
    graph = PatchGraph(F.pad(counts.cumsum(0), (1, 0)).int(), columns, weights)
    scale = _inverse_root(graph.product(weights.new_ones(total, 1))[:, 0])
    weights *= scale.repeat_interleave(counts, output_size=len(rows)).mul_(scale[columns])
    return graph


def propagate_pixels(
    scores: Tensor, lab: Tensor, radius: int = RADIUS, tau: float = TAU, alpha: float = ALPHA, steps: int = STEPS
) -> Tensor:
    """Propagate scores between near pixels of like colour, in place, and return them.

    w_xy = exp(−‖Lab_x − Lab_y‖/τ) for two different pixels that are at most `radius` rows and columns apart; there is
    none beyond the image. Ŵ = D^−½·W·D^−½, and (I − α·Ŵ)·Z = scores is solved as in `PatchGraph.propagate`. At
    LPOSS+'s settings 10 steps are far from the solution.

    Ŵ is held as one plane of weights for each second offset, the other half being the same by symmetry: 84 planes at
    radius 6, or 102 MB for 448 × 672 pixels. Beside them, six tensors for a block of queries are held. On a CPU each is
    of at most 8 MiB, or of one query: larger blocks leave the caches, and are slower.

    Args:
        scores (Q, height, width): float32; they are overwritten.
        lab (3, height, width): of `rgb_to_lab`.
        radius, tau: see above.
        alpha, steps: as of `PatchGraph.propagate`.
    """
    width = lab.shape[2]
    offsets, planes = _planes(lab.float(), radius, tau)
    size = max(1, BLOCK_VALUES.get(scores.device.type, BLOCK_VALUES['cuda']) // planes.shape[1])
    for start in range(0, len(scores), size):
        block = F.pad(scores[start : start + size], (0, radius)).flatten(1)
        block = _solved(lambda z: _stencil(z, offsets, planes), block, 1, alpha, steps)
        scores[start : start + size] = block.unflatten(1, (-1, width + radius))[..., :width]
    return scores


def pixel_planes_bytes(pixels: int, radius: int = RADIUS) -> int:
    """Return the bytes of the weights that `propagate_pixels` holds for an image of so many pixels."""
    return 4 * pixels * ((2 * radius + 1) ** 2 // 2)


def _planes(lab: Tensor, radius: int, tau: float) -> tuple[list[int], Tensor]:
    """Return the offsets of half of a pixel's neighbours, and the weights of Ŵ for each of them (offsets, L).

    A margin of `radius` pixels at the right, whose weights are 0, makes every offset a shift of flattened pixels.

    Args:
        lab, radius, tau: as of `propagate_pixels`.
    """
    height, width = lab.shape[1:]
    offsets = list(_offsets(radius, width + radius, height * (width + radius)))
    inside = F.pad(lab.new_ones(height, width), (0, radius)).flatten()
    lab = F.pad(lab, (0, radius)).flatten(1)
    planes = lab.new_zeros(len(offsets), lab.shape[1])
    for offset, plane in zip(offsets, planes):
        distances = (lab[:, offset:] - lab[:, :-offset]).square_().sum(0).sqrt_()
        plane[:-offset] = distances.mul_(-1 / tau).exp_().mul_(inside[offset:]).mul_(inside[:-offset])
    scale = _inverse_root(_stencil(inside[None], offsets, planes)[0])
    for offset, plane in zip(offsets, planes):
        plane[:-offset].mul_(scale[offset:]).mul_(scale[:-offset])
    return offsets, planes


def _offsets(radius: int, pitch: int, total: int) -> Iterator[int]:
    """Yield the distances of flattened pixels, of `pitch` to a row and `total` in all, to half of their neighbours."""
    for row in range(radius + 1):
        for column in range(-radius, radius + 1):
            if 0 < row * pitch + column < total:
                yield row * pitch + column


def _stencil(values: Tensor, offsets: list[int], planes: Tensor) -> Tensor:
    """Return Ŵ·values (Q, L): for each pixel the weighted sum of its neighbours.

    Args:
        values (Q, L): 0 in the margin.
        offsets, planes: of `_planes`.
    """
    out = torch.zeros_like(values)
    for offset, plane in zip(offsets, planes):
        weights = plane[:-offset]
        out[:, :-offset].addcmul_(values[:, offset:], weights)
        out[:, offset:].addcmul_(values[:, :-offset], weights)
    return out


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Return CIE Lab (3, height, width) float32 of an image in sRGB, divided by 100, 128 and 128.

    The white is D65; computed in float64, as LPOSS+ divides small differences of colours by 0.01.

    Args:
        rgb (3, height, width): from 0 to 1.
    """
    rgb = rgb.double()
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = torch.tensor(SRGB_TO_XYZ, dtype=torch.float64, device=rgb.device)
    xyz = torch.tensordot(to_xyz, linear, 1) / to_xyz.new_tensor(WHITE)[:, None, None]
    x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    lab = torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
    return lab.float().div_(constant(LAB_SCALE, rgb.device)[:, None, None])


def _inverse_root(degrees: Tensor) -> Tensor:
    """Return D^−½, and 0 where D is 0."""
    return torch.where(degrees > 0, degrees.rsqrt(), 0)


def _solved(product: Callable[[Tensor], Tensor], scores: Tensor, over: int, alpha: float, steps: int) -> Tensor:
    """Return Z after some conjugate-gradient steps from 0 for (I − α·Ŵ)·Z = scores, float32.

    Args:
        product: function that returns Ŵ·values, a new tensor.
        scores: float32; each query is a system of its own.
        over: dimension of patches or pixels.
        alpha, steps: as of `PatchGraph.propagate`.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(over, keepdim=True)

    z, residual, direction = torch.zeros_like(scores), scores.clone(), scores.clone()
    squares = dot(scores, scores)
    least = squares * TOLERANCE**2
    for _ in range(steps):
        changed = product(direction).mul_(-alpha).add_(direction)
        curvature = dot(direction, changed)
        moving = (squares > least) & (curvature > 0)  # a tensor, so that no step waits for a GPU
        length = torch.where(moving, squares / curvature, 0)
        z.addcmul_(length, direction)
        residual.addcmul_(length, changed, value=-1)
        before, squares = squares, dot(residual, residual)
        direction.mul_(torch.where(moving, squares / before, 0)).add_(residual)
    return z
