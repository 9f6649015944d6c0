"""`fsa-seg demo` of this clone, installed or not."""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
from fsa_seg.cli.main import main  # noqa: E402

if __name__ == '__main__':
    main(['demo', *sys.argv[1:]])
