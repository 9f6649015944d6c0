"""Published figures: those of published.csv, and whether a number reproduces them.

`comparable` says what a figure is worth:

    code     released code is known to give the figure, within the tolerance: a verdict is due
    paper    a paper, or a table of others, alone states the figure
    unknown  two published rows disagree, or the protocol is not known
"""

import csv
import functools
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

from fsa_seg.errors import UserError

TOLERANCE = 0.7  # points of mIoU between a figure and reruns of its code
DATASETS = (
    'voc21',
    'context60',
    'coco_object',
    'voc20',
    'context59',
    'coco_stuff164k',
    'cityscapes',
    'ade20k',
)  # in the order of the FSA paper
WORTH = ('code', 'paper', 'unknown')  # of a figure, from the best
CELL = ('method', 'backbone', 'protocol')  # keys whose names a cell and a row share
COLUMNS = ('method', 'feedback', 'backbone', 'vfm', 'protocol', 'variant', *DATASETS, 'avg', 'comparable', 'source')
FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'published.csv')
EXACT = 1e-6  # points; the error of floating-point arithmetic is far below


class Figure(NamedTuple):
    """A published figure.

    Attributes:
        value: mIoU in percent.
        comparable: of WORTH.
        source: where the figure stands.
        variant: what the names of the row do not say, such as 'PAMR'; may be empty.
    """

    value: float
    comparable: str
    source: str
    variant: str


def published(cell: Mapping, dataset: str | None = None) -> list[Figure]:
    """Return the published figures of a cell, the best first: `code`, `paper`, `unknown`, then the file's order.

    A cell of other settings, other words, toy models or toy data, random weights or a part of a data set has none.
    A cell tells its components by their names: a file of a user's own under a shipped name passes for the shipped one.

    Args:
        cell: the entry `cell` of a result.
        dataset: data set of the figures, or 'avg' for the averages over the eight; None is the cell's own.
    """
    if cell['words'] != cell['protocol'] or any(cell.get(key) for key in ('changed', 'toy', 'limit')):
        return []
    if cell.get('random_weights') is not None:  # 0 is a seed
        return []
    column = cell['dataset'] if dataset is None else dataset
    if column not in (*DATASETS, 'avg'):
        return []
    feedback = 'none' if cell['feedback'] is None else cell['feedback']
    key = (*(cell[name] for name in CELL), feedback, _vfm_names(cell['vfm']))
    rows = [row for row in _rows() if row['key'] == key and row[column] is not None]
    figures = [Figure(row[column], row['comparable'], row['source'], row['variant']) for row in rows]
    return sorted(figures, key=lambda figure: WORTH.index(figure.comparable))


def verdict(value: float, reference: float, tolerance: float = TOLERANCE) -> str:
    """Return 'reproduced', 'above' or 'below'; a difference of exactly the tolerance is reproduced.

    >>> verdict(38.1 + 0.7, 38.1), verdict(38.81, 38.1), verdict(37.0, 38.1)
    ('reproduced', 'above', 'below')

    Args:
        value, reference: a number and the published figure, in percent.
        tolerance: largest difference, in points.

    Raises:
        ValueError: a number is not finite, or the tolerance is negative.
    """
    if not all(map(math.isfinite, (value, reference, tolerance))) or tolerance < 0:
        raise ValueError(f'no verdict on {value}, {reference} with a tolerance of {tolerance}')
    difference = value - reference
    if abs(difference) <= tolerance + EXACT:
        return 'reproduced'
    return 'above' if difference > 0 else 'below'


def code_rows() -> list[dict]:
    """Return the rows that are `code`: dicts of the file's columns, with numbers as numbers and None for no figure."""
    return [{column: row[column] for column in COLUMNS} for row in _rows() if row['comparable'] == 'code']


@functools.cache
def _rows():
    """Return the rows of published.csv."""
    return read_rows(FILE)


def read_rows(path: str | os.PathLike) -> list[dict]:
    """Return the rows of a file of published figures.

    Args:
        path: a file with the columns of published.csv.

    Returns:
        A dict for each row: its columns, with figures as floats or None, and `key`, the names that a cell must have.

    Raises:
        UserError: the file cannot be read, a column is missing, or a value is wrong; the message names the line.
    """
    try:
        with open(path, encoding='utf-8', newline='') as f:
            reader = csv.DictReader(f.read().splitlines(), strict=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f'{path}, line 1: the columns are {reader.fieldnames}; they have to be {list(COLUMNS)}')
        return [_row(row, f'{path}, line {reader.line_num}') for row in reader]
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.reader.line_num}: {error}') from None


def _row(texts, where):
    """Return a row with its figures as numbers; `where` names the line in messages."""
    if None in texts or None in texts.values():
        raise UserError(f'{where}: the row has not {len(COLUMNS)} values')
    for column in ('method', 'feedback', 'backbone', 'protocol', 'source'):
        if not texts[column].strip():
            raise UserError(f'{where}: {column} is empty')
    if texts['comparable'] not in WORTH:
        raise UserError(f'{where}: comparable is {texts["comparable"]!r}; choose from {", ".join(WORTH)}')
    row = dict(texts, **{column: _figure(texts[column], column, where) for column in (*DATASETS, 'avg')})
    if all(row[column] is None for column in DATASETS):
        raise UserError(f'{where}: the row has no figure')
    return dict(row, key=(*(row[name] for name in CELL), row['feedback'], _vfm_names(row['vfm'])))


def _figure(text, column, where):
    """Return a figure; None for an empty text."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise UserError(f'{where}: {column} is {text!r}; it has to be a number of percent, or empty')
    return value


def _vfm_names(text):
    """Return the names of VFMs in the order of their roles: 'role=name,role=name', one name, or None without VFM."""
    return tuple(part.split('=')[-1] for part in text.split(',')) if text else ()
