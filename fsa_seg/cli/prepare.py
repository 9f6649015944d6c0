"""Prepare data sets from their publishers' files, and check a data root.

    fsa-seg prepare voc --from DOWNLOADS --to DATA_ROOT
    fsa-seg prepare ade20k --from DOWNLOADS --to DATA_ROOT --download
    fsa-seg prepare --check DATA_ROOT                                # every data set of the data root
    fsa-seg prepare --check DATA_ROOT voc coco

DOWNLOADS are archives, or folders that hold archives or their contents; they are only read. NAME is voc, context, coco,
cityscapes, ade20k, context459, ade20k847 or coco_stuff10k; data/README.md lists the downloads of each. An interrupted
preparation goes on where it ended. Every preparation ends with the check.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from fsa_seg.cli.options import place, tool_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; wrong combinations end the tool with status 2."""
    parser = tool_parser('prepare', __doc__)
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help='data sets; for --check also names of configs/datasets/, or files of data sets',
    )
    parser.add_argument(
        '--from',
        type=place,
        dest='downloads',
        nargs='+',
        metavar='DOWNLOADS',
        help='archives, or folders of archives or files',
    )
    parser.add_argument('--to', type=place, metavar='DATA_ROOT', help='the folder of all data sets')
    parser.add_argument(
        '--download',
        action='store_true',
        help='if a file is missing, fetch the files that need no login into the first of DOWNLOADS',
    )
    parser.add_argument(
        '--images', choices=('val', 'all'), help='val (default) is enough for the suite; all adds the training images'
    )
    parser.add_argument('--link', action='store_true', help='link images of folders in place of copying them')
    parser.add_argument('--workers', type=int, metavar='N', help='processes that convert (default: one per core)')
    parser.add_argument('--check', type=place, metavar='DATA_ROOT', help='check a data root, and prepare nothing')
    parser.add_argument(
        '--out',
        type=place,
        default=os.path.join('work_dirs', 'data_check'),
        metavar='DIR',
        help="folder of the check's report and pictures (default: work_dirs/data_check)",
    )
    args = parser.parse_intermixed_args(argv)
    check_combination(parser, args)
    return args


def check_combination(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the tool with status 2 if the options do not go together."""
    if args.check and (
        args.downloads or args.to or args.download or args.images or args.link or args.workers is not None
    ):
        parser.error('--check takes data sets and --out alone')
    if not args.check and not (args.names and args.downloads and args.to):
        parser.error('give NAME --from DOWNLOADS --to DATA_ROOT, or --check DATA_ROOT')


def main(argv: Sequence[str]) -> None:
    """Prepare data sets and check them, or check a data root alone."""
    args = parse_args(argv)
    from fsa_seg.apps.data_check import dataset_names
    from fsa_seg.datasets.prepare.preparation import prepare
    from fsa_seg.datasets.prepare.preparations import PREPARATIONS
    from fsa_seg.errors import one_of
    from fsa_seg.system.paths import make_folder

    make_folder(args.out)
    if args.check:
        return check(args.check, dataset_names(args.check, args.names), args.out)
    for name in args.names:
        one_of(name, PREPARATIONS, 'data set to prepare')
    for name in args.names:
        workers = os.cpu_count() if args.workers is None else args.workers
        prepare(name, args.downloads, args.to, args.images or 'val', args.link, workers, args.download)
    check(args.to, dataset_names(args.to, args.names), args.out)


def check(root: str, names: Sequence[str], out: str) -> None:
    """Check data sets of a data root, write a report into `out` and print it; problems end the tool with status 1."""
    from fsa_seg.apps.data_check import check_data, report_table
    from fsa_seg.evaluation.results import write_result

    reports = check_data(root, names, os.path.join(out, 'pictures'))
    path = os.path.join(out, 'report.json')
    write_result(reports, path)
    print(f'{report_table(reports)}\n\nreport: {path}\npictures to look at: {os.path.join(out, "pictures")}')
    if any(report['problems'] for report in reports):
        sys.exit(1)
