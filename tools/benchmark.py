"""Run many cells and print their table: methods with and without FSA on data sets.

    python tools/benchmark.py --mini                          # everything that runs on what the repository ships
    python tools/benchmark.py --datasets voc21 ade20k --methods sclip proxyclip

Cells whose result is in WORK_DIR/results are not run again, so an interrupted benchmark goes on where it was.
"""
import argparse
import os

from cli import add_data_options, add_model_options, add_run_options, main_wrapper, model_options, runtime_options


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--datasets', nargs='+', metavar='D', help='default: all eight')
    parser.add_argument('--methods', nargs='+', metavar='M', help='default: clip maskclip sclip clearclip proxyclip')
    add_model_options(parser, one_method=False)
    add_data_options(parser)
    add_run_options(parser)
    parser.add_argument('--force', action='store_true', help='run cells again whose result is there')
    parser.add_argument('--picture', metavar='FILE', help='also draw one image under every row')
    parser.add_argument('--picture-of', metavar='D', help='the data set whose first image is drawn (default: the first)')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from tqdm import tqdm

    from fsa_seg.benchmark import DATASET_NAMES, METHOD_NAMES, default_cells, picture_of_rows, run_cells
    from fsa_seg.errors import one_of
    from fsa_seg.results import table
    from fsa_seg.visualization import write_picture
    datasets, methods = args.datasets or DATASET_NAMES, args.methods or METHOD_NAMES
    feedbacks = (None, 'fsa') if args.fsa is None else ('fsa', ) if args.fsa else (None, )
    runtime = dict(runtime_options(args), log_level='ERROR')
    options = {key: value for key, value in model_options(args).items() if key != 'feedback'}
    configs = default_cells(datasets, methods, feedbacks, runtime=runtime, **options)
    datasets = list(dict.fromkeys(config.cell.dataset for config in configs))
    shown = one_of(args.picture_of or datasets[0], datasets, 'data set of the picture')
    work_dir = configs[0].work_dir
    results = run_cells(configs, lambda cells: tqdm(cells, desc='cells', unit='cell'), args.force)
    text = table(results, datasets)
    path = os.path.join(work_dir, 'table.md')
    with open(path, 'w', encoding='utf-8') as f:
        f.write(text + '\n')
    print(f'\n{text}\n\ntable: {path}\nresults: {os.path.join(work_dir, "results")}')
    if args.picture:
        write_picture(picture_of_rows([config for config in configs if config.cell.dataset == shown]), args.picture)
        print(f'picture of one image under every row: {args.picture}')


if __name__ == '__main__':
    main_wrapper(main)
