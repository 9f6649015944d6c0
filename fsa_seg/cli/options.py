"""The options that several tools have in common. Heavy libraries load when an option is used, not with the parser."""

import argparse
import difflib
import os
from typing import Any, NoReturn

from fsa_seg.errors import one_line
from fsa_seg.evaluation.ranks import RANK_VARIABLES
from fsa_seg.system.paths import MINI

RAW = argparse.RawDescriptionHelpFormatter


def tool_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of a tool, without options.

    Args:
        name: the tool's name behind `fsa-seg`.
        text: the help text above the options, printed as it stands.
    """
    return ToolParser(f'fsa-seg {name}', description=text, formatter_class=RAW, allow_abbrev=False)


class ToolParser(argparse.ArgumentParser):
    """A parser whose error is one line, with the option that is nearest to an unknown option."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and end with status 2."""
        if message.startswith('unrecognized arguments: -'):
            option = message.split()[2].split('=')[0]
            nearest = difflib.get_close_matches(option, self._option_string_actions, 1, 0.5)
            message = f'unknown option {option}' + (f' (did you mean {nearest[0]}?)' if nearest else '')
        self.exit(2, f'{self.prog}: error: {message}; {self.prog} --help lists the options\n')


def place(text: str) -> str:
    """Return the path that an option names; an empty path is an error of the parser."""
    if not text.strip():
        raise argparse.ArgumentTypeError('is empty; name a file or folder')
    return text


class SetEntries(argparse.Action):
    """Reads the KEY=VALUE pairs of --cfg-options into a dict, by mmengine's rules; `example` is such a pair."""

    example = 'model.stride=56'

    def __call__(self, parser, namespace, values, option_string=None):
        """Add the pairs to the dict that earlier options of this name have made."""
        for text in values:
            if '=' not in text or not text.split('=')[0].strip('.'):
                parser.error(f'{option_string}: {text!r} is not KEY=VALUE, such as {self.example}')
        from mmengine.config import DictAction

        try:
            DictAction(self.option_strings, self.dest, nargs='+')(parser, namespace, values, option_string)
        except Exception as error:  # DictAction raises various errors, such as for an open bracket
            text = f'{" ".join(values)} cannot be read ({one_line(error)})'
            parser.error(f'{option_string}: {text}; write lists as [a,b]')


class SetFSA(SetEntries):
    """Reads the KEY=VALUE pairs of --fsa-options."""

    example = 'lam=2.5'


def add_model_options(parser: argparse.ArgumentParser, one_method: bool = True) -> None:
    """Add the options that choose a cell's parts; `one_method` tells whether --method is an option."""
    if one_method:
        parser.add_argument(
            '--method', metavar='M', help='name or file of a method (default: proxyclip); HOST+STAGE: proxyclip+lposs'
        )
        parser.add_argument(
            '--regions',
            type=place,
            metavar='R',
            help='region maps of corrclip: vfm (default), sam2, mask2former, or a folder with a PNG for each image',
        )
    feedback = parser.add_mutually_exclusive_group()
    feedback.add_argument(
        '--fsa',
        action='store_true',
        default=None,
        help='FSA feedback on (default)' if one_method else "of the suite's cells those with a feedback",
    )
    feedback.add_argument('--no-fsa', dest='fsa', action='store_false', help='the bare method')
    if one_method:
        feedback.add_argument('--feedback', metavar='F', help='name or file of a feedback: fsa, sfr, sfr+fsa')
    else:
        feedback.add_argument(
            '--feedback', nargs='+', metavar='F', help="feedbacks in place of the suite's: none, fsa, sfr, sfr+fsa"
        )
    parser.add_argument('--backbone', metavar='B', help='CLIP image tower (default: clip_vit-b16)')
    parser.add_argument(
        '--vfm',
        metavar='V',
        help='VFM (default: the published one); of several roles: role=name,...; NAME@image sees the whole image',
    )
    parser.add_argument('--protocol', metavar='own|NAME', help="evaluation settings (default: own, the publication's)")
    parser.add_argument('--precision', metavar='P', help='auto, fp32, fp16 or bf16 (default: auto)')
    parser.add_argument('--mini', action='store_true', help='the toy models on the mini splits that ship with the code')


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a cell on a data set."""
    parser.add_argument('--data-root', type=place, metavar='DIR', help='folder of all data sets (default: data)')
    parser.add_argument(
        '--words',
        type=place,
        metavar='NAME|FILE',
        help="class words in place of the protocol's: those of the protocol NAME; the plain class names (names); or a "
        "file, a line per class, synonyms by ';'",
    )
    add_random_weights(parser, 'the result is marked, and enters no table')


def add_random_weights(parser: argparse.ArgumentParser, worth: str) -> None:
    """Add the option of random weights; `worth` says in its help what a result is worth."""
    parser.add_argument(
        '--random-weights', type=int, metavar='SEED', help=f'random weights in place of trained weights; {worth}'
    )


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model's and data's options on the command line, as arguments of `fsa_seg.config.compose`."""
    names = ('method', 'backbone', 'vfm', 'protocol', 'data_root', 'precision', 'words', 'random_weights')
    options = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if getattr(args, 'fsa', None) is not None:
        options['feedback'] = 'fsa' if args.fsa else None
    elif getattr(args, 'feedback', None) is not None:
        names = [args.feedback] if isinstance(args.feedback, str) else args.feedback
        feedbacks = [None if name == 'none' else name for name in names]
        options['feedback'] = feedbacks[0] if isinstance(args.feedback, str) else feedbacks
    if getattr(args, 'regions', None):
        source = dict(type='files', folder=args.regions) if os.path.isdir(args.regions) else dict(type=args.regions)
        options['method'] = dict(type=options.get('method', 'corrclip'), regions=source)
    return {**(MINI if args.mini else {}), **options}


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that change no number; batches and compilation may move the last digits."""
    parser.add_argument('--work-dir', type=place, metavar='W', help='folder of results and logs (default: work_dirs)')
    parser.add_argument(
        '--workers', type=int, metavar='N', help='processes that load images (default: the cores, at most 4; mini: 0)'
    )
    parser.add_argument(
        '--batch-size', type=int, metavar='N', help='images per step and process (default: 1, on a GPU 8)'
    )
    parser.add_argument(
        '--window-batch',
        metavar='N',
        help="windows at once, of a step's images (default: auto, by free memory; on a CPU 1)",
    )
    parser.add_argument('--compile', action='store_true', default=None, help='torch.compile for trunk and VFM')
    parser.add_argument(
        '--save-labels',
        action='store_true',
        default=None,
        help='write the predicted labels of every image as PNG, into WORK_DIR/labels/...',
    )
    parser.add_argument('--verbose', action='store_true', help='the whole log on the console, too')


def add_launcher_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names what started this process as one of several."""
    parser.add_argument(
        '--launcher',
        choices=['none', *RANK_VARIABLES],
        default='none',
        help='what started this process as one of several: torchrun (pytorch), srun (slurm) or mpirun (mpi)',
    )
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def runtime_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_run_options` on the command line, as entries of configs/runtime.py."""
    names = ('work_dir', 'workers', 'batch_size', 'window_batch', 'compile', 'save_labels')
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if options.get('window_batch', '').isdecimal():
        options['window_batch'] = int(options['window_batch'])
    level = dict(log_level='INFO') if args.verbose else {}
    return {**(dict(workers=0, log_interval=5) if args.mini else {}), **level, **options}
