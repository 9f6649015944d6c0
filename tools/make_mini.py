"""Make data/mini again from a seed: the mini splits, the toy CLIP and the toy VFM.

    python tools/make_mini.py                # splits and models
    python tools/make_mini.py splits         # the images and labels alone, seconds
    python tools/make_mini.py clip vfm       # the models alone

Training takes about an hour on two cores and shows its progress. A second start goes on from the last checkpoint.
data/mini/README.md describes the outcome.
"""

import argparse
import os
import sys
from collections.abc import Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(1, ROOT)
from fsa_seg.cli.tool import run_tool  # noqa: E402

PARTS = ('splits', 'clip', 'vfm')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='splits|clip|vfm', help='the parts to make (default: all)')
    parser.add_argument(
        '--out', default=os.path.join(ROOT, 'data', 'mini'), metavar='DIR', help='folder of the splits and models'
    )
    parser.add_argument('--work-dir', default=os.path.join(ROOT, 'work_dirs', 'mini'), metavar='W', help='checkpoints')
    parser.add_argument('--steps', type=int, metavar='N', help='steps of training in place of the full number; 0: none')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from toy_world.splits import benchmark_words, draw_splits
    from toy_world.train import train_clip, train_vfm
    from toy_world.world import EXTRA_WORDS, World
    from tqdm import tqdm

    from fsa_seg.errors import one_of

    parts = [one_of(name, PARTS, 'part') for name in args.parts] or PARTS
    words = benchmark_words()
    world = World([word for groups in words.values() for group in groups for word in group] + EXTRA_WORDS)
    print(f'{len(world.words)} words, {len(world.concepts)} concepts')
    if 'splits' in parts:
        draw_splits(world, words, args.out, lambda items: tqdm(items, desc='mini splits'))
    options = {} if args.steps is None else dict(steps=args.steps)
    if 'clip' in parts:
        train_clip(world, os.path.join(args.out, 'models', 'toy_clip'), args.work_dir, **options)
    if 'vfm' in parts:
        train_vfm(world, os.path.join(args.out, 'models', 'toy_vfm'), args.work_dir, **options)


if __name__ == '__main__':
    run_tool(lambda: main(sys.argv[1:]))
