"""Run a suite of cells and print its table; without --suite, all methods with and without FSA on the eight data sets.

    fsa-seg benchmark --mini                          # toy models on the mini splits of the repository
    fsa-seg benchmark --suite paper --data-root /data/seg
    fsa-seg benchmark --suite architectures           # one window each, random weights, no data

A suite is a file of configs/suites/, or any file of the same form. Options take the place of the suite's lists; a
method that the suite names stays in the groups that name it. A cell with a result in WORK_DIR/results does not run
again, so that the same command continues an interrupted benchmark.
"""

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fsa_seg.cli.options import (
    add_data_options,
    add_model_options,
    add_run_options,
    model_options,
    place,
    runtime_options,
    tool_parser,
)

DATA_OPTIONS = (  # a suite on one window has no use for these options
    'datasets',
    'protocol',
    'words',
    'data_root',
    'workers',
    'batch_size',
    'picture',
    'picture_of',
    'window_batch',
    'compile',
    'save_labels',
    'cells_per_pass',
    'golden',
    'write_golden',
    'report',
)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('benchmark', __doc__)
    parser.add_argument(
        '--suite',
        default='methods',
        metavar='S',
        help='methods (default), field, feedback, paper, attention33, ablation, words, architectures, or a file',
    )
    parser.add_argument('--datasets', nargs='+', metavar='D', help="data sets in place of the suite's")
    parser.add_argument('--methods', nargs='+', metavar='M', help="methods in place of the suite's")
    add_model_options(parser, one_method=False)
    add_data_options(parser)
    add_run_options(parser)
    parser.add_argument('--force', action='store_true', help='also run the cells that have a result')
    parser.add_argument(
        '--cells-per-pass',
        type=int,
        metavar='N',
        help='largest number of cells in one pass over the data (default: 32; 1 shares nothing)',
    )
    parser.add_argument('--picture', type=place, metavar='FILE', help='also draw one image under every row')
    parser.add_argument(
        '--picture-of', metavar='D', help='the data set whose first image is drawn (default: the first)'
    )
    parser.add_argument(
        '--golden',
        type=place,
        metavar='FILE',
        help='compare the table with expected numbers (of --datasets, if given); status 1 at a difference',
    )
    parser.add_argument('--report', action='store_true', default=None, help='end with a report in WORK_DIR/report')
    parser.add_argument('--write-golden', type=place, metavar='FILE', help='write the numbers as a file for --golden')
    args = parser.parse_args(argv)
    args.command = shlex.join(['fsa-seg', 'benchmark', *argv])
    return args


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.config.suites import OLD_NAMES, load_suite, suite_cells
    from fsa_seg.errors import UserError

    suite = load_suite(args.suite)
    args.suite = suite.name if args.suite in OLD_NAMES else args.suite
    if 'window' in suite:
        check_window_options(args, suite)
    if args.cells_per_pass is not None and args.cells_per_pass < 1:
        raise UserError(f'--cells-per-pass is {args.cells_per_pass}; it has to be at least 1')
    options = model_options(args)
    lists = {kind: [options.pop(kind)] for kind in ('backbone', 'vfm', 'protocol', 'words') if kind in options}
    if args.feedback is not None:
        lists['feedback'] = options.pop('feedback')
    lists.update({kind: value for kind, value in (('method', args.methods), ('dataset', args.datasets)) if value})
    cells = suite_cells(suite, **lists)
    if args.feedback is not None:
        cells = without_refused(cells)
    if args.fsa is not None:
        feedback = options.pop('feedback')  # of cells without the key
        cells = [{'feedback': feedback, **cell} for cell in cells if bool(cell.get('feedback', args.fsa)) == args.fsa]
        if not cells:
            raise UserError(f'the suite {suite.name} has no cell {"with" if args.fsa else "without"} FSA')
    if 'window' in suite:
        run_windows(args, suite, cells, options)
    else:
        run_data(args, cells, options)


def without_refused(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells but those whose method refuses their feedback, which are named on the console."""
    from fsa_seg.config.components import load_component, load_method
    from fsa_seg.errors import UserError
    from fsa_seg.methods.base import check_feedback
    from fsa_seg.models.segmentor import feedback_class
    from fsa_seg.system.progress import note

    kept, refused = [], {}
    for cell in cells:
        method, feedback = load_method(cell.get('method', 'proxyclip')), cell['feedback']
        try:
            check_feedback(method, feedback_class(feedback and load_component('feedback', feedback)))
            kept.append(cell)
        except UserError as error:
            refused[f'{method.name} + {feedback}'] = error
    if not kept:
        raise next(iter(refused.values()))
    if refused:
        note(f'left out, since the method refuses the feedback: {", ".join(refused)}')
    return kept


def check_window_options(args: argparse.Namespace, suite: Any) -> None:
    """Raise a UserError if an option needs data, which a suite on one window lacks."""
    from fsa_seg.errors import UserError

    unused = [option for option in DATA_OPTIONS if getattr(args, option) is not None]
    if unused:
        raise UserError(
            f'the suite {suite.name} runs on one window, without data: leave out '
            + ', '.join('--' + option.replace('_', '-') for option in unused)
        )


def run_data(args: argparse.Namespace, cells: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
    """Evaluate cells on data sets, and print their table.

    Args:
        cells: kind -> component, see `fsa_seg.config.suites.suite_cells`.
        options: arguments of `compose` for all cells.
    """

    from fsa_seg.cli.report import make_report
    from fsa_seg.config.compose import compose
    from fsa_seg.errors import UserError, one_of
    from fsa_seg.evaluation.goldens import compare, read_goldens, write_goldens
    from fsa_seg.evaluation.passes import picture_of_rows, run_cells
    from fsa_seg.evaluation.results import table
    from fsa_seg.system.paths import check_file, make_folder
    from fsa_seg.system.progress import Bar
    from fsa_seg.visualization.pictures import write_picture

    if any('dataset' not in cell for cell in cells):
        raise UserError(f'the suite {args.suite} names no data set: add --datasets')
    expected = read_goldens(args.golden, args.datasets) if args.golden else None
    check_outputs(args)
    options = dict(options, runtime=runtime_options(args))
    configs = [compose(**cell, **options) for cell in Bar(cells, desc='composing', unit='cell', leave=False)]
    datasets = list(dict.fromkeys(config.cell.dataset for config in configs))
    pictured = one_of(args.picture_of or datasets[0], datasets, 'data set of the picture')
    work_dir = configs[0].work_dir
    check_file(table_path(work_dir, args.suite), 'the table')
    if args.report:
        make_folder(os.path.join(work_dir, 'report'))
    progress = functools.partial(Bar, desc='passes', unit='pass')
    results = run_cells(configs, progress, args.force, args.cells_per_pass or 32)
    finish(table(results, datasets), work_dir, args.suite, 'results')
    if args.picture:
        write_picture(picture_of_rows([config for config in configs if config.cell.dataset == pictured]), args.picture)
        print(f'picture of one image under every row: {args.picture}')
    if args.write_golden:
        write_goldens(results, args.command, args.write_golden)
        print(f'expected numbers: {args.write_golden}')
    if args.report:
        make_report([work_dir], os.path.join(work_dir, 'report'), expected, args.data_root)
    if args.golden:
        right, report = compare(results, *expected)
        print(f'compared with {args.golden}:\n{report}')
        sys.exit(0 if right else 1)


def check_outputs(args: argparse.Namespace) -> None:
    """Raise a UserError if a file that --picture or --write-golden names cannot be written."""
    from fsa_seg.system.paths import check_file
    from fsa_seg.visualization.pictures import check_picture

    if args.write_golden:
        check_file(args.write_golden, '--write-golden')
    if args.picture:
        check_picture(args.picture, '--picture')


def run_windows(
    args: argparse.Namespace, suite: Any, cells: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> None:
    """Run cells on one window with random weights, and print their costs; arguments as of `run_data`."""
    from mmengine.device import get_device

    from fsa_seg.config.runtime import default_runtime
    from fsa_seg.models.segmentor import resolve_precision
    from fsa_seg.profiling.architectures import ArchitectureRuns, architectures_table
    from fsa_seg.system.paths import check_file, make_folder
    from fsa_seg.system.progress import Bar

    work_dir = args.work_dir or default_runtime()['work_dir']
    folder = os.path.join(work_dir, suite.name)
    make_folder(folder)
    check_file(table_path(work_dir, args.suite), 'the table')
    device = get_device()
    runs = ArchitectureRuns(
        suite,
        options.get('random_weights', 0),
        resolve_precision(options.get('precision', 'auto')),
        device,
        folder,
        args.force,
    )
    rows = [runs.row(cell) for cell in Bar(cells, desc='windows', unit='cell')]
    finish(architectures_table(rows, runs.where()), work_dir, args.suite, suite.name)
    failed = sum(row['error'] is not None for row in rows)
    agree = f'{sum("difference" in row for row in rows)} agree with the dense evaluation'
    if runs.precision != 'fp32':
        agree = f'in {runs.precision} no cell is compared with the dense evaluation; --precision fp32 compares'
    print(f'{len(rows)} cells, {failed} failed; {agree}')
    if failed:
        sys.exit(1)


def table_path(work_dir: str, suite: str) -> str:
    """Return the path of a suite's table."""
    name = os.path.splitext(os.path.basename(suite))[0]
    return os.path.join(work_dir, 'table.md' if name == 'methods' else f'table_{name}.md')


def finish(text: str, work_dir: str, suite: str, folder: str) -> None:
    """Write a table and print it; `folder` is the folder of the results below `work_dir`."""
    from fsa_seg.system.paths import new_file

    path = table_path(work_dir, suite)
    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        f.write(text + '\n')
    print(f'\n{text}\n\ntable: {path}\nresults: {os.path.join(work_dir, folder)}')
