"""Paths: the files that ship, folders of components, locks, and files that appear when they are complete."""

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator

from fsa_seg.errors import Busy, StopError, UserError, warn_once
from fsa_seg.system.files import hash_file
from fsa_seg.system.machine import PACKAGE, ROOT

CONFIGS = os.path.join(ROOT, 'configs')
MAX_NAME = 255  # bytes of a file's name
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of a disk that takes no more files
UNWRITABLE = (*FULL, errno.EFBIG, errno.EACCES)  # of a new file that cannot be written
MINI = dict(data_root='data/mini', backbone='toy', vfm='toy')  # what --mini stands for
TOY_MARK = 'TOY_WORLD'  # a file of this name marks a data root of drawn scenes


def local_path(path: str | None, subject: str) -> str:
    """Return an existing path, relative to the working directory or else to what ships.

    Args:
        path: the path.
        subject: how the message names the path, such as 'checkpoint of the VFM'.

    Raises:
        UserError: the path exists in neither place.
    """
    for base in ('', ROOT):
        candidate = os.path.join(base, os.path.expanduser(path or ''))
        if path and os.path.exists(candidate):
            return candidate
    raise UserError(f'{subject}: {path!r} does not exist, neither here nor in {ROOT}')


def find_root(path: str) -> str:
    """Return a folder of data: in the working directory, or else among what ships."""
    shipped = os.path.join(ROOT, path)
    return shipped if not os.path.isdir(path) and os.path.isdir(shipped) else path


def is_drawn(folder: str) -> bool:
    """Return whether a folder lies in a data root of drawn scenes, which TOY_MARK marks."""
    folder = os.path.abspath(folder)
    while not os.path.exists(os.path.join(folder, TOY_MARK)):
        if os.path.dirname(folder) == folder:
            return False
        folder = os.path.dirname(folder)
    return True


def make_folder(path: str) -> None:
    """Make a folder; raise a UserError if the folder cannot be made or written to."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {path} cannot be made: {error}') from None
    if not os.access(path, os.W_OK):
        raise UserError(f'the folder {path} cannot be written to')


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file; a file is read again only when its size or its time of change differs."""
    return _file_digest(os.path.abspath(path), file_state(path))


@functools.lru_cache(None)
def _file_digest(path, state):
    return hash_file(path)


def file_state(path: str) -> tuple[int, int, int]:
    """Return size, time of change and inode of a file: while they are equal, the contents pass for equal."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns, state.st_ino


@functools.cache
def sources_digest() -> str:
    """Return the SHA-256 of the package's source files as this process first saw them, as a hexadecimal string.

    Left out are `cli`, whose options are in the config, `shipped`, which an installed package alone has, and
    `evaluation/report` and `apps/demo`, which read results and make none.
    """
    folders = ('cli', 'shipped', os.path.join('evaluation', 'report'), os.path.join('apps', 'demo'))
    left_out = tuple(os.path.join(PACKAGE, folder) + os.sep for folder in folders)
    files = sorted(glob.glob(os.path.join(glob.escape(PACKAGE), '**', '*.py'), recursive=True))
    return files_digest(file for file in files if not file.startswith(left_out))


def files_digest(paths: Iterable[str]) -> str:
    """Return the SHA-256 of files' contents, in order, as a hexadecimal string."""
    return hashlib.sha256(json.dumps([file_digest(path) for path in paths]).encode()).hexdigest()


@contextlib.contextmanager
def locked(folder: str, wait: bool = True) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process; yield whether this process waited for another process.

    Args:
        folder: the folder of the lock's file.
        wait: whether to wait while another process holds the lock. A process that other processes wait for must not.

    Raises:
        Busy: another process holds the lock, and `wait` is False.
    """
    handle, waited = os.open(os.path.join(folder, 'lock'), os.O_RDWR | os.O_CREAT), False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise Busy(
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
def new_file(path: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary name beside `path`; the file of that name replaces `path` when the block ends without error.

    An error removes the temporary file.

    Raises:
        StopError: the disk is full, or the folder cannot be written to.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    folder, name = os.path.split(os.path.abspath(path))
    unique = secrets.token_hex(8)  # also among the processes of several hosts
    part = os.path.join(folder, f'{cut_name(name, MAX_NAME - 22)}.{unique}.part')
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(part)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise StopError(
                f'{path} cannot be written ({error.strerror}); what is there stays, and the same command goes on from '
                'it: make room, or name another place'
            ) from None
        raise


def check_file(path: str, option: str) -> None:
    """Make the file's folder; raise a UserError unless a file can be written to `path`.

    Args:
        path: the file.
        option: the option or setting that names the file, for the message.
    """
    folder, name = os.path.split(os.path.abspath(os.path.expanduser(path)))
    if not name or path.endswith(os.sep) or os.path.isdir(path):
        raise UserError(f'{option} {path} is a folder; name a file in it')
    if len(os.fsencode(name)) > MAX_NAME:
        raise UserError(
            f'{option}: the name {name[:40]}... has {len(os.fsencode(name))} bytes; file systems allow {MAX_NAME}'
        )
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f'{option} {path} is there and is no file; name another')
    make_folder(folder)


def cut_name(name: str, max_bytes: int = 160) -> str:
    """Return the head of a file's name that takes at most `max_bytes` bytes."""
    return os.fsencode(name)[:max_bytes].decode(errors='ignore')


def own_hint() -> str:
    """Return where components of a user's own are looked for, as the end of a message about an unknown name."""
    folders = os.environ.get('FSA_SEG_CONFIGS')
    return '; one of your own lies in a folder that FSA_SEG_CONFIGS names, ' + (
        f'now {folders}' if folders else 'which is not set'
    )


def config_folders() -> list[str]:
    """Return the folders of parts: the configs/ that ships, then the folders that FSA_SEG_CONFIGS names."""
    names = [folder for folder in os.environ.get('FSA_SEG_CONFIGS', '').split(os.pathsep) if folder]
    extra = [os.path.abspath(os.path.expanduser(folder)) for folder in names]
    for folder in extra:
        if not os.path.isdir(folder):
            raise UserError(f'FSA_SEG_CONFIGS names {folder}, which is no folder')
    return [CONFIGS, *extra]


def component_files(subfolder: str, users: bool = True) -> dict[str, str]:
    """Return the files of one kind of component: name -> path.

    Args:
        subfolder: 'backbones', 'vfms', ...
        users: whether to list a user's own too.

    Raises:
        UserError: a folder of FSA_SEG_CONFIGS is missing, or two files have one name.
    """
    paths: dict[str, str] = {}
    for folder in config_folders() if users else [CONFIGS]:
        own, folder = folder != CONFIGS, os.path.join(folder, subfolder)
        if not os.path.isdir(folder):
            continue
        files = _files(folder) if own else _shipped_files(folder, os.stat(folder).st_mtime_ns)
        for name in sorted(paths.keys() & files):
            raise UserError(f'two files are called {name!r}: {paths[name]} and {files[name]}; rename one')
        paths.update(files)
    return paths


def _files(folder):
    """Return the Python files of a folder, sorted: name without the ending -> path."""
    names = (os.path.splitext(file) for file in sorted(os.listdir(folder)))
    return {name: os.path.join(folder, name + ending) for name, ending in names if ending == '.py'}


@functools.lru_cache(64)
def _shipped_files(folder, changed):
    return _files(folder)
