"""The gains of pairs: their intervals, and where they come from by class, confusion and image.

Shape legend: N images, K classes, D draws.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fsa_seg.config.fingerprint import differences
from fsa_seg.evaluation.report.collect import Light, heavy
from fsa_seg.evaluation.report.published import DATASETS
from fsa_seg.evaluation.report.references import DATA_KEYS
from fsa_seg.evaluation.report.rows import AVERAGE, Pair, Row, Table
from fsa_seg.evaluation.report.statistics import DRAWS, SEED, gain, holm, image_mious, miou_draws, unlike_images

LEAST = 2  # images of an interval
FEW_IMAGES = f'an interval needs at least {LEAST} images'
NO_CLASS = 'no draw of the images shows a class'
MOST = 10  # classes and confusions that are named as those that moved most


class ClassGain(NamedTuple):
    """The IoU of a class in both rows of a pair, in percent; None where it is undefined."""

    name: str
    before: float | None
    after: float | None

    gain = property(lambda self: None if None in self[1:] else self.after - self.before)


class Confusion(NamedTuple):
    """How much of a class's truth both rows of a pair call another class, in percent."""

    truth: str
    predicted: str
    before: float
    after: float


class Details(NamedTuple):
    """Where the gain of a pair comes from.

    Attributes:
        classes: in label order.
        confusions: those whose pixels changed most, the largest change first.
        matrices: (2, K, K): of each row, the share of the truth (rows) that is called each class, in percent.
        images: names.
        gains: (N) gain of each image's own mIoU, in percent points; NaN without a counted pixel.
    """

    classes: list[ClassGain]
    confusions: list[Confusion]
    matrices: np.ndarray
    images: list[str]
    gains: np.ndarray

    def moved(self, sign: int) -> list[ClassGain]:
        """Return the classes with the largest gains (`sign` 1) or losses (-1), the largest first."""
        moved = [entry for entry in self.classes if entry.gain is not None and sign * entry.gain > 0]
        return sorted(moved, key=lambda entry: -sign * entry.gain)[:MOST]

    def extreme(self, sign: int, most: int = 1) -> list[tuple[str, float]]:
        """Return the images with the largest gains (`sign` 1) or losses (-1), and their gains."""
        order = np.argsort(-sign * np.nan_to_num(self.gains), kind='stable')[:most]
        return [(self.images[i], float(self.gains[i])) for i in order if sign * self.gains[i] > 0]


def add_gains(
    tables: Sequence[Table],
    draws: int = DRAWS,
    seed: int = SEED,
    progress: Callable[[list[Pair]], Iterable[Pair]] = iter,
) -> None:
    """Add the gains, their intervals and Holm's corrected p-values to the pairs of tables, and to their averages.

    Data sets with the same images, such as voc21 and voc20, get the same draws, so that the interval of an average is
    right for them, too. Holm's correction is over all pairs of a table, without its averages.
    """
    kept: dict[str, np.ndarray] = {}  # path -> draws
    pairs = [pair for table in tables for _, pair in table.pairs]
    pairs.sort(key=lambda pair: (pair.before.dataset, pair.before.result['path']))
    for pair in progress(pairs):
        pair.problem = _problem(pair)
        if not pair.problem:
            before, after = (_kept_draws(cell.result, draws, seed, kept) for cell in (pair.before, pair.after))
            found = gain(before, after, pair.after.value - pair.before.value)
            pair.gain, pair.problem = (None, NO_CLASS) if math.isnan(found.low) else (found, None)
    for table in tables:
        judged = [pair for _, pair in table.pairs if pair.gain]
        for pair, corrected in zip(judged, holm(pair.gain.p for pair in judged)):
            pair.corrected = corrected
        rows = {row.name: row for row in table.rows}
        for row in table.rows:
            _add_average(row, rows.get(row.baseline), kept)


def details(pair: Pair) -> Details:
    """Return where the gain of a pair comes from."""
    parts = [heavy(cell.result['path']) for cell in (pair.before, pair.after)]
    classes = [
        ClassGain(after['name'], before['IoU'], after['IoU'])
        for before, after in zip(*(cell.result['classes'] for cell in (pair.before, pair.after)))
    ]
    matrices = np.stack([_shares(part.confusion) for part in parts])
    changes = np.abs(parts[1].confusion - parts[0].confusion)
    np.fill_diagonal(changes, 0)
    order = np.argsort(-changes, axis=None, kind='stable')[:MOST]
    names = [entry.name for entry in classes]
    confusions = [
        Confusion(names[i], names[j], *(float(matrix[i, j]) for matrix in matrices))
        for i, j in zip(*np.unravel_index(order, changes.shape))
        if changes[i, j]
    ]
    before, after = (image_mious(part.counts) for part in parts)
    return Details(classes, confusions, matrices, parts[0].counts.images, after - before)


def incomparable(before: Light, after: Light) -> str | None:
    """Return why the figures of two results cannot be compared, or None."""
    names = before['cell']['dataset'], after['cell']['dataset']
    if names[0] != names[1]:
        return f'the data sets differ: {names[0]} and {names[1]}'
    if None in (before['metrics']['mIoU'], after['metrics']['mIoU']):
        return 'mIoU is undefined: no class has a pixel'
    keys = [key for key, *_ in differences(before['fingerprint'], after['fingerprint'], 'number') if key in DATA_KEYS]
    reason = unlike_images(heavy(before['path']).counts, heavy(after['path']).counts)
    return reason or ('the images differ in their bytes' if keys else None)


def result_draws(result: Light, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Return the mIoU (D) of each draw of a result's images; the names of the images are part of the seed."""
    counts = heavy(result['path']).counts
    names = hashlib.sha256(json.dumps(counts.images).encode()).digest()
    return miou_draws(counts, draws, [seed, int.from_bytes(names[:8], 'big')])


def _problem(pair):
    """Return why a pair has no interval, or None."""
    reason = incomparable(pair.before.result, pair.after.result)
    few = len(heavy(pair.after.result['path']).counts.images) < LEAST
    return reason or (FEW_IMAGES if few else None)


def _kept_draws(result, draws, seed, kept):
    """Return the draws of a result; `kept` holds those of earlier pairs."""
    path = result['path']
    if path not in kept:
        kept[path] = result_draws(result, draws, seed)
    return kept[path]


def _add_average(row: Row, baseline: Row | None, kept):
    """Add the pair of averages to a row whose eight data sets all have a gain over one baseline."""
    cells = [row.cells.get(name) for name in DATASETS]
    if baseline is None or not all(cell and cell.pair and cell.pair.gain for cell in cells):
        return
    before, after = (
        np.mean([kept[getattr(cell.pair, side).result['path']] for cell in cells], 0) for side in ('before', 'after')
    )
    averages = baseline.cells[AVERAGE], row.cells[AVERAGE]
    value = averages[1].value - averages[0].value
    averages[1].pair = Pair(*averages, gain=gain(before, after, value))


def _shares(confusion):
    """Return the shares of the truth in percent; a class without truth has zeros."""
    return 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
