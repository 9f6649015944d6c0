"""Report this machine, and check that the suite computes the right values on it.

Run the doctor first on a new machine, and paste its output into a bug report.

    fsa-seg doctor --quick              # under a minute on 2 CPU cores
    fsa-seg doctor                      # minutes: also real sizes, half precision, two precisions' speed
    fsa-seg doctor --only sdpa tf32     # these checks alone

Each check ends as ok, WRONG, or skipped with the reason. The exit status is 1 if a check is WRONG.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence

from fsa_seg.cli.options import place, tool_parser
from fsa_seg.cli.tool import import_hint


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('doctor', __doc__)
    parser.add_argument('--quick', action='store_true', help='leave out the slow parts')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='CHECK',
        help='of packages, gpu, tf32, golden, dense, labels, sync, sdpa, window, processes, bf16 (default: all)',
    )
    parser.add_argument('--out', type=place, metavar='FILE', help='also write the report as JSON')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.errors import one_of
    from fsa_seg.profiling.doctor import CHECKS
    from fsa_seg.system import machine
    from fsa_seg.system.markdown import markdown_table

    names = [one_of(name, CHECKS, 'check') for name in args.only or CHECKS]
    check_out(args.out)
    skipped = [name for name in names if CHECKS[name].quick is None and args.quick and not args.only]
    now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    checks = [CHECKS[name] for name in names if name not in skipped]
    seconds = sum(check.quick if args.quick and check.quick is not None else check.full for check in checks)
    duration = f'{seconds} s' if seconds < 90 else f'{seconds / 60:.0f} min'
    print(f'fsa_seg doctor{" --quick" if args.quick else ""}, {now}; on 2 CPU cores it takes about {duration}\n')
    machine_rows = machine.report()
    print(markdown_table(('machine', ''), machine_rows) + '\n', flush=True)
    verdicts, spent = run_checks(names, skipped, args.quick)
    wrong = [row.check for row in verdicts if row.verdict == 'WRONG']
    summary = f'{len(wrong)} WRONG: {", ".join(wrong)}' if wrong else 'none is WRONG'
    print(f'\n{len(verdicts)} verdicts in {sum(spent.values()):.0f} s, {summary}')
    if args.out:
        rows = [row._asdict() for row in verdicts]
        write_report(args.out, dict(time=now, quick=args.quick, machine=dict(machine_rows), seconds=spent, checks=rows))
    sys.exit(1 if wrong else 0)


def run_checks(names: Sequence[str], skipped: Sequence[str], quick: bool) -> tuple[list, dict[str, float]]:
    """Run checks, and print a table of their verdicts, row by row.

    Args:
        names: the checks, in order.
        skipped: checks that get the verdict 'skipped (--quick)'.
        quick: whether to leave out the slow parts.

    Returns:
        The `Verdict`s, and the seconds of each check by its name.
    """
    from fsa_seg.profiling.doctor import Verdict, run_check
    from fsa_seg.system.markdown import markdown_row, markdown_table

    print(markdown_table(('check', 'verdict', 'detail'), []), flush=True)
    verdicts, spent = [], {}
    for i, name in enumerate(names):
        progress(f'check {i + 1} of {len(names)}: {name}')
        if name in skipped:
            rows, spent[name] = [Verdict(name, 'skipped (--quick)', '')], 0.0
        else:
            rows, spent[name] = run_check(name, quick, import_hint)
        verdicts += rows
        progress('')
        print('\n'.join(map(markdown_row, rows)), flush=True)
    return verdicts, spent


def write_report(path: str, report: dict) -> None:
    """Write the report as JSON."""
    from fsa_seg.system.paths import new_file

    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        json.dump(report, f, indent=1, ensure_ascii=False)


def check_out(path: str | None) -> None:
    """Raise a UserError unless the report can be written to the path; None is no report."""
    from fsa_seg.errors import UserError
    from fsa_seg.system.paths import make_folder

    if path and os.path.isdir(path):
        raise UserError(f'--out {path} is a folder; give the path of a file')
    if path:
        make_folder(os.path.dirname(os.path.abspath(path)))


def progress(text: str) -> None:
    """Show the running check: on a terminal in one line that the next text replaces, else in a line of its own."""
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
