"""Read files with care: regular files alone, and none that is larger than the free memory."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator

from fsa_seg.errors import UserError
from fsa_seg.system.machine import memory

BLOCK = 1 << 20  # bytes that are read at once


def free_memory() -> int | None:
    """Return the free memory in bytes; None where the system does not say (Linux does)."""
    return memory()[1]


def check_memory(size: int, subject: str) -> None:
    """Raise a UserError if `size` bytes are more than the free memory; `subject` starts the message."""
    free = free_memory()
    if free is not None and size > free:
        raise UserError(f'{subject} takes {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free')


def check_regular(path: str, subject: str) -> int:
    """Return the size of a regular file, or of a link's target, in bytes.

    A FIFO or a device could block for ever.

    Args:
        path: the file.
        subject: how the message names the file, such as 'the image'.

    Raises:
        UserError: the path is no regular file, or cannot be read.
    """
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise UserError(f'{subject} {path} cannot be read: {getattr(error, "strerror", None) or error}') from None
    if not stat.S_ISREG(state.st_mode):
        kind = 'a folder' if stat.S_ISDIR(state.st_mode) else 'a FIFO, a socket or a device'
        raise UserError(f'{subject} {path} cannot be read: it is {kind}, and no file')
    return state.st_size


def read_file(path: str, subject: str = 'the file') -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: the file.
        subject: how the message names the file, such as 'the image'.

    Raises:
        UserError: the file cannot be read, or is larger than the free memory.
    """
    check_memory(check_regular(path, subject), f'{subject} {path}')
    try:
        with open(path, 'rb') as f:
            return f.read()
    except OSError as error:
        raise UserError(f'{subject} {path} cannot be read: {error.strerror or error}') from None


def hash_file(path: str, algorithm: str = 'sha256', progress: Callable[[int], object] | None = None) -> str:
    """Return the hexadecimal digest of a file, which is read block by block.

    Args:
        path: the file.
        algorithm: a name of `hashlib`, such as 'md5'.
        progress: function that gets the number of bytes after each block.
    """
    digest = hashlib.new(algorithm)
    with open(path, 'rb') as f:
        while block := f.read(BLOCK):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def walk(path: str) -> Iterator[str]:
    """Yield the files at or below a path, sorted by folder, see `walk_folders`."""
    if os.path.isfile(path):
        yield path
    for folder, _, files in walk_folders(path):
        yield from (os.path.join(folder, name) for name in files)


def walk_folders(path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (folder, names of folders in it, names of other entries), sorted; links are followed, each folder once."""
    visited = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        folders.sort()
        yield folder, folders, sorted(files)
