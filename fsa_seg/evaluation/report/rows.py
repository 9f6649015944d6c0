"""Rows of a report: the cells of results, the published figure beside each, and the pairs of one protocol.

A pair is a row with feedback and its baseline: the same method, backbone, VFMs, protocol and words, whose fingerprints
differ in the feedback alone.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence

from fsa_seg.config.fingerprint import differences
from fsa_seg.evaluation.goldens import expected_cell
from fsa_seg.evaluation.report.collect import Light, worth
from fsa_seg.evaluation.report.published import DATASETS, TOLERANCE, Figure, published, verdict
from fsa_seg.evaluation.report.references import DATA_KEYS, references
from fsa_seg.evaluation.report.statistics import Gain
from fsa_seg.evaluation.results import table_row, table_rows

METHODS = (  # in tables; other methods come after
    *('clip', 'maskclip', 'sclip', 'clearclip', 'naclip', 'proxyclip'),
    *('pearl', 'resclip', 'scclip', 'sfp', 'gem'),
)
BACKBONES = ('clip_vit-b16', 'clip_vit-l14', 'openclip_vit-h14')
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
        """'reproduced', 'above', 'below', 'undefined' or 'not run'; None where no verdict is due."""
        if not self.judged:
            return None
        if self.value is None:
            return 'undefined' if self.result else 'not run'
        return verdict(self.value, self.references[0].value, self.tolerance)


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
    def unlike(self) -> bool:
        """Whether a cell of the row has other settings than the published."""
        return any(cell.remark for cell in self.cells.values())

    @property
    def first(self) -> Light:
        """A result of the row."""
        return next(cell.result for cell in self.cells.values() if cell.result)


@dataclasses.dataclass(eq=False)
class Table:
    """The rows of results of one worth.

    Attributes:
        worth: 'full' or 'toy', see WORTHS.
        rows: in the order of the page.
        datasets: the columns, without the average.
        absent: expected cells whose row has no result: (name of the row, data set).
        expected: whether expected numbers take the place of published figures.
    """

    worth: str
    rows: list[Row]
    datasets: list[str]
    absent: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    expected: bool = False

    def cells(self) -> Iterator[tuple[Row, Cell]]:
        """Yield each row and its cells of data sets."""
        for row in self.rows:
            for dataset in self.datasets:
                if dataset in row.cells:
                    yield row, row.cells[dataset]

    @property
    def reference(self) -> str:
        """What stands beside the figures: 'published' or 'expected' ones."""
        return EXPECTED if self.expected else 'published'

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
    judged = {expected_cell(row.first, row.name, expected or {}) for table in tables for row in table.rows}
    names = {cell[0] for cell in judged if cell} | {' | '.join(row.name) for table in tables for row in table.rows}
    for table in tables:
        table.expected = expected is not None
    for table in tables[:1]:
        table.absent = [cell for cell in expected or () if cell[0] not in names]
    return tables


def _table(kind, results, expected, tolerance):
    """Return the table of results of one worth."""
    rows: dict[tuple, Row] = {}
    for result, name in zip(results, table_rows(results)):
        dataset = result['cell']['dataset']
        if name in rows and dataset in rows[name].cells:  # of other names that no row shows
            name = (*name[:3], f'{name[3]}, {os.path.basename(result["path"])}')
        figures, remark = references(result)
        cell = Cell(dataset, result['metrics']['mIoU'], figures, result=result, remark=remark)
        cell.judged = bool(figures) and figures[0].comparable == 'code'
        rows.setdefault(name, Row(name, {})).cells[dataset] = cell
    ordered = sorted(rows.values(), key=_order)
    ran = {(table_row(cell.result), name) for row in ordered for name, cell in row.cells.items()}
    for row in ordered:
        if expected is None:
            _add_not_run(row, ran)
        else:
            _expect(row, expected, tolerance)
    present = {name for row in ordered for name in row.cells}
    datasets = [name for name in DATASETS if name in present] + sorted(present - set(DATASETS))
    table = Table(kind, ordered, datasets)
    _add_pairs(table)
    for row in ordered:
        _add_average(row, expected is None)
    return table


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


def _add_not_run(row, ran):
    """Add the cells that were not run to a row, where a figure of released code is published.

    `ran` has the name and data set of every result: a cell that stands in a row of telling settings did run.
    """
    first = row.first
    for dataset in () if row.unlike else DATASETS:
        figures = [] if (table_row(first), dataset) in ran else published(first['cell'], dataset)
        if figures and figures[0].comparable == 'code':
            row.cells[dataset] = Cell(dataset, None, figures, judged=True)


def _expect(row, expected, tolerance):
    """Put expected figures in the place of a row's published figures, and add its expected cells that were not run."""
    names = {
        cell[0] for cell in (expected_cell(cell.result, row.name, expected) for cell in row.cells.values()) if cell
    }
    name = names.pop() if names else ' | '.join(row.name)
    own = ' | '.join(row.name) == name  # else the row's cells that were not run stand in another row
    for dataset in {*row.cells, *(dataset for key, dataset in expected if key == name and own)}:
        value = expected.get((name, dataset))
        cell = row.cells.setdefault(dataset, Cell(dataset, None, []))
        cell.references = [] if value is None else [Figure(value, EXPECTED, 'expected numbers', '')]
        cell.judged, cell.tolerance = value is not None, tolerance


def _add_average(row, with_published):
    """Add the average over the paper's eight data sets to a row; a row without all eight has no average."""
    values = [row.cells[name].value if name in row.cells else None for name in DATASETS]
    complete = all(value is not None for value in values)
    figures = published(row.first['cell'], AVERAGE) if with_published and not row.unlike else []
    row.cells[AVERAGE] = Cell(AVERAGE, math.fsum(values) / len(values) if complete else None, figures)


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
    weights = [result['weights'] for result in (before.result, after.result)]
    code += [f'weights of {role}' for role in weights[0] if _differ(weights[0][role], weights[1].get(role))]
    note = f'the rows were made by different code or weights ({", ".join(code[:3])})' if code else None
    return Pair(before, after, 'the images differ' if keys else None, note)


def _differ(*digests):
    """Return whether two digests of loaded weights differ; one that is not known differs from none."""
    return None not in digests and digests[0] != digests[1]
