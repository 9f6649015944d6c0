"""Data checks that are kept: an image is read again only when its file or its label image's file has changed."""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time

from fsa_seg.datasets.data_sets import FILE_KEYS, Reading, ask_files, check_images
from fsa_seg.errors import UserError, warn_once
from fsa_seg.system.leases import leased
from fsa_seg.system.paths import new_file, sources_digest

SETTLED = 2 * 10**9  # nanoseconds, the coarsest clock of a file system; a younger file may change unseen by its time


def check_once(
    folder: str, entries: list[dict], *rules, label_map: list | None = None, image_max: int | None = None
) -> dict[str, str]:
    """Check images as `check_images` does, and return the same; what was read before is taken from a file.

    Rules of labels are checked each time. The file is of these images as this code loads them, in whatever data sets.
    A file of an image counts as unchanged while its size and its time of change are the same. Of several processes one
    reads the images, and the others wait for its file.

    Args:
        folder: folder of the kept checks.
        entries, rules, label_map, image_max: see `check_images`.

    Raises:
        UserError: see `check_images`.
    """
    paths = [os.path.abspath(entry[key]) for entry in entries for key in FILE_KEYS]
    key = hashlib.sha256(json.dumps([paths, label_map, image_max, sources_digest()]).encode()).hexdigest()
    path = os.path.join(folder, f'{key}.json')
    check = functools.partial(check_images, entries, *rules, label_map=label_map, image_max=image_max)
    read = _kept(path, key, _states(entries))
    if len(read) == len(entries):
        return check(read=read)
    with leased(f'{path}.lease', 'checks the data'):
        settled = _now(folder) - SETTLED
        states = _states(entries)  # before the files are read: a later change is then seen by the next check
        read = _kept(path, key, states)  # more, if another process had the lease before
        contents = check(read=read)
        _keep(path, key, {name: (state, *read[name]) for name, state in states.items() if _changed(state) < settled})
    return contents


def _states(entries):
    """Return the state of each image's files: name -> [[size, time of change in nanoseconds], ...]; None if absent."""

    def state(path):
        with contextlib.suppress(OSError):
            found = os.stat(path)
            return [found.st_size, found.st_mtime_ns]

    states = iter(ask_files(state, [entry[key] for entry in entries for key in FILE_KEYS]))
    return {entry['name']: [next(states) for _ in FILE_KEYS] for entry in entries}


def _changed(state):
    """Return when an image's files changed last, in nanoseconds."""
    return max(changed for _, changed in state)


def _now(folder):
    """Return the time in nanoseconds, by the clock of a folder's file server or of the host, whichever is behind."""
    now = time.time_ns()
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=folder) as f:
        return min(now, os.fstat(f.fileno()).st_mtime_ns)
    return now


def _kept(path, key, states):
    """Return the `Reading` of each image in a file of kept checks whose files are in the same state; else none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        with open(path, encoding='utf-8') as f:
            kept = json.load(f)
        if kept['seal'] == _seal(key, kept['images']):  # neither torn nor of other images
            images = kept['images'].items()
            return {name: Reading(*reading) for name, (state, *reading) in images if state == states.get(name)}
    return {}


def _keep(path, key, images):
    """Write a file of kept checks; a file that cannot be written is a warning."""
    try:
        with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
            json.dump(dict(seal=_seal(key, images), images=images), f)
    except (OSError, UserError) as error:
        warn_once(f'the check of the data is not kept: {error}')


def _seal(key, images):
    return hashlib.sha256(json.dumps([key, images], sort_keys=True).encode()).hexdigest()
