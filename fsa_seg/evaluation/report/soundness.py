"""Is a result file sound? Its values have the right kinds, and its figures follow from the counts of its images.

A file may come from anywhere: a damaged file must not end a report, and its figures must not stand in one.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fsa_seg.config.fingerprint import cell_hash
from fsa_seg.evaluation.metric import metrics, sum_confusions
from fsa_seg.evaluation.results import COMPONENTS, FIGURES
from fsa_seg.settings import CELL, check_values

COUNTS = ('classes', 'intersection', 'union', 'label')  # parallel lists of an image
PAIRS = ('truth', 'predicted', 'pixels')  # parallel lists of the confusion matrix
NAMES = (*COMPONENTS, 'changed', 'toy')  # of every cell
EXACT = 1e-6  # percent points


def check_sound(result: Mapping[str, Any]) -> None:
    """Raise an error unless a result of `read_result` is sound.

    Raises:
        ValueError: what is wrong; a missing or unlike value may also be a KeyError, TypeError or AttributeError.
    """
    cell = result['cell']
    _demand(all(name in cell for name in NAMES), f'the cell lacks one of {", ".join(NAMES)}')
    check_values(cell, CELL, 'the cell')
    _demand(isinstance(result['partial'], bool), 'partial')
    _demand(isinstance(result['config'], dict) and isinstance(result['weights'], dict), 'config or weights')
    _demand(all(isinstance(result[key], str) for key in ('device', 'hash')), 'device or hash')
    _demand(_is_number(result['seconds']), 'seconds')
    for entry in result['fingerprint']:
        _demand(isinstance(entry[0], str) and isinstance(entry[2], str), f'the entry {entry[0]!r} of the fingerprint')
    _demand(cell_hash(result['fingerprint']) == result['hash'], 'the hash does not follow from the fingerprint')
    _demand(all(isinstance(entry['name'], str) for entry in result['classes']), 'the name of a class')
    _demand(all(isinstance(image['name'], str) for image in result['images']), 'the name of an image')
    _check_counts(result)


def _check_counts(result):
    """Raise a ValueError unless counts, confusion matrix and figures of a result agree."""
    classes, images = len(result['classes']), result['images']
    labels, *counts = (_integers(itertools.chain.from_iterable(image[key] for image in images)) for key in COUNTS)
    lengths = [[len(image[key]) for image in images] for key in COUNTS]
    _demand(all(length == lengths[0] for length in lengths), 'the counts of an image')
    _demand((labels < classes).all(), f'a label of {classes} classes')
    rows = np.repeat(np.arange(len(images)), lengths[0])
    _demand(len(np.unique(rows * classes + labels)) == len(labels), 'a class twice in one image')
    sums = [np.bincount(labels, values, classes) for values in counts]
    truth, predicted, pixels = (_integers(result['confusion'][key]) for key in PAIRS)
    _demand(len(truth) == len(predicted) == len(pixels), 'the confusion matrix')
    _demand((truth < classes).all() and (predicted < classes).all(), 'a label in the confusion matrix')
    total = sum_confusions([(truth, predicted, pixels)], classes)
    diagonal, label = np.diag(total), total.sum(1)
    for ours, theirs in zip(sums, (diagonal, label + total.sum(0) - diagonal, label)):
        _demand(np.array_equal(ours, theirs), 'the counts of the images and the confusion matrix differ')
    with np.errstate(invalid='ignore', divide='ignore'):
        figures = metrics(total)
    for key in FIGURES:
        _demand(_same(result['metrics'][key], figures[key]), f'{key} does not follow from the counts')
    for entry, iou in zip(result['classes'], figures['IoU']):
        _demand(_same(entry['IoU'], iou), f'the IoU of {entry["name"]} does not follow from the counts')


def _demand(right, subject):
    """Raise a ValueError that names what is wrong, unless it is right."""
    if not right:
        raise ValueError(f'wrong: {subject}')


def _integers(values: Iterable) -> np.ndarray:
    """Return whole numbers from 0 on as an array; other values are a ValueError."""
    array = np.array(list(values))
    if not array.size:
        return np.zeros(0, np.int64)
    _demand(
        array.dtype.kind == 'i' and array.ndim == 1 and array.min() >= 0, 'a count that is no whole number from 0 on'
    )
    return array


def _is_number(value):
    """Return whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _same(value, figure):
    """Return whether a value of a file is a figure; None stands for NaN."""
    if value is None or not _is_number(value):
        return value is None and math.isnan(figure)
    return abs(value - figure) <= EXACT
