"""Data sets that mmseg lacks, loading that names the file it fails on, and the check of a data root before a run."""
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

from mmcv.transforms import LoadImageFromFile
from mmseg.datasets import COCOStuffDataset, PascalVOCDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image, UnidentifiedImageError

from fsa_seg.errors import UserError

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
class LoadLabels(LoadAnnotations):
    """mmseg's `LoadAnnotations`, whose failure, or a label image of another size than its image, is a UserError."""

    def transform(self, results):
        path = results['seg_map_path']
        try:
            loaded = super().transform(results)
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'the label image {path} cannot be decoded: {error}') from error
        _check_sizes(path, loaded['gt_seg_map'].shape, results['img_path'], loaded['ori_shape'])
        return loaded


def check_dataset(dataset):
    """Raise a UserError unless every image and label image of a data set's config is there, and of one size.

    Reads the split and the heads of the files alone.

    Args:
        dataset (dict): the composed config of an mmseg data set.

    Returns:
        list of str: names of the images, in order.
    """
    root, prefix = dataset['data_root'], dataset['data_prefix']
    for folder in (root, *(os.path.join(root, sub) for sub in prefix.values())):
        if not os.path.isdir(folder):
            raise UserError(f'the data root lacks the folder {folder}: give the right --data-root, or put the data '
                            'where data/README.md says')
    split = dataset.get('ann_file') and os.path.join(root, dataset['ann_file'])
    if split and not os.path.isfile(split):
        raise UserError(f'the split file {split} does not exist; data/README.md says where it comes from')
    entries = DATASETS.build(dict(dataset, pipeline=[], serialize_data=False))
    entries = [entries.get_data_info(i) for i in range(len(entries))]
    if not entries:
        raise UserError(f'no image found: {split or os.path.join(root, prefix["img_path"])} is empty')
    missing = [e[key] for e in entries for key in ('img_path', 'seg_map_path') if not os.path.isfile(e[key])]
    if missing:
        raise UserError(f'{len(missing)} of {2 * len(entries)} files are missing, the first is {missing[0]}')
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_check_entry, entries))
    return [os.path.relpath(e['img_path'], root) for e in entries]


def split_digest(names):
    """Return the SHA-256 of a split: its images' names, in order."""
    return hashlib.sha256('\n'.join(names).encode()).hexdigest()


def _check_entry(entry):
    sizes = []
    for key, what in (('img_path', 'image'), ('seg_map_path', 'label image')):
        try:
            with Image.open(entry[key]) as image:
                sizes.append(image.size[::-1])
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f'the {what} {entry[key]} cannot be decoded: {error}') from None
    _check_sizes(entry['seg_map_path'], sizes[1], entry['img_path'], sizes[0])


def _check_sizes(label_path, label_size, image_path, image_size):
    if tuple(label_size) != tuple(image_size):
        height, width = label_size
        raise UserError(f'the label image {label_path} has {height}×{width} pixels, its image {image_path} '
                        f'{image_size[0]}×{image_size[1]}')
