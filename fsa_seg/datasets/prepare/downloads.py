"""Read archives and folders as one tree of files, and fetch files from their publishers."""

import errno
import functools
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from fsa_seg.errors import UserError, one_line
from fsa_seg.system.files import check_memory, check_regular, hash_file, read_file, walk
from fsa_seg.system.progress import Bar

ARCHIVES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # methods of zip whose output can be bounded
BLOCK = 1 << 20  # bytes read at once
TRIES, PAUSE = 5, 2.0  # connections for one file, and seconds between them
# what damaged archives raise
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error)


class Missing(UserError):
    """The downloads lack a file."""


class File(NamedTuple):
    """One file of the downloads.

    Attributes:
        key (str): the end of the path that matched the pattern, such as 'VOC2012/JPEGImages/2007_000033.jpg'.
        container (str): the archive's path; for a file of a folder, the file's path.
        member (str): the file's name in the archive; None for a file of a folder.
        size (int): in bytes.
    """

    key: str
    container: str
    member: str | None
    size: int

    def __str__(self):
        return self.container if self.member is None else f'{self.member} in {self.container}'


class Downloads:
    """Archives (zip, tar, compressed tar) and folders as one tree of files, which is only read.

    An archive is skipped if it is unreadable, has a member outside of itself ('../x', '/x') or has a member twice.
    `problems` lists the reasons; the error for a missing file repeats them.

    Args:
        paths (list of str): archives, other files, and folders that hold either, at any depth.
        hint (str): what the downloads should hold, for errors.
    """

    def __init__(self, paths: Iterable[str], hint: str = ''):
        self.paths, self.hint, self.problems = list(paths), hint, []
        self._archives = {}  # path -> (open archive, its members)
        self._files = []  # (name, container, member) of every file
        archives = []
        for path in self.paths:
            if not os.path.exists(path):
                raise UserError(f'the download {path} does not exist; give the folder that holds the downloads')
            for file in walk(path):
                if file.lower().endswith(ARCHIVES):
                    archives.append(file)
                else:
                    self._files.append((os.path.abspath(file).replace(os.sep, '/'), file, None))
        for path in Bar(archives, desc='looking into archives', unit='archive', delay=2, leave=False):
            self._add_archive(path)

    def _add_archive(self, path):
        try:
            size = check_regular(path, 'the archive')
        except UserError as error:  # a broken link, a FIFO
            self.problems.append(str(error))
            return
        archive, members, problem = _open_archive(path, size, os.stat(path).st_mtime_ns)
        if problem:
            self.problems.append(f'{path} {problem}')
            return
        self._archives[path] = archive, members
        self._files += [(name.removeprefix('./'), path, name) for name in members]

    def find(self, pattern: str) -> list[File]:
        """Return the files whose path ends in a regular expression, in the order of their archives.

        A file that several folders or archives hold is taken once, from a folder or else from the first archive.

        Raises:
            UserError: copies of a file differ in size, or two paths differ only in upper and lower case.
        """
        by_key = {}
        for file in self.find_all(pattern):
            first = by_key.setdefault(file.key.lower(), file)
            if first.key != file.key:
                raise UserError(
                    f'{first} and {file} differ only in upper and lower case, which many file '
                    'systems ignore; remove either file'
                )
            if first.size != file.size:
                raise UserError(
                    f'{first} has {first.size} bytes, but {file} has {file.size}; remove the incomplete file'
                )
        return list(by_key.values())

    def find_all(self, pattern: str) -> list[File]:
        """Return every file whose path ends in a regular expression, copies included; files of folders come first."""
        ending, files = re.compile(f'(?:.*/)?({pattern})'), []
        for name, container, member in self._files:
            match = ending.fullmatch(name)
            if match and member is not None:
                size = self._archives[container][1][member][1]
                files.append(File(match.group(1), container, member, size))
            elif match and os.path.isfile(container):  # no broken link
                files.append(File(match.group(1), container, None, os.path.getsize(container)))
        return files

    def find_single(self, pattern: str, what: str) -> File:
        """Return the only file whose path ends in a regular expression; no file or several files are a UserError."""
        files = self.find(pattern)
        if not files:
            raise self.missing(what)
        if len(files) > 1:
            paths = ', '.join(str(file) for file in files[:3])
            raise UserError(f'{len(files)} files could be {what}: {paths}; keep one file')
        return files[0]

    def missing(self, what: str) -> Missing:
        """Return the error for a file that the downloads lack; `what` names the file."""
        unused = ''.join(f'\n  not used: {problem}' for problem in self.problems)
        return Missing(f'{", ".join(self.paths)} lacks {what}{unused}' + (f'\n  {self.hint}' if self.hint else ''))

    def read(self, file: File) -> bytes:
        """Return the bytes of a file if the free memory holds them; an archive's checksums are verified.

        At most the size that the archive states is read, whatever size a member unpacks to.
        """
        if file.member is None:
            return read_file(file.container, 'the download')
        check_memory(file.size, str(file))
        try:
            archive, members = self._archives[file.container]
            info, _ = members[file.member]
            with archive.open(info) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(info) as member:
                data = member.read(file.size + 1)
        except UNREADABLE as error:
            raise UserError(f'{file} cannot be read ({one_line(error)}); download it again') from None
        if len(data) != file.size:
            raise UserError(f'{file} has {len(data)} bytes in place of {file.size}; download it again')
        return data

    def position(self, file: File | None) -> tuple[str, int]:
        """Return a sort key (archive, offset): files sorted by it are read without going back in an archive."""
        if file is None or file.member is None:
            return '', 0
        info = self._archives[file.container][1][file.member][0]
        return file.container, info.header_offset if isinstance(info, zipfile.ZipInfo) else info.offset


@functools.lru_cache
def _open_archive(path, size, modified):
    """Return an archive, its files as name -> (info, bytes), and the problem that forbids its use, or None.

    `size` and `modified` are keys of the cache: an archive is opened once for each state of its file.
    """
    try:
        archive, names, members = _read_zip(path) if path.lower().endswith('.zip') else _read_tar(path)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        return None, {}, f'is no whole archive ({reason}); download it again'
    problem = _find_problem(names, [info for info, _ in members.values()])
    return (None, {}, problem) if problem else (archive, members, None)


def _read_zip(path):
    """Return a zip archive, the names of all members but folders, and its files as name -> (info, bytes)."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith('/')]
    return archive, names, {info.filename: (info, info.file_size) for info in archive.infolist() if not info.is_dir()}


def _read_tar(path):
    """Return what `_read_zip` returns, of a tar archive; hard links to its files are files."""
    archive = tarfile.open(path)
    infos = archive.getmembers()
    if archive.fileobj.tell() == archive.offset:  # no zero block ends it
        raise EOFError('it ends between two members')
    members = {info.name: (info, info.size) for info in infos if info.isreg()}
    links = [info for info in infos if info.islnk() and info.linkname in members]
    members.update({info.name: (info, members[info.linkname][1]) for info in links})
    return archive, [info.name for info in infos if not info.isdir()], members


def _find_problem(names: Collection[str], infos: Iterable) -> str | None:
    """Return why an archive with these members must not be used, or None."""
    packed = [info.filename for info in infos if getattr(info, 'compress_type', BOUNDED[0]) not in BOUNDED]
    if packed:
        return f'packs {packed[0]!r} by a method that cannot be read in parts; unpack it, and name the folder'
    outside = [name for name in names if name.startswith(('/', '\\')) or '..' in re.split(r'[/\\]', name)]
    if outside:
        return f"has a member outside of itself, {outside[0]!r}; download the publisher's archive again"
    if len(set(names)) < len(names):
        return f'has the member {Counter(names).most_common(1)[0][0]!r} more than once; download it again'
    return None


class Download(NamedTuple):
    """A file that a publisher serves without a login.

    Attributes:
        url (str): the file's address.
        megabytes (int): the file's size, roughly.
        md5 (str): the published MD5; empty if none is published.
    """

    url: str
    megabytes: int
    md5: str = ''

    @property
    def name(self) -> str:
        """The file's name."""
        return os.path.basename(self.url)


def fetch(download: Download, folder: str) -> str:
    """Return the path of a download in a folder; fetch the file, with a progress bar, unless it is present.

    A broken transfer is continued. The file gets its name once its size is the server's and its MD5 the published MD5.
    A file that is present is checked in the same way.

    Raises:
        UserError: the server cannot be reached or refuses, the disk has no room, or size or MD5 differ.
    """
    path = os.path.join(folder, download.name)
    if os.path.exists(path):
        return _checked(path, download, _served_size(download.url))
    os.makedirs(folder, exist_ok=True)
    part = path + '.part'
    received = os.path.getsize(part) if os.path.exists(part) else 0
    free = shutil.disk_usage(folder).free
    if download.megabytes * 1e6 - received > free:
        raise UserError(
            f'{folder} has {free / 1e9:.1f} GB left, and {download.name} has about {download.megabytes / 1e3:.1f}; '
            'make room'
        )
    _receive_in_tries(download.url, part, path)
    os.replace(_checked(part, download), path)
    return path


def _receive_in_tries(url, part, path):
    """Receive a URL's content into the file `part`; connect again, up to TRIES times, if the connection breaks."""
    for tries_left in reversed(range(TRIES)):
        try:
            return _receive(url, part)
        except (OSError, EOFError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise UserError(f'{url} is refused ({one_line(error)}); download the file by hand to {path}') from None
            if not tries_left or getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f'{url} cannot be downloaded to {part} ({getattr(error, "reason", error)}); the received '
                    f'part stays, and the same command goes on from it; or download the file by hand to {path}'
                ) from None
            time.sleep(PAUSE)


def _checked(path, download, size=None):
    """Return a file's path; raise a UserError unless the file has this size (None: any) and the published MD5."""
    if size is not None and os.path.getsize(path) != size:
        raise UserError(
            f'{path} has {os.path.getsize(path)} bytes, and {download.url} {size}; remove it, and run the same '
            'command again'
        )
    if download.md5 and (md5 := hash_file(path, 'md5')) != download.md5:
        raise UserError(
            f'{path} has the MD5 {md5}, and {download.url} {download.md5}; remove it, and run the same command again'
        )
    return path


def _served_size(url):
    """Return the size in bytes that a server states for a URL, or None."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=60) as response:
            return int(response.headers['Content-Length'])
    except (OSError, TypeError, ValueError, http.client.HTTPException):
        return None


def _receive(url, part):
    """Append the rest of a URL's content to a file; EOFError if the connection ends before the content does."""
    start = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get('Content-Range', '').endswith(f'/{start}'):
            return  # the file is complete
        if error.code != 416:
            raise
        start, response = 0, urllib.request.urlopen(url, timeout=60)  # the file is too long: begin again
    with response:
        start = start if response.status == 206 else 0
        total = int(response.headers['Content-Length']) + start if response.headers.get('Content-Length') else None
        with (
            open(part, 'r+b' if start else 'wb') as f,
            Bar(desc=os.path.basename(url), initial=start, total=total, unit='B', unit_scale=True) as bar,
        ):
            f.seek(start)
            while block := response.read(BLOCK):
                f.write(block)
                bar.update(len(block))
            if total is not None and f.tell() != total:
                raise EOFError(f'{f.tell()} of {total} bytes were received')
