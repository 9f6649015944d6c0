import os
import shutil

import numpy as np
import pytest
from mmseg.registry import DATASETS
from PIL import Image

from fsa_seg.config.compose import compose
from fsa_seg.datasets.data_sets import check_images, list_images
from fsa_seg.datasets.label_images import LoadLabels, read_labels
from fsa_seg.errors import UserError

from conftest import MINI
from damage import DAMAGE

CLASSES = dict(
    voc21=21, voc20=20, context60=60, context59=59, coco_object=81, coco_stuff164k=171, cityscapes=19, ade20k=150
)


@pytest.mark.parametrize('name', CLASSES)
def test_mini_split(name):
    """Every mini split loads through the real data set class, and shows at least nine in ten of its classes."""
    config = compose(name, 'sclip', backbone='toy', data_root=MINI).test_dataloader.dataset
    entries = list_images(config)
    check_images(
        entries, CLASSES[name], config.type in ('PascalVOC20Dataset', 'PascalContextDataset59', 'ADE20KDataset')
    )
    assert 8 <= len(entries) <= 16
    dataset = DATASETS.build(config)
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == CLASSES[name]
    labels = set()
    for i in range(len(dataset)):
        sample = dataset[i]
        height, width = sample['data_samples'].ori_shape
        assert max(height, width) <= (512 if name == 'cityscapes' else 320)
        assert sample['data_samples'].gt_sem_seg.shape == (height, width)
        labels |= set(np.unique(sample['data_samples'].gt_sem_seg.data))
    assert labels - {255} <= set(range(CLASSES[name]))
    assert len(labels - {255}) >= 0.9 * CLASSES[name]


@pytest.mark.parametrize('with_background, without', [('voc21', 'voc20'), ('context60', 'context59')])
def test_data_sets_without_background(with_background, without):
    """Label i becomes label i − 1, and background becomes void."""
    labels = []
    for name in (with_background, without):
        dataset = DATASETS.build(compose(name, 'sclip', backbone='toy', data_root=MINI).test_dataloader.dataset)
        labels.append(np.stack([dataset[0]['data_samples'].gt_sem_seg.data[0]]).astype(int))
    expected = np.where((labels[0] == 0) | (labels[0] == 255), 255, labels[0] - 1)
    assert np.array_equal(labels[1], expected)


def test_coco_object_is_coco_stuffs_things():
    maps = []
    for suffix in ('_labelTrainIds.png', '_instanceTrainIds.png'):
        folder = os.path.join(MINI, 'coco_stuff164k', 'annotations', 'val2017')
        names = sorted(name for name in os.listdir(folder) if name.endswith(suffix))
        maps.append([np.array(Image.open(os.path.join(folder, name))).astype(int) for name in names])
    for stuff, things in zip(*maps):
        assert np.array_equal(things, np.where(stuff < 80, stuff + 1, 0))


@pytest.fixture
def voc(tmp_path):
    """A copy of the VOC mini split: (folder of VOC2012, its composed data set)."""
    shutil.copytree(os.path.join(MINI, 'VOCdevkit', 'VOC2012'), tmp_path / 'VOCdevkit' / 'VOC2012')
    config = compose('voc21', 'sclip', backbone='toy', data_root=str(tmp_path))
    return tmp_path / 'VOCdevkit' / 'VOC2012', config.test_dataloader.dataset


@pytest.mark.parametrize('damage, message', DAMAGE)
def test_damaged_data_is_found_before_a_run(voc, damage, message):
    folder, dataset = voc
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_images(list_images(dataset), 21)


def test_loading_a_damaged_file_names_it(voc):
    folder, config = voc
    path = folder / 'SegmentationClass' / '2007_000033.png'
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match='the label image .*2007_000033.png cannot be decoded'):
        DATASETS.build(config)[0]


def test_turned_pictures_have_the_size_of_the_decoded_image(voc):
    """The label image of a picture stored on its side has the size of the upright picture."""
    folder, config = voc
    path = folder / 'JPEGImages' / '2007_000033.jpg'
    picture = Image.open(path)
    exif = picture.getexif()
    exif[274] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    check_images(list_images(config), 21)
    assert DATASETS.build(config)[0]['data_samples'].ori_shape == picture.size[::-1]


@pytest.mark.parametrize(
    'labels, right',
    [
        (np.array([[0, 65535]], np.int32), True),
        (np.array([[True, False]]), True),
        (np.array([[0, 65536]], np.int32), False),
        (np.array([[0, -1]], np.int32), False),
        (np.array([[0, 1]], np.float32), False),
    ],
)
def test_types_of_labels(tmp_path, labels, right):
    path = str(tmp_path / 'l.tif')
    Image.fromarray(labels).save(path)
    if right:
        assert read_labels(path).tolist() == labels.astype(int).tolist()
    else:
        with pytest.raises(UserError, match='l.tif has values of type .*, beyond the whole numbers 0 to 65535'):
            read_labels(path)


def test_labels_of_more_than_eight_bits(tmp_path):
    """Label 300 of a 16-bit image stays 300; mmseg's own loading would make it 44."""
    labels = np.array([[300, 0], [1, 255]], np.uint16)
    Image.fromarray(labels).save(tmp_path / 'l.png')
    results = dict(
        seg_map_path=str(tmp_path / 'l.png'),
        img_path='i',
        ori_shape=(2, 2),
        reduce_zero_label=False,
        label_map=None,
        seg_fields=[],
    )
    assert LoadLabels().transform(dict(results))['gt_seg_map'].tolist() == [[300, 0], [1, 255]]
    results['reduce_zero_label'] = True
    assert LoadLabels().transform(dict(results))['gt_seg_map'].tolist() == [[299, 255], [0, 255]]
    results.update(reduce_zero_label=False, label_map={0: 1, 1: 0})
    assert LoadLabels().transform(dict(results))['gt_seg_map'].tolist() == [[300, 1], [0, 255]]
