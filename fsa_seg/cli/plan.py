"""Plan a suite: write its passes, the costliest first, as a file for any number of workers; or print what it costs.

    fsa-seg plan --suite paper --data-root /data/seg --gpus 8 --out paper.json
    fsa-seg plan --suite paper --data-root /data/seg --dry-run
    fsa-seg benchmark --plan paper.json --keep-going          # a worker; start as many as there are GPUs

A pass is the cells that share trunk, VFMs and windows. Hours come from the rates that finished tasks and `fsa-seg
measure --sections rates` have left in WORK_DIR, or from --rate.
"""

import argparse
import os
import shlex
from collections.abc import Sequence

from fsa_seg.cli.options import place, tool_parser
from fsa_seg.cli.suites import add_estimate_options, add_suite_options, data_plan, suite_and_cells


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('plan', __doc__)
    add_suite_options(parser)
    add_estimate_options(parser)
    parser.add_argument('--dry-run', action='store_true', help='write no file')
    parser.add_argument('--out', type=place, metavar='FILE', help='the plan (default: WORK_DIR/plan_SUITE.json)')
    parser.add_argument('--work-dir', type=place, metavar='W', help='folder of results and measured rates')
    args = parser.parse_args(argv)
    args.command = shlex.join(['fsa-seg', 'plan', *argv])
    return args


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.config.runtime import default_runtime
    from fsa_seg.errors import UserError
    from fsa_seg.sweep.plan import estimate, write_plan
    from fsa_seg.system.paths import check_file

    suite, cells, options = suite_and_cells(args)
    if 'window' in suite:
        raise UserError(f'the suite {suite.name} runs on one window, without data: fsa-seg benchmark runs it as it is')
    work_dir = args.work_dir or default_runtime()['work_dir']
    name = os.path.splitext(os.path.basename(args.suite))[0]
    path = args.out or os.path.join(work_dir, f'plan_{name}.json')
    if not args.dry_run:
        check_file(path, '--out')
    plan = data_plan(args, cells, options, work_dir)
    print(estimate(plan, args.rate, work_dir, args.gpus))
    if not args.dry_run:
        write_plan(plan, path)
        print(f'plan: {path}')
