"""Label images: label maps, impossible sets of labels, and files of other formats."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from fsa_seg.datasets.data_sets import check_images, scan_images
from fsa_seg.datasets.label_images import LoadLabels, check_rule, check_seen, read_label_map, read_labels
from fsa_seg.errors import UserError
from fsa_seg.system import files


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def test_label_maps(tmp_path):
    (tmp_path / 'map.txt').write_text('# COCO\n255 1\n7   0  # sky\n\n100000 65535\n')
    assert (
        read_label_map('255:1, 7:0')
        == read_label_map({255: 1, 7: 0})
        == read_label_map([[7, 0], (255, 1)])
        == [[7, 0], [255, 1]]
    )
    assert read_label_map({'7': 0}) == [[7, 0]]  # as JSON would have it
    assert read_label_map('map.txt', str(tmp_path)) == [[7, 0], [255, 1], [100000, 65535]]
    for text, message in (
        ('7 0 1\n', "map.txt' has the entry .'7', '0', '1'.; an entry is two whole numbers"),
        ('', 'is empty'),
        ('7 0\n7 1\n', 'gives 7 two labels, 0 and 1'),
        ('7 x\n', 'two whole numbers'),
        ('16777216 1\n', 'numbers in a file go up to 16777215'),
    ):
        (tmp_path / 'map.txt').write_text(text)
        with pytest.raises(UserError, match=message):
            read_label_map('map.txt', str(tmp_path))
    for source, message in (
        ('none.txt', "the label map 'none.txt' does not exist; give a text file"),
        (5, 'has the entry 5'),
        ({1: -1}, 'two whole numbers'),
        ({1: True}, 'two whole numbers'),
        ([1, 2], 'has the entry 1'),
    ):
        with pytest.raises(UserError, match=message):
            read_label_map(source)


def test_numbers_are_replaced_at_once(tmp_path):
    """0 and 1 change places; numbers outside the map stay; ids of 32 bits and colours are numbers too."""
    grey = save(tmp_path / 'l.png', np.array([[0, 1, 2, 255]], np.uint8))
    assert read_labels(grey, [[0, 1], [1, 0], [255, 3]]).tolist() == [[1, 0, 2, 3]]
    ids = save(tmp_path / 'l.tif', np.array([[70001, 5]], np.int32))
    assert read_labels(ids, [[70001, 2]]).tolist() == [[2, 5]]
    with pytest.raises(
        UserError,
        match=r'l.tif has values of type int32 \(5 to 70001\).* --label-map .in a config, '
        'label_map. renum',
    ):
        read_labels(ids)
    colours = save(tmp_path / 'c.png', np.array([[[1, 0, 0], [0, 2, 0], [3, 4, 5]]], np.uint8))
    assert read_labels(colours, [[512, 7], [3 + 4 * 256 + 5 * 65536, 8]]).tolist() == [[1, 7, 8]]
    with pytest.raises(UserError, match='c.png has 3 channels.*Colours .R . 256·G . 65536·B. need --label-map'):
        read_labels(colours)
    with pytest.raises(UserError, match='a.png has 4 channels'):
        read_labels(save(tmp_path / 'a.png', np.zeros((2, 2, 4), np.uint8)), [[0, 1]])


def test_the_map_comes_before_the_shift(tmp_path):
    path = save(tmp_path / 'l.png', np.array([[9, 1, 0, 255]], np.uint8))
    results = dict(seg_map_path=path, img_path='i', ori_shape=(1, 4), reduce_zero_label=True, seg_fields=[])
    assert LoadLabels(label_map=[[9, 2]]).transform(results)['gt_seg_map'].tolist() == [[1, 0, 255, 255]]


@pytest.mark.parametrize(
    'labels, classes, zero, void, void_named, message',
    [
        (
            {0, 255},
            2,
            False,
            255,
            False,
            '0 and 255 alone, .* one class of 2 occurs. If 255 .* --label-map 255:1 .*--ignore-index 255',
        ),
        ({1, 255}, 2, False, 255, False, '--label-map 255:0 '),
        ({1, 255}, 2, True, 255, False, '--label-map 255:2 '),
        ({0, 2, 255}, 2, True, 255, False, '--label-map 255:1 '),
        ({255}, 5, False, 255, True, 'no pixel of the label images is of any class: .*hold .255.'),
        ({0, 255}, 5, True, 255, False, 'no pixel'),
        ({0, 255}, 2, False, 255, True, None),
        ({0, 1, 255}, 2, False, 255, False, None),
        ({0}, 2, False, 255, False, None),
        ({0, 255}, 1, False, 255, False, None),
        ({0, 11}, 2, False, 11, True, None),
    ],
)
def test_impossible_labels(labels, classes, zero, void, void_named, message):
    if message is None:
        assert check_seen(labels, classes, zero, void, void_named) is None
    else:
        with pytest.raises(UserError, match=message):
            check_seen(labels, classes, zero, void, void_named)


def test_a_single_class_of_many_is_a_warning():
    assert 'hold 0 and 255 alone' in check_seen({0, 255}, 21, False, 255, False)
    assert check_seen({0, 3, 255}, 21, False, 255, False) is None


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((5, False, -1), 'ignore_index is -1; it has to be a whole number from 0 to 65535'),
        ((5, False, 'a'), "ignore_index is 'a'"),
        ((5, False, True), 'ignore_index is True'),
        ((5, True, 3), 'ignore_index is 3, which is a class once reduce_zero_label'),
        ((5, False, 255, [[9, 5]]), 'gives 9 the label 5; the data set has 0 to 4, and 255 for void'),
    ],
)
def test_void_and_label_map_fit_the_classes(arguments, message):
    with pytest.raises(UserError, match=message):
        check_rule(*arguments)
    check_rule(5, True, 255, [[9, 5], [8, 255]])
    check_rule(5, False, 3)  # a class that does not count


@pytest.mark.parametrize(
    'write, message',
    [
        (os.mkfifo, 'the label image .* cannot be read: it is a FIFO'),
        (os.mkdir, 'it is a folder'),
        (lambda path: None, 'No such file'),
        (
            lambda path: Image.new('1', (14000, 14000)).save(path),
            'the label image .*l.png has more than 178956970 pixels',
        ),
    ],
)
def test_files_of_other_formats(tmp_path, write, message):
    write(tmp_path / 'l.png')
    with pytest.raises(UserError, match=message):
        read_labels(str(tmp_path / 'l.png'))


def test_labels_beyond_the_free_memory(tmp_path, monkeypatch):
    path = save(tmp_path / 'l.png', np.zeros((1000, 1000), np.uint8))
    monkeypatch.setattr(files, 'free_memory', lambda: 12e6)
    assert read_labels(path).shape == (1000, 1000)
    monkeypatch.setattr(files, 'free_memory', lambda: 12e6 - 1)
    with pytest.raises(UserError, match='the label image .*l.png of 1000×1000 pixels takes'):
        read_labels(path)


def test_the_first_bad_file_ends_a_check(tmp_path, monkeypatch):
    """The check before a run reads no further file; the check that lists all wrong files reads on."""
    image, label = (
        save(tmp_path / 'i.png', np.zeros((4, 4, 3), np.uint8)),
        save(tmp_path / 'l.png', np.zeros((4, 4), np.uint8)),
    )
    (tmp_path / 'bad.png').write_text('no image')
    entries = [
        dict(img_path=image if i else str(tmp_path / 'bad.png'), seg_map_path=label, name=str(i)) for i in range(400)
    ]
    read = []

    def slow(path, *arguments):
        read.append(path)
        time.sleep(0.002)
        return read_labels(path, *arguments)

    monkeypatch.setattr('fsa_seg.datasets.data_sets.read_labels', slow)
    with pytest.raises(UserError, match='bad.png cannot be decoded'):
        check_images(entries, 1)
    assert len(read) < 200
    scans = list(scan_images(entries, 'all'))
    assert [bool(scan.error) for scan in scans] == [True] + 399 * [False]
