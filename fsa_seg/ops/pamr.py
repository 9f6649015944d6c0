"""PAMR: pixel-adaptive mask refinement of scores by the colours of neighbouring pixels.

Source of the formula: Araslanov and Roth (CVPR 2020, arXiv 2005.08104), as NACLIP, SCLIP and others apply it.

Shape legend: Q queries or classes; height and width in pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.settings import list_of, whole

BLOCK_VALUES = dict(cpu=2**21, cuda=2**26)  # values of the queries that are refined at once: 8 MiB, 256 MiB
STEPS = 10  # NACLIP's published setting
DILATIONS = (8, 16)  # NACLIP's published setting, in pixels
CONTRAST = 0.1  # factor on the standard deviation
EPSILON = 1e-8


class PAMR:
    """A refinement of the cosines of an image's pixels, before scale and softmax.

    Args:
        steps (int): iterations; 0 leaves the cosines as they are.
        dilations (sequence of int): distances of the 8 neighbours of a 3×3 square, in pixels.

    Raises:
        UserError: a value that is out of its range.
    """

    refines = 'cosines'

    def __init__(self, steps: int = STEPS, dilations: Sequence[int] = DILATIONS):
        if not whole(0).fits(steps):
            raise UserError(f'PAMR: steps is {steps!r}; it has to be a whole number, 0 or more (published: {STEPS})')
        if not list_of(whole(1), least=1).fits(dilations):
            raise UserError(
                f'PAMR: dilations is {dilations!r}; it has to be a list of whole numbers, each at least 1 '
                f'(published: {list(DILATIONS)})'
            )
        self.steps, self.dilations = steps, tuple(dilations)

    def refine(self, values: Tensor, image: Tensor, text: Any = None) -> Tensor:
        """Return refined values (Q, height, width) float32; see `pamr`.

        Args:
            values (Q, height, width): cosines at the image's original size; they are overwritten.
            image (3, height, width): the normalised input at that size.
            text: not used.
        """
        return pamr(values, image, self.steps, self.dilations)


def pamr(values: Tensor, image: Tensor, steps: int = STEPS, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Refine values in place by `steps` weighted means over neighbours, and return them.

    w_o(x) = softmax over the offsets o of −(1/3) Σ_c |I_c(x + o) − I_c(x)| / (1e-8 + 0.1·σ_c(x)), with σ_c(x) the
    unbiased standard deviation over all I_c(x + o) and, once per dilation, I_c(x). Each step is
    z(x) ← Σ_o w_o(x)·z(x + o), in float32. Borders are replicated; the centre is not among the offsets.

    One block of queries and one offset are worked on at a time: beside the values, what is held is (offsets, height,
    width) weights and a few blocks.

    Args:
        values (Q, height, width): float32.
        image (3, height, width): normalised.
        steps, dilations: as of `PAMR`.
    """
    if steps == 0:
        return values
    offsets = [
        (dilation * row, dilation * column)
        for dilation in dilations
        for row in (-1, 0, 1)
        for column in (-1, 0, 1)
        if row or column
    ]
    weights = _weights(image.float(), offsets, len(dilations))
    pixels = image.shape[1] * image.shape[2]
    size = max(1, BLOCK_VALUES.get(values.device.type, BLOCK_VALUES['cuda']) // pixels)
    for start in range(0, len(values), size):
        block = values[start : start + size].contiguous()
        for _ in range(steps):
            shifted = _shifted(block, offsets)
            block = next(shifted) * weights[0]
            for weight, neighbour in zip(weights[1:], shifted):
                block.addcmul_(neighbour, weight)
        values[start : start + size] = block
    return values


def _weights(image: Tensor, offsets: list[tuple[int, int]], centres: int) -> Tensor:
    """Return the weights (offsets, height, width) of an image's neighbours; they sum to 1 over the offsets."""
    total = torch.zeros(len(offsets), *image.shape[1:], device=image.device)
    for channel in image:
        neighbours = torch.stack(list(_shifted(channel[None], offsets)))[:, 0]
        deviation = torch.cat([neighbours, channel.expand(centres, -1, -1)]).std(0)
        total -= (neighbours - channel).abs_() / (EPSILON + CONTRAST * deviation)
    return (total / len(image)).softmax(0)


def _shifted(values: Tensor, offsets: list[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield values (Q, height, width) moved by each offset, borders replicated."""
    height, width = values.shape[1:]
    margin = max(max(map(abs, offset)) for offset in offsets)
    padded = F.pad(values[None], (margin,) * 4, mode='replicate')[0]
    for row, column in offsets:
        top, left = margin + row, margin + column
        yield padded[:, top : top + height, left : left + width]
