"""Measure what the suite costs here: by stage, FSA, shared passes, batches, precision, growth, compilation.

    python tools/measure.py                                                   # every figure of the README's section
    python tools/measure.py --sections stages fsa --backbone clip_vit-l14

Random weights and pixels are used, so that nothing is downloaded. Each section is kept in WORK_DIR/measure as soon as it
is done, and is not measured again by the same sources on the same machine; --force does.
"""

import argparse
import hashlib
import json
import os

from cli import ROOT, main_wrapper, place

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # torch's profiler, which memory is seen by, logs each start and end


def parse_args(argv=None):
    from fsa_seg.profiling.costs import SECTIONS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--sections', nargs='+', metavar='S', help=f'of {", ".join(SECTIONS)} (default: all; throughput on a GPU alone)'
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
    parser.add_argument('--force', action='store_true', help='measure sections again whose figures are there')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmengine.device import get_device
    from tqdm import tqdm

    from fsa_seg.config.fingerprint import versions
    from fsa_seg.errors import UserError, one_of
    from fsa_seg.evaluation.results import write_result
    from fsa_seg.models.segmentor import resolve_precision
    from fsa_seg.profiling.costs import SECTIONS, CostTables, machine, plot_growth, report
    from fsa_seg.system.paths import make_folder, new_file, sources_digest

    names = args.sections or [name for name in SECTIONS if name != 'throughput' or get_device() == 'cuda']
    for name in names:
        one_of(name, SECTIONS, 'section')
    if args.repeats < 1:
        raise UserError(f'--repeats is {args.repeats}; it has to be at least 1')
    device, precision = get_device(), resolve_precision(args.precision)
    where, folder = machine(device, precision), os.path.join(args.work_dir, 'measure')
    make_folder(folder)
    settings = [args.backbone, args.vfm, args.repeats, where, sources_digest(), versions()]

    def path_of(name):
        key = hashlib.sha256(json.dumps([name, *settings]).encode()).hexdigest()[:12]
        return os.path.join(folder, f'{name}_{key}.json')

    with tqdm(total=len(names), desc='sections', unit='section') as bar:
        measurements = CostTables(
            args.backbone,
            args.vfm,
            precision,
            device,
            args.repeats,
            os.path.join(ROOT, 'data', 'mini'),
            step=bar.refresh,
        )
        for name in names:
            bar.set_postfix_str(name)
            if args.force or not os.path.exists(path_of(name)):
                write_result(getattr(measurements, name)(), path_of(name))
            bar.update()
    sections = {}
    for name in SECTIONS:  # also those that were measured before
        if os.path.exists(path_of(name)):
            with open(path_of(name), encoding='utf-8') as f:
                sections[name] = json.load(f)
    models = f'{args.backbone}, {args.vfm}, random weights; medians of up to {args.repeats} runs (least–most). '
    text = report(sections, models + where)
    with new_file(os.path.join(folder, 'measure.md')) as part, open(part, 'w', encoding='utf-8') as f:
        f.write(text + '\n')
    print(f'\n{text}\n\ntables: {os.path.join(folder, "measure.md")}')
    if 'growth' in sections:
        plot_growth(sections['growth'], os.path.join(folder, 'growth.png'))
        print(f'plot: {os.path.join(folder, "growth.png")}')


if __name__ == '__main__':
    main_wrapper(main)
