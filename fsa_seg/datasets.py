"""Data sets that mmseg lacks, loading that names the file it fails on, and the check of a data root before a run."""
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mmcv import imfrombytes
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from mmseg.datasets import COCOStuffDataset, PascalVOCDataset
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from fsa_seg.errors import UserError

VOID = 255
EXIF_ORIENTATION = 274  # number of the tag
THINGS = 80  # of COCO-Stuff's 171 classes, the first


@DATASETS.register_module()
class PascalVOC20Dataset(PascalVOCDataset):
    """PASCAL VOC 2012 without its background: label 0 becomes void, 1 to 20 become 0 to 19."""
    METAINFO = {key: value[1:] for key, value in PascalVOCDataset.METAINFO.items()}

    def __init__(self, ann_file, reduce_zero_label=True, **kwargs):
        super().__init__(ann_file=ann_file, reduce_zero_label=reduce_zero_label, **kwargs)


@DATASETS.register_module()
class COCOObjectDataset(COCOStuffDataset):
    """COCO's 80 things and background (label 0), from COCO-Stuff's maps."""
    METAINFO = dict(
        classes=('background', *COCOStuffDataset.METAINFO['classes'][:THINGS]),
        palette=[[0, 0, 0], *COCOStuffDataset.METAINFO['palette'][:THINGS]])

    def __init__(self, seg_map_suffix='_instanceTrainIds.png', **kwargs):
        super().__init__(seg_map_suffix=seg_map_suffix, **kwargs)


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """mmcv's `LoadImageFromFile` (BGR, uint8), whose failure is a UserError that names the file."""

    def transform(self, results):
        try:
            loaded = super().transform(results)
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'the image {results["img_path"]} cannot be decoded: {error}') from error
        return loaded


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """Loads a label image of any bit depth as `gt_seg_map`, (height, width) int32 at original size; 255 is void.

    What mmseg's `LoadAnnotations` does, which casts to uint8: `reduce_zero_label` makes label 0 void and shifts the
    others down by one, `label_map` renumbers.

    Raises (while loading):
        UserError: the file cannot be decoded, has colour channels, or another size than its image.
    """

    def transform(self, results):
        labels = read_labels(results['seg_map_path'])
        _check_sizes(results['seg_map_path'], labels.shape, results['img_path'], results['ori_shape'])
        if results['reduce_zero_label']:
            labels = np.where((labels == 0) | (labels == VOID), VOID, labels - 1)
        if results.get('label_map'):
            before = labels.copy()
            for old, new in results['label_map'].items():
                labels[before == old] = new
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results


def read_labels(path):
    """Return a label image as (height, width) int32; one that is none is a UserError that names it."""
    try:
        labels = imfrombytes(fileio.get(path), flag='unchanged', backend='pillow')
    except Exception as error:  # the decoders raise many kinds
        raise UserError(f'the label image {path} cannot be decoded: {error}') from error
    if labels.ndim != 2:
        raise UserError(f'the label image {path} has {labels.shape[2]} channels; a palette or a single-channel image is '
                        'needed, whose values are the labels')
    return labels.astype(np.int32)


def list_images(dataset):
    """Return the entries of a data set's config: a list of dict(name, img_path, seg_map_path), in order.

    A name is the image's path below the data root.

    Raises:
        UserError: the data root lacks a folder, or the split file is missing or empty.
    """
    root, prefix = dataset['data_root'], dataset['data_prefix']
    for folder in (root, *(os.path.join(root, sub) for sub in prefix.values())):
        if not os.path.isdir(folder):
            raise UserError(f'the data root lacks the folder {folder}: give the right --data-root, put the data where '
                            "data/README.md says, or mend the paths in the data set's config")
    split = dataset.get('ann_file') and os.path.join(root, dataset['ann_file'])
    if split and not os.path.isfile(split):
        raise UserError(f'the split file {split} does not exist; data/README.md says where it comes from')
    built = DATASETS.build(dict(dataset, pipeline=[]))
    entries = [built.get_data_info(i) for i in range(len(built))]
    if not entries:
        raise UserError(f'no image found: {split or os.path.join(root, prefix["img_path"])} is empty')
    return [dict(name=os.path.relpath(e['img_path'], root), img_path=e['img_path'], seg_map_path=e['seg_map_path'])
            for e in entries]


def check_images(entries, classes, reduce_zero_label=False):
    """Raise a UserError unless every image and label image is there, of one size, and every label in its range.

    Decodes the label images, and reads the heads of the images.

    Args:
        entries (list of dict): of `list_images`.
        classes (int): number of classes; labels are 0 to classes − 1, or 0 to classes where 0 is made void.
        reduce_zero_label (bool): whether label 0 is made void and the others shift down by one.
    """
    missing = [e[key] for e in entries for key in ('img_path', 'seg_map_path') if not os.path.isfile(e[key])]
    if missing:
        raise UserError(f'{len(missing)} of {2 * len(entries)} files are missing, the first is {missing[0]}')
    with ThreadPoolExecutor() as pool:
        checks = pool.map(lambda entry: _check_entry(entry, classes + reduce_zero_label), entries)
        for _ in tqdm(checks, desc='checking the data', total=len(entries), delay=2, leave=False):
            pass


def _check_entry(entry, values):
    path = entry['seg_map_path']
    try:
        with Image.open(entry['img_path']) as image:
            size = image.size[::-1]
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:  # turned by a quarter when it is decoded
                size = size[::-1]
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f'the image {entry["img_path"]} cannot be decoded: {error}') from None
    labels = read_labels(path)
    _check_sizes(path, labels.shape, entry['img_path'], size)
    present = np.flatnonzero(np.bincount(labels.ravel()))
    wrong = present[(present >= values) & (present != VOID)]
    if len(wrong):
        raise UserError(f'the label image {path} has the labels {wrong[:5].tolist()}; the data set has 0 to {values - 1}, '
                        f'and {VOID} for void')


def _check_sizes(label_path, label_size, image_path, image_size):
    if tuple(label_size) != tuple(image_size):
        height, width = label_size
        raise UserError(f'the label image {label_path} has {height}×{width} pixels, its image {image_path} '
                        f'{image_size[0]}×{image_size[1]}')
