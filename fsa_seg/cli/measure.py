"""Measure the suite's costs on this machine: by stage, FSA, shared passes, batches, precision, growth, compilation.

    fsa-seg measure                                                   # every figure of docs/performance.md
    fsa-seg measure --sections stages fsa --backbone clip_vit-l14

Weights and pixels are random, so that nothing is downloaded. WORK_DIR/measure keeps each section as soon as the section
is measured. The same sources on the same machine do not measure a section again without --force.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fsa_seg.cli.options import place, tool_parser

if TYPE_CHECKING:
    from fsa_seg.profiling.costs import CostTables

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # torch's profiler, which measures memory, logs each start and end


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = tool_parser('measure', __doc__)
    parser.add_argument(
        '--sections',
        nargs='+',
        metavar='S',
        help='of stages, fsa, methods, whole_image, image_scope, pruning, large, shared_pass, batches, '
        'precision_agreement, growth, compiled, throughput, rates (default: all; throughput on a GPU alone)',
    )
    parser.add_argument(
        '--backbone', default='clip_vit-b16', metavar='B', help='CLIP image tower (default: clip_vit-b16)'
    )
    parser.add_argument(
        '--vfm', default='dino_vit-b8', metavar='V', help='vision foundation model (default: dino_vit-b8)'
    )
    parser.add_argument('--precision', default='auto', metavar='P', help='auto, fp32, fp16 or bf16 (default: auto)')
    parser.add_argument('--repeats', type=int, default=5, metavar='N', help='runs of each function (default: 5)')
    parser.add_argument(
        '--work-dir', type=place, default='work_dirs', metavar='W', help='folder of results (default: work_dirs)'
    )
    parser.add_argument('--force', action='store_true', help='also measure the sections that have figures')
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    from mmengine.device import get_device

    from fsa_seg.config.fingerprint import versions
    from fsa_seg.errors import UserError, one_of
    from fsa_seg.models.segmentor import resolve_precision
    from fsa_seg.profiling.costs import SECTIONS, CostTables, machine
    from fsa_seg.system.paths import find_root, make_folder, sources_digest

    names = args.sections or [name for name in SECTIONS if name != 'throughput' or get_device() == 'cuda']
    for name in names:
        one_of(name, SECTIONS, 'section')
    if args.repeats < 1:
        raise UserError(f'--repeats is {args.repeats}; it has to be at least 1')
    device, precision = get_device(), resolve_precision(args.precision)
    where, folder = machine(device, precision), os.path.join(args.work_dir, 'measure')
    make_folder(folder)
    settings = [args.backbone, args.vfm, args.repeats, where, sources_digest(), versions()]
    paths = {}
    for name in SECTIONS:
        key = hashlib.sha256(json.dumps([name, *settings]).encode()).hexdigest()[:12]
        paths[name] = os.path.join(folder, f'{name}_{key}.json')
    mini = find_root(os.path.join('data', 'mini'))
    measure(
        CostTables(args.backbone, args.vfm, precision, device, args.repeats, mini),
        {name: paths[name] for name in names},
        args.force,
    )
    models = f'{args.backbone}, {args.vfm}, random weights; medians of up to {args.repeats} runs (least–most). '
    write_report(paths, models + where, folder)


def measure(tables: 'CostTables', paths: Mapping[str, str], force: bool) -> None:
    """Measure sections and write their rows, under a bar.

    Args:
        tables: whose methods are the sections.
        paths: section -> file of its rows.
        force: whether to measure sections whose file exists.
    """

    from fsa_seg.evaluation.results import write_result
    from fsa_seg.system.progress import Bar

    with Bar(total=len(paths), desc='sections', unit='section') as bar:
        tables.step = bar.refresh
        for name, path in paths.items():
            bar.set_postfix_str(name)
            if force or not os.path.exists(path):
                write_result(getattr(tables, name)(), path)
            bar.update()


def write_report(paths: Mapping[str, str], where: str, folder: str) -> None:
    """Write and print the tables of all sections that have a file, also of earlier runs; plot the growth.

    Args:
        paths: section -> file of its rows.
        where: a line about models and machine.
        folder: folder of the report.
    """
    from fsa_seg.profiling.costs import plot_growth, report
    from fsa_seg.system.paths import new_file

    sections = {}
    for name, path in paths.items():
        if os.path.exists(path):
            with open(path, encoding='utf-8') as f:
                sections[name] = json.load(f)
    text, path = report(sections, where), os.path.join(folder, 'measure.md')
    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        f.write(text + '\n')
    print(f'\n{text}\n\ntables: {path}')
    if 'growth' in sections:
        plot_growth(sections['growth'], os.path.join(folder, 'growth.png'))
        print(f'plot: {os.path.join(folder, "growth.png")}')
