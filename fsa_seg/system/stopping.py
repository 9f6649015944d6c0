"""SIGTERM, by which a scheduler ends a job: the image in hand ends, its counts are kept, and the job goes on later."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator

CONTINUED = 75  # exit status of a tool that is to be continued: EX_TEMPFAIL of sysexits.h
GOES_ON = 'results already written stay, and the same command goes on from them'
STOPPED = f'stopped by the scheduler: {GOES_ON}'
ONE_REQUEST = 2.0  # seconds: a scheduler's SIGTERM comes to a process, and again from the launcher that it came to


class ToBeContinued(BaseException):
    """The scheduler asked the tool to end; the same command goes on from what is kept."""


_blocks = 0  # `finishing` blocks that are open
_asked_at: float | None = None  # time.monotonic() of the first SIGTERM


@contextlib.contextmanager
def handling() -> Iterator[None]:
    """Handle SIGTERM in a block as `finishing` says; the block forgets an earlier SIGTERM.

    After a SIGTERM, or a ToBeContinued that another process has caused, the handler stays: while the process ends with
    its own status, the launcher's SIGTERM does not end the process with another status.

    Python handles signals in the main thread alone; in another thread the block changes nothing.
    """
    global _blocks, _asked_at
    _blocks, _asked_at = 0, None
    before = None
    with contextlib.suppress(ValueError):
        before = signal.signal(signal.SIGTERM, _handle)
    try:
        yield
    except ToBeContinued:
        _asked_at = _asked_at or time.monotonic()
        raise
    finally:
        if before is not None and not asked():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Let a block end its work: inside, SIGTERM is noted for `check`; outside, SIGTERM raises ToBeContinued at once.

    Blocks may be nested. The end of the outermost block raises nothing by itself.
    """
    global _blocks
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1


def asked() -> bool:
    """Return whether a SIGTERM came."""
    return _asked_at is not None


def check() -> None:
    """Raise ToBeContinued if a SIGTERM came."""
    if asked():
        raise ToBeContinued


def _handle(number, frame):
    """Handle SIGTERM; a second request ends the process at once, since its code may hang."""
    global _asked_at
    if not asked():
        _asked_at = time.monotonic()
        if not _blocks:
            raise ToBeContinued
        # torch's handler raises an error in the image in hand when the scheduler's signal ends a process that loads
        signal.signal(signal.SIGCHLD, lambda *_: None)
    elif time.monotonic() - _asked_at > ONE_REQUEST:
        os._exit(CONTINUED)


def _in_child():
    """Let SIGTERM end a process that was forked, such as one that loads images, at once."""
    if signal.getsignal(signal.SIGTERM) is _handle:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
