"""Where the repository's own files lie."""
import os

from fsa_seg.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = os.path.join(ROOT, 'configs')


def local_path(path, what):
    """Return `path` if it exists, taken from the working directory or else from the repository; else a UserError."""
    for base in ('', ROOT):
        candidate = os.path.join(base, os.path.expanduser(path or ''))
        if path and os.path.exists(candidate):
            return candidate
    raise UserError(f'{what}: {path!r} does not exist, neither here nor in {ROOT}')
