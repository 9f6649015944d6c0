"""Leases: of several processes, on one host or on several, one does a piece of work, and the others wait for it."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from filelock import SoftFileLease, Timeout

from fsa_seg.system.progress import note

DURATION = 60.0  # seconds without a heartbeat that end another host's lease; all processes have to agree on it
PATIENCE = 3.0  # seconds that a process waits in silence
POLL = 0.5  # seconds between two attempts after that: hundreds of processes may ask one file server


class Lease(SoftFileLease):
    """filelock's lease, which takes over an empty file, too.

    A machine that loses its power may leave an empty file, and filelock waits for its owner for ever.
    """

    _empty: tuple[tuple[int, int], float] | None = None  # (inode, time of change), and when it was first seen empty

    def acquire(self, *args: Any, **options: Any) -> Any:
        """Acquire the lease, see filelock."""
        with contextlib.suppress(OSError):
            state, now = os.stat(self.lock_file), time.monotonic()
            key = state.st_ino, state.st_mtime_ns
            if state.st_size or self._empty is None or self._empty[0] != key:
                self._empty = None if state.st_size else (key, now)
            elif now - self._empty[1] >= self.lease_duration:
                os.remove(self.lock_file)
        return super().acquire(*args, **options)


def lease(path: str) -> Lease:
    """Return the lease of a file, not held yet; its folder is made.

    The file appears with the lease, and ends with it. A lease whose owner is gone is free: at once on the owner's host;
    on another host after DURATION without a heartbeat, by the monotonic clock of the process that asks. That process
    has to ask the same object each time.

    Raises:
        OSError: the folder cannot be made.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return Lease(path, lease_duration=DURATION, thread_local=False)


@contextlib.contextmanager
def leased(path: str, work: str) -> Iterator[None]:
    """Hold the lease of a file; wait while another process holds it.

    Where the file cannot be made, the block runs without a lease: several processes may then do the same work.

    Args:
        path: the file.
        work: what the lease's owner does, for the line that a long wait prints, such as 'embeds words'.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            held, waits = lease(path), 0
            while not held.is_locked:
                try:
                    held.acquire(timeout=PATIENCE, **(dict(poll_interval=POLL) if waits else {}))
                except Timeout:
                    if not waits:
                        note(f'waiting for another process that {work} ({path})')
                    waits += 1
            stack.callback(held.release)
        yield
