"""What one choice is worth: results that differ in one setting, in the attention map, or in the words alone."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fsa_seg.config.fingerprint import sources_hash, weights_files
from fsa_seg.evaluation.report.collect import Light
from fsa_seg.evaluation.report.rows import Cell, Row, Table
from fsa_seg.evaluation.report.tables import models_and_settings
from fsa_seg.evaluation.results import feedback_title, settings_text

WORDS = 'model.words'
ATTENTION = 'method.attention'  # entry of a method that its config spells out
FIRST_SETTINGS = ('lam', 'p', 'scale', 'uniform_scale', 'rounds')  # of FSA; other settings come after
MODULUS = 2**128


class Curve(NamedTuple):
    """Results that differ in one setting alone: (value, mIoU in percent), in the order of the values."""

    name: str
    points: list[tuple[float, float]]


class WordsRow(NamedTuple):
    """Results that differ in the class words alone.

    Attributes:
        row: name of the row without its words.
        dataset: name.
        figures: (name of the words, mIoU in percent), the best first.
    """

    row: str
    dataset: str
    figures: list[tuple[str, float]]

    spread = property(lambda self: self.figures[0][1] - self.figures[-1][1])


class AttentionMap(NamedTuple):
    """Figures of attention configurations under one protocol on one data set.

    Attributes:
        title: protocol and data set.
        rows: attention maps, with their VFMs.
        columns: backbones, without and with feedback.
        values: (rows, columns) mIoU in percent; NaN where no result is.
    """

    title: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray


def setting_curves(table: Table) -> dict[str, list[Curve]]:
    """Return setting -> the curves of a table's results that vary the setting alone, FSA's settings first."""
    groups: dict[tuple[str, int], dict[float, Cell]] = {}
    for _, cell in _run(table):
        digests, numbers = _digests(cell.result), _numeric(cell.result)
        total = sum(digests.values())
        for key, value in numbers.items():
            rest = (total - digests[key]) % MODULUS  # equal where all entries but this one are
            groups.setdefault((key, rest), {}).setdefault(value, cell)
    found: dict[str, list[Curve]] = {}
    for (key, _), members in groups.items():
        if len(members) > 1:
            cell = members[min(members)]
            points = [(value, members[value].value) for value in sorted(members)]
            curves = found.setdefault(key.removeprefix('model.'), [])
            name = _curve_name(cell, key)
            same = sum(curve.name.startswith(name) for curve in curves)  # of other code, weights, precision, ...
            curves.append(Curve(f'{name}, {_code(cell)}' if same else name, points))
    return {key: found[key] for key in sorted(found, key=_setting_order)}


def words_rows(table: Table) -> list[WordsRow]:
    """Return the groups of results that differ in the class words alone, the largest spread first."""
    groups: dict[int, dict[str, tuple[Row, Cell]]] = {}
    for row, cell in _run(table):
        digests = _digests(cell.result)
        if WORDS in digests:
            rest = (sum(digests.values()) - digests[WORDS]) % MODULUS
            groups.setdefault(rest, {}).setdefault(digests[WORDS], (row, cell))
    rows = []
    for members in groups.values():
        if len(members) > 1:
            figures = [(cell.result['cell']['words'], cell.value) for _, cell in members.values()]
            names = min((row.name for row, _ in members.values()), key=lambda name: len(name[3]))
            cell = next(iter(members.values()))[1]
            name = ', '.join([*(part for part in names[:3] if part != '–'), cell.result['cell']['protocol']])
            rows.append(WordsRow(name, cell.dataset, sorted(figures, key=lambda item: -item[1])))
    return sorted(rows, key=lambda row: -row.spread)


def attention_maps(table: Table) -> list[AttentionMap]:
    """Return the figures of methods that their config spells out by attention map and backbone."""
    groups: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for _, cell in _run(table):
        names = cell.result['cell']
        attention = next((entry[1] for entry in cell.result['fingerprint'] if entry[0] == ATTENTION), None)
        if attention is not None and not names['changed']:
            vfm = f' ({names["vfm"]})' if names['vfm'] else ''
            column = names['backbone'] + (f' + {feedback_title(names["feedback"])}' if names['feedback'] else '')
            title = f'{cell.dataset} under {settings_text(names)}'
            group = groups.setdefault((title, _code(cell)), {})
            group.setdefault((names.get('title', names['method']) + vfm, column), cell.value)
    maps = []
    titles = [title for title, _ in groups]
    for (title, code), figures in groups.items():
        rows, columns = (list(dict.fromkeys(key[i] for key in figures)) for i in (0, 1))
        if len(rows) > 1:
            values = np.array([[figures.get((row, column), np.nan) for column in columns] for row in rows], float)
            maps.append(AttentionMap(title if titles.count(title) == 1 else f'{title}, {code}', rows, columns, values))
    return maps


def _run(table: Table) -> Iterator[tuple[Row, Cell]]:
    """Yield the cells that have a figure."""
    return ((row, cell) for row, cell in table.cells() if cell.result and cell.value is not None)


def _digests(result: Light) -> dict[str, int]:
    """Return key -> number that stands for an entry of the result's fingerprint, and one for code and weights."""
    entries = {entry[0]: entry[1] for entry in result['fingerprint'] if entry[2] == 'number'}
    entries[''] = [sources_hash(result['fingerprint']), weights_files(result['fingerprint'])]
    return {
        key: int.from_bytes(hashlib.sha256(json.dumps([key, value]).encode()).digest()[:16], 'big')
        for key, value in entries.items()
    }


def _numeric(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the settings of a result that are numbers: key -> value."""
    return {
        key: value
        for key, value, level in result['fingerprint']
        if level == 'number' and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _curve_name(cell: Cell, key: str) -> str:
    """Return the name of a curve: data set, and the row without the setting that varies."""
    names = cell.result['cell']
    fixed = dict(names, changed=[text for text in names['changed'] if text.split('=')[0] != key])
    feedback = f' + {feedback_title(names["feedback"].split()[0])}' if names['feedback'] else ''
    method = names.get('title', names['method']) + feedback
    return f'{cell.dataset}, {method}, {models_and_settings(fixed)}'


def _code(cell: Cell) -> str:
    """Return what tells results of one name apart: precision, and the head of the digest of the code."""
    entries = {entry[0]: entry[1] for entry in cell.result['fingerprint']}
    return f'{entries.get("model.precision")}, code {sources_hash(cell.result["fingerprint"])[:6]}'


def _setting_order(key: str) -> tuple[int, str]:
    """Return the sort key of a setting."""
    name = key.removeprefix('feedback.')
    return (FIRST_SETTINGS.index(name) if name != key and name in FIRST_SETTINGS else len(FIRST_SETTINGS), key)
