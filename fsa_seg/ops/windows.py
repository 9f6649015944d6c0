"""Sliding windows: where they lie, what is cut out, and the overlap-add of their cosines.

A window of 0 pixels stands for the whole image. Then nothing is padded: patches that do not fit are left out at the
right and below, and the patches' cosines are stretched over the whole image.

Shape legend: Q queries; height and width in pixels.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.device import to_device
from fsa_seg.ops.types import Tile, pair


def window_spans(side: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return the windows (start, end) in pixels along one side of an image.

    Windows start at multiples of the stride; the last is shifted inside. A side shorter than the window is one window,
    and a window of 0 is the whole side.

    >>> window_spans(448, 336, 112)
    [(0, 336), (112, 448)]
    >>> window_spans(500, 336, 112)
    [(0, 336), (112, 448), (164, 500)]
    """
    if window == 0:
        return [(0, side)]
    count = max(0, -(-(side - window) // stride)) + 1
    starts = [max(0, min(i * stride, side - window)) for i in range(count)]
    return [(start, min(start + window, side)) for start in starts]


def windows(height: int, width: int, window: int, stride: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the windows of an image, row by row, as ((top, bottom), (left, right)) in pixels."""
    return [
        (rows, columns)
        for rows in window_spans(height, window, stride)
        for columns in window_spans(width, window, stride)
    ]


class WindowPlace(NamedTuple):
    """Where a window lies in its image.

    Attributes:
        rows (top, bottom), columns (left, right): in pixels of the resized image; first, and last + 1.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]


class Window(NamedTuple):
    """One window of an image.

    Attributes:
        rows (top, bottom), columns (left, right): in pixels of the resized image; first, and last + 1.
        cosines (N, Q): of its patches.
        grid (int, int): (h, w) of the patches.
        kept: what the method keeps of the window for its merge.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    cosines: Tensor
    grid: tuple[int, int]
    kept: object = None


class Layout(NamedTuple):
    """How an image is cut into windows.

    Attributes:
        shape (int, int): height and width of the resized image, in pixels.
        size (int, int): height and width of the result.
        window, stride: in pixels; a window of 0 is the whole image.
        multiple (int, int): what a window's height and width are brought to multiples of.
        image_features (dict): role -> features (1, C, I, J) of the VFM that sees the whole image.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    window: int
    stride: int
    multiple: tuple[int, int] = (1, 1)
    image_features: dict[str, Tensor] | None = None


class OverlapAdd:
    """The cosines of an image's pixels: the mean over the windows that cover each.

    Each window's cosines are resized bilinearly (align_corners=False) to its pixels, summed over windows, divided by
    coverage, and resized bilinearly to `size`. All of that is linear, and apart for rows and columns: two products with
    small matrices. The windows' own cosines are held, and nothing of the size in pixels; the result is made tile by
    tile. The sum is taken in the order in which windows are added.

    Args:
        layout: how the image is cut.
    """

    def __init__(self, layout: Layout):
        self.size, self._shape = pair(layout.size), pair(layout.shape)
        self._spans = [window_spans(side, layout.window, layout.stride) for side in layout.shape]
        self._pads = [
            _padding(spans[0], side, layout.window == 0) for spans, side in zip(self._spans, layout.multiple)
        ]  # all windows are of one size
        self._windows: dict[int, list[tuple[int, Tensor]]] = {}  # first row -> (first column, cosines (h, w, Q))
        self._matrices: list[dict[int, Tensor]] = []  # of rows and of columns, once a window tells the grid

    def add(self, window: Window) -> None:
        """Add one window of the layout."""
        if not self._matrices:
            self._matrices = [self._to_pixels(axis, window.grid[axis], window.cosines.device) for axis in (0, 1)]
        cosines = window.cosines.float().unflatten(0, tuple(window.grid))
        self._windows.setdefault(window.rows[0], []).append((window.columns[0], cosines))

    def _to_pixels(self, axis: int, count: int, device: torch.device) -> dict[int, Tensor]:
        spans, pad = tuple(self._spans[axis]), self._pads[axis]
        return _to_pixels(count, spans, pad, self._shape[axis], self.size[axis], device)

    def strip(self, columns: slice = slice(None)) -> Callable[..., Tensor]:
        """Return a function of a slice of pixel rows, which gives the result there: (Q, rows, columns) float32.

        The products over the strip's columns, (h, columns, Q) for each row of windows, are made once and held. Queries
        lie side by side in memory, so that the products are few and large, however many there are.

        Args:
            columns: of the result's pixels.
        """
        to_rows, to_columns = self._matrices
        parts = {
            top: _total(to_columns[left][columns] @ cosines for left, cosines in row)
            for top, row in self._windows.items()
        }
        shape = next(iter(parts.values())).shape[1:]
        return lambda rows=slice(None): (
            _total(to_rows[top][rows] @ part.flatten(1) for top, part in parts.items())
            .unflatten(1, shape)
            .permute(2, 0, 1)
        )

    def tiles(self, most: int) -> Iterator[Tile]:
        """Yield the result in tiles, strip by strip: ((rows, columns), cosines (Q, rows, columns)), slices of pixels.

        Args:
            most: numbers of a tile, and twice as many of what a strip holds; a pixel at least.
        """
        height, width = self.size
        grid_rows, _, queries = next(iter(self._windows.values()))[0][1].shape
        wide = min(width, max(1, 2 * most // (queries * grid_rows * len(self._windows))))
        high = max(1, most // (queries * wide))
        for left in range(0, width, wide):
            columns = slice(left, left + wide)
            strip = self.strip(columns)
            for top in range(0, height, high):
                rows = slice(top, top + high)
                yield (rows, columns), strip(rows)


def cut_window(
    image: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    multiple: tuple[int, int] = (1, 1),
    whole_image: bool = False,
) -> Tensor:
    """Return a window (1, 3, h', w') of an image, its sides brought to multiples of `multiple`.

    A window is padded with zeros, split evenly. A whole image is cut at the right and below, but a side shorter than
    the multiple is padded to it.

    Args:
        image (3, height, width): normalised.
        rows (int, int), columns (int, int): the window's first and last + 1 row and column.
        multiple (int, int): what its height and width have to be multiples of.
        whole_image: whether the window is the whole image, by a window of 0.
    """
    pads: list[int] = []
    for span, side in zip((columns, rows), multiple[::-1]):
        surplus = (span[1] - span[0]) % side if whole_image and span[1] - span[0] > side else 0
        pads += (0, -surplus) if surplus else _halves(_padding(span, side, whole_image))
    return F.pad(image[None, :, rows[0] : rows[1], columns[0] : columns[1]], pads)


def patch_at(pixel: float, span: tuple[int, int], multiple: int, count: int, whole_image: bool = False) -> int:
    """Return the patch, from 0 to count − 1 along one side, that shows a pixel of an image.

    Args:
        pixel: in pixels from the image's edge.
        span (int, int): the window along that side.
        multiple, whole_image: as of `cut_window`, along that side.
        count: patches of the window's grid along that side.
    """
    pad = _padding(span, multiple, whole_image)
    place = (pixel - span[0] + _halves(pad)[0]) / (span[1] - span[0] + pad)
    return min(max(int(place * count), 0), count - 1)


def to_window(
    values: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    multiple: tuple[int, int] = (1, 1),
    whole_image: bool = False,
) -> Tensor:
    """Return a window's values (h, w) at its pixels (height, width), each patch as a block; the padding is left out."""
    pads = _padding(rows, multiple[0], whole_image), _padding(columns, multiple[1], whole_image)
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    values = F.interpolate(values[None, None], (height + pads[0], width + pads[1]), mode='nearest-exact')[0, 0]
    top, left = _halves(pads[0])[0], _halves(pads[1])[0]
    return values[top : top + height, left : left + width]


def _total(terms: Iterator[Tensor]) -> Tensor:
    """Return the sum of tensors that nothing else holds, in their order."""
    total = next(terms)
    for term in terms:
        total += term
    return total


def _padding(span: tuple[int, int], multiple: int, whole_image: bool = False) -> int:
    """Return the pixels that a side is padded by; a whole image only where it is shorter than the multiple."""
    length = span[1] - span[0]
    return 0 if whole_image and length > multiple else -length % multiple


def _halves(count: int) -> tuple[int, int]:
    return count // 2, count - count // 2


@functools.lru_cache(maxsize=64)
def _to_pixels(
    count: int, spans: tuple[tuple[int, int], ...], pad: int, side: int, size: int, device: torch.device
) -> dict[int, Tensor]:
    """Return for each window along a side, by its start, the matrix (size, count) from its grid to the final pixels.

    Args:
        count (int): cells of a window's grid along the side.
        spans (tuple of (int, int)): windows along the side.
        pad (int): pixels that each window was padded by.
        side (int), size (int): pixels of the image, and of the result.
    """
    length = spans[0][1] - spans[0][0]
    before = _halves(pad)[0]
    window = _resize_matrix(count, length + pad)[before : before + length]
    coverage = torch.zeros(side)
    for start, end in spans:
        coverage[start:end] += 1
    resize = _resize_matrix(side, size) / coverage
    return {start: to_device(resize[:, start:end] @ window, device) for start, end in spans}


@functools.lru_cache(maxsize=64)
def _resize_matrix(count: int, size: int) -> Tensor:
    """Return the bilinear resize of `count` values to `size` as a matrix (size, count), by torch's own rule."""
    return F.interpolate(torch.eye(count)[None], size, mode='linear', align_corners=False)[0].T
