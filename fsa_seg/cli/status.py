"""Show how far plans are: cells done, running and failed, images per second, time left, and why cells have failed.

    fsa-seg status work_dirs          # from any host that sees the folder

The status is 1 if a cell has failed.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from fsa_seg.cli.options import place, tool_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('status', __doc__)
    parser.add_argument(
        'work_dir', type=place, nargs='?', metavar='WORK_DIR', help='folder of results (default: work_dirs)'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.config.runtime import default_runtime
    from fsa_seg.errors import UserError
    from fsa_seg.sweep.state import plans_in, progress, status_text

    work_dir = args.work_dir or default_runtime()['work_dir']
    plans = plans_in(work_dir)
    if not os.path.isdir(work_dir):
        raise UserError(
            f'{work_dir} is no folder, and holds no plan that has been started; give the --work-dir of a run'
        )
    if not plans:
        raise UserError(
            f'{work_dir} holds no plan that has been started; fsa-seg benchmark --work-dir {work_dir} starts one'
        )
    found = {folder: progress(plan, folder) for folder, plan in plans.items()}
    print('\n\n'.join(status_text(plan, folder, found[folder]) for folder, plan in plans.items()))
    sys.exit(1 if any(each.failures for each in found.values()) else 0)
