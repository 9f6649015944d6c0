"""Run torchrun, and print the tool's error in place of torchrun's report; tools/dist_test.sh starts this tool.

python tools/launch.py --nproc_per_node=2 tools/test.py voc21 --mini --launcher pytorch
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import NoReturn

from fsa_seg.cli.tool import INTERRUPTED, import_hint
from fsa_seg.system import stopping
from fsa_seg.system.stopping import GOES_ON, STOPPED


def main(argv: Sequence[str]) -> None:
    """Run torchrun with its arguments, and exit with one line if a process fails or a signal comes.

    The status is 1, with the error of the first process that failed; 75 after SIGTERM, the scheduler's signal; or 128 +
    another signal that ended the processes.
    """
    with stopping.handling(), tempfile.TemporaryDirectory() as folder:
        path = os.environ['FSA_SEG_ERROR_FILE'] = os.path.join(folder, 'error')
        os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')  # of a lost connection it logs the stack
        try:
            _torchrun(list(argv), path)
        except (KeyboardInterrupt, stopping.ToBeContinued):
            _stop(signal.SIGTERM if stopping.asked() else signal.SIGINT)


def _torchrun(argv, path):
    """Run torchrun; `path` is the file of the processes' error."""
    try:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import main as torchrun
    except ImportError as error:
        stopping.check()
        sys.exit(f'error: {error}{import_hint(error)}')
    for name in ('agent.server.api', 'multiprocessing.api'):  # what they log of signals and failures is said below
        logging.getLogger(f'torch.distributed.elastic.{name}').setLevel(logging.CRITICAL)
    try:
        torchrun(argv)
    except ChildFailedError as error:
        if os.path.exists(path):
            with open(path, encoding='utf-8') as f:
                sys.exit(f.read())
        stopped = (stopping.CONTINUED, -signal.SIGTERM)
        failures = {rank: failure for rank, failure in error.failures.items() if failure.exitcode not in stopped}
        if not failures:
            _stop(signal.SIGTERM)
        _report(*min(failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp)))
    except SignalException as error:
        _stop(error.sigval)


def _report(rank, failure) -> NoReturn:
    """Exit with the error of a process that left no message."""
    number = failure.exitcode
    end = f'was ended by {signal.Signals(-number).name}' if number < 0 else f'ended with status {number}'
    hint = ', as the system does when memory is used up' if number == -signal.SIGKILL else ''
    sys.exit(f'error: process {rank} (host {socket.gethostname()}, pid {failure.pid}) {end}{hint}; {GOES_ON}')


def _stop(number) -> NoReturn:
    """Exit after a signal, with the line and the status of the tools."""
    stopped = number == signal.SIGTERM
    print(STOPPED if stopped else f'interrupted: {GOES_ON}', file=sys.stderr)
    sys.exit(stopping.CONTINUED if stopped else INTERRUPTED - signal.SIGINT + int(number))
