import os
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from fsa_seg.datasets import data_sets
from fsa_seg.errors import UserError
from fsa_seg.evaluation.data_checks import check_once

LONG_AGO = time.time() - 100


def age(path, seconds=0):
    os.utime(path, (LONG_AGO + seconds, LONG_AGO + seconds))


@pytest.fixture
def entries(tmp_path):
    """Four images and label images, of the labels 0 and 1, that changed long ago."""
    found = []
    for i in range(4):
        paths = dict(img_path=str(tmp_path / f'{i}.jpg'), seg_map_path=str(tmp_path / f'{i}.png'))
        Image.fromarray(np.full((4, 6, 3), 40 * i, np.uint8)).save(paths['img_path'])
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 2).save(paths['seg_map_path'], compress_level=0)
        for path in paths.values():
            age(path)
        found.append(dict(name=f'{i}.jpg', **paths))
    return found


@pytest.fixture
def reads(monkeypatch):
    """The names of the images that are read."""
    names, scan = [], data_sets._scan
    monkeypatch.setattr(data_sets, '_scan', lambda entry, *given: names.append(entry['name']) or scan(entry, *given))
    return names


def check(tmp_path, entries, classes=2, **options):
    return check_once(str(tmp_path / 'checks'), entries, classes, False, 255, True, **options)


def test_images_are_read_once_and_changed_ones_again(tmp_path, entries, reads):
    contents = check(tmp_path, entries)
    assert contents == data_sets.check_images(entries, 2, void_named=True) and len(reads) == 8
    reads.clear()
    assert check(tmp_path, entries) == contents and not reads
    Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(entries[2]['img_path'])
    age(entries[2]['img_path'], 1)
    changed = check(tmp_path, entries)
    assert reads == ['2.jpg'] and [name for name in contents if contents[name] != changed[name]] == ['2.jpg']
    assert check(tmp_path, entries) == changed and reads == ['2.jpg']
    check(tmp_path, entries, label_map=[[7, 1]])
    assert len(reads) == 5  # other labels


def test_rules_are_checked_of_kept_images_too(tmp_path, entries, reads):
    check(tmp_path, entries)
    with pytest.raises(UserError, match='0.png has the labels .1.; the data set has 0 to 0'):
        check(tmp_path, entries, classes=1)
    os.remove(entries[1]['seg_map_path'])
    with pytest.raises(UserError, match='1 of 8 files are missing, the first is .*1.png'):
        check(tmp_path, entries)
    assert len(reads) == 4


def test_a_file_that_changed_just_now_is_not_trusted(tmp_path, entries, reads):
    """A second change within the tick of the file server's clock leaves size and time as they are."""
    os.utime(entries[3]['seg_map_path'])
    contents = check(tmp_path, entries)
    state = os.stat(entries[3]['seg_map_path'])
    Image.fromarray(1 - np.arange(24, dtype=np.uint8).reshape(4, 6) % 2).save(
        entries[3]['seg_map_path'], compress_level=0
    )
    os.utime(entries[3]['seg_map_path'], ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(entries[3]['seg_map_path']).st_size == state.st_size
    reads.clear()
    assert check(tmp_path, entries)['3.jpg'] != contents['3.jpg'] and reads == ['3.jpg']


def test_a_change_while_the_images_are_read_is_seen_by_the_next_check(tmp_path, entries, monkeypatch):
    scan = data_sets._scan

    def scan_and_change(entry, *given):
        found = scan(entry, *given)
        if entry['name'] == '0.jpg':
            Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(entry['img_path'])
            age(entry['img_path'], 1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(data_sets, '_scan', scan_and_change)
        before = check(tmp_path, entries)
    assert check(tmp_path, entries)['0.jpg'] != before['0.jpg']


@pytest.mark.parametrize('damage', ['torn', 'garbled', 'foreign', 'folder'])
def test_a_damaged_file_of_checks_is_ignored(tmp_path, entries, reads, damage):
    contents = check(tmp_path, entries)
    (path,) = (tmp_path / 'checks').iterdir()
    text = path.read_text()
    path.unlink()
    if damage == 'folder':
        path.mkdir()
    elif damage == 'foreign':
        check(tmp_path, entries, label_map=[[7, 1]])
        (other,) = (tmp_path / 'checks').iterdir()
        shutil.move(other, path)
    else:
        path.write_text(text[:100] if damage == 'torn' else text.replace(contents['1.jpg'], 'f' * 48))
    reads.clear()
    assert check(tmp_path, entries) == contents and len(reads) == 4


def test_one_process_reads_and_the_others_wait(tmp_path, entries, reads):
    """Threads stand for processes: a lease is a file."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(check(tmp_path, entries)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 4 and all(contents == found[0] for contents in found) and len(reads) == 4


def test_without_a_place_for_checks_the_images_are_read(tmp_path, entries, reads, capsys):
    (tmp_path / 'checks').touch()
    assert check(tmp_path, entries) == check(tmp_path, entries) and len(reads) == 8
    assert capsys.readouterr().err.count('the check of the data is not kept') == 1
