"""Keep the expected numbers of a table in a JSON file, and compare results with the expected numbers."""

import json
import math
from collections.abc import Mapping, Sequence

from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import table_row, table_rows
from fsa_seg.system.paths import new_file

TOLERANCE = 0.1  # mIoU, in percent points
SHOWN = 20  # wrong cells that a report names

Cells = dict[tuple[str, str], float]  # (row, data set) -> mIoU in percent


def write_goldens(results: Sequence[dict], command: str, path: str) -> None:
    """Write the mIoU of results as expected numbers.

    Args:
        results: see `fsa_seg.evaluation.results.read_result`; a result that enters no table is left out.
        command: the command that made the results.
        path: the file.

    Raises:
        UserError: no result enters a table.
    """
    cells = {}
    for (row, dataset), value in _numbers(results).items():
        if not math.isnan(value):
            cells.setdefault(row, {})[dataset] = value
    if not cells:
        raise UserError(f'{path}: no result enters a table, so that there is no number to expect')
    versions = {
        entry[0].removeprefix('version of '): entry[1]
        for entry in results[0]['fingerprint']
        if entry[0].startswith('version of ')
    }
    about = dict(
        numbers='mIoU in percent, unrounded',
        command=command,
        device=results[0]['device'],
        versions=versions,
        tolerance=TOLERANCE,
    )
    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        json.dump(dict(about, cells=cells), f, indent=1, ensure_ascii=False, allow_nan=False)
        f.write('\n')


def read_goldens(path: str, datasets: Sequence[str] | None = None) -> tuple[Cells, float]:
    """Return the expected numbers in a file, (row, data set) -> mIoU in percent, and their tolerance.

    Args:
        path: the file.
        datasets: the data sets to compare; by default all.

    Raises:
        UserError: the file holds no expected numbers, or none of these data sets.
    """
    try:
        with open(path, encoding='utf-8') as f:
            content = json.load(f)
        tolerance = float(content['tolerance'])
        cells = {
            (row, dataset): float(value)
            for row, values in content['cells'].items()
            for dataset, value in values.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} holds no expected numbers ({error!r}); --write-golden makes such a file') from None
    cells = {cell: value for cell, value in cells.items() if datasets is None or cell[1] in datasets}
    if not cells:
        raise UserError(f'{path} has no expected number of {", ".join(datasets or ["any data set"])}')
    return cells, tolerance


def compare(
    results: Sequence[dict], expected: Mapping[tuple[str, str], float], tolerance: float = TOLERANCE
) -> tuple[bool, str]:
    """Return whether results are as expected, and a report.

    A cell is wrong if its result is missing, or further away than the tolerance; the report names wrong cells. The
    report counts the results without an expected number; they make nothing wrong.

    Args:
        results: see `fsa_seg.evaluation.results.read_result`; a result that enters no table counts as missing.
        expected: (row, data set) -> mIoU in percent, see `read_goldens`.
        tolerance: in percent points.
    """
    numbers, extra = {}, 0
    for result, row in zip(results, table_rows(results)):
        cell = expected_cell(result, row, expected) if row else None
        extra += bool(row) and cell is None
        if cell:
            value = result['metrics']['mIoU']
            numbers.setdefault(cell, []).append(math.nan if value is None else value)
    for cell, values in numbers.items():  # of several results of one cell, such as of two codes, the farthest counts
        away = [math.inf if math.isnan(value) else abs(value - expected[cell]) for value in values]
        numbers[cell] = values[away.index(max(away))]
    differences = {cell: abs(numbers[cell] - value) for cell, value in expected.items() if cell in numbers}
    wrong = [cell for cell in expected if not differences.get(cell, math.inf) <= tolerance]
    largest = f'{max(differences.values()):.2f}' if differences else '–'
    lines = [
        f'{row}, {dataset}: expected {expected[row, dataset]:.2f}, found '
        + (f'{numbers[row, dataset]:.2f}' if (row, dataset) in numbers else 'none')
        for row, dataset in wrong[:SHOWN]
    ]
    if wrong[SHOWN:]:
        lines.append(f'... and {len(wrong) - SHOWN} more')
    if extra:
        lines.append(f'{extra} more cells have no expected number')
    lines.append(f'{len(expected) - len(wrong)} of {len(expected)} as expected, largest difference {largest}')
    return not wrong, '\n'.join(lines)


def expected_cell(result: Mapping, row: tuple, expected: Mapping[tuple[str, str], float]) -> tuple[str, str] | None:
    """Return the expected cell that a result is compared with, or None.

    Args:
        result: see `fsa_seg.evaluation.results.read_result`.
        row: of `table_rows`. Settings that tell results of one row apart, such as their code, need not be expected.
        expected: (row, data set) -> mIoU in percent.
    """
    names = (' | '.join(name) for name in (row, table_row(result) or row))
    cells = [(name, result['cell']['dataset']) for name in names]
    return next((cell for cell in cells if cell in expected), None)


def _numbers(results):
    """Return (row, data set) -> mIoU of the results that enter a table; NaN for an undefined mIoU."""
    numbers = {}
    for result, row in zip(results, table_rows(results)):
        if row:
            value = result['metrics']['mIoU']
            numbers[' | '.join(row), result['cell']['dataset']] = math.nan if value is None else value
    return numbers
