"""Segment one picture into the classes on the command line.

fsa-seg segment street.jpg 'car; taxi' road sky --out street.png
fsa-seg segment --mini data/mini/VOCdevkit/VOC2012/JPEGImages/2007_000227.jpg 'cat; kitten' cow wood
fsa-seg segment street.jpg 'car; taxi' road sky --attention 120,80   # FSA at the patch of a pixel
fsa-seg segment street.jpg 'car; taxi' road sky --labels labels.png --fsa-options lam=2.5 'terms=[WA,W]'
fsa-seg segment --labels labels.png -- street.jpg -x sky             # behind --, a word may begin with -
"""

import argparse
from collections.abc import Sequence
from typing import Any

from fsa_seg.cli.options import SetFSA, add_model_options, add_random_weights, model_options, place, tool_parser

PARTS = ('method', 'feedback', 'backbone', 'vfm', 'protocol', 'precision', 'random_weights')  # that a picture has


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('segment', __doc__)
    parser.add_argument('image', metavar='IMAGE')
    parser.add_argument('classes', nargs='+', metavar='CLASS', help="a class's words, synonyms separated by ';'")
    add_model_options(parser)
    parser.add_argument(
        '--fsa-options',
        nargs='+',
        action=SetFSA,
        default={},
        metavar='KEY=VALUE',
        help='settings of FSA: lam=2.5 p=0.3 scale=10 uniform_scale=35 terms=[WA,W] ...',
    )
    add_random_weights(parser, 'what is found means nothing')
    parser.add_argument('--prob-thd', type=float, default=0.0, help='pixels with a lower score get the first class')
    parser.add_argument(
        '--image-max', type=int, metavar='N', help='the value of white in a 16-bit image (default: 65535)'
    )
    parser.add_argument(
        '--attention',
        metavar='X,Y',
        type=pixel,
        help="draw the patch's rows of A, S before and after pruning, W and Â at this pixel",
    )
    parser.add_argument(
        '--out', type=place, default='segmented.png', metavar='FILE', help='picture (default: segmented.png)'
    )
    parser.add_argument(
        '--labels',
        type=place,
        metavar='FILE.png',
        help='write the class of every pixel, from 0, with a palette (16 bits above 256 classes)',
    )
    parser.add_argument(
        '--scores',
        type=place,
        metavar='FILE.npz',
        help='write the scores (K, height, width) float32 and the classes; memory holds 4 bytes for each pixel and '
        'class: 5 GB for 8000 x 8000 pixels and 20 classes',
    )
    return parser.parse_args(argv)


def pixel(text: str) -> tuple[int, int]:
    """Return the two numbers of 'X,Y'."""
    try:
        x, y = text.split(',')
        return int(x), int(y)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no pixel; give X,Y, such as 150,120') from None


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    import numpy as np

    from fsa_seg.apps.outputs import check_outputs, labels_png, write_scores
    from fsa_seg.apps.segmenter import Segmenter
    from fsa_seg.system.paths import new_file
    from fsa_seg.visualization.pictures import check_picture, write_picture

    options = segmenter_options(args)
    check_picture(args.out, '--out')
    check_outputs(args.image, out=args.out, labels=args.labels, scores=args.scores)
    segmenter = Segmenter(**options)
    if args.attention:
        segmentation = segmenter.attention(args.image, args.classes, *args.attention, args.prob_thd, args.image_max)
    else:
        segmentation = segmenter.segment(
            args.image, args.classes, args.prob_thd, scores=bool(args.scores), image_max=args.image_max
        )
    write_picture(segmentation.picture, args.out)
    if args.labels:
        write_picture(labels_png(segmentation.labels, len(args.classes)), args.labels)
    if args.scores:
        with new_file(args.scores) as part, open(part, 'wb') as file:
            write_scores(file, segmentation.scores, args.classes)
    pixels = np.bincount(segmentation.labels.ravel(), minlength=len(args.classes))
    for name, count in zip(args.classes, pixels):
        print(f'{count / pixels.sum():7.1%}  {name}')
    if segmenter.note:
        print(segmenter.note)
    for name, path in (('picture', args.out), ('labels', args.labels), ('scores', args.scores)):
        if path:
            print(f'{name}: {path}')


def segmenter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Segmenter`; options that contradict each other are a UserError."""
    from fsa_seg.errors import UserError, check_keys, constructor_keys
    from fsa_seg.ops.feedback import FSA

    options = {key: value for key, value in model_options(args).items() if key in PARTS}
    if args.attention and options.get('feedback', True) is None:
        raise UserError('--attention shows the steps of FSA at a patch: leave out --no-fsa or --feedback none')
    if args.attention and args.scores:
        raise UserError('--attention keeps no scores: leave it out, or --scores')
    if args.fsa_options:
        if options.get('feedback', 'fsa') != 'fsa':
            raise UserError('--fsa-options are settings of FSA: leave out --no-fsa, or --feedback other than fsa')
        check_keys(args.fsa_options, constructor_keys(FSA), '--fsa-options')
        options['feedback'] = dict(args.fsa_options)
    return options
