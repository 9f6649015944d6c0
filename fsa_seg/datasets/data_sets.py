"""Data sets that mmseg lacks, the loading of images, and the check of their files before a run."""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import list_from_file
from mmseg.datasets import BaseSegDataset, COCOStuffDataset, PascalVOCDataset
from mmseg.registry import DATASETS, TRANSFORMS

from fsa_seg.datasets.images import image_size, open_image, read_image
from fsa_seg.datasets.label_images import VOID, check_range, check_rule, check_seen, check_sizes, read_labels
from fsa_seg.errors import UserError, built, warn_once
from fsa_seg.system.files import walk_folders
from fsa_seg.system.paths import file_digest
from fsa_seg.system.progress import Bar

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
LABEL_SUFFIXES = ('.png', '.tif', '.tiff')
UNUSED = (  # kinds of files that `ImageFolderDataset` leaves out
    'files of other suffixes',
    'broken links',
    'FIFOs, sockets or devices',
    'folders with the name of an image',
)
FILE_KEYS = ('img_path', 'seg_map_path')  # of an entry
ASKED_AT_ONCE = 32  # files
THINGS = 80  # the first of COCO-Stuff's 171 classes


@DATASETS.register_module()
class PascalVOC20Dataset(PascalVOCDataset):
    """PASCAL VOC 2012 without its background: label 0 becomes void, 1 to 20 become 0 to 19."""

    METAINFO = {key: value[1:] for key, value in PascalVOCDataset.METAINFO.items()}

    def __init__(self, ann_file: str, reduce_zero_label: bool = True, **kwargs):
        super().__init__(ann_file=ann_file, reduce_zero_label=reduce_zero_label, **kwargs)


@DATASETS.register_module()
class COCOObjectDataset(COCOStuffDataset):
    """COCO's 80 things and background (label 0), from COCO-Stuff's maps."""

    METAINFO = dict(
        classes=('background', *COCOStuffDataset.METAINFO['classes'][:THINGS]),
        palette=[[0, 0, 0], *COCOStuffDataset.METAINFO['palette'][:THINGS]],
    )

    def __init__(self, seg_map_suffix: str = '_instanceTrainIds.png', **kwargs):
        super().__init__(seg_map_suffix=seg_map_suffix, **kwargs)


@DATASETS.register_module()
class ImageFolderDataset(BaseSegDataset):
    """Images in one folder, of any usual format, and label images of the same names (PNG or TIFF) in another folder.

    The `ann_file` names the images, a line each. Without it, all images count, subfolders included.

    Raises:
        UserError: an image without labels, a name in the `ann_file` without an image, or two files of one name.
    """

    def load_data_list(self) -> list[dict]:
        """Return mmseg's entry of each image, and list the unused files in `left_out`."""
        image_folder, label_folder = self.data_prefix['img_path'], self.data_prefix['seg_map_path']
        if os.path.realpath(image_folder) == os.path.realpath(label_folder):
            raise UserError(f'images and labels are both in {image_folder}; labels need a folder of their own')
        images, no_images = _by_name(image_folder, IMAGE_SUFFIXES, label_folder)
        labels, no_labels = _by_name(label_folder, LABEL_SUFFIXES, image_folder)
        names = [line.strip() for line in list_from_file(self.ann_file)] if self.ann_file else sorted(images)
        for files, what, folder, suffixes in (
            (images, 'image', image_folder, IMAGE_SUFFIXES),
            (labels, 'label image', label_folder, LABEL_SUFFIXES),
        ):
            missing = [name for name in names if name not in files]
            if missing:
                raise UserError(
                    f'{len(missing)} of {len(names)} names have no {what} in {folder}; the first is '
                    f'{missing[0]!r} ({what}s end in {", ".join(suffixes)})'
                )
        self.left_out = []
        if not self.ann_file:
            unpaired = [labels[name] for name in sorted(set(labels) - set(images))]
            self.left_out = no_images + no_labels + _counted('label images without an image', unpaired)
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


def _by_name(folder, suffixes, skipped_folder):
    """Return the files in and below a folder by name, and a line about each kind of unused file.

    Hidden names and `skipped_folder` are ignored.

    Returns:
        (dict, list of str): path below the folder, without suffix -> path; and the lines.
    """
    paths, unused, skipped = {}, {kind: [] for kind in UNUSED}, os.path.realpath(skipped_folder)
    for parent, folders, files in walk_folders(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith('.') and os.path.realpath(os.path.join(parent, name)) != skipped
        ]
        unused['folders with the name of an image'] += [
            os.path.join(parent, name) for name in folders if os.path.splitext(name)[1].lower() in suffixes
        ]
        for path in (os.path.join(parent, name) for name in files if not name.startswith('.')):
            name, suffix = os.path.splitext(os.path.relpath(path, folder))
            if not os.path.exists(path):
                unused['broken links'].append(path)
            elif not os.path.isfile(path):
                unused['FIFOs, sockets or devices'].append(path)
            elif suffix.lower() not in suffixes:
                unused['files of other suffixes'].append(path)
            elif name in paths:
                raise UserError(
                    f'two files are called {name!r}: {paths[name]} and {path}; labels need a folder of their own'
                )
            else:
                paths[name] = path
    return paths, [line for kind, group in unused.items() for line in _counted(kind, group)]


def _counted(kind, paths):
    """Return a list of one line about the paths; an empty list if there are no paths."""
    return [f'{len(paths)} {kind} (the first is {paths[0]})'] if paths else []


def folder_dataset(images: str, labels: str, classes: str, **keys) -> dict:
    """Return the component of a user's own data set, in the form of a file of configs/datasets/.

    Args:
        images, labels: folders, see `ImageFolderDataset`.
        classes: text file of class names, see `fsa_seg.models.text.read_classes`.
        keys: further keys of the component; keys with the value None are dropped.
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
        **{key: value for key, value in keys.items() if value is not None},
    )


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Loads an image as `img`, (height, width, 3) uint8 BGR, see `fsa_seg.datasets.images.read_image`.

    Args:
        image_max (int): the value of white in 16-bit files, by default 65535.
    """

    def __init__(self, image_max: int | None = None):
        self.image_max = image_max

    def transform(self, results: dict) -> dict:
        """Add `img`, `img_shape` and `ori_shape`, both (height, width), to the results.

        Results without a path hold an array already, as mmseg's inferencers give it: uint8 BGR.
        """
        if results.get('img_path') is None:
            return results
        image = read_image(results['img_path'], self.image_max, 'bgr')
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results


def list_images(dataset: dict) -> list[dict]:
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
    data_set = built(f'the data set of {root}', lambda: DATASETS.build(dict(dataset, pipeline=[])))
    entries = [data_set.get_data_info(i) for i in range(len(data_set))]
    if not entries:
        raise UserError(f'no image found: {split or os.path.join(root, prefix["img_path"])} is empty')
    repeated = [path for path, count in Counter(entry['img_path'] for entry in entries).items() if count > 1]
    if repeated:
        raise UserError(f'{split} names {len(repeated)} images more than once, the first is {repeated[0]}')
    return [
        dict(
            name=os.path.relpath(entry['img_path'], root),
            img_path=entry['img_path'],
            seg_map_path=entry['seg_map_path'],
        )
        for entry in entries
    ]


def left_out(dataset: dict) -> list[str]:
    """Return a line about each kind of unused file in a data set's folders; empty but for `ImageFolderDataset`."""
    return getattr(DATASETS.build(dict(dataset, pipeline=[])), 'left_out', [])


def read_as_loaded(dataset: BaseSegDataset, path: str) -> np.ndarray:
    """Return an image as a built data set loads it, (height, width, 3) uint8 RGB."""
    steps = [step for step in dataset.pipeline.transforms if isinstance(step, LoadImage)]
    return read_image(path, steps[0].image_max if steps else None)


def check_count(entries: list[dict], known: int | list[int] | None, name: str, limited: bool = False) -> bool:
    """Return whether a data set is complete: whether it has a known number of images.

    Args:
        entries: of `list_images`.
        known: the data set's number of images, or several; None allows any.
        name: of the data set.
        limited: accept a part of the data set; else another number is a UserError.
    """
    known = [known] if isinstance(known, int) else known
    complete = not known or len(entries) in known
    if not complete and not limited:
        raise UserError(
            f'the split has {len(entries)} images, the data set {name} {" or ".join(map(str, known))}: '
            'prepare it again (data/README.md); or take a part of it by --limit N, which marks the result '
            'as partial; or give the part another `name`, in a config of its own'
        )
    return complete


def loading(dataset: dict) -> dict:
    """Return dict(label_map, image_max) of the loading steps in a data set's config; an unset value is None."""
    pipeline = {step['type'].split('.')[-1]: step for step in dataset.get('pipeline', ())}
    return dict(
        label_map=pipeline.get('LoadLabels', {}).get('label_map'),
        image_max=pipeline.get('LoadImage', {}).get('image_max'),
    )


def check_images(
    entries: list[dict],
    classes: int,
    reduce_zero_label: bool = False,
    void: int = VOID,
    void_named: bool = False,
    label_map: list | None = None,
    image_max: int | None = None,
    read: dict[str, 'Reading'] | None = None,
) -> dict[str, str]:
    """Check every image and label image, and return a digest of their contents by image name.

    Label images are decoded. Of images only the heads are read, and 16-bit images are decoded. The first wrong file
    ends the check.

    Args:
        entries: of `list_images`.
        classes: number of classes; labels are 0 to classes − 1, or 0 to classes if 0 becomes void.
        reduce_zero_label: label 0 becomes void, and the other labels shift down by one.
        void: label of pixels that do not count.
        void_named: the user named `void`, see `fsa_seg.datasets.label_images.check_seen`.
        label_map: see `fsa_seg.datasets.label_images.read_labels`.
        image_max: see `fsa_seg.datasets.images.read_image`.
        read: image name -> `Reading`, of images that need not be read again; the others' readings are added.

    Raises:
        UserError: a missing or damaged file, an image and label image of different sizes, or a label out of range.
    """
    check_rule(classes, reduce_zero_label, void, label_map)
    missing = missing_files(entries)
    if missing:
        raise UserError(f'{len(missing)} of {2 * len(entries)} files are missing, the first is {missing[0]}')
    read = {} if read is None else read
    for entry in entries:
        if entry['name'] in read:
            labels = np.array(read[entry['name']].labels, np.int64)
            check_range(entry['seg_map_path'], labels, classes + reduce_zero_label, void)
    unread = [entry for entry in entries if entry['name'] not in read]
    with contextlib.closing(scan_images(unread, 'checking the data', label_map, image_max)) as scans:
        for scan in scans:
            check_scan(scan, classes + reduce_zero_label, void)
            read[scan.entry['name']] = Reading(scan.content, scan.labels.tolist())
    readings = {entry['name']: read[entry['name']] for entry in entries}
    labels = set().union(*(reading.labels for reading in readings.values()))
    warning = check_seen(labels, classes, reduce_zero_label, void, void_named)
    if warning:
        warn_once(warning)
    return {name: reading.content for name, reading in readings.items()}


class Reading(NamedTuple):
    """What a check keeps of an image and its label image of the same size.

    Attributes:
        content (str): digest of the image's bytes and the label image's values.
        labels (list of int): labels of the label image, increasing.
    """

    content: str
    labels: list[int]


def file_classes(dataset: BaseSegDataset) -> tuple[list[str], list]:
    """Return class names and palette of the label files of a built data set, whose config may choose a few of them."""
    meta = type(dataset).METAINFO if dataset.label_map else dataset.metainfo
    return list(meta['classes']), meta['palette']


def missing_files(entries: list[dict]) -> list[str]:
    """Return the paths of `list_images`' entries that do not exist."""
    paths = [entry[key] for entry in entries for key in FILE_KEYS]
    return [path for path, present in zip(paths, ask_files(os.path.isfile, paths)) if not present]


def ask_files(ask: Callable[[str], Any], paths: list[str]) -> list:
    """Return what a function tells of each path; many are asked at a time, since a file server answers slowly."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(ask, paths))


class Scan(NamedTuple):
    """The check's reading of an image and its label image.

    Attributes:
        entry (dict): of `list_images`.
        image_size (tuple): height and width of the decoded image.
        label_size (tuple): height and width of the label image.
        mode (str): the label image's mode in Pillow's words; None if images are not decoded.
        labels (array): labels of the label image, increasing.
        pixels (array): number of pixels of each of these labels, int64.
        content (str): digest of the image's bytes and the label image's values; None if images are decoded.
        error (str): why a file cannot be read; the other values are None then.
    """

    entry: dict
    image_size: tuple[int, int] | None = None
    label_size: tuple[int, int] | None = None
    mode: str | None = None
    labels: np.ndarray | None = None
    pixels: np.ndarray | None = None
    content: str | None = None
    error: str | None = None


def scan_images(
    entries: list[dict], title: str, label_map: list | None = None, image_max: int | None = None, decode: bool = False
) -> Iterator[Scan]:
    """Yield a `Scan` of each entry, in order, with a progress bar; closing the generator ends the reading.

    Args:
        entries: of `list_images`.
        title: of the progress bar.
        label_map, image_max: see `check_images`.
        decode: decode the images and note the modes, in place of reading the images' heads.
    """
    with ThreadPoolExecutor() as pool:
        try:
            scans = pool.map(lambda entry: _scan(entry, label_map, image_max, decode), entries)
            yield from Bar(scans, desc=title, total=len(entries), delay=2, leave=False)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _scan(entry, label_map, image_max, decode):
    """Return the `Scan` of an entry, see `scan_images`."""
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


def check_scan(scan: Scan, values: int, void: int) -> None:
    """Raise a UserError unless image and label image have the same size, and labels are below `values` or void."""
    if scan.error:
        raise UserError(scan.error)
    path = scan.entry['seg_map_path']
    check_sizes(path, scan.label_size, scan.entry['img_path'], scan.image_size)
    check_range(path, scan.labels, values, void)
