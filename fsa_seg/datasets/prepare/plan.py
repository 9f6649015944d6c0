"""The data sets' published formats: what their annotations mean, where the files lie, and where they come from.

A plan says which images of the downloads are taken over as they are, which label images are made and how, and which lists
are written.
"""

import codecs
import collections
import contextlib
import functools
import hashlib
import importlib
import io
import json
import math
import os
import pickle
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mmseg.datasets import PascalContextDataset, PascalVOCDataset

from fsa_seg.datasets.data_sets import THINGS
from fsa_seg.datasets.images import open_image
from fsa_seg.datasets.label_images import VOID, check_range, decode_labels
from fsa_seg.datasets.prepare.downloads import Download, File
from fsa_seg.errors import UserError
from fsa_seg.system.files import check_memory

# PASCAL-Context's 59 classes among the categories of its Detail file, in the order of mmseg's names
# fmt: off
DETAIL_CATEGORIES = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162,
    187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416,
    420, 424, 427, 440, 445, 454, 458)
# fmt: on
STUFF_IDS = [
    i for i in range(1, 183) if i - 1 not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
]  # COCO-Stuff's that occur
NOT_ALLOWED = -1  # in a table of labels
MOST_BYTES = 8  # of a number in a MATLAB file


class Labels(NamedTuple):
    """One source of labels, and what is made of it.

    Attributes:
        source (File): None where the converter has all that it needs.
        convert: function (bytes, name for errors) -> list of label arrays, one per target.
        image (str): the image whose size they have, below the data set's folder.
        targets (tuple of str): files, below the data set's folder.
        as_is (bool): write the source's own bytes.
    """

    source: File | None
    convert: Callable
    image: str
    targets: tuple[str, ...]
    as_is: bool = False


class Plan:
    """What a data set's folder is made of: `images` (File, target), `labels` (Labels) and `texts` (target -> lines).

    Args:
        downloads (Downloads): where the files are.
        recipe (str): what the labels are made from, where that can differ.
    """

    def __init__(self, downloads, recipe=None):
        self.downloads, self.recipe, self.images, self.labels, self.texts = downloads, recipe, [], [], {}

    def add(self, names, images, image_target, labels, convert, *label_targets, as_is=False):
        """Add images and labels of these names; one that lacks either is a UserError.

        Args:
            names (list of str): of the images.
            images, labels (dict): name -> File; `labels` None where `convert` needs none.
            image_target, label_targets (str): with {name} and {folder}, which is the name up to its first '_'.
            convert: see `Labels`; or a dict of name -> such a function.
        """
        for found, what in ((images, 'image'), (labels or convert, 'annotation')):
            missing = [name for name in names if name not in found]
            if missing:
                raise self.downloads.missing(f'{len(missing)} of {len(names)} {what}s (the first is {missing[0]})')
        for name in names:
            image, *targets = (
                target.format(name=name, folder=name.split('_')[0]) for target in (image_target, *label_targets)
            )
            self.images.append((images[name], image))
            one = convert[name] if isinstance(convert, dict) else convert
            self.labels.append(Labels(labels and labels[name], one, image, tuple(targets), as_is))


class Preparation(NamedTuple):
    """How one data set is prepared.

    Attributes:
        folder (str): below the data root.
        benchmarks (tuple of str): the data set configs that it serves.
        plan: function (Downloads, splits) -> Plan.
        downloads (tuple of Download): what can be fetched without a login.
        by_hand (str): what has to be fetched with one, and where.
    """

    folder: str
    benchmarks: tuple[str, ...]
    plan: Callable
    downloads: tuple[Download, ...] = ()
    by_hand: str = ''

    @property
    def sources(self):
        return self.by_hand or f'--download fetches {", ".join(download.name for download in self.downloads)}'


# Converters: functions (bytes, name for errors, ...) -> [label array, ...]


def _as_it_is(data, where, values):
    """VOC and ADE20K: the labels are right; they are looked at all the same."""
    labels = decode_labels(data, where)
    check_range(where, np.unique(labels), values)
    return [labels]


def _renumber(labels, table, where):
    """Return `table[labels]`; labels outside the table, or NOT_ALLOWED in it, are a UserError."""
    present = np.unique(labels)
    wrong = [int(label) for label in present if not 0 <= label < len(table) or table[label] == NOT_ALLOWED]
    if wrong:
        raise UserError(f'{where} has the labels {wrong[:5]}, which its format does not have')
    return table[labels]


def _stuff_maps(data, where):
    """COCO-Stuff's maps, values category id − 1 and 255: train ids 0 to 170 and 255, and things 1 to 80 and 0."""
    table = np.full(VOID + 1, NOT_ALLOWED)
    table[np.array(STUFF_IDS) - 1] = range(len(STUFF_IDS))
    table[VOID] = VOID
    labels = _renumber(decode_labels(data, where), table, where)
    return [labels.astype(np.uint8), np.where(labels < THINGS, labels + 1, 0).astype(np.uint8)]


def _detail_masks(data, where, size, annotations):
    """PASCAL-Context's Detail file: run-length masks painted in the file's order over zeros."""
    decode = _optional('pycocotools.mask').decode
    labels = np.zeros(size, np.uint8)
    for number, index, mask in annotations:
        if mask['size'] != list(size):
            raise UserError(f'annotation {number} of {where} is of {mask["size"]} pixels, its image of {list(size)}')
        try:
            labels[decode(mask).astype(bool)] = index
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f'annotation {number} of {where} is no run-length mask: {error!r}') from None
    return [labels]


def _matlab(data, where, variable, table, dtype=np.uint8):
    """A label map in a MATLAB file, renumbered."""
    labels = np.atleast_2d(read_matlab(data, where, variable))
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.number):
        raise UserError(f'{variable} in {where} is no label map: {labels.dtype} of shape {labels.shape}')
    return [_renumber(labels.astype(np.int32), table, where).astype(dtype)]


def read_matlab(data, where, variable):
    """Return a variable of a MATLAB file's bytes; a file that has none, or is none, is a UserError."""
    matlab = _optional('scipy.io')
    try:
        for name, shape, _ in matlab.whosmat(io.BytesIO(data)):
            if name == variable:
                check_memory(MOST_BYTES * math.prod(shape), f'{variable} in {where}, of shape {shape},')
        return matlab.loadmat(io.BytesIO(data), variable_names=[variable])[variable]
    except UserError:
        raise
    except Exception as error:  # the reader raises many kinds
        raise UserError(f'{where} is no MATLAB file with the variable {variable}: {error!r}') from None


def _city_polygons(data, where):
    """Cityscapes' polygons, drawn as train ids by its own library."""
    annotations = _optional('cityscapesscripts.helpers.annotation')
    draw = _optional('cityscapesscripts.preparation.json2labelImg').createLabelImage
    annotation, said = annotations.Annotation(), io.StringIO()
    try:
        annotation.fromJsonText(data.decode())
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return [np.array(draw(annotation, 'trainIds'))]
    except (Exception, SystemExit) as error:  # the library raises many kinds, and ends the process for an unknown label
        raise UserError(f'{where} is no annotation of Cityscapes: {said.getvalue().strip() or repr(error)}') from None


def _city_ids(data, where):
    """Cityscapes' label ids as train ids, by its library's table."""
    labels = _optional('cityscapesscripts.helpers.labels').labels
    table = np.full(1 + max(label.id for label in labels), NOT_ALLOWED)
    for label in labels:
        if label.id >= 0:
            table[label.id] = label.trainId
    return [_renumber(decode_labels(data, where), table, where).astype(np.uint8)]


def _ade_objects(data, where, table, present):
    """ADE20K's full annotations: red // 10 · 256 + green is the number of the object, from 1 in the index's order.

    Args:
        table (array): number -> label, from 1; 0 for objects of no class.
        present (set): numbers of the objects that the index lists for the image; most that it shows are among them.
    """
    with open_image(data, where) as image:
        check_memory(20 * image.width * image.height, f'{where} of {image.height}×{image.width} pixels')
        try:
            colors = np.array(image.convert('RGB'), np.int32)
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'{where} cannot be decoded: {error}') from None
    numbers = colors[..., 0] // 10 * 256 + colors[..., 1]
    shown = set(np.unique(numbers).tolist()) - {0}
    if 2 * len(shown & present) < len(shown):
        raise UserError(
            f'{where} shows the objects {sorted(shown)[:5]}; the index lists others for it: they are of two releases'
        )
    return [_renumber(numbers, table, where).astype(np.uint16)]


# Plans: functions (Downloads, splits) -> Plan


def _index(downloads, pattern, suffix, what):
    """Return the files whose path ends in a pattern, as name -> File: the file's name without `suffix`."""
    found = {}
    for file in downloads.find(pattern):
        name = os.path.basename(file.key).removesuffix(suffix)
        if name in found:
            raise UserError(f'{found[name]} and {file} are both called {name}; leave one of them')
        found[name] = file
    if not found:
        raise downloads.missing(what)
    return found


def _lines_of(downloads, file):
    """Return the lines of a text file; none, or one that stands twice, is a UserError."""
    try:
        lines = [line.strip() for line in downloads.read(file).decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f'{file} is no UTF-8 text: {error}') from None
    repeated = [line for line in lines if lines.count(line) > 1] if len(set(lines)) < len(lines) else ()
    if repeated or not lines:
        raise UserError(f'{file} names {repeated[0]} more than once' if repeated else f'{file} is empty')
    return lines


def _split(downloads, path):
    """Return the names in the one file whose path ends so."""
    return _lines_of(downloads, downloads.find_single(re.escape(path), f'the split {path}'))


def _voc(downloads, splits):
    plan = Plan(downloads)
    images = _index(downloads, r'VOC2012/JPEGImages/[^/]+\.jpg', '.jpg', 'images of VOC2012/JPEGImages')
    labels = _index(
        downloads, r'VOC2012/SegmentationClass/[^/]+\.png', '.png', 'annotations of VOC2012/SegmentationClass'
    )
    convert = functools.partial(_as_it_is, values=len(PascalVOCDataset.METAINFO['classes']))
    for split in splits:
        names = _split(downloads, f'VOC2012/ImageSets/Segmentation/{split}.txt')
        plan.add(names, images, 'JPEGImages/{name}.jpg', labels, convert, 'SegmentationClass/{name}.png', as_is=True)
        plan.texts[f'ImageSets/Segmentation/{split}.txt'] = names
    return plan


def _context(downloads, splits):
    """The Detail file where there is one, else the MATLAB files."""
    folders = 'SegmentationClassContext', 'SegmentationContext'
    detail = downloads.find(r'trainval_merged\.json')
    if detail:
        convert, names = _read_detail(
            downloads, downloads.find_single(r'trainval_merged\.json', 'the Detail file'), splits
        )
        return _context_plan(downloads, 'trainval_merged.json', names, None, convert, *folders)
    names = {split: _voc2010_split(downloads, split) for split in splits}
    convert = functools.partial(_matlab, variable='LabelMap', table=_context59_table(downloads))
    return _context_plan(downloads, 'the .mat files', names, _context_maps(downloads), convert, *folders)


def _context459(downloads, splits):
    classes, names = _context_names(downloads), {split: _voc2010_split(downloads, split) for split in splits}
    convert = functools.partial(_matlab, variable='LabelMap', table=np.arange(460), dtype=np.uint16)
    plan = _context_plan(
        downloads,
        None,
        names,
        _context_maps(downloads),
        convert,
        'SegmentationClassContext459',
        'SegmentationContext459',
    )
    plan.texts['context459_classes.txt'] = [classes[i] for i in range(1, 460)]
    return plan


def _context_plan(downloads, recipe, names, labels, convert, folder, sets):
    """Return the plan of PASCAL-Context's images: `names` by split, `labels` and `convert` as of `Plan.add`."""
    plan = Plan(downloads, recipe)
    images = _index(downloads, r'VOC2010/JPEGImages/[^/]+\.jpg', '.jpg', 'images of VOC2010/JPEGImages')
    for split, own in names.items():
        plan.add(own, images, 'JPEGImages/{name}.jpg', labels, convert, folder + '/{name}.png')
        plan.texts[f'ImageSets/{sets}/{split}.txt'] = own
    return plan


def _voc2010_split(downloads, split):
    return _split(downloads, f'VOC2010/ImageSets/Main/{split}.txt')


def _context_maps(downloads):
    _optional('scipy.io')
    return _index(
        downloads, r'trainval/\d{4}_\d{6}\.mat', '.mat', 'trainval/*.mat of PASCAL-Context, or trainval_merged.json'
    )


def _read_detail(downloads, file, splits):
    """Return what the Detail file has: name -> converter of its image, and split -> names."""
    _optional('pycocotools.mask')
    try:
        content = json.loads(downloads.read(file))
        images, annotations = content['images'], content['annos_segmentation']
        by_id, names, phases = {}, set(), {}
        for image in images:
            name = image['file_name'].removesuffix('.jpg')
            if image['image_id'] in by_id or name in names:
                raise UserError(f'{file} has the image {image["image_id"]} ({name}) more than once')
            by_id[image['image_id']] = (name, (int(image['height']), int(image['width'])), [])
            names.add(name)
            phases.setdefault(image['phase'], []).append(name)
        indices, numbers = {category: i for i, category in enumerate(DETAIL_CATEGORIES, 1)}, set()
        for annotation in annotations:
            number, category = annotation['id'], annotation['category_id']
            if number in numbers:
                raise UserError(f'{file} has the annotation {number} more than once')
            if category not in indices:
                raise UserError(f'{file}: annotation {number} is of the category {category}, which is none of the 59')
            if annotation['image_id'] not in by_id:
                raise UserError(
                    f'{file}: annotation {number} is of the image {annotation["image_id"]}, which is not in the file'
                )
            mask = annotation['segmentation']
            if not isinstance(mask, dict) or set(mask) != {'size', 'counts'}:
                raise UserError(
                    f'{file}: annotation {number} has no run-length mask, dict(size, counts), but {str(mask)[:60]}'
                )
            numbers.add(number)
            by_id[annotation['image_id']][2].append((number, indices[category], mask))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{file} is no Detail file of PASCAL-Context ({error!r}); download it again') from None
    empty = [split for split in splits if not phases.get(split)]
    if empty:
        raise UserError(f'{file} has no image of the phase {empty[0]!r}')
    return (
        {name: functools.partial(_detail_masks, size=size, annotations=masks) for name, size, masks in by_id.values()},
        {split: sorted(phases[split]) for split in splits},
    )


def _context59_table(downloads):
    """Return the benchmark's label of each of the 459: names are matched with mmseg's 59."""
    numbers = {_plain(name): number for number, name in _context_names(downloads).items()}
    wanted = [_plain(name) for name in PascalContextDataset.METAINFO['classes'][1:]]
    for file in downloads.find(r'59_labels\.txt'):
        own = {_plain(name) for name in _numbered(downloads, file).values()}
        if own != set(wanted):
            raise UserError(
                f'59_labels.txt names {sorted(own - set(wanted))[:5]} and lacks {sorted(set(wanted) - own)[:5]}'
            )
    missing = [name for name in wanted if name not in numbers]
    if missing:
        raise UserError(f'labels.txt of PASCAL-Context lacks {", ".join(missing[:5])} of the 59 classes')
    table = np.zeros(460, int)
    for label, name in enumerate(wanted, 1):
        table[numbers[name]] = label
    return table


def _context_names(downloads):
    """Return PASCAL-Context's 459 names, by number from 1; other data sets have a labels.txt too."""
    for file in downloads.find_all(r'labels\.txt'):
        with contextlib.suppress(UserError):
            names = _numbered(downloads, file)
            if sorted(names) == list(range(1, 460)):
                return names
    raise downloads.missing('labels.txt of PASCAL-Context, with 459 lines "NUMBER: name"')


def _numbered(downloads, file):
    """Return the lines 'NUMBER: name' of a text file as a dict, without a number 0."""
    names = {}
    for line in _lines_of(downloads, file):
        match = re.fullmatch(r'(\d+)\s*:\s*(.+)', line)
        if not match or int(match.group(1)) in names:
            wrong = 'a second line of its number' if match else 'not of the form NUMBER: name'
            raise UserError(f'{file}: {line!r} is {wrong}')
        names[int(match.group(1))] = match.group(2)
    names.pop(0, None)
    return names


def _plain(name):
    return name.replace(' ', '').lower()


def _coco(downloads, splits):
    plan = Plan(downloads)
    for split in splits:
        images = _index(downloads, rf'{split}2017/\d{{12}}\.jpg', '.jpg', f'images of {split}2017')
        labels = _index(
            downloads, rf'{split}2017/\d{{12}}\.png', '.png', f'annotations of stuffthingmaps_trainval2017, {split}2017'
        )
        target = f'annotations/{split}2017/{{name}}'
        plan.add(
            sorted(images),
            images,
            f'images/{split}2017/{{name}}.jpg',
            labels,
            _stuff_maps,
            f'{target}_labelTrainIds.png',
            f'{target}_instanceTrainIds.png',
        )
    return plan


def _coco_stuff10k(downloads, splits):
    _optional('scipy.io')
    plan = Plan(downloads)
    images = _index(downloads, r'images/COCO_train2014_\d{12}\.jpg', '.jpg', 'images/COCO_train2014_*.jpg')
    labels = _index(downloads, r'annotations/COCO_train2014_\d{12}\.mat', '.mat', 'annotations/COCO_train2014_*.mat')
    table = np.full(1 + max(STUFF_IDS), NOT_ALLOWED)
    table[[0, *STUFF_IDS]] = range(1 + len(STUFF_IDS))
    for split in splits:
        folder = dict(train='train', val='test')[split]
        names = _split(downloads, f'imageLists/{folder}.txt')
        plan.add(
            names,
            images,
            f'images/{folder}2014/{{name}}.jpg',
            labels,
            functools.partial(_matlab, variable='S', table=table),
            f'annotations/{folder}2014/{{name}}_labelTrainIds.png',
        )
    first = next(iter(labels.values()))
    own = [str(np.squeeze(name)) for name in read_matlab(downloads.read(first), str(first), 'names').ravel()]
    own = own[1:] if own and own[0] == 'unlabeled' else own
    if len(own) != max(STUFF_IDS):
        raise UserError(f'{first} names {len(own)} classes; COCO-Stuff 10K v1.1 has {max(STUFF_IDS)}')
    plan.texts['classes.txt'] = [own[i - 1] for i in STUFF_IDS]
    return plan


def _cityscapes(downloads, splits):
    _optional('cityscapesscripts')
    plan = Plan(downloads)
    for split in splits:
        start = rf'{split}/[a-z-]+/[a-z-]+_\d{{6}}_\d{{6}}'
        images = _index(
            downloads, rf'leftImg8bit/{start}_leftImg8bit\.png', '_leftImg8bit.png', f'images of leftImg8bit/{split}'
        )
        kinds = {
            suffix: downloads.find(rf'gtFine/{start}{re.escape(suffix)}')
            for suffix in ('_gtFine_polygons.json', '_gtFine_labelIds.png')
        }
        suffix = next((suffix for suffix, files in kinds.items() if files), '_gtFine_polygons.json')
        labels = _index(downloads, rf'gtFine/{start}{re.escape(suffix)}', suffix, f'annotations of gtFine/{split}')
        plan.add(
            sorted(images),
            images,
            f'leftImg8bit/{split}/{{folder}}/{{name}}_leftImg8bit.png',
            labels,
            _city_polygons if suffix.endswith('.json') else _city_ids,
            f'gtFine/{split}/{{folder}}/{{name}}_gtFine_labelTrainIds.png',
        )
    return plan


def _ade20k(downloads, splits):
    plan = Plan(downloads)
    for split in splits:
        folder = dict(train='training', val='validation')[split]
        images = _index(
            downloads,
            rf'ADEChallengeData2016/images/{folder}/ADE_{split}_\d{{8}}\.jpg',
            '.jpg',
            f'images of ADEChallengeData2016/images/{folder}',
        )
        labels = _index(
            downloads,
            rf'ADEChallengeData2016/annotations/{folder}/ADE_{split}_\d{{8}}\.png',
            '.png',
            f'annotations of ADEChallengeData2016/annotations/{folder}',
        )
        plan.add(
            sorted(images),
            images,
            f'images/{folder}/{{name}}.jpg',
            labels,
            functools.partial(_as_it_is, values=151),
            f'annotations/{folder}/{{name}}.png',
            as_is=True,
        )
    return plan


def _ade20k847(downloads, splits):
    """The 847 objects that are in training and validation images; their names and numbers are the index's."""
    file = downloads.find_single(r'index_ade20k\.pkl', 'index_ade20k.pkl of ADE20K_2021_17_01')
    names, stems, whole = _read_ade_index(downloads, file)
    validation = np.array([stem.startswith('ADE_val') for stem in stems])
    chosen = np.flatnonzero(whole[:, validation].any(1) & whole[:, ~validation].any(1)) + 1
    lists = downloads.find(r'ade20k847_labels\.txt')
    if lists:
        chosen = np.array(sorted(_numbered(downloads, lists[0])))
    elif len(chosen) != 847:
        raise UserError(
            f'{len(chosen)} objects of {file} are in training and validation images, not 847; list the 847 in a file '
            'ade20k847_labels.txt beside it, a line "NUMBER: name" each, numbers from 1 in the order of objectnames'
        )
    if chosen.max(initial=0) > len(names) or not len(chosen):
        raise UserError(f'{lists[0]} has the number {chosen.max(initial=0)}; {file} has {len(names)} objects')
    table = np.zeros(1 + len(names), int)
    table[chosen] = range(1, 1 + len(chosen))
    plan = Plan(downloads, f'{len(chosen)} objects (SHA-256 {hashlib.sha256(table.tobytes()).hexdigest()[:16]})')
    columns = {stem: i for i, stem in enumerate(stems)}
    for split in splits:
        folder = dict(train='training', val='validation')[split]
        start = rf'images/ADE/{folder}/.*ADE_[a-z]+_\d{{8}}'
        images = _index(downloads, start + r'\.jpg', '.jpg', f'images of images/ADE/{folder}')
        labels = _index(downloads, start + r'_seg\.png', '_seg.png', f'annotations of images/ADE/{folder}')
        unknown = [name for name in images if name not in columns]
        if unknown:
            raise UserError(f'{file} lacks {len(unknown)} of the images, such as {unknown[0]}')
        present = {name: set((np.flatnonzero(whole[:, columns[name]]) + 1).tolist()) for name in images}
        convert = {name: functools.partial(_ade_objects, table=table, present=present[name]) for name in images}
        plan.add(
            sorted(images),
            images,
            f'images/{folder}/{{name}}.jpg',
            labels,
            convert,
            f'annotations/{folder}/{{name}}.png',
        )
    plan.texts['classes.txt'] = ['; '.join(word.strip() for word in names[i - 1].split(',')) for i in chosen]
    return plan


def _read_ade_index(downloads, file):
    """Return ADE20K's objects' names, its images' names, and (objects, images) whether an image shows one, not as a part."""
    data = downloads.read(file)
    try:
        index = _Unpickler(io.BytesIO(data)).load()
        names = list(index['objectnames'])
        stems = [name.removesuffix('.jpg') for name in index['filename']]
        whole = np.asarray(index['objectPresence']) > np.asarray(index['objectIsPart'])
        if whole.shape != (len(names), len(stems)):
            raise ValueError(
                f'objectPresence has shape {whole.shape}, for {len(names)} objects and {len(stems)} images'
            )
    except Exception as error:  # a damaged pickle raises any kind
        raise UserError(f'{file} is no index of ADE20K: {error!r}') from None
    return names, stems, whole


class _Unpickler(pickle.Unpickler):
    """Reads numpy arrays and plain values; anything else that a pickle could import is refused."""

    def find_class(self, module, name):
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f'{module}.{name} has no place in an index')
        return _PICKLED[module, name]


_RECONSTRUCT, _FROM_BUFFER = np.zeros(1).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0]
_PICKLED = {  # all that a pickle of numpy arrays imports, by the names of numpy 1 and 2
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _RECONSTRUCT for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): np.float64(0).__reduce__()[0] for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _FROM_BUFFER for core in ('core', '_core')},
    ('_codecs', 'encode'): codecs.encode,
    ('collections', 'OrderedDict'): collections.OrderedDict,
}


def _optional(module):
    """Return a module of a library that only preparations need; one that is not installed is a UserError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{error}; what preparations need is installed by pip install -e '.[data]'") from None


_VOC = 'https://thor.robots.ox.ac.uk/pascal/VOC'
_VOC2010 = Download(f'{_VOC}/voc2010/VOCtrainval_03-May-2010.tar', 1300, 'da459979d0c395079b5c75ee67908abb')
_CONTEXT = 'https://cs.stanford.edu/~roozbeh/pascal-context'
_STUFF = 'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset'
PREPARATIONS = dict(
    voc=Preparation(
        'VOCdevkit/VOC2012',
        ('voc21', 'voc20'),
        _voc,
        (Download(f'{_VOC}/voc2012/VOCtrainval_11-May-2012.tar', 2000, '6cd6e144f989b92b3379bac3b3de84fd'),),
    ),
    context=Preparation(
        'VOCdevkit/VOC2010',
        ('context60', 'context59'),
        _context,
        (_VOC2010, Download('https://codalabuser.blob.core.windows.net/public/trainval_merged.json', 590)),
    ),
    coco=Preparation(
        'coco_stuff164k',
        ('coco_object', 'coco_stuff164k'),
        _coco,
        (
            Download('http://images.cocodataset.org/zips/val2017.zip', 816),
            Download(f'{_STUFF}/stuffthingmaps_trainval2017.zip', 690),
        ),
    ),
    cityscapes=Preparation(
        'cityscapes',
        ('cityscapes',),
        _cityscapes,
        by_hand=(
            'log in at https://www.cityscapes-dataset.com/downloads and fetch leftImg8bit_trainvaltest.zip (11 GB) and '
            'gtFine_trainvaltest.zip (241 MB)'
        ),
    ),
    ade20k=Preparation(
        'ade/ADEChallengeData2016',
        ('ade20k',),
        _ade20k,
        (Download('http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip', 967),),
    ),
    context459=Preparation(
        'VOCdevkit/VOC2010',
        ('context459',),
        _context459,
        (_VOC2010, Download(f'{_CONTEXT}/trainval.tar.gz', 30), Download(f'{_CONTEXT}/labels.txt', 0)),
    ),
    ade20k847=Preparation(
        'ade/ADE20K_2021_17_01',
        ('ade20k847',),
        _ade20k847,
        by_hand=('register at https://ade20k.csail.mit.edu and fetch ADE20K_2021_17_01.zip'),
    ),
    coco_stuff10k=Preparation(
        'coco_stuff10k', ('coco_stuff10k',), _coco_stuff10k, (Download(f'{_STUFF}/cocostuff-10k-v1.1.zip', 2000),)
    ),
)
