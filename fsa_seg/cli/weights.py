"""Weights of backbones and VFMs: list them, download them, and check whether the files are whole.

fsa-seg weights list                             # source, size, licence, and whether the weights are here
fsa-seg weights get clip_vit-b16 dino_vit-b8     # download absent weights; a broken connection is resumed
fsa-seg weights check                            # read all local weights, compare known SHA-256
fsa-seg weights positions                        # the effect of the publishers' position embeddings; --trained
"""

import argparse
import sys
from collections.abc import Sequence

from fsa_seg.cli.options import tool_parser
from fsa_seg.errors import UserError


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('weights', __doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='list | get | check | positions')
    commands.add_parser('list', help='every backbone and VFM')
    commands.add_parser('get', help='download').add_argument('names', nargs='+', metavar='NAME')
    commands.add_parser('check', help='read and compare').add_argument(
        'names', nargs='*', metavar='NAME', help='default: all local weights'
    )
    positions = commands.add_parser('positions', help="features under the publishers' rules against timm's")
    positions.add_argument('--trained', action='store_true', help='with the local trained weights, not random weights')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    dict(list=show_list, get=download, check=check_files, positions=compare_positions)[args.command](args)


def show_list(args: argparse.Namespace) -> None:
    """Print a line for each backbone and VFM: size, whether the weights are here, licence, source."""
    from fsa_seg.config.components import all_weights, parameters
    from fsa_seg.models.weights import path_of, size_of

    rows = []
    for weights in all_weights():
        path = path_of(weights)
        size = (
            f'{size_of(path) / 1e6:.0f} MB' if path else f'≈{parameters(weights.kind, weights.name) * 4 / 1e6:.0f} MB'
        )
        rows.append((weights.kind, weights.name, size, 'here' if path else '–', weights.licence, weights.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print('  '.join(value.ljust(width) for value, width in zip(row, widths)).rstrip())
    print('sizes with ≈ are those of float32 parameters; `get` shows the true one')


def download(args: argparse.Namespace) -> None:
    """Download the named weights, and print their paths."""
    from fsa_seg.config.components import find_weights
    from fsa_seg.models.weights import get

    for weights in find_weights(args.names):
        print(f'{weights.kind} {weights.name}: {get(weights)}')


def check_files(args: argparse.Namespace) -> None:
    """Print the state of the named or of all local weights; exit with status 1 if weights are damaged or absent."""
    from fsa_seg.config.components import all_weights, find_weights
    from fsa_seg.models.weights import check, path_of

    failed = False
    for weights in find_weights(args.names) if args.names else all_weights():
        path = path_of(weights)
        if path:
            state, why = check(weights)
        elif args.names:
            state, why = 'absent', f'get it by fsa-seg weights get {weights.name}, or give `checkpoint` in its config'
        else:
            continue
        failed |= state in ('damaged', 'absent')
        print(f'{weights.kind} {weights.name}: {state}{", " + why if why else ""}{" (" + path + ")" if path else ""}')
    if failed:
        sys.exit(1)


def compare_positions(args: argparse.Namespace) -> None:
    """Print how far the publishers' rules for position embeddings move each ViT's features from timm's rule."""
    from fsa_seg.config.components import component_config, component_names, load_component
    from fsa_seg.models.vfm import position_differences
    from fsa_seg.models.weights import path_of, weights_from

    windows = (224, 336, 448)
    parts = [load_component('vfm', name) for name in component_names('vfm')]
    parts = [part for part in parts if part.type == 'TimmViT' and not part.get('toy')]
    if args.trained:
        parts = [part for part in parts if path_of(weights_from('vfm', part))]
        if not parts:
            raise UserError(
                'no trained weights of a ViT are here; get them, such as by fsa-seg weights get dino_vit-b8'
            )
    width = max(len(part.name) for part in parts) + 2
    print(f'{"":{width}}{"rule":8}' + ''.join(f'{window:>8}' for window in windows))
    for part in parts:
        figures = position_differences(component_config(part), windows, None if args.trained else 0)
        print(
            f'{part.name:{width}}{part.get("pos_embed", "offset"):8}' + ''.join(f'{figure:8.4f}' for figure in figures)
        )
