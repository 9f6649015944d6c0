"""Segment one picture into the classes on the command line.

fsa-seg segment street.jpg 'car; taxi' road sky --out street.png
fsa-seg segment --mini data/mini/VOCdevkit/VOC2012/JPEGImages/2007_000227.jpg 'cat; kitten' cow wood
fsa-seg segment street.jpg 'car; taxi' road sky --attention 120,80   # FSA at the patch of a pixel
"""

import argparse
from collections.abc import Sequence

from fsa_seg.cli.options import add_model_options, model_options, place, tool_parser

PARTS = ('method', 'feedback', 'backbone', 'vfm', 'protocol', 'precision')  # parts of a cell that apply to a picture


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('segment', __doc__)
    parser.add_argument('image', metavar='IMAGE')
    parser.add_argument('classes', nargs='+', metavar='CLASS', help="a class's words, synonyms separated by ';'")
    add_model_options(parser)
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

    from fsa_seg.apps.segmenter import Segmenter
    from fsa_seg.errors import UserError
    from fsa_seg.visualization.pictures import check_picture, write_picture

    options = model_options(args)
    if args.attention and options.get('feedback', True) is None:
        raise UserError('--attention shows the steps of FSA at a patch: leave out --no-fsa or --feedback none')
    check_picture(args.out, '--out')
    segmenter = Segmenter(**{key: options[key] for key in PARTS if key in options})
    if args.attention:
        segmentation = segmenter.attention(args.image, args.classes, *args.attention, args.prob_thd, args.image_max)
    else:
        segmentation = segmenter.segment(args.image, args.classes, args.prob_thd, image_max=args.image_max)
    write_picture(segmentation.picture, args.out)
    pixels = np.bincount(segmentation.labels.ravel(), minlength=len(args.classes))
    for name, count in zip(args.classes, pixels):
        print(f'{count / pixels.sum():7.1%}  {name}')
    if segmenter.note:
        print(segmenter.note)
    print(f'picture: {args.out}')
