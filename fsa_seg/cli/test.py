"""Evaluate one cell of the table: a method, with or without FSA, on one data set.

    fsa-seg test configs/datasets/voc21.py --method sclip --no-fsa
    fsa-seg test voc21 --mini
    fsa-seg test --images DIR --labels DIR --classes FILE     # data of your own

CONFIG is a data set (its name or file), or a result or config of an earlier run, which runs again unchanged. The tool
writes one JSON file. The same command continues an interrupted run.
"""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsa_seg.cli.options import (
    SetEntries,
    add_data_options,
    add_launcher_option,
    add_model_options,
    add_run_options,
    model_options,
    place,
    runtime_options,
    tool_parser,
)
from fsa_seg.evaluation.ranks import leave_processes, start_processes

if TYPE_CHECKING:
    from mmengine import Config


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('test', __doc__)
    parser.add_argument(
        'config', metavar='CONFIG', nargs='?', help='a data set (name or file), or a saved result or config'
    )
    add_folder_options(parser)
    add_model_options(parser)
    add_data_options(parser)
    parser.add_argument('--limit', type=int, metavar='N', help='evaluate a seeded subset; the result is marked partial')
    add_run_options(parser)
    parser.add_argument('--out', type=place, metavar='FILE', help='result file (default: WORK_DIR/results/...)')
    parser.add_argument(
        '--show-dir', type=place, metavar='DIR', help='folder of pictures: image, truth and prediction of every image'
    )
    parser.add_argument(
        '--allow-modules',
        nargs='+',
        default=[],
        metavar='MODULE',
        help='your own modules that a saved result may import',
    )
    parser.add_argument(
        '--export', type=place, metavar='FILE.py', help="write the config for mmsegmentation's tools, and end"
    )
    add_launcher_option(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SetEntries,
        default={},
        metavar='KEY=VALUE',
        help='set entries of the composed config, such as model.stride=56',
    )
    args = parser.parse_args(argv)
    check_folder_options(parser, args)
    return args


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that take the place of CONFIG: a data set in folders."""
    parser.add_argument('--images', type=place, metavar='DIR', help='in place of CONFIG: a folder of images')
    parser.add_argument(
        '--labels', type=place, metavar='DIR', help='with --images: a folder of label images with the same names'
    )
    parser.add_argument(
        '--classes',
        type=place,
        metavar='FILE',
        help="with --images: the class names, a line per label from 0, synonyms by ';'",
    )
    parser.add_argument(
        '--reduce-zero-label', action='store_true', help='with --images: label 0 is void, and the first class is 1'
    )
    parser.add_argument(
        '--ignore-index', type=int, metavar='N', help='with --images: the label of void (default: 255, or 65535)'
    )
    parser.add_argument(
        '--label-map',
        metavar='MAP',
        help='with --images: numbers in the label images and their labels, such as 255:1,7:0, '
        'or a file of lines "255 1"',
    )
    parser.add_argument(
        '--image-max', type=int, metavar='N', help='with --images: the value of white in 16-bit images (default: 65535)'
    )


def check_folder_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with the parser's error unless the arguments hold either CONFIG or a complete data set in folders."""
    folders = [args.images, args.labels, args.classes]
    if not (args.config or all(folders)) or args.config and (any(folders) or args.reduce_zero_label):
        parser.error('give CONFIG, or --images, --labels and --classes')
    for name in ('ignore_index', 'label_map', 'image_max'):
        if args.config and getattr(args, name) is not None:
            parser.error(
                f'--{name.replace("_", "-")} goes with --images, --labels and --classes; a config of a data '
                f'set has the key {name}'
            )


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from fsa_seg.errors import UserError
    from fsa_seg.evaluation.passes import check_out, prepare, result_path, run_cell
    from fsa_seg.evaluation.results import row_name, settings_text, toy_note
    from fsa_seg.system.paths import make_folder

    if args.export and not args.export.endswith('.py'):
        raise UserError(f'--export {args.export}: the name has to end in .py')
    start_processes(args.launcher)
    config = build_config(args)
    if args.export:
        return export(config, args.export)
    cell = prepare(config)
    path = args.out or result_path(cell)
    make_folder(config.work_dir)
    if args.out:
        check_out(args.out, cell)
    result = run_cell(cell, path)
    leave_processes()
    if result is None:
        return
    names = result['cell']
    figures = '  '.join(f'{key} {"–" if value is None else f"{value:.2f}"}' for key, value in result['metrics'].items())
    print(f'{row_name(names)} on {names["dataset"]} ({settings_text(names)}): {figures}')
    if note := toy_note(names):
        print(note)
    if names.get('random_weights') is not None:
        print(f'random weights of seed {names["random_weights"]}: it enters no table')
    if result['partial']:
        print(f'partial: {len(result["images"])} images; it enters no table')
    if labels := result.get('labels'):
        print(f'labels: {os.path.normpath(os.path.join(os.path.dirname(path), labels))}')
    print(f'result: {path}')


def export(config: 'Config', path: str) -> None:
    """Write a composed config for mmsegmentation's tools, and print how it is run."""
    from fsa_seg.config.export import export_config
    from fsa_seg.evaluation.results import row_name

    cell = config.cell
    checkpoint = export_config(config, path, f'{row_name(cell)} on {cell.dataset} ({cell.protocol})')
    print(f'config: {path}\nclass names, no weights: {checkpoint}\nits first lines say how it is run')


def build_config(args: argparse.Namespace) -> 'Config':
    """Return the complete config of the arguments."""
    from fsa_seg.config.components import load_file
    from fsa_seg.config.compose import compose, is_complete, merge_options, set_runtime
    from fsa_seg.config.export import mark_changes
    from fsa_seg.datasets.data_sets import folder_dataset
    from fsa_seg.datasets.label_images import read_label_map
    from fsa_seg.errors import UserError
    from fsa_seg.system.paths import make_folder

    options = model_options(args)
    label_map = None if args.label_map is None else read_label_map(args.label_map)
    dataset = args.config or folder_dataset(
        args.images,
        args.labels,
        args.classes,
        reduce_zero_label=args.reduce_zero_label,
        ignore_index=args.ignore_index,
        label_map=label_map,
        image_max=args.image_max,
    )
    config = load_file(args.config, args.allow_modules) if args.config and os.path.isfile(args.config) else {}
    if is_complete(config):
        mark_changes(config)
        options.update({} if args.limit is None else dict(limit=args.limit))
        if options:
            raise UserError(
                f'{args.config} is a complete config, which says by itself what runs: leave out what sets '
                f'{", ".join(sorted(options))}. --cfg-options changes entries of its model and data set'
            )
        set_runtime(config, runtime_options(args))
    else:
        config = compose(dataset, **options, limit=args.limit, runtime=runtime_options(args))
    config.launcher = args.launcher
    if args.show_dir:
        make_folder(args.show_dir)
        config.merge_from_dict(dict(default_hooks=dict(pictures=dict(type='SideBySideHook', folder=args.show_dir))))
    merge_options(config, args.cfg_options)
    return config
