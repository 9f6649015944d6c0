"""The processes of one run, a process per GPU: their group, a watch over the processes, and flags between them.

The launcher (torchrun, srun or mpirun) starts the processes; the rank of a process is its number. Collectives wait for
every process, and for a lost process they wait for hours. The watch therefore ends each process within `LIMIT` seconds
after another process is lost: killed, frozen, or on a machine that is gone.
"""

import atexit
import contextlib
import itertools
import math
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from fsa_seg.errors import UserError, last_words
from fsa_seg.system import stopping

RANK_VARIABLES = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)
LIMIT = 60.0  # seconds without a sign of life after which a process is lost; FSA_SEG_RANK_LIMIT takes its place
BEATS = 12  # signs of life in LIMIT
START_LIMIT = timedelta(minutes=30)  # in which all processes have to join
GROUP_LIMIT = timedelta(hours=2)  # of a collective: the main process may check the data so long
DONE = b'done'
PARENT = os.getppid()  # read early: the launcher may be gone before the process joins

_watch: 'Watch | None' = None
_flags: dict[str, str] = {}  # of a process without a group


def start_processes(launcher: str) -> None:
    """Join the process group, with NCCL on GPUs and gloo without a GPU, and watch over the other processes.

    The tool calls `leave_processes` when its work is done. A process that ends without that call is lost to the others.

    Args:
        launcher: a key of RANK_VARIABLES; 'none' for a single process, which joins nothing.

    Raises:
        UserError: the launcher's variables are not set, the machine has too few GPUs, or a process did not start.
    """
    global _watch
    _flags.clear()
    if launcher == 'none':
        return
    import torch

    rank, size, local_rank = _rank(launcher)
    limit = _limit()
    gpus = torch.cuda.device_count()
    if gpus and local_rank >= gpus:
        raise UserError(
            f'process {local_rank} of this machine has no GPU: it has {gpus}; start at most as many processes'
        )
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ and shutil.which('scontrol'):
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']], capture_output=True, text=True, check=True
        ).stdout.split()
        os.environ['MASTER_ADDR'] = hosts[0]
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    os.environ.setdefault('MASTER_PORT', '29500')
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    if gpus:
        torch.cuda.set_device(local_rank)
    # a process that a user starts by hand, in a shell that may be left, has no launcher
    launched = launcher != 'pytorch' or 'TORCHELASTIC_RUN_ID' in os.environ
    _watch = Watch(rank, size, limit, PARENT if launched else None)
    atexit.register(leave_processes, done=False)
    store = _rendezvous(rank, size)
    torch.distributed.init_process_group(
        'nccl' if gpus else 'gloo', store=store, rank=rank, world_size=size, timeout=GROUP_LIMIT
    )
    _watch.join()


def _rank(launcher):
    """Return the rank, the number of processes, and the rank among this machine's processes."""
    missing = [name for name in RANK_VARIABLES[launcher] if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher}: {", ".join(missing)} is not set; start it by torchrun -m fsa_seg test '
            '(pytorch; in a clone tools/dist_test.sh), srun (slurm; tools/slurm_test.sh) or mpirun (mpi)'
        )
    return tuple(int(os.environ[name]) for name in RANK_VARIABLES[launcher])


def _limit():
    """Return the seconds after which a silent process is lost."""
    text = os.environ.get('FSA_SEG_RANK_LIMIT', LIMIT)
    with contextlib.suppress(ValueError):
        if 1 <= float(text) < math.inf:
            return float(text)
    raise UserError(f'FSA_SEG_RANK_LIMIT is {text!r}; it has to be a number of seconds, at least 1')


def _rendezvous(rank, size):
    """Wait until all processes are there, and return torch's store for their group."""
    import torch

    try:
        store, *_ = next(torch.distributed.rendezvous('env://', rank, size, timeout=START_LIMIT))
    except torch.distributed.DistError as error:
        raise UserError(
            f'the {size} processes did not meet at {os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]} '
            f'({" ".join(str(error).split())[:200]}); let all start within {START_LIMIT}, and name a free port'
        ) from None
    return store


def leave_processes(done: bool = True) -> None:
    """Leave the process group, if the process is in one.

    The group is left before Python ends, since a thread of gloo that frees a tensor later aborts the process. The
    threads need the interpreter to free their last tensors. `destroy_process_group` holds the interpreter while it
    waits for the threads (seen with torch 2.4), so that the threads first get half a second.

    Args:
        done: whether the work is done. The other processes then do not miss this process, and the main process, which
            may keep the store, leaves last.
    """
    global _watch
    if _watch is None:
        return
    import torch

    watch, _watch = _watch, None
    if done:
        watch.say_done()
    watch.stop()
    if torch.distributed.is_initialized():
        time.sleep(0.5)
        torch.distributed.destroy_process_group()


def raise_flag(name: str, text: str) -> None:
    """Raise a flag that all processes see; a flag that is raised keeps its first text."""
    if _watch is None:
        _flags.setdefault(name, text)
        return
    with losses_named():
        _watch.store.compare_set(f'{_watch.prefix}flag/{name}', '', text)


def flag(name: str) -> str | None:
    """Return the text of a flag, or None while no process has raised the flag; the call waits for no process."""
    if _watch is None:
        return _flags.get(name)
    key = f'{_watch.prefix}flag/{name}'
    with losses_named():
        return _watch.store.get(key).decode() if _watch.store.check([key]) else None


def agree(value: Any) -> list:
    """Return the values of all processes, in the order of their ranks; every process has to call the function.

    Args:
        value: of this process; JSON can hold the value.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    with losses_named():
        torch.distributed.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], Any]) -> Any:
    """Return what a function returns on the main process, on all processes; every process has to call `on_main`.

    Raises:
        UserError: of the function, on all processes.
    """
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return function()
    outcome = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome = [function(), None]
        except UserError as error:
            outcome = [None, error]
    with losses_named():
        torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise _shared(outcome[1])
    return outcome[0]


def on_all(function: Callable[[], Any]) -> Any:
    """Return what a function returns on this process; an error on one process is raised on all processes.

    Raises:
        UserError: of the function, or the first error on another process.
    """
    value, failure = None, None
    try:
        value = function()
    except UserError as error:
        failure = error
    found = agree(failure and str(failure))
    if failure is not None:
        raise _shared(failure)
    other = next((rank for rank, text in enumerate(found) if text), None)
    if other is not None:
        raise _shared(UserError(f'process {other}: {found[other]}'))
    return value


def _shared(error: UserError) -> UserError:
    """Mark an error that every process raises."""
    error.shared = True
    return error


def check_shared(error: UserError) -> None:
    """Raise an error again unless every process raises it, and may go on after it.

    A process that went on alone would meet the other processes in another collective, and all would hang.
    """
    import torch

    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and torch.distributed.get_world_size() > 1 and not getattr(error, 'shared', False):
        raise error


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Let the watch name the lost process, and end this process, where a block fails for want of another process.

    Without a watch, and for any other error, the block changes nothing.

    Raises:
        ToBeContinued: the scheduler asks this process to end, too.
    """
    try:
        yield
    except Exception as error:
        if _watch is not None and _is_loss(error):
            deadline = time.monotonic() + 2 * _watch.limit
            while time.monotonic() < deadline:  # the watch ends the process
                stopping.check()
                time.sleep(0.1)
        raise


def _is_loss(error):
    """Return whether an error says that the connection to a process is lost."""
    import torch

    return isinstance(error, torch.distributed.DistError) or isinstance(error, RuntimeError) and 'gloo' in str(error)


class Watch:
    """Looks after the processes of a run from threads of its own, and ends this process when another process is lost.

    Each process counts in an entry of torch's store, and reads the others' counts. The clock is the reader's own, and
    the time in which the reader itself stood still counts for little. The store is reached by a connection of its own:
    the group's connection is locked while the main thread waits.

    Args:
        rank: number of this process.
        size: number of processes.
        limit: seconds of silence after which a process is lost.
        parent: process id of the launcher, with which this process ends; None for a process without a launcher.
    """

    def __init__(self, rank: int, size: int, limit: float, parent: int | None):
        self.rank, self.limit, self.parent = rank, limit, parent
        self.beat = limit / BEATS
        self.prefix = f'fsa_seg/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}/'
        self.store: Any = None
        self._name = f'(host {socket.gethostname()}, pid {os.getpid()})'
        self._missing = {other: 0.0 for other in range(size) if other != rank}  # not done: seconds of silence
        self._values = dict.fromkeys(self._missing, b'')  # what each process has last written
        self._unanswered = 0.0  # seconds since the store answered
        self._done, self._writing, self._stopped = False, threading.Lock(), threading.Event()
        self._exchanges = threading.Thread(target=self._exchange, daemon=True)
        self._looks = threading.Thread(target=self._look, daemon=True)
        self._looks.start()

    def join(self) -> None:
        """Connect to the store, and begin to watch over the other processes; all processes are there."""
        from torch.distributed import TCPStore

        host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
        self.store = TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=self.limit)
        )
        self._exchanges.start()

    def say_done(self) -> None:
        """Tell the others that this process is done; rank 0 then waits for the others."""
        with losses_named(), self._writing:
            self._done = True
            self.store.set(f'{self.prefix}{self.rank}', DONE)
        while self.rank == 0 and self._missing:
            time.sleep(0.05)

    def stop(self) -> None:
        """End the threads: a thread that is in torch's code when Python ends aborts the process."""
        self._stopped.set()
        for thread in (self._exchanges, self._looks):
            if thread.is_alive():
                thread.join(2)

    def _exchange(self):
        """Write this process's count and read the others', until the store is gone; `_look` then ends the process."""
        last = time.monotonic()
        with contextlib.suppress(Exception):
            for count in itertools.count():
                with self._writing:
                    if not self._done:
                        self.store.set(f'{self.prefix}{self.rank}', f'{count} {self._name}')
                now = time.monotonic()
                self._read(min(now - last, 2 * self.beat))
                last, self._unanswered = now, 0.0
                if self._stopped.wait(self.beat):
                    return

    def _read(self, passed):
        """Read the others' counts; a process whose count stands is silent for `passed` more seconds."""
        keys = {other: f'{self.prefix}{other}' for other in self._missing}
        there = [other for other in keys if self._values[other] or self.store.check([keys[other]])]
        values = dict(zip(there, self.store.multi_get([keys[other] for other in there]) if there else []))
        for other in keys:
            value = values.get(other, b'')
            if value == DONE:
                del self._missing[other]
            elif value != self._values[other]:
                self._values[other], self._missing[other] = value, 0.0
            else:
                self._missing[other] += passed
        if (silent := max(self._missing, key=self._missing.get, default=None)) is not None:
            if self._missing[silent] > self.limit:
                self._end(f'process {silent} {self._who(silent)}'.rstrip() + self._silence())

    def _look(self):
        """End the process if the launcher is gone, or the store does not answer."""
        pause, last = min(self.beat, 1), time.monotonic()
        while not self._stopped.wait(pause):
            now = time.monotonic()
            self._unanswered += min(now - last, 2 * pause) if self.store is not None else 0
            last = now
            if self.parent is not None and os.getppid() != self.parent:
                os.environ.pop('FSA_SEG_ERROR_FILE', None)  # which the launcher would have printed
                self._end(f'the launcher (pid {self.parent}) is gone')
            if self._unanswered > self.limit:
                self._end(self._keeper() + self._silence())

    def _keeper(self):
        """Return who keeps the store: torchrun's first launcher, or else rank 0."""
        place = f'{os.environ["MASTER_ADDR"]}:{os.environ["MASTER_PORT"]}'
        if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
            return f'the launcher at {place}'
        return f'process 0 {self._who(0)} at {place}'

    def _who(self, other):
        """Return host and process id of a process, as that process has said."""
        return self._values.get(other, b'').decode().partition(' ')[2]

    def _silence(self):
        return f' has not been heard of for {self.limit:g} s'

    def _end(self, reason):
        """Say why this process ends, and end it at once, whatever its main thread waits for."""
        if not self._stopped.is_set():
            last_words(f'{reason}; {stopping.GOES_ON}')
            os._exit(1)
