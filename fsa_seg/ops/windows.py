"""Sliding windows, and from cosines to labels.

Shape legend: Q queries, K classes; height and width in pixels.
"""

import functools

import torch
import torch.nn.functional as F

from fsa_seg.ops.device import count_labels, to_device

BACKGROUND = 0  # the class of pixels whose best score is below `prob_thd`, and the one that `area_thd` leaves out


def window_spans(side, window, stride):
    """Return the windows (start, end) in pixels along one side of an image.

    Windows start at multiples of the stride; the last is shifted inside; a side shorter than the window is one window.

    >>> window_spans(448, 336, 112)
    [(0, 336), (112, 448)]
    >>> window_spans(500, 336, 112)
    [(0, 336), (112, 448), (164, 500)]
    """
    count = max(0, -(-(side - window) // stride)) + 1
    starts = [max(0, min(i * stride, side - window)) for i in range(count)]
    return [(start, min(start + window, side)) for start in starts]


def windows(height, width, window, stride):
    """Return the windows of an image, row by row, as ((top, bottom), (left, right)) in pixels."""
    return [
        (rows, columns)
        for rows in window_spans(height, window, stride)
        for columns in window_spans(width, window, stride)
    ]


class OverlapAdd:
    """The cosines of an image's pixels: the mean over the windows that cover each.

    Each window's cosines are resized bilinearly (align_corners=False) to its pixels, summed over windows, divided by
    coverage, and resized bilinearly to `size`. All of that is linear, and apart for rows and columns, so that it is
    two products with small matrices. What is held are the windows' own cosines, and nothing of the size in pixels; the
    result is made tile by tile. The sum is taken in the order in which windows are added.

    Args:
        shape (int, int): height and width of the image, in pixels.
        window (int), stride (int): in pixels.
        multiple (int, int): what a window's height and width are padded to multiples of; the padding is cropped back.
        size (int, int): height and width of the result; by default the image's.
    """

    def __init__(self, shape, window, stride, multiple=(1, 1), size=None):
        self.shape, self.size = tuple(shape), tuple(size or shape)
        self._spans = [window_spans(side, window, stride) for side in shape]
        self._pads = [
            _padding(spans[0], side) for spans, side in zip(self._spans, multiple)
        ]  # all windows are of one size
        self._windows, self._matrices = {}, None  # windows by their first row: (first column, cosines (h, w, Q))
        self.finite = None

    def add(self, rows, columns, cosines, grid, finite=None):
        """Add one window.

        Args:
            rows (int, int), columns (int, int): its first and last + 1 row and column, of `windows`.
            cosines (N, Q): of its patches.
            grid (int, int): (h, w) of the patches.
            finite (any): bool flags of the stages behind the cosines; `self.finite` is those that all windows have.
        """
        self.finite = finite if self.finite is None or finite is None else self.finite & finite
        if self._matrices is None:
            self._matrices = [
                _to_pixels(
                    grid[axis],
                    tuple(self._spans[axis]),
                    self._pads[axis],
                    self.shape[axis],
                    self.size[axis],
                    cosines.device,
                )
                for axis in (0, 1)
            ]
        cosines = cosines.float().unflatten(0, tuple(grid))
        self._windows.setdefault(rows[0], []).append((columns[0], cosines))

    def strip(self, columns=slice(None)):
        """Return a function of a slice of pixel rows, which gives the result there: (Q, rows, columns) float32.

        The products over the strip's columns, (h, columns, Q) for each row of windows, are made once and held. Queries
        lie side by side in memory, so that the products are few and large, however many there are.

        Args:
            columns (slice): of the result's pixels.
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

    def tiles(self, most):
        """Yield the result in tiles, strip by strip: ((rows, columns), cosines (Q, rows, columns)), slices of pixels.

        Args:
            most (int): numbers of a tile, and twice as many of what a strip holds; a pixel at least.
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


def cut_window(image, rows, columns, multiple=(1, 1)):
    """Return a window (1, 3, h', w') of an image, padded with zeros, split evenly, to multiples of `multiple`.

    Args:
        image (3, height, width): normalised.
        rows (int, int), columns (int, int): the window's first and last + 1 row and column.
        multiple (int, int): what its height and width have to be multiples of.
    """
    pads = _padding(rows, multiple[0]), _padding(columns, multiple[1])
    return F.pad(image[None, :, rows[0] : rows[1], columns[0] : columns[1]], (*_halves(pads[1]), *_halves(pads[0])))


def patch_at(pixel, span, multiple, count):
    """Return the patch, from 0 to count − 1 along one side, that shows a pixel of an image.

    Args:
        pixel (float): in pixels from the image's edge.
        span (int, int): the window along that side.
        multiple (int): as of `cut_window`.
        count (int): patches of the window's grid along that side.
    """
    pad = _padding(span, multiple)
    place = (pixel - span[0] + _halves(pad)[0]) / (span[1] - span[0] + pad)
    return min(max(int(place * count), 0), count - 1)


def to_window(values, rows, columns, multiple=(1, 1)):
    """Return a window's values (h, w) at its pixels (height, width), each patch as a block; the padding is left out."""
    pads = _padding(rows, multiple[0]), _padding(columns, multiple[1])
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    values = F.interpolate(values[None, None], (height + pads[0], width + pads[1]), mode='nearest-exact')[0, 0]
    top, left = _halves(pads[0])[0], _halves(pads[1])[0]
    return values[top : top + height, left : left + width]


def class_scores(cosines, words_per_class, logit_scale):
    """Return the scores of the classes, (K, height, width): softmax over queries, then the best query of a class.

    Args:
        cosines (Q, height, width): queries of one class side by side, in class order.
        words_per_class (list of int): how many queries each class has.
        logit_scale (float): factor on the cosines before the softmax.
    """
    probs = (logit_scale * cosines.movedim(0, -1)).softmax(-1).movedim(-1, 0)  # quickest where queries lie side by side
    if len(words_per_class) == len(probs):
        return probs
    return torch.stack([queries.amax(0) for queries in probs.split(list(words_per_class))])


def label_map(scores, prob_thd=0.0, area_thd=None):
    """Return the label of each pixel, (height, width) int64.

    Args:
        scores (K, height, width): at original size; not changed.
        prob_thd (float): a pixel whose best score is under it becomes class 0.
        area_thd (float): acts first: a foreground class whose share of all foreground pixels is at most this gives
            its pixels to their next-best class. None switches it off.
    """
    return label_tiles(lambda: [((slice(None), slice(None)), scores)], scores.shape[1:], prob_thd, area_thd)


def label_tiles(tiles, size, prob_thd=0.0, area_thd=None):
    """Return what `label_map` does, from scores that are made tile by tile.

    Args:
        tiles: function that yields each tile's place (slices of rows and columns) and scores (K, rows, columns). With
            `area_thd` several tiles are made twice: the areas are known only when all has been seen.
        size (int, int): height and width.
        prob_thd (float), area_thd (float): see `label_map`.
    """
    small, labels = None, None
    if area_thd is not None:
        areas, count = 0, 0
        for tile in tiles():
            areas, count = areas + count_labels(tile[1].argmax(0), len(tile[1])), count + 1
        small = areas <= area_thd * (areas.sum() - areas[BACKGROUND])
        small[BACKGROUND].fill_(False)  # without a copy from the host
        if count == 1:  # made once, though it is asked for twice
            tiles = lambda: [tile]  # noqa: E731
    for place, scores in tiles():
        if small is not None:
            scores = scores.masked_fill(small[:, None, None], 0)
        best, label = scores.max(0)
        if labels is None:
            labels = label.new_empty(tuple(size))
        labels[place] = label.masked_fill_(best < prob_thd, BACKGROUND)
    return labels


def _total(terms):
    """Return the sum of tensors that nothing else holds, in their order."""
    total = next(terms)
    for term in terms:
        total += term
    return total


def _padding(span, multiple):
    return -(span[1] - span[0]) % multiple


def _halves(count):
    return count // 2, count - count // 2


@functools.lru_cache(maxsize=64)
def _to_pixels(count, spans, pad, side, size, device):
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
def _resize_matrix(count, size):
    """Return the bilinear resize of `count` values to `size` as a matrix (size, count), by torch's own rule."""
    return F.interpolate(torch.eye(count)[None], size, mode='linear', align_corners=False)[0].T
