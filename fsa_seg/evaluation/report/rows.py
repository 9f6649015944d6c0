"""Rows of a report: the cells of results, the published figure beside each, and the pairs of one protocol.

A pair is a row with feedback and its baseline: the same method, backbone, VFMs, protocol and words, whose fingerprints
differ in the feedback alone.
"""

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import differences, fingerprint
from fsa_seg.evaluation.report.collect import Light, worth
from fsa_seg.evaluation.report.published import DATASETS, TOLERANCE, Figure, published, verdict
from fsa_seg.evaluation.report.statistics import Gain
from fsa_seg.evaluation.results import table_rows

METHODS = ('clip', 'maskclip', 'sclip', 'clearclip', 'naclip', 'proxyclip')  # in tables; other methods come after
BACKBONES = ('clip_vit-b16', 'clip_vit-l14', 'openclip_vit-h14')
DATA_KEYS = ('data.split', 'data.contents')  # entries of a fingerprint that tell images apart
PRECISION = 'model.precision'
FEEDBACK = 'model.feedback'  # beginning of the entries of a feedback
EXPECTED = 'expected'  # `comparable` of an expected number
AVERAGE = 'avg'  # of the eight data sets, as in the paper


@dataclasses.dataclass(eq=False)
class Cell:
    """One number of a table, and what stands beside it.

    Attributes:
        dataset: name, or AVERAGE.
        value: mIoU in percent, unrounded; None where it is undefined or not there.
        references: published or expected figures, the best first.
        tolerance: of the verdict, in percent points.
        judged: whether a verdict is due: the first reference comes from released code, or is an expected number.
        result: None for an average, and for a cell that was not run.
        remark: why the cell has no published figure although its names have one; or None.
        pair: the pair whose row with feedback this cell stands in.
    """

    dataset: str
    value: float | None
    references: list[Figure]
    tolerance: float = TOLERANCE
    judged: bool = False
    result: Light | None = None
    remark: str | None = None
    pair: 'Pair | None' = None

    @property
    def reference(self) -> Figure | None:
        return self.references[0] if self.references else None

    @property
    def difference(self) -> float | None:
        """The value less the reference, in percent points."""
        return None if self.value is None or not self.references else self.value - self.references[0].value

    @property
    def verdict(self) -> str | None:
        """'reproduced', 'above', 'below' or 'not run'; None where no verdict is due."""
        if not self.judged:
            return None
        return 'not run' if self.value is None else verdict(self.value, self.references[0].value, self.tolerance)


@dataclasses.dataclass(eq=False)
class Pair:
    """A cell with feedback and the cell of its baseline.

    Attributes:
        before, after: the cells.
        problem: why the pair has no gain, such as other images; None if it has one.
        note: what else the pair does not share, such as the code.
        gain: None until `fsa_seg.evaluation.report.gains` has computed it.
        corrected: Holm's corrected p-value.
    """

    before: Cell
    after: Cell
    problem: str | None = None
    note: str | None = None
    gain: Gain | None = None
    corrected: float | None = None


@dataclasses.dataclass(eq=False)
class Row:
    """A row of a table.

    Attributes:
        name: (method, backbone, VFM, protocol and settings).
        cells: data set, or AVERAGE -> cell.
        baseline: name of the row that the gains are over, if all cells share one.
    """

    name: tuple[str, str, str, str]
    cells: dict[str, Cell]
    baseline: tuple[str, str, str, str] | None = None

    @property
    def first(self) -> Light:
        """A result of the row."""
        return next(cell.result for cell in self.cells.values() if cell.result)


@dataclasses.dataclass(eq=False)
class Table:
    """The rows of results of one worth, see WORTHS: 'full' or 'toy'."""

    worth: str
    rows: list[Row]
    datasets: list[str]

    def cells(self) -> Iterator[tuple[Row, Cell]]:
        """Yield each row and its cells of data sets."""
        for row in self.rows:
            for dataset in self.datasets:
                if dataset in row.cells:
                    yield row, row.cells[dataset]

    @property
    def reference(self) -> str:
        """What stands beside the figures: 'published' or 'expected' ones."""
        expected = any(cell.reference.comparable == EXPECTED for _, cell in self.cells() if cell.references)
        return EXPECTED if expected else 'published'

    @property
    def pairs(self) -> list[tuple[Row, Pair]]:
        """The pairs of data sets, and the rows that the gains stand in."""
        return [(row, cell.pair) for row, cell in self.cells() if cell.pair]


def make_tables(
    results: Sequence[Light], expected: Mapping[tuple[str, str], float] | None = None, tolerance: float = TOLERANCE
) -> list[Table]:
    """Return a table of the complete results and one of the toy world's; a table without rows is left out.

    Args:
        results: light results.
        expected: (row, data set) -> mIoU in percent, which take the place of published figures, see
            `fsa_seg.evaluation.goldens.read_goldens`.
        tolerance: of expected figures, in percent points.
    """
    tables = []
    for kind in ('full', 'toy'):
        group = [result for result in results if worth(result) == kind]
        if group:
            tables.append(_table(kind, group, expected, tolerance))
    return tables


def _table(kind, results, expected, tolerance):
    """Return the table of results of one worth."""
    present = {result['cell']['dataset'] for result in results}
    datasets = [name for name in DATASETS if name in present] + sorted(present - set(DATASETS))
    rows = {}
    for result, name in zip(results, table_rows(results)):
        row = rows.setdefault(name, Row(name, {}))
        dataset = result['cell']['dataset']
        cell = Cell(dataset, result['metrics']['mIoU'], published(result['cell']), result=result)
        if cell.references and (keys := unlike_published(result)):
            cell.references, cell.remark = [], f'other settings than the published: {", ".join(keys[:3])}'
        cell.judged = bool(cell.references) and cell.reference.comparable == 'code'
        row.cells[dataset] = cell
    ordered = sorted(rows.values(), key=_order)
    for row in ordered:
        if expected is None:
            _add_not_run(row)
        else:
            _expect(row, expected, tolerance)
    shown = [
        *datasets,
        *(name for name in DATASETS if name not in datasets and any(name in row.cells for row in ordered)),
    ]
    table = Table(
        kind,
        ordered,
        sorted(
            shown,
            key=lambda name: (
                name not in DATASETS,
                shown.index(name) if name not in DATASETS else DATASETS.index(name),
            ),
        ),
    )
    _add_pairs(table)
    for row in ordered:
        _add_average(row, expected is None)
    return table


def unlike_published(result: Light) -> list[str]:
    """Return the settings in which a result differs from the cell of its names that ships.

    A user's own file may have the name of a component that ships. Weights and precision are not compared: a local file
    may hold the published weights. Settings that another version of the suite lacks are not compared either.
    """
    names = ('dataset', 'method', 'feedback', 'backbone', 'vfm', 'protocol')
    shipped = _shipped_settings(*(result['cell'].get(name) for name in names))
    own = {entry[0]: entry[1] for entry in result['fingerprint'] if entry[2] == 'number'}
    return [key for key in own if key in shipped and own[key] != shipped[key] and not _uncompared(key)]


@functools.cache
def _shipped_settings(dataset, method, feedback, backbone, vfm, protocol):
    """Return key -> value of the fingerprint of a cell that ships, at level 'number'."""
    with contextlib.redirect_stderr(io.StringIO()):  # warnings about words: a run has printed them
        config = compose(dataset, method, feedback, backbone, vfm, protocol)
    return {entry.key: entry.value for entry in fingerprint(config) if entry.level == 'number'}


def _uncompared(key):
    """Return whether a setting may differ from that of the published figures."""
    return key in (*DATA_KEYS, PRECISION) or key.endswith('.weights')


def _order(row):
    """Return the sort key of a row: backbone, method, VFM, protocol, settings, without feedback first."""
    cell = row.first['cell']
    backbone, method = cell['backbone'], cell['method']
    return (
        BACKBONES.index(backbone) if backbone in BACKBONES else len(BACKBONES),
        backbone,
        METHODS.index(method) if method in METHODS else len(METHODS),
        method,
        cell['vfm'] or '',
        bool(cell['feedback']),
        cell['protocol'],
        row.name,
    )


def _add_not_run(row):
    """Add the cells that were not run to a row, where a figure of released code is published."""
    cell = row.first['cell']
    for dataset in DATASETS:
        figures = [] if dataset in row.cells else published(cell, dataset)
        if figures and figures[0].comparable == 'code':
            row.cells[dataset] = Cell(dataset, None, figures, judged=True)


def _expect(row, expected, tolerance):
    """Put expected figures in the place of a row's published figures, and add its expected cells that were not run."""
    name = ' | '.join(row.name)
    for dataset in {*row.cells, *(dataset for key, dataset in expected if key == name)}:
        value = expected.get((name, dataset))
        cell = row.cells.setdefault(dataset, Cell(dataset, None, []))
        cell.references = [] if value is None else [Figure(value, EXPECTED, 'expected numbers', '')]
        cell.judged, cell.tolerance = value is not None, tolerance


def _add_average(row, with_published):
    """Add the average over the paper's eight data sets to a row; a row without all eight has no average."""
    values = [row.cells[name].value if name in row.cells else None for name in DATASETS]
    complete = all(value is not None for value in values)
    references = published(row.first['cell'], AVERAGE) if with_published else []
    row.cells[AVERAGE] = Cell(AVERAGE, math.fsum(values) / len(values) if complete else None, references)


def _add_pairs(table):
    """Find the baseline of each cell with feedback."""
    baselines = {}
    for row, cell in table.cells():
        if cell.result and not cell.result['cell']['feedback']:
            baselines.setdefault(_pair_names(cell), []).append((row, cell))
    for row in table.rows:
        found = set()
        for cell in row.cells.values():
            if cell.result and cell.result['cell']['feedback']:
                choices = [(_pair(before, cell), other) for other, before in baselines.get(_pair_names(cell), ())]
                choices = [(pair, other) for pair, other in choices if pair]
                if choices:
                    cell.pair, other = min(choices, key=lambda choice: (bool(choice[0].problem), bool(choice[0].note)))
                    found.add(other.name)
        row.baseline = found.pop() if len(found) == 1 else None


def _pair_names(cell):
    """Return what the names of a pair's cells share."""
    names = cell.result['cell']
    return tuple(names.get(key) for key in ('dataset', 'method', 'title', 'backbone', 'vfm', 'protocol', 'words'))


def _pair(before, after):
    """Return the pair of two cells with the same names; None if they differ in more than feedback and images."""
    fingerprints = before.result['fingerprint'], after.result['fingerprint']
    keys = [key for key, *_ in differences(*fingerprints, 'number') if not key.startswith(FEEDBACK)]
    if any(key not in DATA_KEYS for key in keys):
        return None
    code = [key for key, was, now in differences(*fingerprints, 'source') if not (was is None or now is None)]
    note = f'the rows were made by different code or weights ({", ".join(code[:3])})' if code else None
    return Pair(before, after, 'the images differ' if keys else None, note)
