"""What the command-line tools share: options, and errors as one line."""

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import sys
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
INTERRUPTED = 130  # exit status
MINI = dict(data_root='data/mini', backbone='toy', vfm='toy')


def place(text):
    """Return a path given as an option; an empty one is an error of the parser."""
    if not text.strip():
        raise argparse.ArgumentTypeError('is empty; name a file or folder')
    return text


def options_action():
    """Return the parser's action of --cfg-options: KEY=VALUE pairs as a dict."""
    from mmengine.config import DictAction

    class Options(DictAction):
        def __call__(self, parser, namespace, values, option_string=None):
            for text in values:
                if '=' not in text or not text.split('=')[0].strip('.'):
                    parser.error(f'{option_string}: {text!r} is not KEY=VALUE, such as model.stride=56')
            try:
                super().__call__(parser, namespace, values, option_string)
            except Exception as error:  # what does not parse: an open bracket
                parser.error(f'{option_string}: {" ".join(values)} cannot be read ({error}); write lists as [a,b]')

    return Options


def add_model_options(parser, one_method=True):
    """Add the options that choose a cell's parts."""
    if one_method:
        parser.add_argument('--method', metavar='M', help='attention and readout (default: proxyclip)')
    parser.add_argument('--fsa', action='store_true', default=None, help='FSA feedback on (default)')
    parser.add_argument('--no-fsa', dest='fsa', action='store_false', help='the bare method')
    parser.add_argument('--backbone', metavar='B', help='CLIP image tower (default: clip_vit-b16)')
    parser.add_argument('--vfm', metavar='V', help='vision foundation model (default: dino_vit-b8)')
    parser.add_argument('--protocol', metavar='own|NAME', help="evaluation settings (default: own, the publication's)")
    parser.add_argument('--precision', metavar='P', help='auto, fp32, fp16 or bf16 (default: auto)')
    parser.add_argument('--mini', action='store_true', help='the toy models on the mini splits that ship with the code')


def add_data_options(parser):
    """Add the options of a cell that a single picture does not have."""
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
        help='random weights in place of trained ones; the result is marked, and enters no table',
    )


def model_options(args):
    """Return the given ones of the model's and data's options, as arguments of `fsa_seg.config.compose`."""
    names = ('method', 'backbone', 'vfm', 'protocol', 'data_root', 'precision', 'words', 'random_weights')
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    if getattr(args, 'fsa', None) is not None:
        given['feedback'] = 'fsa' if args.fsa else None
    return {**(MINI if args.mini else {}), **given}


def add_run_options(parser):
    """Add the options that do not change what is computed (batches and compilation move its rounding)."""
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


def runtime_options(args):
    """Return the given ones of `add_run_options`, as entries of configs/runtime.py."""
    names = ('work_dir', 'workers', 'batch_size', 'window_batch', 'compile')
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given.get('window_batch', '').isdecimal():
        given['window_batch'] = int(given['window_batch'])
    return {**(dict(workers=0, log_interval=5) if args.mini else {}), **given}


def main_wrapper(main, keep=True):
    """Run a tool: an error that a user can mend ends it with one message and status 1, an interrupt with one line and 130.

    Args:
        main (function): the tool.
        keep (bool): whether freed memory is kept for the next image, or given back, see `set_memory`.
    """
    warnings.filterwarnings('ignore', message='Fail to import')
    logging.raiseExceptions = False  # a log that cannot be written ends nothing
    set_memory(keep)
    interrupts = []

    def interrupt(number, frame):
        interrupts.append(number)
        if len(interrupts) > 1:  # what waits for the first one does not end
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
    """Have SIGINT handled by a function, and return what handled it before; only a main thread can."""
    with contextlib.suppress(ValueError):
        return signal.signal(signal.SIGINT, handler)


def _run(main):
    """Run a tool's main function, and exit with one message where it raises what a user can mend."""
    try:
        with contextlib.redirect_stdout(None):  # mmseg prints a debugging line when it is imported
            from fsa_seg.errors import UserError
    except ImportError as error:
        _fail(f'{error}{import_hint(error)}; python tools/doctor.py tells what else is missing')
    try:
        main()
    except UserError as error:
        if os.environ.get('FSA_SEG_TRACEBACK'):
            raise
        # one that a data loader's process raised comes with its traceback before the message
        _fail(str(error).rsplit('UserError: ', 1)[-1].strip())
    except OSError as error:
        from fsa_seg.system.paths import FULL

        if error.errno not in FULL:
            raise
        _fail(
            f'{error.filename or "a file"} cannot be written: {error.strerror}; make room, and run the same command again'
        )


def _fail(message):
    """Exit with status 1 and a message; of several processes, the first to fail leaves the message for their launcher."""
    path = os.environ.get('FSA_SEG_ERROR_FILE')
    if not path:
        sys.exit(f'error: {message}')
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as f:
        f.write(f'error: {message}')
    sys.exit(1)


def import_hint(error):
    """Return what mends an ImportError, as text that goes behind its message; nothing for another error."""
    if not isinstance(error, ImportError):
        return ''
    if 'libGL' in str(error) or 'libgthread' in str(error):
        return ': OpenCV needs libGL; install it (Debian, Ubuntu: apt-get install libgl1 libglib2.0-0)'
    return ': install the requirements first (tools/quickstart.sh does)'


def leave():
    """End the process of a tool that is done, with status 0, without unloading its libraries.

    To unload CUDA's libraries, which come with torch, brings 110 MiB of them into memory, without any use.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def set_memory(keep):
    """Have glibc keep all freed blocks for the next ones, or give each of 1 MiB and more back at once.

    To get large blocks anew costs much of the time on a CPU; to keep them costs memory, since they differ in size.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(-3, 2**30 if keep else 2**20)  # M_MMAP_THRESHOLD
        if keep:
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
