"""Expected numbers of a table, kept as a JSON file, and the comparison of results with them."""

import json
import math

from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import table_rows
from fsa_seg.system.paths import new_file

TOLERANCE = 0.1  # mIoU, in percent points
SHOWN = 20  # wrong cells that a report names


def write_goldens(results, command, path):
    """Write the mIoU of results as expected numbers.

    Args:
        results (list of dict): of `fsa_seg.evaluation.results.read_result`; those that enter no table are left out.
        command (str): that made them.
        path (str): of the file.

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


def read_goldens(path, datasets=None):
    """Return the expected numbers in a file: ((row, data set) -> mIoU in percent, the tolerance of each).

    Args:
        path (str): of the file.
        datasets (list of str): the data sets that are compared; by default all.

    Raises:
        UserError: a file that holds no expected numbers, or none of these data sets.
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


def compare(results, expected, tolerance=TOLERANCE):
    """Return whether results are as expected, and a report of it.

    A cell that is missing, or further away than the tolerance, is not as expected, and the report names it. Results
    without an expected number are counted, and wrong nothing.

    Args:
        results (list of dict): of `fsa_seg.evaluation.results.read_result`; those that enter no table count as missing.
        expected (dict): of `read_goldens`.
        tolerance (float): in percent points.
    """
    found = _numbers(results)
    differences = {cell: abs(found[cell] - value) for cell, value in expected.items() if cell in found}
    wrong = [cell for cell in expected if not differences.get(cell, math.inf) <= tolerance]
    largest = f'{max(differences.values()):.2f}' if differences else '–'
    lines = [
        f'{row}, {dataset}: expected {expected[row, dataset]:.2f}, found '
        + (f'{found[row, dataset]:.2f}' if (row, dataset) in found else 'none')
        for row, dataset in wrong[:SHOWN]
    ]
    if wrong[SHOWN:]:
        lines.append(f'... and {len(wrong) - SHOWN} more')
    more = len(set(found) - set(expected))
    if more:
        lines.append(f'{more} more cells have no expected number')
    lines.append(f'{len(expected) - len(wrong)} of {len(expected)} as expected, largest difference {largest}')
    return not wrong, '\n'.join(lines)


def _numbers(results):
    """Return (row, data set) -> mIoU of the results that enter a table; NaN where there is none."""
    numbers = {}
    for result, row in zip(results, table_rows(results)):
        if row:
            value = result['metrics']['mIoU']
            numbers[' | '.join(row), result['cell']['dataset']] = math.nan if value is None else value
    return numbers
