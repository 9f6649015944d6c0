"""PASCAL VOC 2012: the publisher's label images are kept as they are."""

import functools

from mmseg.datasets import PascalVOCDataset

from fsa_seg.datasets.prepare.downloads import Download, Downloads
from fsa_seg.datasets.prepare.plan import Plan, Preparation, index_files, keep_labels, read_split


def plan_voc(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan PASCAL VOC 2012."""
    plan = Plan(downloads)
    images = index_files(downloads, r'VOC2012/JPEGImages/[^/]+\.jpg', '.jpg', 'images of VOC2012/JPEGImages')
    labels = index_files(
        downloads, r'VOC2012/SegmentationClass/[^/]+\.png', '.png', 'annotations of VOC2012/SegmentationClass'
    )
    convert = functools.partial(keep_labels, values=len(PascalVOCDataset.METAINFO['classes']))
    for split in splits:
        names = read_split(downloads, f'VOC2012/ImageSets/Segmentation/{split}.txt')
        plan.add(names, images, 'JPEGImages/{name}.jpg', labels, convert, 'SegmentationClass/{name}.png', as_is=True)
        plan.texts[f'ImageSets/Segmentation/{split}.txt'] = names
    return plan


VOC = Preparation(
    'VOCdevkit/VOC2012',
    ('voc21', 'voc20'),
    plan_voc,
    (
        Download(
            'https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar',
            2000,
            '6cd6e144f989b92b3379bac3b3de84fd',
        ),
    ),
)
