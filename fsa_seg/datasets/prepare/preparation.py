"""Prepare data sets: from the publishers' files to the folders that configs/datasets/ name.

A file appears once it is complete, and a file that is present is not made again.
"""

import contextlib
import ctypes
import fcntl
import functools
import glob
import io
import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor

from PIL import Image

from fsa_seg.datasets.images import image_size
from fsa_seg.datasets.label_images import check_sizes
from fsa_seg.datasets.prepare.downloads import Downloads, Missing, fetch
from fsa_seg.datasets.prepare.preparations import PREPARATIONS
from fsa_seg.errors import UserError, one_of
from fsa_seg.system.paths import make_folder, new_file
from fsa_seg.system.progress import Bar

SPLITS = dict(val=('val',), all=('train', 'val'))  # of --images
CHUNK = 64  # annotations that are read before they are converted
DEATH_SIGNAL = 1  # option of Linux' prctl: the signal that a process gets when its parent ends


def prepare(
    name: str,
    paths: Sequence[str],
    root: str,
    images: str = 'val',
    link: bool = False,
    workers: int = 1,
    download: bool = False,
) -> None:
    """Prepare a data set; files that are present stay, so that an interrupted preparation goes on.

    Args:
        name: of `fsa_seg.datasets.prepare.preparations.PREPARATIONS`.
        paths: downloads: archives, and folders that hold archives or their contents; they are only read.
        root: the data root.
        images: 'val', or 'all' for the training images too.
        link: link images of folders in place of copying them.
        workers: processes that convert.
        download: if a file is missing, fetch the files that need no login into the first of `paths`, a folder.

    Raises:
        UserError: a file is missing, damaged or not as published, or cannot be written. No label image is written for a
            wrong annotation; the other label images are kept.
    """
    preparation = PREPARATIONS[one_of(name, PREPARATIONS, 'data set to prepare')]
    splits = SPLITS[one_of(images, SPLITS, 'choice of --images')]
    if workers < 1:
        raise UserError(f'--workers is {workers}; it has to be at least 1')
    folder = os.path.join(root, preparation.folder)
    make_folder(folder)
    with _locked(folder, name) as lock:
        plan = _plan(name, preparation, paths, splits, download)
        try:
            _carry_out(plan, name, folder, link, workers, lock)
        except OSError as error:
            raise UserError(
                f'{error.filename or folder} cannot be written ({error.strerror or error}); finished files stay, '
                'and the same command goes on from them'
            ) from None


def _plan(name, preparation, paths, splits, download):
    """Return the plan; if the downloads lack a file and `download` is set, fetch the files that need no login."""
    if download:
        if os.path.isfile(paths[0]):
            raise UserError(
                f'--download fetches into the first of --from, but {paths[0]} is a file; name a folder first'
            )
        make_folder(paths[0])
    hint = f'{name}: {preparation.sources}'
    try:
        return preparation.plan(Downloads(paths, hint), splits)
    except Missing:
        if not download:
            raise
    if not preparation.downloads:
        raise UserError(f'{name} cannot be downloaded without a login: {preparation.by_hand}')
    for file in preparation.downloads:
        fetch(file, paths[0])
    return preparation.plan(Downloads(paths, hint), splits)


def _carry_out(plan, name, folder, link, workers, lock):
    """Write the files of a plan that a data set's folder lacks; see `prepare`."""
    _check_recipe(plan, folder, name)
    _remove_parts(plan, folder)
    jobs = [
        job for job in plan.labels if not all(os.path.exists(os.path.join(folder, target)) for target in job.targets)
    ]
    _place_images(plan, jobs, folder, link)
    _make_labels(plan, jobs, folder, workers, lock)
    for target, lines in plan.texts.items():
        _write_lines(os.path.join(folder, target), lines)


@contextlib.contextmanager
def _locked(folder, name):
    """Hold the data set's lock, a file descriptor; UserError if another process holds it. The process' end frees it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f'another process prepares {name} in {folder}; wait for it, or end it') from None
        yield lock
    finally:
        os.close(lock)


def _check_recipe(plan, folder, name):
    """Raise a UserError if the folder's label images were made by another recipe than the plan's."""
    if not plan.recipe:
        return None
    path = os.path.join(folder, f'{name}_labels_made_from.txt')
    if not os.path.exists(path):
        return _write_lines(path, [plan.recipe])
    with open(path, encoding='utf-8') as f:
        recipe = f.read().strip()
    if recipe != plan.recipe:
        labels = sorted({os.path.dirname(target) for job in plan.labels for target in job.targets})
        raise UserError(
            f'{folder} has label images that were made from {recipe}, and would now be made from {plan.recipe}; '
            f'remove {", ".join(labels)} and {os.path.basename(path)} in that folder, and run the same command again'
        )


def _remove_parts(plan, folder):
    """Remove the half-written files of a preparation that was killed."""
    targets = [target for _, target in plan.images] + [target for job in plan.labels for target in job.targets]
    for subfolder in {os.path.dirname(target) for target in targets}:
        for part in glob.glob(os.path.join(glob.escape(os.path.join(folder, subfolder)), '*.part')):
            os.remove(part)


def _place_images(plan, jobs, folder, link):
    """Copy, extract or link the images that are absent or of another size; UserError if images and jobs do not fit."""
    absent = [
        (file, path)
        for file, target in plan.images
        if not os.path.exists(path := os.path.join(folder, target)) or os.path.getsize(path) != file.size
    ]
    size = sum(file.size for file, _ in absent if not (link and file.member is None))
    size += sum(job.source.size for job in jobs if job.source)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f'{folder} has {free / 1e9:.1f} GB left, and {size / 1e9:.1f} GB are to be written; make room, or --link '
            'images that lie in folders'
        )
    absent.sort(key=lambda item: plan.downloads.position(item[0]))
    for file, path in Bar(absent, desc='images', unit='file', delay=1):
        if link and file.member is None:
            with new_file(path) as part:
                os.symlink(os.path.abspath(file.container), part)
        else:
            _write(path, plan.downloads.read(file))


def _make_labels(plan, jobs, folder, workers, lock):
    """Make the label images of the jobs, in processes; a UserError at the end lists the wrong annotations."""
    jobs = sorted(jobs, key=lambda job: plan.downloads.position(job.source))
    problems = []
    bar = Bar(desc='labels', unit='image', total=len(plan.labels), initial=len(plan.labels) - len(jobs), delay=1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bar)
        run = _start_pool(stack, workers, lock).map if workers > 1 and len(jobs) > 1 else map
        for start in range(0, len(jobs), CHUNK):
            chunk = jobs[start : start + CHUNK]
            data = (_read(plan.downloads, job.source) for job in chunk)
            try:
                for problem in run(functools.partial(_make_label_images, folder), chunk, data):
                    problems += [problem] if problem else []
                    bar.update()
            except BrokenExecutor:
                raise UserError(
                    'a process that converts was ended from outside (too little memory?); the same command goes on, '
                    'and --workers 1 needs the least memory'
                ) from None
    if problems:
        raise UserError(
            f'{len(problems)} of {len(plan.labels)} annotations cannot be used, and nothing was written for them:'
            + ''.join(f'\n  {problem}' for problem in problems[:10])
            + ('\n  ...' if problems[10:] else '')
        )


def _start_pool(stack, workers, lock):
    """Return a pool of processes, which the exit stack ends."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context('fork'), _start_worker, (lock,))
    stack.enter_context(pool)
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool


def _start_worker(lock):
    """Leave Ctrl-C and the lock to the parent process, and end when the parent ends."""
    os.close(lock)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        ctypes.CDLL('libc.so.6').prctl(DEATH_SIGNAL, signal.SIGKILL)


def _make_label_images(folder, job, data):
    """Make a job's label images from its annotation's bytes; return the problem of a wrong annotation, or None."""
    if isinstance(data, UserError):
        return str(data)
    where, image = str(job.source or job.image), os.path.join(folder, job.image)
    try:
        arrays = job.convert(data, where)
        check_sizes(where, arrays[0].shape, image, image_size(image))
    except UserError as error:
        return str(error)
    for labels, path in zip(arrays, (os.path.join(folder, target) for target in job.targets)):
        if not os.path.exists(path):
            _write(path, data if job.as_is else _png(labels))
    return None


def _read(downloads, source):
    """Return an annotation's bytes, the UserError if it cannot be read, or None for a job without an annotation."""
    try:
        return downloads.read(source) if source else None
    except UserError as error:
        return error


def _png(labels):
    out = io.BytesIO()
    Image.fromarray(labels).save(out, 'PNG')
    return out.getvalue()


def _write(path, data):
    with new_file(path) as part, open(part, 'wb') as f:
        f.write(data)


def _write_lines(path, lines):
    """Write a text file, unless it has these lines."""
    text = '\n'.join(lines) + '\n'
    if os.path.exists(path):
        with open(path, encoding='utf-8') as f:
            if f.read() == text:
                return
    _write(path, text.encode())
