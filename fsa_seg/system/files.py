"""Reading files with care: regular files alone, and nothing that is larger than the free memory."""

import os
import stat

from fsa_seg.errors import UserError
from fsa_seg.system.machine import memory


def free_memory():
    """Return the bytes of memory that programs can still take, or None where the system does not say (Linux does)."""
    return memory()[1]


def check_memory(size, what):
    """Raise a UserError if `size` bytes are more than the free memory; `what` is the error's subject."""
    free = free_memory()
    if free is not None and size > free:
        raise UserError(f'{what} takes {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free')


def check_regular(path, what):
    """Raise a UserError unless `path` is a regular file, or a link to one: a FIFO or a device can block for ever.

    Args:
        path (str): the file.
        what (str): the error's subject, such as 'the image'.

    Returns:
        int: its size in bytes.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise UserError(f'{what} {path} cannot be read: {getattr(error, "strerror", None) or error}') from None
    if not stat.S_ISREG(state.st_mode):
        kind = 'a folder' if stat.S_ISDIR(state.st_mode) else 'a FIFO, a socket or a device'
        raise UserError(f'{what} {path} cannot be read: it is {kind}, and no file')
    return state.st_size


def read_file(path, what='the file'):
    """Return the bytes of a regular file; one that cannot be read, or exceeds the free memory, is a UserError.

    Args:
        path (str): the file.
        what (str): the error's subject, such as 'the image'.
    """
    check_memory(check_regular(path, what), f'{what} {path}')
    try:
        with open(path, 'rb') as f:
            return f.read()
    except OSError as error:
        raise UserError(f'{what} {path} cannot be read: {error.strerror or error}') from None


def walk(path):
    """Yield the files at or below a path, sorted by folder, see `walk_folders`."""
    if os.path.isfile(path):
        yield path
    for folder, _, files in walk_folders(path):
        yield from (os.path.join(folder, name) for name in files)


def walk_folders(path):
    """Yield (folder, names of folders, names of all else in it), sorted; links are followed, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders.sort()
        yield folder, folders, sorted(files)
