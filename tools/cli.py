"""The common parts of the command-line tools: options, and errors as one line."""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
INTERRUPTED = 130  # exit status
MINI = dict(data_root='data/mini', backbone='toy', vfm='toy')


def place(text: str) -> str:
    """Return the path that an option names; an empty path is an error of the parser."""
    if not text.strip():
        raise argparse.ArgumentTypeError('is empty; name a file or folder')
    return text


def options_action() -> type[argparse.Action]:
    """Return the parser's action of --cfg-options, which reads KEY=VALUE pairs into a dict."""
    from mmengine.config import DictAction

    class Options(DictAction):
        def __call__(self, parser, namespace, values, option_string=None):
            for text in values:
                if '=' not in text or not text.split('=')[0].strip('.'):
                    parser.error(f'{option_string}: {text!r} is not KEY=VALUE, such as model.stride=56')
            try:
                super().__call__(parser, namespace, values, option_string)
            except Exception as error:  # DictAction raises various errors, such as for an open bracket
                parser.error(f'{option_string}: {" ".join(values)} cannot be read ({error}); write lists as [a,b]')

    return Options


def add_model_options(parser: argparse.ArgumentParser, one_method: bool = True) -> None:
    """Add the options that choose a cell's parts; `one_method` tells whether --method is an option."""
    if one_method:
        parser.add_argument('--method', metavar='M', help='name or file of a method (default: proxyclip)')
    parser.add_argument('--fsa', action='store_true', default=None, help='FSA feedback on (default)')
    parser.add_argument('--no-fsa', dest='fsa', action='store_false', help='the bare method')
    parser.add_argument('--backbone', metavar='B', help='CLIP image tower (default: clip_vit-b16)')
    parser.add_argument('--vfm', metavar='V', help='VFM (default: dino_vit-b8); of several roles: role=name,role=name')
    parser.add_argument('--protocol', metavar='own|NAME', help="evaluation settings (default: own, the publication's)")
    parser.add_argument('--precision', metavar='P', help='auto, fp32, fp16 or bf16 (default: auto)')
    parser.add_argument('--mini', action='store_true', help='the toy models on the mini splits that ship with the code')


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a cell on a data set."""
    parser.add_argument('--data-root', type=place, metavar='DIR', help='folder of all data sets (default: data)')
    parser.add_argument(
        '--words',
        type=place,
        metavar='FILE',
        help="class words in place of the protocol's: a line per class, synonyms by ';'",
    )
    parser.add_argument(
        '--random-weights',
        type=int,
        metavar='SEED',
        help='random weights in place of trained weights; the result is marked, and enters no table',
    )


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model's and data's options on the command line, as arguments of `fsa_seg.config.compose`."""
    names = ('method', 'backbone', 'vfm', 'protocol', 'data_root', 'precision', 'words', 'random_weights')
    options = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if getattr(args, 'fsa', None) is not None:
        options['feedback'] = 'fsa' if args.fsa else None
    return {**(MINI if args.mini else {}), **options}


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that change no number; batches and compilation may move the last digits."""
    parser.add_argument('--work-dir', type=place, metavar='W', help='folder of results and logs (default: work_dirs)')
    parser.add_argument('--workers', type=int, metavar='N', help='processes that load images (default: 4, mini: 0)')
    parser.add_argument(
        '--batch-size', type=int, metavar='N', help='images per step and process (default: 1, on a GPU 8)'
    )
    parser.add_argument(
        '--window-batch',
        metavar='N',
        help="windows at once, of a step's images (default: auto, by free memory; on a CPU 1)",
    )
    parser.add_argument('--compile', action='store_true', default=None, help='torch.compile for trunk and VFM')


def runtime_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_run_options` on the command line, as entries of configs/runtime.py."""
    names = ('work_dir', 'workers', 'batch_size', 'window_batch', 'compile')
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    if options.get('window_batch', '').isdecimal():
        options['window_batch'] = int(options['window_batch'])
    return {**(dict(workers=0, log_interval=5) if args.mini else {}), **options}


def main_wrapper(main: Callable[[], object], keep: bool = True) -> None:
    """Run a tool. An error that a user can mend ends with one message and status 1, an interrupt with one line and 130.

    Args:
        main: the tool.
        keep: whether to keep freed memory for the next image, or to give it back, see `set_memory`.
    """
    warnings.filterwarnings('ignore', message='Fail to import')
    logging.raiseExceptions = False  # a failure to write a log does not end the tool
    set_memory(keep)
    interrupts = []

    def interrupt(number, frame):
        interrupts.append(number)
        if len(interrupts) > 1:  # the code that handles the first interrupt may hang
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    before = _on_interrupt(interrupt)
    try:
        _run(main)
    except BaseException as error:
        if not interrupts and not isinstance(error, KeyboardInterrupt):
            raise
        # libraries turn an interrupt into errors of their own while they are imported
        print('interrupted: results already written stay, and the same command goes on from them', file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        _on_interrupt(before)


def _on_interrupt(handler):
    """Set the handler of SIGINT, and return the earlier handler; outside the main thread nothing happens."""
    with contextlib.suppress(ValueError):
        return signal.signal(signal.SIGINT, handler)


def _run(main):
    """Run a tool's main function, and exit with one message after an error that a user can mend."""
    from fsa_seg.errors import UserError

    try:
        main()
    except ImportError as error:  # libraries are imported when they are used
        if os.environ.get('FSA_SEG_TRACEBACK'):
            raise
        _fail(f'{error}{import_hint(error)}; python tools/doctor.py tells what else is missing')
    except UserError as error:
        if os.environ.get('FSA_SEG_TRACEBACK'):
            raise
        # an error of a data loader's process has a traceback before its message
        _fail(str(error).rsplit('UserError: ', 1)[-1].strip())
    except OSError as error:
        from fsa_seg.system.paths import FULL

        if error.errno not in FULL:
            raise
        _fail(
            f'{error.filename or "a file"} cannot be written: {error.strerror}; '
            'make room, and run the same command again'
        )


def _fail(message):
    """Exit with status 1 and a message; under a launcher, the first process to fail writes the message to a file."""
    path = os.environ.get('FSA_SEG_ERROR_FILE')
    if not path:
        sys.exit(f'error: {message}')
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as f:
        f.write(f'error: {message}')
    sys.exit(1)


def import_hint(error: BaseException) -> str:
    """Return how to mend an ImportError, as a text behind the error's message; an empty text for another error."""
    if not isinstance(error, ImportError):
        return ''
    if 'libGL' in str(error) or 'libgthread' in str(error):
        return ': OpenCV needs libGL; install it (Debian, Ubuntu: apt-get install libgl1 libglib2.0-0)'
    return ': install the requirements first (tools/quickstart.sh does)'


def leave() -> NoReturn:
    """End the process of a finished tool with status 0, without unloading its libraries.

    Unloading CUDA's libraries, which come with torch, first reads 110 MiB of them into memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def set_memory(keep):
    """Have glibc keep all freed blocks for the next ones, or give each of 1 MiB and more back at once.

    To keep blocks saves the time to get them anew: in two pairs of runs of the section `stages` of tools/measure.py an
    image took 2 and 7 % less. It costs memory, since blocks differ in size.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(-3, 2**30 if keep else 2**20)  # M_MMAP_THRESHOLD
        if keep:
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
