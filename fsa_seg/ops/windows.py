"""Sliding windows: where they lie, what is cut out, the overlap-add of their cosines, the splice of their maps.

A window of 0 pixels stands for the whole image. Then nothing is padded: patches that do not fit are left out at the
right and below, and the patches' cosines are stretched over the whole image.

Shape legend: Q queries; height and width in pixels.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

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
        tokens (N, D): of its patches, before the readout's `ln_post`; None unless the method's merge needs them.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    cosines: Tensor
    grid: tuple[int, int]
    kept: Any = None
    tokens: Tensor | None = None


class WholeImage(Protocol):
    """One image of a pass, as the hooks that see whole images read it.

    Attributes:
        shape (int, int): height and width of the resized image, in pixels.
        size (int, int): height and width of the original image.
        path (str): of the image's file; None for an image that comes from no file.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    path: str | None

    def rgb(self) -> Tensor:
        """Return the resized image (3, height, width), RGB from 0 to 1."""
        ...

    def original(self) -> Tensor:
        """Return the original image (3, height, width), RGB from 0 to 1; the resized image where no file is known."""
        ...

    def input_side(self, role: str) -> int | None:
        """Return the side in pixels of the square that a role's VFM sees; None for a VFM of any size."""
        ...

    def padding(self, role: str) -> Tensor:
        """Return the colour (3,), RGB from 0 to 1, that a role's VFM normalises to 0."""
        ...

    def multiple(self, role: str) -> tuple[int, int]:
        """Return what the height and width that a role's VFM sees are multiples of."""
        ...

    def run(self, role: str, pixels: Tensor, kind: str | None = None) -> Tensor:
        """Return a role's features (B, C, I, J) of pixels (B, 3, height, width), RGB from 0 to 1."""
        ...

    def once(self, role: str, key: tuple, make: Callable[[], Any]) -> Any:
        """Return what `make` makes of the image and a role's VFM; it is called once for each `key`."""
        ...

    def window_features(self, role: str) -> list[Tensor]:
        """Return a role's features (1, C, I, J) of every window of the image, in order."""
        ...

    def regions(self) -> Tensor:
        """Return the region map (height, width) of the original image, int64."""
        ...


class Layout(NamedTuple):
    """How an image is cut into windows.

    Attributes:
        shape (int, int): height and width of the resized image, in pixels.
        size (int, int): height and width of the result.
        window, stride: in pixels; a window of 0 is the whole image.
        multiple (int, int): what a window's height and width are brought to multiples of.
        image_features (dict): role -> features (1, C, I, J) of the VFM that sees the whole image.
        content (int, int): height and width of the image without the padding of `fit`; None where all of it counts.
        image: the `WholeImage`; None outside of a pass over images.
        patch (int, int): height and width of CLIP's patches, in pixels.
        read_out: function of tokens (any, D) before `ln_post`, which returns their cosines (any, Q) with the text.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    window: int
    stride: int
    multiple: tuple[int, int] = (1, 1)
    image_features: dict[str, Tensor] | None = None
    content: tuple[int, int] | None = None
    image: Any = None
    patch: tuple[int, int] = (1, 1)
    read_out: Callable[[Tensor], Tensor] | None = None

    def cell(self, window: Window) -> tuple[float, float]:
        """Return a cell of the image's grid of tokens (height, width), in pixels.

        It is CLIP's patch, or a whole fraction of it where the grid of a window is finer.
        """
        sides = []
        for span, multiple, count, patch in zip((window.rows, window.columns), self.multiple, window.grid, self.patch):
            padded = span[1] - span[0] + _padding(span, multiple, self.window == 0)
            sides.append(patch / max(1, round(count * patch / padded)))
        return sides[0], sides[1]

    def centres(self, window: Window, grid: tuple[int, int]) -> Tensor:
        """Return the centres (h·w, 2) of a window's cells, row and column in pixels of the resized image.

        Args:
            window: of the image.
            grid (int, int): (h, w) of the cells over the window and its padding.
        """
        sides = []
        for span, multiple, count in zip((window.rows, window.columns), self.multiple, grid):
            pad = _padding(span, multiple, self.window == 0)
            places = (torch.arange(count) + 0.5) * ((span[1] - span[0] + pad) / count)
            sides.append(places + span[0] - _halves(pad)[0])
        return torch.stack(torch.meshgrid(*sides, indexing='ij'), 2).flatten(0, 1).to(window.cosines.device)


class PixelMap:
    """Cosines that are known for each pixel of the resized image, resized bilinearly (align_corners=False) to `size`.

    Args:
        cosines (Q, height, width): float32.
        size (int, int): height and width of the result.
    """

    def __init__(self, cosines: Tensor, size: tuple[int, int]):
        self.size, self._cosines = pair(size), cosines

    def tiles(self, most: int) -> Iterator[Tile]:
        """Yield the result in strips of rows, see `OverlapAdd.tiles`."""
        queries, height, width = self._cosines.shape
        high = max(1, most // (queries * max(width, self.size[1])))
        for top in range(0, self.size[0], high):
            rows = torch.arange(top, min(top + high, self.size[0]), device=self._cosines.device)
            places = ((rows + 0.5) * (height / self.size[0]) - 0.5).clamp(0, height - 1)
            below = places.floor().long()
            strip = self._cosines[:, below].lerp(
                self._cosines[:, (below + 1).clamp(max=height - 1)], (places - below)[:, None]
            )
            if width != self.size[1]:
                strip = F.interpolate(strip, self.size[1], mode='linear', align_corners=False)
            yield (slice(top, top + len(rows)), slice(None)), strip


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
        self._content = pair(layout.content or layout.shape)
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
        return _to_pixels(count, spans, pad, self._shape[axis], self._content[axis], self.size[axis], device)

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


def stretched(cosines: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> OverlapAdd:
    """Return the cosines (h·w, Q) of one grid over an image, resized bilinearly (align_corners=False) to its pixels.

    Args:
        cosines (h·w, Q), grid (int, int): (h, w).
        size (int, int): height and width of the result.
    """
    overlap = OverlapAdd(Layout(pair(size), pair(size), 0, 1))
    overlap.add(Window((0, size[0]), (0, size[1]), cosines, grid))
    return overlap


def cut_features(
    features: Tensor,
    shape: tuple[int, int],
    image_multiple: tuple[int, int],
    place: WindowPlace,
    padded: tuple[int, int],
    grid: tuple[int, int],
) -> Tensor:
    """Return a window's features (1, C, h, w), cut from those of the whole image.

    Features are read bilinearly at the centres of the window's cells; where these are centres of the image's cells, the
    features are copied. Beyond the image's cells the nearest is taken.

    Args:
        features (1, C, I, J): of the whole image, padded to multiples of `image_multiple`, split evenly.
        shape (int, int): height and width of the image, in pixels.
        image_multiple (int, int): see above.
        place: of the window.
        padded (int, int): height and width of the window with its padding, in pixels.
        grid (int, int): (h, w) of the window.
    """
    read = features.float()
    for axis, span in enumerate((place.rows, place.columns)):
        before = _halves(max(padded[axis] - (span[1] - span[0]), 0))[0]  # a whole image may be cut
        pad, cells = _padding((0, shape[axis]), image_multiple[axis]), grid[axis]
        start = span[0] - before + _halves(pad)[0]
        centres = (2 * torch.arange(cells) + 1) * padded[axis] + 2 * cells * start
        read = _read(read, axis + 2, *_between(centres, 2 * cells * (shape[axis] + pad), features.shape[axis + 2]))
    return read.to(features.dtype)


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


def splice(
    windows: Sequence[tuple[tuple[int, int], tuple[int, int], Tensor, tuple[int, int]]],
    shape: tuple[int, int],
    cell: tuple[float, float],
    multiple: tuple[int, int] = (1, 1),
    whole_image: bool = False,
) -> tuple[Tensor, tuple[int, int]]:
    """Return the map of a whole image, (h·w, D) float32 and its grid (h, w): the mean of its windows' maps.

    The image has the whole number of equal cells whose size comes nearest to `cell`. A window's map is read bilinearly
    (align_corners=False) at the centres of the cells that lie in the window; where the window's own cells are those of
    the image, they are copied. A cell is the mean over the windows that hold its centre.

    Args:
        windows: (top, bottom) and (left, right) in pixels, tokens (N, D), and their grid; they cover the image.
        shape (int, int): height and width of the image, in pixels.
        cell (float, float): height and width of a cell of the image's map, in pixels.
        multiple, whole_image: as of `cut_window`; a window's grid covers its padding too.
    """
    h, w = (max(1, round(side / length)) for side, length in zip(shape, cell))
    first = windows[0][2]
    total = torch.zeros(h, w, first.shape[1], device=first.device)
    coverage = torch.zeros(h, w, 1)
    for rows, columns, tokens, grid in windows:
        tokens, places = tokens.float().unflatten(0, grid), []
        for axis, (span, side, count) in enumerate(zip((rows, columns), shape, (h, w))):
            pad = _padding(span, multiple[axis], whole_image)
            place, low, weight = _cells(span, pad, grid[axis], side, count)
            places.append(place)
            tokens = _read(tokens, axis, low, weight)
        total[tuple(places)] += tokens
        coverage[tuple(places)] += 1
    return total.div_(to_device(coverage, first.device)).flatten(0, 1), (h, w)


@functools.lru_cache(maxsize=64)
def _cells(span: tuple[int, int], pad: int, cells: int, side: int, count: int) -> tuple[slice, Tensor, Tensor]:
    """Return the image's cells whose centres lie in a window, along one side, and where they lie among its own cells.

    All is computed in whole numbers, so that equal centres are found to be equal.

    Args:
        span (int, int): the window, in pixels.
        pad: pixels that the window was padded by.
        cells: of the window's grid, padding included.
        side, count: pixels and cells of the image.

    Returns:
        A slice of the image's cells; for each, the window's cell at or before its centre, and the next cell's weight.
    """
    centres = (2 * torch.arange(count) + 1) * side  # in units of 1 / (2·count) pixels
    inside = ((centres >= 2 * count * span[0]) & (centres < 2 * count * span[1])).nonzero().flatten()
    first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    centres = centres[first:last] + 2 * count * (_halves(pad)[0] - span[0])
    return slice(first, last), *_between(centres, 2 * count * (span[1] - span[0] + pad), cells)


def _between(centres: Tensor, length: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return the cell at or before each centre, int64, and the weight of the next cell.

    Args:
        centres: whole numbers, from the start of a span.
        length: of the span, an even number in the same units.
        cells: of the span. Beyond its outer centres the nearest cell is taken.
    """
    places = (centres * cells - length // 2).clamp(0, length * (cells - 1))
    return places // length, (places % length) / length


def _read(values: Tensor, axis: int, low: Tensor, weight: Tensor) -> Tensor:
    """Return values read between cells along an axis; `low` and `weight` are of `_between`."""
    low, weight = to_device(low, values.device), to_device(weight, values.device)
    high = (low + 1).clamp(max=values.shape[axis] - 1)
    weight = weight.view(-1, *[1] * (values.ndim - 1 - axis))
    return values.index_select(axis, low).lerp_(values.index_select(axis, high), weight)


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
    count: int, spans: tuple[tuple[int, int], ...], pad: int, side: int, content: int, size: int, device: torch.device
) -> dict[int, Tensor]:
    """Return for each window along a side, by its start, the matrix (size, count) from its grid to the final pixels.

    Args:
        count (int): cells of a window's grid along the side.
        spans (tuple of (int, int)): windows along the side.
        pad (int): pixels that each window was padded by.
        side (int), content (int), size (int): pixels of the image, of these without the padding, and of the result.
    """
    length = spans[0][1] - spans[0][0]
    before = _halves(pad)[0]
    window = _resize_matrix(count, length + pad)[before : before + length]
    coverage = torch.zeros(side)
    for start, end in spans:
        coverage[start:end] += 1
    resize = F.pad(_resize_matrix(content, size), (0, side - content)) / coverage
    return {start: to_device(resize[:, start:end] @ window, device) for start, end in spans}


@functools.lru_cache(maxsize=64)
def _resize_matrix(count: int, size: int) -> Tensor:
    """Return the bilinear resize of `count` values to `size` as a matrix (size, count), by torch's own rule."""
    return F.interpolate(torch.eye(count)[None], size, mode='linear', align_corners=False)[0].T
