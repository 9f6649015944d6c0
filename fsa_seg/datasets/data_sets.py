"""Data sets that mmseg lacks, the loading of images, and the check of a data root before a run."""

import contextlib
import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import list_from_file
from mmseg.datasets import BaseSegDataset, COCOStuffDataset, PascalVOCDataset
from mmseg.registry import DATASETS, TRANSFORMS
from tqdm import tqdm

from fsa_seg.datasets.images import image_size, open_image, read_image
from fsa_seg.datasets.label_images import VOID, check_range, check_rule, check_seen, check_sizes, read_labels
from fsa_seg.errors import UserError, built, warn_once
from fsa_seg.system.files import walk_folders
from fsa_seg.system.paths import file_digest

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
LABEL_SUFFIXES = ('.png', '.tif', '.tiff')
LEFT_OUT = ('files of other suffixes', 'broken links', 'FIFOs, sockets or devices', 'folders with the name of an image')
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
        palette=[[0, 0, 0], *COCOStuffDataset.METAINFO['palette'][:THINGS]],
    )

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
        images, no_images = _by_name(image_folder, IMAGE_SUFFIXES, label_folder)
        labels, no_labels = _by_name(label_folder, LABEL_SUFFIXES, image_folder)
        names = [line.strip() for line in list_from_file(self.ann_file)] if self.ann_file else sorted(images)
        for found, what, suffixes in ((images, 'image', IMAGE_SUFFIXES), (labels, 'label image', LABEL_SUFFIXES)):
            missing = [name for name in names if name not in found]
            if missing:
                folder = image_folder if found is images else label_folder
                raise UserError(
                    f'{len(missing)} of {len(names)} names have no {what} in {folder}; the first is '
                    f'{missing[0]!r} ({what}s end in {", ".join(suffixes)})'
                )
        self.left_out = []
        if not self.ann_file:
            alone = [labels[name] for name in sorted(set(labels) - set(images))]
            self.left_out = no_images + no_labels + _counted('label images without an image', alone)
        return [
            dict(
                img_path=images[name],
                seg_map_path=labels[name],
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for name in names
        ]


def _by_name(folder, suffixes, other):
    """Return the files of a folder and of those below it but `other`, and what is left out; hidden names are no files.

    Returns:
        (dict, list of str): path below the folder, without suffix -> path; what is left out, a line each.
    """
    found, out, below = {}, {what: [] for what in LEFT_OUT}, os.path.realpath(other)
    for place, folders, files in walk_folders(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith('.') and os.path.realpath(os.path.join(place, name)) != below
        ]
        out['folders with the name of an image'] += [
            os.path.join(place, name) for name in folders if os.path.splitext(name)[1].lower() in suffixes
        ]
        for path in (os.path.join(place, name) for name in files if not name.startswith('.')):
            name, suffix = os.path.splitext(os.path.relpath(path, folder))
            if not os.path.exists(path):
                out['broken links'].append(path)
            elif not os.path.isfile(path):
                out['FIFOs, sockets or devices'].append(path)
            elif suffix.lower() not in suffixes:
                out['files of other suffixes'].append(path)
            elif name in found:
                raise UserError(
                    f'two files are called {name!r}: {found[name]} and {path}; labels need a folder of their own'
                )
            else:
                found[name] = path
    return found, [line for what, paths in out.items() for line in _counted(what, paths)]


def _counted(what, paths):
    """Return a list with one line about paths, or without one where there are none."""
    return [f'{len(paths)} {what} (the first is {paths[0]})'] if paths else []


def folder_dataset(images, labels, classes, **more):
    """Return the part of a data set of one's own, as a file of configs/datasets/ would have it.

    Args:
        images, labels (str): folders, see `ImageFolderDataset`.
        classes (str): text file of class names, see `fsa_seg.models.text.read_classes`.
        more: further keys of such a file; those that are None are left out.
    """
    for path, what in ((images, 'folder'), (labels, 'folder'), (classes, 'file')):
        if not (os.path.isfile if what == 'file' else os.path.isdir)(path):
            raise UserError(f'the {what} {path} does not exist')
    images, labels, classes = (os.path.abspath(path) for path in (images, labels, classes))
    root = os.path.commonpath([images, labels])
    prefix = dict(img_path=os.path.relpath(images, root), seg_map_path=os.path.relpath(labels, root))
    name = f'own_{os.path.basename(root) or os.path.basename(images)}'
    return dict(
        name=name,
        type='ImageFolderDataset',
        data_root=root,
        data_prefix=prefix,
        classes=classes,
        **{key: value for key, value in more.items() if value is not None},
    )


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Loads an image as `img`, (height, width, 3) uint8 BGR, see `fsa_seg.datasets.images.read_image`.

    Args:
        image_max (int): the value of white in 16-bit files, by default 65535.
    """

    def __init__(self, image_max=None):
        self.image_max = image_max

    def transform(self, results):
        image = read_image(results['img_path'], self.image_max, 'bgr')
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results


def list_images(dataset):
    """Return the entries of a data set's config: a list of dict(name, img_path, seg_map_path), in order.

    A name is the image's path below the data root.

    Raises:
        UserError: the data root lacks a folder, or the split file is missing or empty.
    """
    root, prefix = dataset['data_root'], dataset['data_prefix']
    for folder in (root, *(os.path.join(root, sub) for sub in prefix.values())):
        if not os.path.isdir(folder):
            raise UserError(
                f'the data root lacks the folder {folder}: give the right --data-root, put the data where '
                "data/README.md says, or mend the paths in the data set's config"
            )
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
    return [
        dict(name=os.path.relpath(e['img_path'], root), img_path=e['img_path'], seg_map_path=e['seg_map_path'])
        for e in entries
    ]


def left_out(dataset):
    """Return what a data set's config leaves out of its folders, a line each; only `ImageFolderDataset` knows."""
    return getattr(DATASETS.build(dict(dataset, pipeline=[])), 'left_out', [])


def read_as_loaded(dataset, path):
    """Return an image as a built data set loads it, (height, width, 3) uint8 RGB."""
    steps = [step for step in dataset.pipeline.transforms if isinstance(step, LoadImage)]
    return read_image(path, steps[0].image_max if steps else None)


def check_count(entries, known, name, limited=False):
    """Return whether a data set has one of the known numbers of images; another is a UserError if a part will not do.

    Args:
        entries (list of dict): of `list_images`.
        known (None, int or list of int): numbers; None allows any.
        name (str): of the data set.
        limited (bool): whether a part of it will do.
    """
    known = [known] if isinstance(known, int) else known
    whole = not known or len(entries) in known
    if not whole and not limited:
        raise UserError(
            f'the split has {len(entries)} images, the data set {name} {" or ".join(map(str, known))}: '
            'prepare it again (data/README.md); or take a part of it by --limit N, which marks the result '
            'as partial; or give the part another `name`, in a config of its own'
        )
    return whole


def loading(dataset):
    """Return how a data set's config loads its files: dict(label_map, image_max), None where nothing is said."""
    pipeline = {step['type'].split('.')[-1]: step for step in dataset.get('pipeline', ())}
    return dict(
        label_map=pipeline.get('LoadLabels', {}).get('label_map'),
        image_max=pipeline.get('LoadImage', {}).get('image_max'),
    )


def check_images(entries, classes, reduce_zero_label=False, void=VOID, void_said=False, label_map=None, image_max=None):
    """Return a digest of what each image and label image holds, by name; raise a UserError unless all are right.

    Every file has to be there, image and label image of one size, and every label in its range. Decodes the label images,
    and reads the images (those of 16 bits are decoded). The first bad file ends it.

    Args:
        entries (list of dict): of `list_images`.
        classes (int): number of classes; labels are 0 to classes − 1, or 0 to classes where 0 is made void.
        reduce_zero_label (bool): whether label 0 is made void and the others shift down by one.
        void (int): label of pixels that do not count.
        void_said (bool): whether the user named `void`, see `fsa_seg.datasets.label_images.check_seen`.
        label_map (list), image_max (int): see `fsa_seg.datasets.label_images.read_labels` and `fsa_seg.datasets.images.read_image`.
    """
    check_rule(classes, reduce_zero_label, void, label_map)
    missing = missing_files(entries)
    if missing:
        raise UserError(f'{len(missing)} of {2 * len(entries)} files are missing, the first is {missing[0]}')
    seen, contents = set(), {}
    with contextlib.closing(scan_images(entries, 'checking the data', label_map, image_max)) as scans:
        for scan in scans:
            check_scan(scan, classes + reduce_zero_label, void)
            seen.update(scan.labels.tolist())
            contents[scan.entry['name']] = scan.content
    odd = check_seen(seen, classes, reduce_zero_label, void, void_said)
    if odd:
        warn_once(odd)
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


def scan_images(entries, title, label_map=None, image_max=None, decode=False):
    """Yield a `Scan` of each entry, in order, with a progress bar; once it is closed, no further file is read.

    Args:
        entries (list of dict): of `list_images`.
        title (str): of the progress bar.
        label_map (list), image_max (int): as of `check_images`.
        decode (bool): decode the images too, and tell modes; else the images' heads are read.
    """
    with ThreadPoolExecutor() as pool:
        try:
            scans = pool.map(lambda entry: _scan(entry, label_map, image_max, decode), entries)
            yield from tqdm(scans, desc=title, total=len(entries), delay=2, leave=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _scan(entry, label_map, image_max, decode):
    mode = None
    try:
        size = image_size(entry['img_path'], decode, image_max)
        labels = read_labels(entry['seg_map_path'], label_map)
        if decode:
            with open_image(entry['seg_map_path'], f'the label image {entry["seg_map_path"]}') as image:
                mode = image.mode
    except UserError as error:
        return Scan(entry, error=str(error))
    content = None
    if not decode:
        values = hashlib.sha256(np.ascontiguousarray(labels)).hexdigest()
        content = f'{file_digest(entry["img_path"])[:24]}{values[:24]}'
    pixels = np.bincount(labels.ravel())
    present = np.flatnonzero(pixels)
    return Scan(entry, size, labels.shape, mode, present, pixels[present], content)


def check_scan(scan, values, void):
    """Raise a UserError unless a `Scan` has an image and labels of one size, the labels below `values` or void."""
    if scan.error:
        raise UserError(scan.error)
    path = scan.entry['seg_map_path']
    check_sizes(path, scan.label_size, scan.entry['img_path'], scan.image_size)
    check_range(path, scan.labels, values, void)
