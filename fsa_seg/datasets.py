"""Data sets that mmseg lacks, loading that names the file it fails on, and the check of a data root before a run.

A label image holds the labels 0 to K − 1 of K classes, or 0 to K where 0 is made void; and void, see `void_label`.
"""
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from mmcv import imfrombytes
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio, list_from_file
from mmseg.datasets import BaseSegDataset, COCOStuffDataset, PascalVOCDataset
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image
from tqdm import tqdm

from fsa_seg.errors import UserError, built
from fsa_seg.paths import file_digest

VOID, WIDE_VOID = 255, 65535
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
LABEL_SUFFIXES = ('.png', '.tif', '.tiff')
EXIF_ORIENTATION = 274  # number of the tag
NO_LABELS = 'no pixel of the label images is of any class'
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


@DATASETS.register_module()
class ImageFolderDataset(BaseSegDataset):
    """Images in one folder, of any usual format, and label images of the same names (PNG or TIFF) in another.

    With an `ann_file`, those that it names, a line each; else all images, those of folders below included.

    Raises:
        UserError: an image without labels, a name in the `ann_file` without an image, or two files of one name.
    """

    def load_data_list(self):
        image_folder, label_folder = self.data_prefix['img_path'], self.data_prefix['seg_map_path']
        if os.path.realpath(image_folder) == os.path.realpath(label_folder):
            raise UserError(f'images and labels are both in {image_folder}; labels need a folder of their own')
        images = _by_name(image_folder, IMAGE_SUFFIXES, label_folder)
        labels = _by_name(label_folder, LABEL_SUFFIXES, image_folder)
        names = [line.strip() for line in list_from_file(self.ann_file)] if self.ann_file else sorted(images)
        for found, what in ((images, 'image'), (labels, 'label image')):
            missing = [name for name in names if name not in found]
            if missing:
                folder = image_folder if found is images else label_folder
                raise UserError(f'{len(missing)} of {len(names)} names have no {what} in {folder}; the first is {missing[0]!r}')
        return [dict(img_path=images[name], seg_map_path=labels[name], label_map=self.label_map,
                     reduce_zero_label=self.reduce_zero_label, seg_fields=[]) for name in names]


def _by_name(folder, suffixes, other):
    """Return the files of a folder and of those below it but `other`: path below the folder, without suffix -> path."""
    found, other = {}, os.path.relpath(other, folder) + os.sep
    for file in sorted(fileio.list_dir_or_file(folder, list_dir=False, recursive=True)):
        name, suffix = os.path.splitext(file)
        if suffix.lower() in suffixes and not file.startswith(other):
            if name in found:
                raise UserError(f'two files are called {name!r}: {found[name]} and {file}; labels need a folder of their own')
            found[name] = os.path.join(folder, file)
    return found


def folder_dataset(images, labels, classes, reduce_zero_label=False):
    """Return the part of a data set of one's own, as a file of configs/datasets/ would have it.

    Args:
        images, labels (str): folders, see `ImageFolderDataset`.
        classes (str): text file of class names, see `fsa_seg.text.read_classes`.
        reduce_zero_label (bool): label 0 is void, and the first class is 1.
    """
    for path, what in ((images, 'folder'), (labels, 'folder'), (classes, 'file')):
        if not (os.path.isfile if what == 'file' else os.path.isdir)(path):
            raise UserError(f'the {what} {path} does not exist')
    images, labels, classes = (os.path.abspath(path) for path in (images, labels, classes))
    root = os.path.commonpath([images, labels])
    prefix = dict(img_path=os.path.relpath(images, root), seg_map_path=os.path.relpath(labels, root))
    name = f'own_{os.path.basename(root) or os.path.basename(images)}'
    return dict(name=name, type='ImageFolderDataset', data_root=root, data_prefix=prefix, classes=classes,
                reduce_zero_label=reduce_zero_label)


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
    """Loads a label image of any bit depth as `gt_seg_map`, (height, width) int32 at original size.

    What mmseg's `LoadAnnotations` does, which casts to uint8: `reduce_zero_label` makes label 0 void and shifts the
    others down by one, `label_map` renumbers.

    Args:
        void (int): label of pixels that do not count.

    Raises (while loading):
        UserError: the file cannot be decoded, has colour channels, or another size than its image.
    """

    def __init__(self, void=VOID):
        self.void = void

    def transform(self, results):
        labels = read_labels(results['seg_map_path'])
        check_sizes(results['seg_map_path'], labels.shape, results['img_path'], results['ori_shape'])
        if results['reduce_zero_label']:
            labels = without_zero(labels, self.void)
        if results.get('label_map'):
            before = labels.copy()
            for old, new in results['label_map'].items():
                labels[before == old] = new
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')
        return results


def void_label(classes, reduce_zero_label=False):
    """Return the label of pixels that do not count: 255, or 65535 where 255 is a class in the files."""
    return WIDE_VOID if classes + reduce_zero_label > VOID else VOID


def without_zero(labels, void):
    """Return labels whose 0 is made void and whose others are shifted down by one."""
    return np.where((labels == 0) | (labels == void), void, labels - 1)


def read_labels(path):
    """Return a label image as (height, width) int32; one that is none is a UserError that names it."""
    try:
        data = fileio.get(path)
    except OSError as error:
        raise UserError(f'the label image {path} cannot be read: {error}') from error
    return decode_labels(data, path)


def decode_labels(data, path):
    """Return the bytes of a label image, called `path` in errors, as `read_labels` does."""
    try:
        labels = imfrombytes(data, flag='unchanged', backend='pillow')
    except Exception as error:  # the decoders raise many kinds
        raise UserError(f'the label image {path} cannot be decoded: {error}') from error
    if labels.ndim != 2:
        raise UserError(f'the label image {path} has {labels.shape[2]} channels; a palette or a single-channel image is '
                        'needed, whose values are the labels')
    wide = labels.dtype.itemsize > 2 and labels.size
    if labels.dtype.kind not in 'uib' or wide and (labels.min() < 0 or labels.max() > WIDE_VOID):
        raise UserError(f'the label image {path} has values of type {labels.dtype}, beyond the whole numbers 0 to {WIDE_VOID}')
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
    made = built(f'the data set of {root}', lambda: DATASETS.build(dict(dataset, pipeline=[])))
    entries = [made.get_data_info(i) for i in range(len(made))]
    if not entries:
        raise UserError(f'no image found: {split or os.path.join(root, prefix["img_path"])} is empty')
    repeated = [path for path, count in Counter(entry['img_path'] for entry in entries).items() if count > 1]
    if repeated:
        raise UserError(f'{split} names {len(repeated)} images more than once, the first is {repeated[0]}')
    return [dict(name=os.path.relpath(e['img_path'], root), img_path=e['img_path'], seg_map_path=e['seg_map_path'])
            for e in entries]


def check_count(entries, known):
    """Raise a UserError unless a split has one of the known numbers of images.

    Args:
        entries (list of dict): of `list_images`.
        known (None, int or list of int): numbers; None allows any.
    """
    known = [known] if isinstance(known, int) else known
    if known and len(entries) not in known:
        raise UserError(f'the split has {len(entries)} images, the data set {" or ".join(map(str, known))}: prepare it again '
                        '(data/README.md), or name a config without `images` where a part of it is meant')


def check_images(entries, classes, reduce_zero_label=False, void=VOID):
    """Return a digest of what each image and label image holds, by name; raise a UserError unless all are right.

    Every file has to be there, image and label image of one size, and every label in its range. Decodes the label images;
    images are read and not decoded.

    Args:
        entries (list of dict): of `list_images`.
        classes (int): number of classes; labels are 0 to classes − 1, or 0 to classes where 0 is made void.
        reduce_zero_label (bool): whether label 0 is made void and the others shift down by one.
        void (int): label of pixels that do not count.
    """
    missing = missing_files(entries)
    if missing:
        raise UserError(f'{len(missing)} of {2 * len(entries)} files are missing, the first is {missing[0]}')
    labelled, contents = False, {}
    for scan in scan_images(entries, 'checking the data'):
        check_scan(scan, classes + reduce_zero_label, void)
        labelled |= bool(((scan.labels >= reduce_zero_label) & (scan.labels != void)).any())
        contents[scan.entry['name']] = scan.content
    if not labelled:
        raise UserError(f'{NO_LABELS}: labels are 0 to {classes + reduce_zero_label - 1}'
                        f'{", 0 is void" if reduce_zero_label else ""}')
    return contents


def file_classes(dataset):
    """Return class names and palette of the label files of a data set (built); its config may choose some of them."""
    meta = type(dataset).METAINFO if dataset.label_map else dataset.metainfo
    return list(meta['classes']), meta['palette']


def missing_files(entries):
    """Return the paths of `list_images`' entries that do not exist."""
    return [e[key] for e in entries for key in ('img_path', 'seg_map_path') if not os.path.isfile(e[key])]


class Scan(NamedTuple):
    """What is seen of an image and its label image.

    Attributes:
        entry (dict): of `list_images`.
        image_size (tuple): height and width of the image, as it is decoded.
        label_size (tuple): those of the label image.
        mode (str): of the label image, as Pillow names it; None if images are not decoded.
        labels (array): those that the label image holds, increasing.
        pixels (array): of each of them, int64.
        content (str): digest of the image's bytes and the label image's values; None if images are decoded.
        error (str): why they cannot be read; the others are None then.
    """
    entry: dict
    image_size: tuple = None
    label_size: tuple = None
    mode: str = None
    labels: np.ndarray = None
    pixels: np.ndarray = None
    content: str = None
    error: str = None


def scan_images(entries, title, decode=False):
    """Yield a `Scan` of each entry, in order, with a progress bar.

    Args:
        entries (list of dict): of `list_images`.
        title (str): of the progress bar.
        decode (bool): decode the images too, and tell modes; else the images' heads are read.
    """
    with ThreadPoolExecutor() as pool:
        scans = pool.map(lambda entry: _scan(entry, decode), entries)
        yield from tqdm(scans, desc=title, total=len(entries), delay=2, leave=False)


def _scan(entry, decode):
    try:
        size = image_size(entry['img_path'], decode)
        labels = read_labels(entry['seg_map_path'])
    except UserError as error:
        return Scan(entry, error=str(error))
    mode = content = None
    if not decode:
        values = hashlib.sha256(np.ascontiguousarray(labels)).hexdigest()
        content = f'{file_digest(entry["img_path"])[:24]}{values[:24]}'
    else:
        with Image.open(entry['seg_map_path']) as image:
            mode = image.mode
    pixels = np.bincount(labels.ravel())
    present = np.flatnonzero(pixels)
    return Scan(entry, size, labels.shape, mode, present, pixels[present], content)


def image_size(path, decode=False):
    """Return the height and width that an image has when it is decoded; one that cannot be is a UserError.

    Args:
        path (str): its file.
        decode (bool): decode it too; else its head is read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if decode:
                image.load()
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # by a quarter
    except Exception as error:  # the decoders raise many kinds
        raise UserError(f'the image {path} cannot be decoded: {error}') from None
    return (width, height) if turned else (height, width)


def check_scan(scan, values, void):
    """Raise a UserError unless a `Scan` has an image and labels of one size, the labels below `values` or void."""
    if scan.error:
        raise UserError(scan.error)
    path = scan.entry['seg_map_path']
    check_sizes(path, scan.label_size, scan.entry['img_path'], scan.image_size)
    check_range(path, scan.labels, values, void)


def check_range(path, present, values, void=VOID):
    """Raise a UserError if a label image holds labels (`present`, an array) that are neither below `values` nor void."""
    wrong = present[(present >= values) & (present != void)]
    if len(wrong):
        raise UserError(f'the label image {path} has the labels {wrong[:5].tolist()}; the data set has 0 to {values - 1}, '
                        f'and {void} for void')


def check_sizes(label_path, label_size, image_path, image_size):
    """Raise a UserError unless labels and image have the same height and width."""
    if tuple(label_size) != tuple(image_size):
        height, width = label_size
        raise UserError(f'the label image {label_path} has {height}×{width} pixels, its image {image_path} '
                        f'{image_size[0]}×{image_size[1]}')
