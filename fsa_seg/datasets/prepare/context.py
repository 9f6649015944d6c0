"""PASCAL-Context on VOC 2010's images: the 59 classes with and without background, and the 459 classes."""

import contextlib
import functools
import json

import numpy as np
from mmseg.datasets import PascalContextDataset

from fsa_seg.datasets.prepare.downloads import Download, Downloads
from fsa_seg.datasets.prepare.plan import (
    Plan,
    Preparation,
    convert_matlab,
    import_optional,
    index_files,
    read_numbered_lines,
    read_split,
)
from fsa_seg.errors import UserError

# the 59 classes among the categories of the Detail file, in the order of mmseg's names
# fmt: off
DETAIL_CATEGORIES = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458)
# fmt: on
DETAIL_FILE = r'trainval_merged\.json'
HOST = 'https://cs.stanford.edu/~roozbeh/pascal-context'


def plan_context(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan the 59 classes: from the Detail file if the downloads have it, else from the MATLAB files."""
    folders = 'SegmentationClassContext', 'SegmentationContext'
    if downloads.find(DETAIL_FILE):
        file = downloads.find_single(DETAIL_FILE, 'the Detail file')
        convert, names = _read_detail(downloads, file, splits)
        return _plan_images(downloads, 'trainval_merged.json', names, None, convert, *folders)
    names = _read_splits(downloads, splits)
    convert = functools.partial(convert_matlab, variable='LabelMap', table=_table_of_59(downloads))
    return _plan_images(downloads, 'the .mat files', names, _index_matlab_files(downloads), convert, *folders)


def plan_context459(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan the 459 classes: labels 1 to 459 of 16 bits, from the MATLAB files."""
    classes, names = _read_459_names(downloads), _read_splits(downloads, splits)
    convert = functools.partial(convert_matlab, variable='LabelMap', table=np.arange(460), dtype=np.uint16)
    labels = _index_matlab_files(downloads)
    folders = 'SegmentationClassContext459', 'SegmentationContext459'
    plan = _plan_images(downloads, None, names, labels, convert, *folders)
    plan.texts['context459_classes.txt'] = [classes[i] for i in range(1, 460)]
    return plan


def _plan_images(downloads, recipe, names_by_split, labels, convert, label_folder, split_folder):
    """Return the plan of VOC 2010's images; `labels` and `convert` are as in `Plan.add`."""
    plan = Plan(downloads, recipe)
    images = index_files(downloads, r'VOC2010/JPEGImages/[^/]+\.jpg', '.jpg', 'images of VOC2010/JPEGImages')
    for split, names in names_by_split.items():
        plan.add(names, images, 'JPEGImages/{name}.jpg', labels, convert, label_folder + '/{name}.png')
        plan.texts[f'ImageSets/{split_folder}/{split}.txt'] = names
    return plan


def _read_splits(downloads, splits):
    """Return split -> image names, of VOC 2010."""
    return {split: read_split(downloads, f'VOC2010/ImageSets/Main/{split}.txt') for split in splits}


def _index_matlab_files(downloads):
    """Return image name -> MATLAB file."""
    import_optional('scipy.io')
    return index_files(
        downloads, r'trainval/\d{4}_\d{6}\.mat', '.mat', 'trainval/*.mat of PASCAL-Context, or trainval_merged.json'
    )


def _read_detail(downloads, file, splits):
    """Read the Detail file.

    Returns:
        (dict, dict): image name -> converter, and split -> image names, sorted.
    """
    import_optional('pycocotools.mask')
    try:
        content = json.loads(downloads.read(file))
        images, phases = _read_detail_images(content['images'], file)
        masks = _read_detail_masks(content['annos_segmentation'], images, file)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{file} is no Detail file of PASCAL-Context ({error!r}); download it again') from None
    empty = [split for split in splits if not phases.get(split)]
    if empty:
        raise UserError(f'{file} has no image of the phase {empty[0]!r}')
    return (
        {
            name: functools.partial(_paint_masks, size=size, masks=masks[number])
            for number, (name, size) in images.items()
        },
        {split: sorted(phases[split]) for split in splits},
    )


def _read_detail_images(entries, file):
    """Return image id -> (name, (height, width)), and phase -> names, of the Detail file's entry 'images'."""
    images, names, phases = {}, set(), {}
    for image in entries:
        name = image['file_name'].removesuffix('.jpg')
        if image['image_id'] in images or name in names:
            raise UserError(f'{file} has the image {image["image_id"]} ({name}) more than once')
        images[image['image_id']] = name, (int(image['height']), int(image['width']))
        names.add(name)
        phases.setdefault(image['phase'], []).append(name)
    return images, phases


def _read_detail_masks(annotations, images, file):
    """Return image id -> [(annotation id, label, run-length mask)], of the Detail file's 'annos_segmentation'."""
    masks, ids = {number: [] for number in images}, set()
    labels = {category: label for label, category in enumerate(DETAIL_CATEGORIES, 1)}
    for annotation in annotations:
        number, category = annotation['id'], annotation['category_id']
        if number in ids:
            raise UserError(f'{file} has the annotation {number} more than once')
        if category not in labels:
            raise UserError(f'{file}: annotation {number} is of the category {category}, which is none of the 59')
        if annotation['image_id'] not in images:
            raise UserError(
                f'{file}: annotation {number} is of the image {annotation["image_id"]}, which is not in the file'
            )
        mask = annotation['segmentation']
        if not isinstance(mask, dict) or set(mask) != {'size', 'counts'}:
            raise UserError(
                f'{file}: annotation {number} has no run-length mask, dict(size, counts), but {str(mask)[:60]}'
            )
        ids.add(number)
        masks[annotation['image_id']].append((number, labels[category], mask))
    return masks


def _paint_masks(data, where, size, masks):
    """Paint run-length masks over zeros, in the Detail file's order; `data` is None.

    Args:
        size (tuple): height and width of the image.
        masks (list): (annotation id, label, run-length mask) of each annotation.
    """
    decode = import_optional('pycocotools.mask').decode
    labels = np.zeros(size, np.uint8)
    for number, label, mask in masks:
        if mask['size'] != list(size):
            raise UserError(f'annotation {number} of {where} is of {mask["size"]} pixels, its image of {list(size)}')
        try:
            labels[decode(mask).astype(bool)] = label
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f'annotation {number} of {where} is no run-length mask: {error!r}') from None
    return [labels]


def _table_of_59(downloads):
    """Return the table from the 459 labels to the 59 of mmseg, matched by name; 0 for the other classes."""
    numbers = {_plain(name): number for number, name in _read_459_names(downloads).items()}
    expected = [_plain(name) for name in PascalContextDataset.METAINFO['classes'][1:]]
    for file in downloads.find(r'59_labels\.txt'):
        listed = {_plain(name) for name in read_numbered_lines(downloads, file).values()}
        if listed != set(expected):
            raise UserError(
                f'59_labels.txt names {sorted(listed - set(expected))[:5]} and lacks '
                f'{sorted(set(expected) - listed)[:5]}'
            )
    missing = [name for name in expected if name not in numbers]
    if missing:
        raise UserError(f'labels.txt of PASCAL-Context lacks {", ".join(missing[:5])} of the 59 classes')
    table = np.zeros(460, int)
    for label, name in enumerate(expected, 1):
        table[numbers[name]] = label
    return table


def _read_459_names(downloads):
    """Return the names of the 459 classes, by number from 1; other data sets have a labels.txt too."""
    for file in downloads.find_all(r'labels\.txt'):
        with contextlib.suppress(UserError):
            names = read_numbered_lines(downloads, file)
            if sorted(names) == list(range(1, 460)):
                return names
    raise downloads.missing('labels.txt of PASCAL-Context, with 459 lines "NUMBER: name"')


def _plain(name):
    return name.replace(' ', '').lower()


_IMAGES = Download(
    'https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar',
    1300,
    'da459979d0c395079b5c75ee67908abb',
)
CONTEXT = Preparation(
    'VOCdevkit/VOC2010',
    ('context60', 'context59'),
    plan_context,
    (_IMAGES, Download('https://codalabuser.blob.core.windows.net/public/trainval_merged.json', 590)),
)
CONTEXT459 = Preparation(
    'VOCdevkit/VOC2010',
    ('context459',),
    plan_context459,
    (_IMAGES, Download(f'{HOST}/trainval.tar.gz', 30), Download(f'{HOST}/labels.txt', 0)),
)
