"""Semantic feedback refinement (SFR, of ResCLIP, arXiv 2411.15851): the output's label map adapts the logits.

Where FSA adapts an attention map after its softmax, SFR adds to the logits before it: patches that get the same label,
and near ones more than far ones, attend each other more.

Shape legend: B windows, N = h·w patches, Q queries; (height, width) of a window in pixels.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.ops.attention import BLOCK_ENTRIES, GPU_BLOCK_ENTRIES, AttentionMap, WindowsUnderMethod
from fsa_seg.ops.device import to_device
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.pamr import DILATIONS, PAMR, STEPS, pamr
from fsa_seg.settings import is_number

TAU, LAMBDA, THRESHOLD = 1.8, 0.7, 0.11  # published for COCO-Stuff, and near those of the other data sets
SCALE, SIGMA = 40.0, 5.0  # published for all data sets
TAPS = 31  # of the blur, published
EPSILON = 1e-8  # added to the sum of a row


class SFR:
    """ResCLIP's feedback. Defaults are COCO-Stuff's; `protocols/resclip.py` has each data set's.

    Every logit s of the method's map becomes τ((1 − λ)·s + λ·M), before a bias such as NACLIP's is added. M is the
    affinity of patches, see `label_affinity`; CLS has none.

    Args:
        tau (float): τ, above 0. Published: 1.8 to 2.2.
        lam (float): λ, at least 0 and below 1. Published: 0.6 or 0.7.
        threshold (float): a pixel whose most probable query has less becomes query 0, from 0 to 1. Published: 0.1 to
            0.5.
        scale (float): factor on the cosines before the softmax over queries, above 0. Published: 40.
        sigma (float): of the blur along a row of M, in patches, at least 0.1. Published: 5.
        steps (int), dilations (sequence of int): of PAMR, which refines each window's cosines.

    Raises:
        UserError: a setting is out of its range.
    """

    least_patches = 2
    needs_logits = True

    def __init__(
        self,
        tau: float = TAU,
        lam: float = LAMBDA,
        threshold: float = THRESHOLD,
        scale: float = SCALE,
        sigma: float = SIGMA,
        steps: int = STEPS,
        dilations: Sequence[int] = DILATIONS,
    ):
        _check(is_number(tau) and tau > 0, 'tau', tau, 'above 0 (published: 1.8 to 2.2)')
        _check(is_number(lam) and 0 <= lam < 1, 'lam', lam, 'at least 0 and below 1 (published: 0.6 or 0.7)')
        _check(is_number(threshold) and 0 <= threshold <= 1, 'threshold', threshold, 'from 0 to 1 (published: 0.1–0.5)')
        _check(is_number(scale) and scale > 0, 'scale', scale, 'above 0 (published: 40)')
        _check(is_number(sigma) and sigma >= 0.1, 'sigma', sigma, 'at least 0.1 (published: 5)')
        PAMR(steps, dilations)  # checks both
        self.tau, self.lam, self.threshold, self.scale, self.sigma = tau, lam, threshold, scale, sigma
        self.steps, self.dilations = steps, tuple(dilations)

    def loop(self, windows: WindowsUnderMethod, attention: AttentionMap, z: Tensor) -> Iterator[Tensor]:
        """Yield the cosines (B, N, Q) under the adapted map.

        Args:
            windows: the batch of windows.
            attention: the map to adapt.
            z (B, N, Q): the cosines under it.
        """
        yield windows.cosines(self.adapted_map(windows, attention, z))

    def adapted_map(self, windows: WindowsUnderMethod, attention: AttentionMap, z: Tensor) -> AttentionMap:
        """Return the map of τ((1 − λ)·s + λ·M); arguments as of `loop`.

        Raises:
            UserError: the map is no softmax of logits, the windows' pixels are not at hand, or a window is one patch.
        """
        title = windows.title
        if attention.with_logits is None:
            raise UserError(
                f'{title}: SFR adapts the logits of a softmax, and this attention map is none; leave SFR out, or give '
                'the AttentionMap its `with_logits`'
            )
        if windows.images is None:
            raise UserError(f"{title}: SFR sees the windows' pixels; pass images, as patch_logits does")
        if z.shape[1] < self.least_patches:
            raise UserError(f'{title}: SFR needs at least 2 patches; the window has one: use a larger window')
        labels = [self._labels(cosines, windows.grid, image) for cosines, image in zip(z, windows.images)]
        first = int(attention.covers_cls)
        bias = z.new_zeros(len(z), first + z.shape[1], first + z.shape[1])
        for of_patches, matrix in zip(labels, bias):
            label_affinity(of_patches, windows.grid, self.sigma, matrix[first:, first:])
        return attention.with_logits(self.tau * (1 - self.lam), bias.mul_(self.tau * self.lam))

    def _labels(self, z: Tensor, grid: tuple[int, int], image: Tensor) -> Tensor:
        """Return the most frequent query of each patch's pixels, (N,); of two as frequent, the first."""
        pixels = F.interpolate(z.float().T.unflatten(1, grid)[None], image.shape[1:], mode='bilinear')[0]
        pixels = pamr(pixels, image.float(), self.steps, self.dilations).mul_(self.scale)
        top, labels = pixels.max(0)
        labels = labels.masked_fill((top - pixels.logsumexp(0)).exp() < self.threshold, 0)
        sides = [count * -(-side // count) for count, side in zip(grid, labels.shape)]
        labels = F.interpolate(labels[None, None].float(), sides, mode='nearest-exact')[0, 0].long()
        patches = (
            labels.unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1)).transpose(1, 2).flatten(2).flatten(0, 1)
        )
        counts = patches.new_zeros(len(patches), len(pixels)).scatter_add_(1, patches, torch.ones_like(patches))
        order = torch.arange(len(pixels), device=z.device)
        return (counts * len(pixels) - order).argmax(1)  # no two queries are equal


class SFRAndFSA(FSA):
    """Both feedbacks in turn: SFR adapts the method's logits, FSA the map that comes of it.

    Args:
        sfr_tau, sfr_lam, sfr_threshold, sfr_scale, sfr_sigma, sfr_steps, sfr_dilations: settings of `SFR`.
        settings: of `fsa_seg.ops.feedback.FSA`.
    """

    least_patches = SFR.least_patches
    needs_logits = True

    def __init__(
        self,
        sfr_tau: float = TAU,
        sfr_lam: float = LAMBDA,
        sfr_threshold: float = THRESHOLD,
        sfr_scale: float = SCALE,
        sfr_sigma: float = SIGMA,
        sfr_steps: int = STEPS,
        sfr_dilations: Sequence[int] = DILATIONS,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.sfr = SFR(sfr_tau, sfr_lam, sfr_threshold, sfr_scale, sfr_sigma, sfr_steps, sfr_dilations)

    def start(self, windows: WindowsUnderMethod, attention: AttentionMap, z: Tensor) -> tuple[AttentionMap, Tensor]:
        """Return the map that SFR adapted, and its cosines."""
        attention = self.sfr.adapted_map(windows, attention, z)
        return attention, windows.cosines(attention)


def label_affinity(labels: Tensor, grid: tuple[int, int], sigma: float, out: Tensor | None = None) -> Tensor:
    """Return how much patches belong together by their labels, M (N, N) float32 in [0, 1].

    M₀ is 1 for patches i and j of one label, and exp(−s/s_max) where a checked point between them has another: s is
    their Chebyshev distance in patches, s_max the grid's largest, and the points checked are those at the fractions
    0, 1/s_max, ..., s/s_max of the way, rounded to patches, which is only the first s/s_max of it. Each row is blurred
    by a Gaussian along the flattened index, so that the end of a row of patches runs into the next, and divided by its
    sum; the whole by its largest entry. All of that is as published, and so it tells height from width.

    Args:
        labels (N,): of the patches.
        grid (int, int): (h, w).
        sigma: of the blur.
        out (N, N): where M is written; by default a new tensor.
    """
    (height, width), device = grid, labels.device
    furthest = max(height, width) - 1
    rows, columns = (_points(side, furthest, device) for side in grid)
    kernel = torch.exp(-(torch.arange(TAPS, device=device) - TAPS // 2).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None]
    affinity = torch.empty(len(labels), len(labels), device=device) if out is None else out
    entries = BLOCK_ENTRIES if device.type == 'cpu' else GPU_BLOCK_ENTRIES
    step = max(1, entries // (8 * width * len(labels)))  # rows of the grid at once, of several tensors of integers
    for top in range(0, height, step):
        some = slice(top, min(top + step, height))
        block = _unblurred(labels.view(height, width), some, rows, columns)
        block = F.conv1d(block[:, None], kernel, padding=TAPS // 2)[:, 0]
        affinity[some.start * width : some.stop * width] = block / (block.sum(1, keepdim=True) + EPSILON)
    return affinity.div_(affinity.max())


@functools.lru_cache(maxsize=16)
def _points(side: int, furthest: int, device: torch.device) -> Tensor:
    """Return the patch at each fraction of the way from i to j along one side: (furthest + 1, side, side).

    Halves between patches are rounded as float32 gives them, like in the published code; so this is made on the CPU,
    whatever the device.
    """
    place, fraction = torch.arange(float(side)), torch.arange(float(furthest + 1))[:, None, None] / furthest
    return to_device((place[:, None] * (1 - fraction) + place * fraction).round().long(), device)


def _unblurred(labels: Tensor, some: slice, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the rows of M₀ of the patches in `some` rows of the grid, (patches, N) float32.

    Args:
        labels (h, w): of the patches.
        some: of the grid's rows.
        rows (s_max + 1, h, h), columns (s_max + 1, w, w): of `_points`.
    """
    height, width = labels.shape
    down, across = (torch.arange(side, device=labels.device) for side in labels.shape)
    distance = torch.maximum(
        (down[some, None] - down).abs()[:, None, :, None], (across[:, None] - across).abs()[None, :, None]
    )  # (some, w, h, w)
    own = labels[some][:, :, None, None]
    broken = torch.zeros(distance.shape, dtype=torch.bool, device=labels.device)
    for step in range(1, len(rows)):
        point = (rows[step, some] * width)[:, None, :, None] + columns[step][None, :, None]
        broken |= (labels.take(point) != own) & (distance >= step)
    affinity = torch.where(broken, torch.exp(-distance / (len(rows) - 1)), 1.0)
    return affinity.mul_(labels == own).flatten(0, 1).flatten(1)


def _check(fits: object, key: str, value: object, allowed: str) -> None:
    if not fits:
        raise UserError(f'SFR: {key} is {value!r}; it has to be {allowed}')
