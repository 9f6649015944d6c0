"""Make a report of result files: tables, intervals, and where each gain comes from. Nothing runs again.

    fsa-seg report work_dirs
    fsa-seg report work_dirs runs/b16 --out report_of_may

The folder of the report gets report.html, a page without other files, and its tables as table.md, table.csv (all
figures unrounded, a row each) and table.tex (booktabs).
"""

import argparse
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fsa_seg.cli.options import place, tool_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('report', __doc__)
    parser.add_argument(
        'results',
        nargs='+',
        type=place,
        metavar='RESULTS',
        help='folders of results (such as work_dirs), or result files',
    )
    parser.add_argument(
        '--out', type=place, metavar='DIR', help='folder of the report (default: report in the first folder)'
    )
    parser.add_argument(
        '--golden',
        type=place,
        metavar='FILE',
        help='compare with expected numbers, not published ones; status 1 at a difference',
    )
    parser.add_argument(
        '--data-root',
        type=place,
        metavar='DIR',
        help='folder of all data sets, for pictures (default: as in the results)',
    )
    parser.add_argument('--title', metavar='TEXT', help='title of the page')
    parser.add_argument(
        '--draws', type=int, default=10_000, metavar='N', help='draws of the intervals (default: 10000)'
    )
    parser.add_argument('--details', type=int, default=120, metavar='N', help='pairs shown in detail (default: 120)')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.errors import UserError
    from fsa_seg.evaluation.goldens import compare, read_goldens

    for option, least in (('draws', 100), ('details', 0)):
        if getattr(args, option) < least:
            raise UserError(f'--{option} is {getattr(args, option)}; it has to be at least {least}')
    expected = read_goldens(args.golden) if args.golden else None
    folder = args.out or default_folder(args.results[0])
    results = make_report(args.results, folder, expected, args.data_root, args.draws, args.details, args.title)
    if expected:
        right, lines = compare(results, *expected)
        print(f'compared with {args.golden}:\n{lines}')
        sys.exit(0 if right else 1)


def make_report(
    places: Sequence[str],
    folder: str,
    expected: tuple[Mapping[tuple[str, str], float], float] | None = None,
    data_root: str | None = None,
    draws: int = 10_000,
    most: int = 120,
    title: str | None = None,
) -> list[dict[str, Any]]:
    """Write the report of results, print its summary, and return the results.

    Args:
        places: folders of results, or result files.
        folder: of the report.
        expected: numbers and their tolerance, see `fsa_seg.evaluation.goldens.read_goldens`; they take the place of
            the published figures.
        data_root: folder of all data sets; None is what the results name.
        draws: of the intervals.
        most: pairs that are shown in detail.
        title: of the page.
    """
    from fsa_seg.evaluation.report.collect import find_results
    from fsa_seg.evaluation.report.gains import add_gains
    from fsa_seg.evaluation.report.page import TITLE, page
    from fsa_seg.evaluation.report.rows import make_tables
    from fsa_seg.evaluation.report.tables import csv_text, markdown, notes, summary, tex
    from fsa_seg.system.paths import make_folder
    from fsa_seg.system.progress import Bar

    found = find_results(places, functools.partial(Bar, desc='results', unit='file', leave=False))
    make_folder(folder)
    tables = make_tables(found.results, *(expected or ()))
    add_gains(tables, draws, progress=functools.partial(Bar, desc='intervals', unit='pair', leave=False))
    bar = functools.partial(Bar, desc='details', unit='pair', leave=False)
    texts = {
        'table.md': markdown(found, tables),
        'table.csv': csv_text(found, tables),
        'table.tex': tex(found, tables),
        'report.html': page(found, tables, draws, data_root, most, title or TITLE, bar),
    }
    write_files(folder, texts)
    for line in [*notes(found, tables), *(summary(table) for table in tables)]:
        print(line)
    print(f'report: {os.path.join(folder, "report.html")} ({", ".join(list(texts)[:3])} beside it)')
    return found.results


def write_files(folder: str, texts: Mapping[str, str]) -> None:
    """Write texts into files of a folder; a file appears when it is complete."""
    from fsa_seg.system.paths import new_file

    for name, text in texts.items():
        with new_file(os.path.join(folder, name)) as part, open(part, 'w', encoding='utf-8') as f:
            f.write(text)


def default_folder(place: str) -> str:
    """Return the folder of the report of a place: `report` in the work_dir."""
    folder = place if os.path.isdir(place) else os.path.dirname(place)
    folder = os.path.normpath(folder or '.')
    return os.path.join(os.path.dirname(folder) if os.path.basename(folder) == 'results' else folder, 'report')
