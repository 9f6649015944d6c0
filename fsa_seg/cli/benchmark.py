"""Run a suite of cells and print its table; without --suite, all methods with and without FSA on the eight data sets.

    fsa-seg benchmark --mini                          # toy models on the mini splits of the repository
    fsa-seg benchmark --suite paper --data-root /data/seg
    fsa-seg benchmark --suite architectures           # one window each, random weights, no data
    fsa-seg benchmark --plan plan.json                # a worker of a plan, see fsa-seg plan

A suite is a file of configs/suites/, or any file of the same form. Options take the place of the suite's lists; a
method that the suite names stays in the groups that name it. A cell with a result in WORK_DIR/results does not run
again, so that the same command continues an interrupted benchmark. The same command on other GPUs or hosts that share
WORK_DIR takes part in the work. The status is 1 if a cell has failed, and 75 after a scheduler's SIGTERM.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fsa_seg.cli.options import add_launcher_option, add_run_options, place, runtime_options, tool_parser
from fsa_seg.cli.suites import add_estimate_options, add_suite_options, data_plan, suite_and_cells

DATA_OPTIONS = (  # a suite on one window has no use for these options
    'datasets',
    'select',
    'protocol',
    'words',
    'data_root',
    'limit',
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
    'shard',
)
PLANNED = (  # options that a plan holds
    'suite',
    'datasets',
    'methods',
    'select',
    'fsa',
    'feedback',
    'backbone',
    'vfm',
    'protocol',
    'precision',
    'mini',
    'words',
    'random_weights',
    'limit',
    'cells_per_pass',
)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('benchmark', __doc__)
    parser.add_argument('--plan', type=place, metavar='FILE', help='run the tasks of a plan that no other worker has')
    add_suite_options(parser)
    add_run_options(parser)
    parser.add_argument('--force', action='store_true', help='also run the cells that have a result')
    parser.add_argument('--keep-going', action='store_true', help='go on after a failure; the status is 1 in the end')
    parser.add_argument('--retry', action='store_true', help='with --plan: run again what has failed')
    parser.add_argument(
        '--shard', metavar='I/N', help='run one of N shares of equal cost, for machines that share no folder'
    )
    parser.add_argument('--task', metavar='NAME', help='with --plan: run this task alone, as a task of a job array')
    parser.add_argument('--dry-run', action='store_true', help='print cells, passes, hours and memory, and end')
    add_estimate_options(parser)
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
    add_launcher_option(parser)
    args = parser.parse_args(argv)
    args.command = shlex.join(['fsa-seg', 'benchmark', *argv])
    if args.plan:
        given = [name for name in PLANNED if getattr(args, name) not in (None, False)]
        gpus = args.gpus != 1 and not args.dry_run
        if given or gpus or args.force:
            given = [f'--{name.replace("_", "-")}' for name in given]
            given += ['--gpus'] * gpus + ['--force'] * args.force
            parser.error(f'--plan says what runs: leave out {", ".join(given)}; fsa-seg plan makes a plan of them')
    elif args.retry or args.task:
        parser.error('--retry and --task go with --plan; without a plan, what has failed runs again by itself')
    return args


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.config.runtime import default_runtime

    work_dir = args.work_dir or default_runtime()['work_dir']
    if args.plan:
        from fsa_seg.sweep.plan import read_plan

        return run_data(args, read_plan(args.plan), work_dir)
    suite, cells, options = suite_and_cells(args)
    if 'window' in suite:
        check_window_options(args, suite)
        run_windows(args, suite, cells, options, work_dir)
    else:
        if args.golden:  # its errors come before the cells'
            from fsa_seg.evaluation.goldens import read_goldens

            read_goldens(args.golden, args.datasets)
        from fsa_seg.models.segmentor import resolve_precision

        options['precision'] = resolve_precision(options.get('precision', 'auto'))
        run_data(args, data_plan(args, cells, options, work_dir), work_dir)


def check_window_options(args: argparse.Namespace, suite: Any) -> None:
    """Raise a UserError if an option needs data, which a suite on one window lacks."""
    from fsa_seg.errors import UserError

    unused = [option for option in DATA_OPTIONS if getattr(args, option) is not None]
    unused += [option for option in ('dry_run', 'keep_going') if getattr(args, option)]
    if unused:
        raise UserError(
            f'the suite {suite.name} runs on one window, without data: leave out '
            + ', '.join('--' + option.replace('_', '-') for option in unused)
        )


def run_data(args: argparse.Namespace, plan: Any, work_dir: str) -> None:
    """Run a plan, and print its table.

    Args:
        args: the arguments.
        plan: a `fsa_seg.sweep.plan.Plan`.
        work_dir: folder of the results.
    """
    from mmengine.dist import is_main_process

    from fsa_seg.errors import UserError
    from fsa_seg.evaluation.goldens import read_goldens
    from fsa_seg.evaluation.ranks import leave_processes, start_processes
    from fsa_seg.sweep.plan import estimate, sharded
    from fsa_seg.sweep.state import failures_text
    from fsa_seg.system.paths import check_file, make_folder

    tasks = sharded(plan.tasks, args.shard)
    if args.dry_run:
        return print(estimate(plan._replace(tasks=tasks), args.rate, work_dir, args.gpus))
    expected = read_goldens(args.golden, args.datasets) if args.golden else None
    check_outputs(args, plan)
    check_file(table_path(work_dir, plan.suite, args.shard), 'the table')
    if args.report:
        make_folder(os.path.join(work_dir, 'report'))
    start_processes(args.launcher)
    worker = make_worker(args, plan, tasks, work_dir)
    if not args.plan:
        worker.check_cells()
    found, results = worker.complete()
    main = is_main_process()
    leave_processes()
    if not main:
        return
    right = True
    if results is not None:
        right = finish_data(args, plan, work_dir, results, expected)
    elif not worker.failures:
        left = 'the task has ended' if args.task else 'no task is left that no worker has'
        print(f'{left}; {found.done} of the {found.cells} cells of the plan are done: fsa-seg status {work_dir}')
    if worker.failures or found.failures and (found.finished or results is not None):
        raise UserError(failures_text(worker.failures or found.failures_by_name(plan)))
    if not right:
        sys.exit(1)


def make_worker(args: argparse.Namespace, plan: Any, tasks: Sequence[Any], work_dir: str) -> Any:
    """Return the worker of the arguments, for tasks of a plan."""
    from fsa_seg.sweep.worker import Worker

    return Worker(
        plan, tasks, work_dir, args.data_root, runtime_options(args), args.keep_going, args.retry, args.force, args.task
    )


def finish_data(
    args: argparse.Namespace, plan: Any, work_dir: str, results: Sequence[Mapping[str, Any]], expected: Any
) -> bool:
    """Print the table of results, and make what the arguments ask for; return whether expected numbers agree.

    Args:
        args, plan: of `run_data`.
        work_dir: folder of the results.
        results: see `fsa_seg.evaluation.results.read_result`.
        expected: of `read_goldens`, or None.
    """
    from fsa_seg.cli.report import make_report
    from fsa_seg.evaluation.goldens import compare, write_goldens
    from fsa_seg.evaluation.passes import picture_of_rows
    from fsa_seg.evaluation.results import table, table_csv
    from fsa_seg.visualization.pictures import write_picture

    datasets = plan.datasets()
    text = table(results, datasets)
    if args.shard:
        text = f'Share {args.shard} alone: {len(results)} of {len(plan.cells)} cells.\n\n{text}'
    path = table_path(work_dir, plan.suite, args.shard)
    finish(text, table_csv(results, datasets), path, os.path.join(work_dir, 'results'))
    if args.picture:
        pictured, configs = args.picture_of or datasets[0], {}
        root = {} if args.data_root is None else dict(data_root=args.data_root)
        for task in plan.tasks:
            if task.dataset == pictured:
                configs.update(zip(task.cells, plan.configs(task, root, runtime_options(args))))
        write_picture(picture_of_rows([configs[i] for i in sorted(configs)]), args.picture)
        print(f'picture of one image under every row: {args.picture}')
    if args.write_golden:
        write_goldens(results, args.command, args.write_golden)
        print(f'expected numbers: {args.write_golden}')
    if args.report:
        make_report([work_dir], os.path.join(work_dir, 'report'), expected, args.data_root)
    if expected is None:
        return True
    right, report = compare(results, *expected)
    print(f'compared with {args.golden}:\n{report}')
    return right


def check_outputs(args: argparse.Namespace, plan: Any) -> None:
    """Raise a UserError if a file that --picture or --write-golden names cannot be written, or no data set is drawn."""
    from fsa_seg.errors import one_of
    from fsa_seg.system.paths import check_file
    from fsa_seg.visualization.pictures import check_picture

    if args.write_golden:
        check_file(args.write_golden, '--write-golden')
    if args.picture:
        check_picture(args.picture, '--picture')
    if args.picture_of:
        one_of(args.picture_of, plan.datasets(), 'data set of the picture')


def run_windows(
    args: argparse.Namespace, suite: Any, cells: Sequence[Mapping[str, Any]], options: Mapping[str, Any], work_dir: str
) -> None:
    """Run cells on one window with random weights, and print their costs.

    Args:
        args: the arguments.
        suite, cells, options: of `suite_and_cells`.
        work_dir: folder of the results.
    """
    from mmengine.device import get_device

    from fsa_seg.models.segmentor import resolve_precision
    from fsa_seg.profiling.architectures import ArchitectureRuns, architectures_table
    from fsa_seg.system.paths import check_file, make_folder
    from fsa_seg.system.progress import Bar

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
    path = table_path(work_dir, args.suite)
    finish(architectures_table(rows, runs.where()), None, path, os.path.join(work_dir, suite.name))
    failed = sum(row['error'] is not None for row in rows)
    agree = f'{sum("difference" in row for row in rows)} agree with the dense evaluation'
    if runs.precision != 'fp32':
        agree = f'in {runs.precision} no cell is compared with the dense evaluation; --precision fp32 compares'
    print(f'{len(rows)} cells, {failed} failed; {agree}')
    if failed:
        sys.exit(1)


def table_path(work_dir: str, suite: str, shard: str | None = None) -> str:
    """Return the path of a suite's table, or of the table of a share I/N."""
    name = os.path.splitext(os.path.basename(suite))[0]
    parts = ['table', *([] if name == 'methods' else [name]), *([shard.replace('/', 'of')] if shard else [])]
    return os.path.join(work_dir, '_'.join(parts) + '.md')


def finish(text: str, rows: str | None, path: str, folder: str) -> None:
    """Write a table as Markdown, and as CSV if there is one, and print it.

    Args:
        text, rows: the table as Markdown and as CSV.
        path: of the Markdown.
        folder: of the results.
    """
    from fsa_seg.system.paths import new_file

    for name, content in ((path, text + '\n'), (os.path.splitext(path)[0] + '.csv', rows)):
        if content is not None:
            with new_file(name) as part, open(part, 'w', encoding='utf-8') as f:
                f.write(content)
    print(f'\n{text}\n\ntable: {path}\nresults: {folder}')
