"""Run torchrun, and print the tool's error in place of torchrun's report; tools/dist_test.sh starts this tool.

python tools/launch.py --nproc_per_node=2 tools/test.py voc21 --mini --launcher pytorch
"""

import os
import sys
import tempfile
from collections.abc import Sequence

from fsa_seg.cli.tool import import_hint


def main(argv: Sequence[str]) -> None:
    """Run torchrun with its arguments, and exit with an error if a process fails.

    The status is 1, with the error of the first process that failed, or 128 + the signal that ended the processes.
    """
    try:
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import main as torchrun
    except ImportError as error:
        sys.exit(f'error: {error}{import_hint(error)}')

    with tempfile.TemporaryDirectory() as folder:
        path = os.environ['FSA_SEG_ERROR_FILE'] = os.path.join(folder, 'error')
        try:
            torchrun(list(argv))
        except ChildFailedError as error:
            if os.path.exists(path):
                with open(path, encoding='utf-8') as f:
                    sys.exit(f.read())
            sys.exit(f'error: a process ended without a message: {error.get_first_failure()[1].message}')
        except (KeyboardInterrupt, SignalException) as error:
            number = getattr(error, 'sigval', 2)
            print('interrupted: results already written stay, and the same command goes on from them', file=sys.stderr)
            sys.exit(128 + int(number))
