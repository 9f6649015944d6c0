"""What this machine has, and whether the suite computes here what it has to.

Run it first on a new machine, and paste what it prints into a bug report.

    python tools/doctor.py --quick              # under a minute on 2 CPU cores
    python tools/doctor.py                      # minutes: also real sizes, half precision, two precisions' speed
    python tools/doctor.py --only sdpa tf32     # these checks alone

Each check ends as ok, WRONG, or skipped with the reason. The exit status is 1 if one is WRONG.
"""

import argparse
import contextlib
import datetime
import json
import os
import sys
import types
import warnings

from cli import ROOT, import_hint, main_wrapper, place


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='leave out what takes long')
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='CHECK',
        help='of packages, gpu, tf32, golden, dense, labels, sync, sdpa, window, processes, bf16 (default: all)',
    )
    parser.add_argument('--out', type=place, metavar='FILE', help='also write the report as JSON')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from fsa_seg.errors import one_of
    from fsa_seg.profiling.doctor import CHECKS, Verdict, run_check
    from fsa_seg.system import machine
    from fsa_seg.system.paths import new_file

    names = [one_of(name, CHECKS, 'check') for name in args.only or CHECKS]
    check_out(args.out)
    left_out = [name for name in names if CHECKS[name].quick is None and args.quick and not args.only]
    seconds = sum(
        CHECKS[name].quick if args.quick and CHECKS[name].quick is not None else CHECKS[name].full
        for name in names
        if name not in left_out
    )
    now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    print(
        f'fsa_seg doctor{" --quick" if args.quick else ""}, {now}; on 2 CPU cores it takes about '
        f'{f"{seconds} s" if seconds < 90 else f"{seconds / 60:.0f} min"}\n'
    )
    about = machine.report()
    print(table(('machine', ''), about) + '\n', flush=True)
    print(table(('check', 'verdict', 'detail'), []), flush=True)
    verdicts, spent = [], {}
    for i, name in enumerate(names):
        progress(f'check {i + 1} of {len(names)}: {name}')
        rows, spent[name] = (
            ([Verdict(name, 'skipped (--quick)', '')], 0.0)
            if name in left_out
            else run_check(name, args.quick, import_hint)
        )
        verdicts += rows
        progress('')
        print('\n'.join(map(line, rows)), flush=True)
    wrong = [row.check for row in verdicts if row.verdict == 'WRONG']
    print(
        f'\n{len(verdicts)} verdicts in {sum(spent.values()):.0f} s, '
        f'{f"{len(wrong)} WRONG: " + ", ".join(wrong) if wrong else "none is WRONG"}'
    )
    if args.out:
        found = dict(
            time=now, quick=args.quick, machine=dict(about), seconds=spent, checks=[row._asdict() for row in verdicts]
        )
        with new_file(args.out) as part, open(part, 'w', encoding='utf-8') as f:
            json.dump(found, f, indent=1, ensure_ascii=False)
    sys.exit(1 if wrong else 0)


def check_out(path):
    """Raise a UserError unless the file can be written."""
    from fsa_seg.errors import UserError
    from fsa_seg.system.paths import make_folder

    if path and os.path.isdir(path):
        raise UserError(f'--out {path} is a folder; give the path of a file')
    if path:
        make_folder(os.path.dirname(os.path.abspath(path)))


def progress(text):
    """Show on a terminal what runs now, in a line that the next text takes the place of; without one print the line."""
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def table(head, rows):
    """Return a Markdown table."""
    return '\n'.join([line(head), '|---' * len(head) + '|', *map(line, rows)])


def line(row):
    """Return a row of a Markdown table."""
    return '| ' + ' | '.join(cell.replace('|', '/') for cell in row) + ' |'


def allow_a_broken_package():
    """Where a library is missing, let the package's modules be imported apart: the checks then say what is missing."""
    warnings.filterwarnings('ignore', message='Fail to import')
    try:
        with contextlib.redirect_stdout(None):
            import fsa_seg  # noqa: F401
    except Exception:
        package = types.ModuleType('fsa_seg')
        package.__path__ = [os.path.join(ROOT, 'fsa_seg')]
        sys.modules['fsa_seg'] = package


if __name__ == '__main__':
    allow_a_broken_package()
    main_wrapper(main)
