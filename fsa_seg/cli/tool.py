"""Run a tool: an error becomes one message, an interrupt one line, and freed memory is kept or given back."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from fsa_seg.errors import UserError, last_words, one_line, reason
from fsa_seg.evaluation import ranks
from fsa_seg.system import stopping
from fsa_seg.system.paths import FULL

INTERRUPTED = 130  # exit status


def run_tool(main: Callable[[], object], keep: bool = True) -> None:
    """Run a tool. An error that a user can mend ends with one message and status 1, an interrupt with one line and 130.

    A scheduler's SIGTERM ends the tool with one line and status 75.

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
        with stopping.handling(), ranks.losses_named():
            _run(main)
    except BaseException as error:
        # libraries turn an interrupt into errors of their own while they are imported
        if interrupts or isinstance(error, KeyboardInterrupt):
            print(f'interrupted: {stopping.GOES_ON}', file=sys.stderr)
            sys.exit(INTERRUPTED)
        if stopping.asked() or isinstance(error, stopping.ToBeContinued):  # of this process, or of another one
            _say_stopped()
            sys.exit(stopping.CONTINUED)
        if 'FSA_SEG_ERROR_FILE' in os.environ and isinstance(error, Exception):
            last_words(one_line(error))  # below the traceback
        raise
    finally:
        _on_interrupt(before)


def _on_interrupt(handler):
    """Set the handler of SIGINT, and return the earlier handler; outside the main thread nothing happens."""
    with contextlib.suppress(ValueError):
        return signal.signal(signal.SIGINT, handler)


def _run(main):
    """Run a tool's main function, and exit with one message after an error that a user can mend."""
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except ImportError as error:  # libraries are imported when they are used
        if os.environ.get('FSA_SEG_TRACEBACK'):
            raise
        _fail(f'{error}{import_hint(error)}; fsa-seg doctor tells what else is missing')
    except UserError as error:
        if os.environ.get('FSA_SEG_TRACEBACK'):
            raise
        _fail(reason(error))
    except OSError as error:
        if error.errno not in FULL:
            raise
        _fail(
            f'{error.filename or "a file"} cannot be written: {error.strerror}; '
            'make room, and run the same command again'
        )


def _fail(message):
    """Exit with status 1 and a message, unless the error comes of the scheduler's signal."""
    stopping.check()
    if 'FSA_SEG_ERROR_FILE' not in os.environ:
        sys.exit(f'error: {message}')  # printed in the end, and not where `run_tool` prints another line
    last_words(message)
    sys.exit(1)


def _say_stopped():
    """Print that the scheduler has stopped the tool; of several processes the launcher or the first process prints."""
    if 'FSA_SEG_ERROR_FILE' not in os.environ and os.environ.get('RANK', '0') == '0':
        print(stopping.STOPPED, file=sys.stderr)


def import_hint(error: BaseException) -> str:
    """Return how to mend an ImportError, as a text behind the error's message; an empty text for another error."""
    if not isinstance(error, ImportError):
        return ''
    if 'libGL' in str(error) or 'libgthread' in str(error):
        return ': OpenCV needs libGL; install it (Debian, Ubuntu: apt-get install libgl1 libglib2.0-0)'
    return ': install the requirements (pip install -e . in a clone; tools/quickstart.sh does it)'


def leave() -> NoReturn:
    """End the process of a finished tool with status 0, without unloading its libraries.

    Unloading CUDA's libraries, which come with torch, first reads 110 MiB of them into memory.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def set_memory(keep: bool) -> None:
    """Have glibc keep all freed blocks for the next ones, or give each of 1 MiB and more back at once.

    To keep blocks saves the time to get them anew: in two pairs of runs of the section `stages` of fsa-seg measure an
    image took 2 and 7 % less. It costs memory, since blocks differ in size.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        mallopt(-3, 2**30 if keep else 2**20)  # M_MMAP_THRESHOLD
        if keep:
            mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
