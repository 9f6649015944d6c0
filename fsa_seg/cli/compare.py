"""Compare two results: figures, the interval of their difference, the classes that moved most, and all that differs.

    fsa-seg compare before.json after.json
    fsa-seg compare expected.json work_dirs/results/voc21_....json --within 0.1    # status 1 beyond 0.1 mIoU

The interval is of B − A, by draws of the images, if both results have the same images. The fingerprint lists what can
change a number; every entry that differs is printed with its level.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fsa_seg.cli.options import place, tool_parser

MOST = 10  # classes that are named
LONGEST = 60  # characters of a value
ABSENT = object()
ROUNDING = 1e-9  # so that 38.1 and 38.2 are within 0.1


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('compare', __doc__)
    parser.add_argument('before', type=place, metavar='A.json', help='a result file')
    parser.add_argument('after', type=place, metavar='B.json', help='another result file')
    parser.add_argument(
        '--within', type=float, metavar='X', help='end with status 1 if mIoU differs by more than X percent points'
    )
    parser.add_argument('--draws', type=int, default=10_000, metavar='N', help='draws of the interval (default: 10000)')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.errors import UserError
    from fsa_seg.evaluation.report.collect import light
    from fsa_seg.evaluation.report.gains import incomparable

    if args.within is not None and not 0 <= args.within < math.inf:
        raise UserError(f'--within is {args.within}; it has to be at least 0')
    if args.draws < 100:
        raise UserError(f'--draws is {args.draws}; it has to be at least 100')
    results = [light(path) for path in (args.before, args.after)]
    print_heads(results)
    problem = incomparable(*results)
    print_figures(results, problem)
    print(f'no interval: {problem}' if problem else interval(results, args.draws))
    if not problem:
        print_classes(results)
    print_fingerprints(results)
    if args.within is not None:
        check_within(results, args.within, problem)


def print_heads(results: Sequence[Mapping[str, Any]]) -> None:
    """Print what each result is."""
    from fsa_seg.evaluation.report.collect import WORTHS, worth
    from fsa_seg.evaluation.report.tables import models_and_settings, plain

    for letter, result in zip('AB', results):
        cell = result['cell']
        text = f'{letter}: {result["flat"]["row"]} on {cell["dataset"]} ({models_and_settings(cell)})'
        print(
            f'{plain(text)}\n   {plain(result["path"])}'
            + ('' if worth(result) == 'full' else f'\n   {WORTHS[worth(result)]}')
        )


def print_figures(results: Sequence[Mapping[str, Any]], problem: str | None) -> None:
    """Print the figures, and their differences unless there is a problem."""
    from fsa_seg.evaluation.report.tables import figure, signed
    from fsa_seg.evaluation.results import FIGURES

    print(f'\n{"":6}{"A":>9}{"B":>9}{"B − A":>9}')
    for key in FIGURES:
        before, after = (result['metrics'][key] for result in results)
        difference = None if problem or None in (before, after) else after - before
        print(f'{key:6}{figure(before, 2):>9}{figure(after, 2):>9}{signed(difference, 2):>9}')


def interval(results: Sequence[Mapping[str, Any]], draws: int) -> str:
    """Return the interval of the difference in words."""
    from fsa_seg.evaluation.report.gains import FEW_IMAGES, LEAST, result_draws
    from fsa_seg.evaluation.report.statistics import OUTSIDE, PERCENT, gain
    from fsa_seg.evaluation.report.tables import signed

    if results[0]['flat']['images'] < LEAST:
        return f'no interval: {FEW_IMAGES}'
    before, after = (result_draws(result, draws) for result in results)
    found = gain(before, after, results[1]['metrics']['mIoU'] - results[0]['metrics']['mIoU'])
    return (
        f'{PERCENT} interval of B − A in mIoU: {signed(found.low, 2)} to {signed(found.high, 2)}, '
        f'positive in {100 * found.positive:.1f} % of {draws:,} draws of the images'
        + (f'; {OUTSIDE}' if found.outside else '')
    )


def print_classes(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the classes whose IoU moved most."""
    from fsa_seg.evaluation.report.tables import figure, plain, signed

    rows = []
    for before, after in zip(*(result['classes'] for result in results)):
        pair = before['IoU'], after['IoU']
        moved = abs(pair[1] - pair[0]) if None not in pair else math.inf if pair[0] != pair[1] else 0
        rows.append((moved, plain(after['name']), *pair))
    rows = sorted((row for row in rows if row[0]), key=lambda row: -row[0])
    print(f'\nclasses whose IoU moved most, of {len(rows)} that moved' if rows else '\nno class moved')
    width = max((len(row[1]) for row in rows[:MOST]), default=0)
    for _, name, before, after in rows[:MOST]:
        difference = None if None in (before, after) else after - before
        print(f'  {name:{width}}{figure(before, 2):>9}{figure(after, 2):>9}{signed(difference, 2):>9}')


def print_fingerprints(results: Sequence[Mapping[str, Any]]) -> None:
    """Print every entry of the fingerprints that differs, with its level."""
    from fsa_seg.config.fingerprint import LEVELS, Entry
    from fsa_seg.evaluation.report.tables import plain

    weights = [
        [Entry(f'loaded weights of {key}', value, 'source') for key, value in sorted(result.get('weights', {}).items())]
        for result in results
    ]
    entries = [
        {(entry[2], entry[0]): entry[1] for entry in [*result['fingerprint'], *more]}
        for result, more in zip(results, weights)
    ]
    keys = sorted(
        {*entries[0], *entries[1]}, key=lambda key: (LEVELS.index(key[0]) if key[0] in LEVELS else len(LEVELS), key[1])
    )
    rows = [
        (*key, *(value_text(part, key) for part in entries))
        for key in keys
        if entries[0].get(key, ABSENT) != entries[1].get(key, ABSENT)
    ]
    if not rows:
        print('\nthe fingerprints are equal')
        return
    print(f'\n{len(rows)} of {len(keys)} entries of the fingerprints differ')
    width = max(len(row[1]) for row in rows)
    for level, key, before, after in rows:
        print(f'  {plain(level):9} {plain(key):{width}}  {plain(before)} → {plain(after)}')


def value_text(entries: Mapping[tuple[str, str], Any], key: tuple[str, str]) -> str:
    """Return an entry's value as text; a long value is cut, and has its digest."""
    from fsa_seg.config.fingerprint import shown

    if key not in entries:
        return 'absent'
    text = json.dumps(entries[key], ensure_ascii=False)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}... ({shown("digest", entries[key])})'


def check_within(results: Sequence[Mapping[str, Any]], most: float, problem: str | None) -> None:
    """End with status 1 unless the mIoU of two results agrees within `most`.

    Args:
        most: in percent points.
        problem: why the results cannot be compared, or None.
    """
    if problem:
        print(f'\nnot within {most:g}: {problem}')
        sys.exit(1)
    difference = abs(results[1]['metrics']['mIoU'] - results[0]['metrics']['mIoU'])
    within = difference <= most + ROUNDING
    print(f'\n{"within" if within else "not within"} {most:g}: mIoU differs by {difference:.4f}')
    if not within:
        sys.exit(1)
