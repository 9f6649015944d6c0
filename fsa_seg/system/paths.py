"""Where the repository's own files lie, and where parts are looked for."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import sys

from fsa_seg.errors import UserError, warn_once

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CONFIGS = os.path.join(ROOT, 'configs')
MAX_NAME = 255  # bytes of a file's name
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
TOY_MARK = 'TOY_WORLD'  # a file of this name marks a data root of drawn scenes


def local_path(path, what):
    """Return `path` if it exists, taken from the working directory or else from the repository; else a UserError."""
    for base in ('', ROOT):
        candidate = os.path.join(base, os.path.expanduser(path or ''))
        if path and os.path.exists(candidate):
            return candidate
    raise UserError(f'{what}: {path!r} does not exist, neither here nor in {ROOT}')


def find_root(path):
    """Return a folder of data, taken from the working directory or else from the repository."""
    other = os.path.join(ROOT, path)
    return other if not os.path.isdir(path) and os.path.isdir(other) else path


def make_folder(path):
    """Make a folder; one that cannot be made or written to is a UserError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {path} cannot be made: {error}') from None
    if not os.access(path, os.W_OK):
        raise UserError(f'the folder {path} cannot be written to')


def file_digest(path):
    """Return the SHA-256 of a file, which is read once for each state of the file (size and time of change)."""
    state = os.stat(path)
    return _file_digest(os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(None)
def _file_digest(path, size, modified, inode):
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder, wait=True):
    """Hold a folder's lock, which ends with the process; yield whether another process had to be waited for.

    Args:
        folder (str): what is worked on.
        wait (bool): False raises a UserError where another process holds the lock, as one of several has to, which the
            others wait for.
    """
    handle, waited = os.open(os.path.join(folder, 'lock'), os.O_RDWR | os.O_CREAT), False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(
                    f'another run works on this cell ({folder}); wait for it, or name another --work-dir'
                ) from None
            waited = True
            print(f'another process runs this cell ({folder}); waiting for it', file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            warn_once(f'{folder} cannot be locked ({error.strerror}): let no two runs of one cell work there at once')
        yield waited
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_file(path):
    """Yield a name beside `path`; what is written there takes its place when the block ends well, and is removed else.

    A disk that is full, or a folder that cannot be written to, is a UserError.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    folder, name = os.path.split(os.path.abspath(path))
    part = os.path.join(
        folder, f'{cut_name(name, MAX_NAME - 22)}.{secrets.token_hex(8)}.part'
    )  # unique, also over hosts
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f'{path} cannot be written ({error.strerror}); what is there stays, and the same command goes on from it: '
                'make room, or name another place'
            ) from None
        raise


def check_file(path, what):
    """Raise a UserError unless a file can be written under `path`; its folder is made.

    Args:
        path (str): the file.
        what (str): the option or setting that names the file, for the message.
    """
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    if not name or path.endswith(os.sep) or os.path.isdir(path):
        raise UserError(f'{what} {path} is a folder; name a file in it')
    if len(os.fsencode(name)) > MAX_NAME:
        raise UserError(
            f'{what}: the name {name[:40]}... has {len(os.fsencode(name))} bytes; file systems allow {MAX_NAME}'
        )
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f'{what} {path} is there and is no file; name another')
    make_folder(folder)


def cut_name(name, most=160):
    """Return a file's name, or the part of it that takes at most so many bytes."""
    return os.fsencode(name)[:most].decode(errors='ignore')


def config_folders():
    """Return the folders that hold parts: the repository's configs/, then those that FSA_SEG_CONFIGS names."""
    extra = [os.path.expanduser(folder) for folder in os.environ.get('FSA_SEG_CONFIGS', '').split(os.pathsep) if folder]
    for folder in extra:
        if not os.path.isdir(folder):
            raise UserError(f'FSA_SEG_CONFIGS names {folder}, which is no folder')
    return [CONFIGS, *extra]


def part_files(subfolder):
    """Return the files of parts of one kind, as a dict of name -> path.

    Args:
        subfolder (str): 'backbones', 'vfms', ...

    Raises:
        UserError: a folder of FSA_SEG_CONFIGS that is missing, or two files of one name.
    """
    found = {}
    for folder in config_folders():
        folder = os.path.join(folder, subfolder)
        for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            name, extension = os.path.splitext(file)
            if extension != '.py':
                continue
            if name in found:
                raise UserError(f'two files are called {name!r}: {found[name]} and {folder}/{file}; rename one')
            found[name] = os.path.join(folder, file)
    return found
