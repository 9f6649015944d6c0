"""The options that choose the cells of a suite, for the tools that plan and run it."""

import argparse
from collections.abc import Sequence
from typing import Any

from fsa_seg.cli.options import add_data_options, add_model_options, model_options


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose cells, and how many of them share a pass."""
    parser.add_argument(
        '--suite',
        metavar='S',
        help='methods (default), field, feedback, paper, attention33, ablation, words, architectures, or a file',
    )
    parser.add_argument('--datasets', nargs='+', metavar='D', help="data sets in place of the suite's")
    parser.add_argument('--methods', nargs='+', metavar='M', help="methods in place of the suite's")
    parser.add_argument(
        '--select',
        metavar='TEXT',
        help="cells whose names agree: 'method=sclip,dataset=voc*|context*'; 'feedback=none' for the bare methods",
    )
    add_model_options(parser, one_method=False)
    add_data_options(parser)
    parser.add_argument(
        '--limit', type=int, metavar='N', help='evaluate seeded subsets; the results are marked, and enter no table'
    )
    parser.add_argument(
        '--cells-per-pass',
        type=int,
        metavar='N',
        help='largest number of cells in one pass over the data (default: 32; 1 shares nothing)',
    )


def add_estimate_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of estimates."""
    parser.add_argument(
        '--rate',
        action='append',
        default=[],
        metavar='DEVICE=TFLOPS',
        help='speed of a device in TFLOP/s, such as A100=90, for estimates (default: as measured in WORK_DIR)',
    )
    parser.add_argument(
        '--gpus', type=int, default=1, metavar='N', help='GPUs that will run the plan: long passes are split by images'
    )


def suite_and_cells(args: argparse.Namespace) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Return the suite of the arguments, its cells, and the arguments of `compose` that all cells share.

    Raises:
        UserError: the suite is unknown, or no cell is left.
    """
    from fsa_seg.config.suites import OLD_NAMES, load_suite, suite_cells
    from fsa_seg.errors import UserError

    args.suite = args.suite or 'methods'
    suite = load_suite(args.suite)
    args.suite = suite.name if args.suite in OLD_NAMES else args.suite
    for name in ('cells_per_pass', 'limit'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f'--{name.replace("_", "-")} is {getattr(args, name)}; it has to be at least 1')
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
    if args.limit is not None:
        options['limit'] = args.limit
    return suite, cells, options


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


def data_plan(args: argparse.Namespace, cells: Sequence[dict[str, Any]], options: dict[str, Any], work_dir: str) -> Any:
    """Return the plan of cells on data sets.

    Args:
        args: of `add_suite_options` and `add_estimate_options`, with the `command`.
        cells, options: of `suite_and_cells`.
        work_dir: folder that may hold measured rates.
    """
    from fsa_seg.errors import UserError
    from fsa_seg.sweep.plan import ASSUMED_RATE, MOST_CELLS, known_rates, make_plan

    if any('dataset' not in cell for cell in cells):
        raise UserError(f'the suite {args.suite} names no data set: add --datasets')
    if args.gpus < 1:
        raise UserError(f'--gpus is {args.gpus}; it has to be at least 1')
    most = args.cells_per_pass or MOST_CELLS
    known = known_rates(args.rate, work_dir)
    gpus = [each for each in known if not each.device.startswith('cpu')]  # a login node's CPU runs no pass
    rate = (gpus or known)[0].flops_per_second if gpus or known and args.gpus == 1 else ASSUMED_RATE
    return make_plan(args.suite, args.command, cells, options, most, args.gpus, args.select, rate)
