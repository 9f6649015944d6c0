"""Is a gain real? A paired bootstrap over the images of a data set, and Holm's correction over a table.

mIoU is a ratio of sums over images. So the images are drawn, not their mIoU: a draw takes as many images as the data
set has, with replacement, sums their pixels, and divides. Both rows of a pair get the same draws.

Shape legend: N images, K classes, D draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fsa_seg.errors import UserError

DRAWS = 10_000
SEED = 0
LEVEL = 0.95  # of the intervals
PERCENT = f'{100 * LEVEL:.0f} %'
ALPHA = 0.05  # of Holm's correction
OUTSIDE = 'the gain lies outside of its interval: draws lack rare classes'
BLOCK = 2_500_000  # images drawn at once, of one or more draws; their float64 numbers of times take 20 MB


class Counts(NamedTuple):
    """The pixels of each image and class.

    Attributes:
        images: N names.
        intersection, union, label: (N, K) int64; `label` counts the truth.
    """

    images: list[str]
    intersection: np.ndarray
    union: np.ndarray
    label: np.ndarray


class Gain(NamedTuple):
    """The gain of a row over its baseline, in percent points of mIoU.

    Attributes:
        value: the gain on the data set itself.
        low, high: its interval of LEVEL.
        positive: share of the draws with a gain above 0.
        p: two-sided p-value of "no gain"; at least 2 / (D + 1).
    """

    value: float
    low: float
    high: float
    positive: float
    p: float

    outside = property(lambda self: not self.low <= self.value <= self.high)  # draws lack rare classes
    holds_zero = property(lambda self: not (self.low > 0 or self.high < 0))


def image_counts(result: Mapping[str, Any]) -> Counts:
    """Return the pixels of each image and class of a result, see `fsa_seg.evaluation.results.read_result`."""
    images, classes = result['images'], len(result['classes'])
    rows = np.repeat(np.arange(len(images)), [len(image['classes']) for image in images])
    columns = np.array([label for image in images for label in image['classes']], np.int64)
    tables = np.zeros((3, len(images), classes), np.int64)
    for table, key in zip(tables, ('intersection', 'union', 'label')):
        table[rows, columns] = [count for image in images for count in image[key]]
    return Counts([image['name'] for image in images], *tables)


def image_of(counts: Counts, name: str) -> Counts:
    """Return the counts of one image; a name that is not there is a UserError."""
    if name not in counts.images:
        raise UserError(f'the result has no image {name!r}')
    row = counts.images.index(name)
    return Counts([name], *(table[row : row + 1] for table in counts[1:]))


def miou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Return the mIoU (...) in percent of pixels (..., K), over the classes with a union; NaN where none has one."""
    shown = union > 0
    with np.errstate(invalid='ignore', divide='ignore'):
        iou = np.where(shown, intersection / union, 0)
        return 100 * iou.sum(-1) / shown.sum(-1)


def image_mious(counts: Counts) -> np.ndarray:
    """Return the mIoU (N) of each image by itself, in percent; NaN for an image without a counted pixel."""
    return miou(counts.intersection, counts.union)


def miou_draws(counts: Counts, draws: int = DRAWS, seed: int | Sequence[int] = SEED) -> np.ndarray:
    """Return the mIoU (D) of each draw, in percent. Results with equal N and seed get the same draws of images.

    Args:
        counts: of N images.
        draws: D.
        seed: of numpy's `default_rng`.
    """
    size = len(counts.images)
    shown = counts.union.any(0)
    tables = [table[:, shown].astype(np.float64) for table in (counts.intersection, counts.union)]  # exact below 2^53
    generator, parts, most = np.random.default_rng(seed), [], max(1, BLOCK // size)
    for start in range(0, draws, most):
        rows = min(most, draws - start)
        drawn = generator.integers(0, size, (rows, size), np.int32)
        drawn += np.arange(rows, dtype=np.int32)[:, None] * np.int32(size)
        times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        parts.append(miou(*(times @ table for table in tables)))
    return np.concatenate(parts)


def gain(before: np.ndarray, after: np.ndarray, value: float) -> Gain:
    """Return the gain of a pair.

    The interval holds the middle LEVEL of the draws' gains. The p-value is twice the smaller share of draws at or
    beyond 0, counted with one draw more, so that it is never 0.

    Args:
        before, after: mIoU (D) of the same draws, see `miou_draws`.
        value: the gain on the data set itself.
    """
    gains = after - before
    gains = gains[np.isfinite(gains)]  # a draw may show no class at all
    if not len(gains):
        return Gain(value, np.nan, np.nan, np.nan, 1.0)
    low, high = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min((gains <= 0).sum(), (gains >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(gains) + 1))
    return Gain(value, float(low), float(high), float((gains > 0).mean()), float(p))


def holm(p_values: Iterable[float]) -> list[float]:
    """Return Holm's corrected p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    values = np.array(list(p_values), float)
    order = np.argsort(values, kind='stable')
    scaled = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


def unlike_images(before: Counts, after: Counts) -> str | None:
    """Return why two results cannot be compared, or None: they share their images, and each image its truth."""
    if missing := set(before.images) ^ set(after.images):
        return f'the images differ: {len(missing)} of them are in one result alone, such as {min(missing)}'
    if before.images != after.images:
        return 'the images stand in another order, or more than once'
    if before.label.shape != after.label.shape:
        return f'the classes differ: {before.label.shape[1]} and {after.label.shape[1]}'
    if (differing := (before.label != after.label).any(1)).any():
        name = before.images[int(differing.argmax())]
        return f'the images differ: the truth of {int(differing.sum())} images, such as {name}'
    return None
