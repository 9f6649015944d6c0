"""Downloads as they come: archives and folders read as one tree, and files fetched from their publishers."""

import errno
import functools
import hashlib
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
from typing import NamedTuple

from tqdm import tqdm

from fsa_seg.errors import UserError
from fsa_seg.system.files import check_memory, check_regular, read_file, walk

ARCHIVES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # methods of zip whose output can be bounded
BLOCK = 1 << 20  # bytes read at once
TRIES, PAUSE = 5, 2.0  # connections for one file, and seconds between them
UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error)  # of damaged archives


class Missing(UserError):
    """Something that the downloads lack."""


class File(NamedTuple):
    """One file of the downloads.

    Attributes:
        key (str): the part of its path that was looked for, such as 'VOC2012/JPEGImages/2007_000033.jpg'.
        container (str): the archive that it lies in, or its own path.
        member (str): its name in the archive; None for a file of a folder.
        size (int): in bytes.
    """

    key: str
    container: str
    member: str | None
    size: int

    def __str__(self):
        return self.container if self.member is None else f'{self.member} in {self.container}'


class Downloads:
    """Archives (zip, tar, compressed tar) and folders as one tree of files, that is only ever read.

    An archive that cannot be read, that has a member outside of itself ('../x', '/x') or a member twice is not used; why
    stands in `problems`, and in the error when a file is missing.

    Args:
        paths (list of str): archives, other files, and folders that hold either, at any depth.
        hint (str): what there should be, for errors.
    """

    def __init__(self, paths, hint=''):
        self.paths, self.hint, self.problems = list(paths), hint, []
        self._archives, self._files = {}, []  # path -> (open archive, members); (name, container, member) of all files
        archives = []
        for path in self.paths:
            if not os.path.exists(path):
                raise UserError(f'the download {path} does not exist; give the folder that holds the downloads')
            for file in walk(path):
                if file.lower().endswith(ARCHIVES):
                    archives.append(file)
                else:
                    self._files.append((os.path.abspath(file).replace(os.sep, '/'), file, None))
        for path in tqdm(archives, desc='looking into archives', unit='archive', delay=2, leave=False):
            try:
                size = check_regular(path, 'the archive')
            except UserError as error:  # a broken link, a FIFO
                self.problems.append(str(error))
                continue
            archive, members, problem = _open_archive(path, size, os.stat(path).st_mtime_ns)
            if problem:
                self.problems.append(f'{path} {problem}')
            else:
                self._archives[path] = archive, members
                self._files += [(name.removeprefix('./'), path, name) for name in members]

    def find(self, pattern):
        """Return the files whose path ends in a regular expression, as a list of `File` in the order of their archives.

        A file that a folder and an archive hold, or two archives, is taken once, from the folder or the first archive.

        Raises:
            UserError: such a file whose sizes differ, or two files whose paths differ by case alone.
        """
        folded = {}
        for file in self.all(pattern):
            other = folded.setdefault(file.key.lower(), file)
            if other.key != file.key:
                raise UserError(
                    f'{other} and {file} differ by upper and lower case alone: on many file systems they would be '
                    'one file; remove one'
                )
            if other.size != file.size:
                raise UserError(
                    f'{other} has {other.size} bytes, but {file} {file.size}: one of them is not whole; remove it'
                )
        return list(folded.values())

    def all(self, pattern):
        """Return every file whose path ends in a regular expression, those of folders first."""
        ends, found = re.compile(f'(?:.*/)?({pattern})'), []
        for name, container, member in self._files:
            match = ends.fullmatch(name)
            if match and member is not None:
                size = self._archives[container][1][member][1]
                found.append(File(match.group(1), container, member, size))
            elif match and os.path.isfile(container):  # no broken link
                found.append(File(match.group(1), container, None, os.path.getsize(container)))
        return found

    def one(self, pattern, what):
        """Return the one file whose path ends in a regular expression; none, or several, are a UserError."""
        found = self.find(pattern)
        if len(found) != 1:
            raise (
                self.lacking(what)
                if not found
                else UserError(
                    f'{len(found)} files could be {what}: ' + ', '.join(str(file) for file in found[:3]) + '; leave one'
                )
            )
        return found[0]

    def lacking(self, what):
        """Return the error of something that was not found."""
        unused = ''.join(f'\n  not used: {problem}' for problem in self.problems)
        return Missing(f'{", ".join(self.paths)} lacks {what}{unused}' + (f'\n  {self.hint}' if self.hint else ''))

    def read(self, file):
        """Return the bytes of a `File`, if the free memory holds them; an archive's are checked as its format allows.

        No more is read than the size that the archive states, whatever a member would unpack to.
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
            raise UserError(f'{file} cannot be read ({error}); download it again') from None
        if len(data) != file.size:
            raise UserError(f'{file} has {len(data)} bytes in place of {file.size}; download it again')
        return data

    def place(self, file):
        """Return a key that sorts files in the order in which they are read without going back."""
        if file is None or file.member is None:
            return '', 0
        info = self._archives[file.container][1][file.member][0]
        return file.container, info.header_offset if isinstance(info, zipfile.ZipInfo) else info.offset


@functools.lru_cache
def _open_archive(path, size, modified):
    """Return an archive (opened once for each state of its file), its files as name -> (info, bytes), and what is wrong."""
    try:
        if path.lower().endswith('.zip'):
            archive = zipfile.ZipFile(path)
            names = [name for name in archive.namelist() if not name.endswith('/')]
            members = {info.filename: (info, info.file_size) for info in archive.infolist() if not info.is_dir()}
        else:
            archive = tarfile.open(path)
            names = [info.name for info in archive.getmembers() if not info.isdir()]
            if archive.fileobj.tell() == archive.offset:  # no zero block ends it
                raise EOFError('it ends between two members')
            members = {info.name: (info, info.size) for info in archive.getmembers() if info.isreg()}
            members.update(
                {
                    info.name: (info, members[info.linkname][1])
                    for info in archive.getmembers()
                    if info.islnk() and info.linkname in members
                }
            )
    except UNREADABLE as error:
        return (
            None,
            {},
            f'is no whole archive ({str(error).splitlines()[0] if str(error) else error!r}); download it again',
        )
    outside = [name for name in names if name.startswith(('/', '\\')) or '..' in re.split(r'[/\\]', name)]
    packed = [
        info.filename
        for info, _ in members.values()
        if isinstance(info, zipfile.ZipInfo) and info.compress_type not in BOUNDED
    ]
    if packed:
        return None, {}, f'packs {packed[0]!r} by a method that cannot be read in parts; unpack it, and name the folder'
    if outside:
        return None, {}, f'has a member outside of itself, {outside[0]!r}: its publisher made none like that'
    if len(set(names)) < len(names):
        return None, {}, f'has the member {Counter(names).most_common(1)[0][0]!r} more than once'
    return archive, members, None


class Download(NamedTuple):
    """A file that a publisher serves without a login.

    Attributes:
        url (str): where.
        megabytes (int): about how large it is.
        md5 (str): where one is published.
    """

    url: str
    megabytes: int
    md5: str = ''

    @property
    def name(self):
        return os.path.basename(self.url)


def fetch(download, folder):
    """Download a file into a folder, with a progress bar, unless it is there; a broken download is gone on with.

    The file appears under its name when it has the size that the server says, and the published MD5; one that is there
    already is held to them too.

    Returns:
        str: its path.

    Raises:
        UserError: the server cannot be reached or refuses, the disk has no room, or size or MD5 differ.
    """
    path = os.path.join(folder, download.name)
    if os.path.exists(path):
        return _held_to(path, download, _size(download.url))
    os.makedirs(folder, exist_ok=True)
    part = path + '.part'
    there = os.path.getsize(part) if os.path.exists(part) else 0
    free = shutil.disk_usage(folder).free
    if download.megabytes * 1e6 - there > free:
        raise UserError(
            f'{folder} has {free / 1e9:.1f} GB left, and {download.name} has about {download.megabytes / 1e3:.1f}; '
            'make room'
        )
    for left in reversed(range(TRIES)):
        try:
            _receive(download.url, part)
            break
        except (OSError, EOFError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise UserError(f'{download.url} is refused ({error}); download it by hand to {path}') from None
            if not left or getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f'{download.url} cannot be downloaded to {part} ({getattr(error, "reason", error)}); what came '
                    f'is kept, and the same command goes on from it; or download it by hand to {path}'
                ) from None
            time.sleep(PAUSE)
    os.replace(_held_to(part, download), path)
    return path


def _held_to(path, download, size=None):
    """Return the path of a file that has this size (if it is known) and the published MD5; else raise a UserError."""
    if size is not None and os.path.getsize(path) != size:
        raise UserError(
            f'{path} has {os.path.getsize(path)} bytes, and {download.url} {size}; remove it, and run the same '
            'command again'
        )
    if download.md5 and (found := _md5(path)) != download.md5:
        raise UserError(
            f'{path} has the MD5 {found}, and {download.url} {download.md5}; remove it, and run the same command again'
        )
    return path


def _size(url):
    """Return the bytes of what a URL serves, or None where the server does not say."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=60) as response:
            return int(response.headers['Content-Length'])
    except (OSError, TypeError, ValueError, http.client.HTTPException):
        return None


def _receive(url, part):
    """Append what is missing of a URL's content to a file; EOFError if the connection ends before the content does."""
    start = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get('Content-Range', '').endswith(f'/{start}'):
            return  # it was whole
        if error.code != 416:
            raise
        start, response = 0, urllib.request.urlopen(url, timeout=60)  # longer than the content: begin again
    with response:
        start = start if response.status == 206 else 0
        total = int(response.headers['Content-Length']) + start if response.headers.get('Content-Length') else None
        with (
            open(part, 'r+b' if start else 'wb') as f,
            tqdm(desc=os.path.basename(url), initial=start, total=total, unit='B', unit_scale=True) as bar,
        ):
            f.seek(start)
            while block := response.read(BLOCK):
                f.write(block)
                bar.update(len(block))
            if total is not None and f.tell() != total:
                raise EOFError(f'{f.tell()} of {total} bytes came')


def _md5(path):
    digest = hashlib.md5()
    with open(path, 'rb') as f:
        while block := f.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
