"""ADE20K: the 150 classes of the challenge, and 847 objects of the full annotations."""

import codecs
import collections
import functools
import hashlib
import io
import pickle

import numpy as np

from fsa_seg.datasets.images import open_image
from fsa_seg.datasets.prepare.downloads import Download, Downloads
from fsa_seg.datasets.prepare.plan import Plan, Preparation, index_files, keep_labels, read_numbered_lines, renumber
from fsa_seg.errors import UserError, one_line
from fsa_seg.system.files import check_memory

FOLDERS = dict(train='training', val='validation')  # split -> the publisher's folder


def plan_ade20k(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan the challenge's 150 classes; the publisher's label images are kept as they are."""
    plan = Plan(downloads)
    for split in splits:
        folder = FOLDERS[split]
        images = index_files(
            downloads,
            rf'ADEChallengeData2016/images/{folder}/ADE_{split}_\d{{8}}\.jpg',
            '.jpg',
            f'images of ADEChallengeData2016/images/{folder}',
        )
        labels = index_files(
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
            functools.partial(keep_labels, values=151),
            f'annotations/{folder}/{{name}}.png',
            as_is=True,
        )
    return plan


def plan_ade20k847(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan the 847 objects that occur in both training and validation images; the index names and numbers them."""
    index = downloads.find_single(r'index_ade20k\.pkl', 'index_ade20k.pkl of ADE20K_2021_17_01')
    names, stems, shows = _read_index(downloads, index)
    chosen = _choose_objects(downloads, index, stems, shows)
    table = np.zeros(1 + len(names), int)
    table[chosen] = range(1, 1 + len(chosen))
    plan = Plan(downloads, f'{len(chosen)} objects (SHA-256 {hashlib.sha256(table.tobytes()).hexdigest()[:16]})')
    columns = {stem: i for i, stem in enumerate(stems)}
    for split in splits:
        folder = FOLDERS[split]
        start = rf'images/ADE/{folder}/.*ADE_[a-z]+_\d{{8}}'
        images = index_files(downloads, start + r'\.jpg', '.jpg', f'images of images/ADE/{folder}')
        labels = index_files(downloads, start + r'_seg\.png', '_seg.png', f'annotations of images/ADE/{folder}')
        unknown = [name for name in images if name not in columns]
        if unknown:
            raise UserError(f'{index} lacks {len(unknown)} of the images, such as {unknown[0]}')
        listed = {name: set((np.flatnonzero(shows[:, columns[name]]) + 1).tolist()) for name in images}
        convert = {name: functools.partial(_convert_objects, table=table, listed=listed[name]) for name in images}
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


def _choose_objects(downloads, index, stems, shows):
    """Return the numbers of the objects that become classes, from 1, in order.

    They are those of the file ade20k847_labels.txt or, without it, those of training and validation images.

    Args:
        index (File): the index, for errors.
        stems (list of str), shows (array): of `_read_index`.
    """
    validation = np.array([stem.startswith('ADE_val') for stem in stems])
    chosen = np.flatnonzero(shows[:, validation].any(1) & shows[:, ~validation].any(1)) + 1
    lists = downloads.find(r'ade20k847_labels\.txt')
    if lists:
        chosen = np.array(sorted(read_numbered_lines(downloads, lists[0])))
    elif len(chosen) != 847:
        raise UserError(
            f'{len(chosen)} objects of {index} are in training and validation images, not 847; list the 847 in a file '
            'ade20k847_labels.txt beside it, a line "NUMBER: name" each, numbers from 1 in the order of objectnames'
        )
    if chosen.max(initial=0) > len(shows) or not len(chosen):
        raise UserError(f'{lists[0]} has the number {chosen.max(initial=0)}; {index} has {len(shows)} objects')
    return chosen


def _convert_objects(data, where, table, listed):
    """Convert a full annotation: red // 10 · 256 + green is the object's number, from 1 in the index's order.

    Args:
        table (array): number of an object -> label; 0 for objects of no class.
        listed (set): numbers of the objects that the index lists for the image. An annotation of the same release
            shows mostly those.
    """
    with open_image(data, where) as image:
        check_memory(20 * image.width * image.height, f'{where} of {image.height}×{image.width} pixels')
        try:
            colors = np.array(image.convert('RGB'), np.int32)
        except Exception as error:  # the decoders raise many kinds
            raise UserError(f'{where} cannot be decoded: {one_line(error)}') from None
    numbers = colors[..., 0] // 10 * 256 + colors[..., 1]
    present = set(np.unique(numbers).tolist()) - {0}
    if 2 * len(present & listed) < len(present):
        raise UserError(
            f'{where} shows the objects {sorted(present)[:5]}; the index lists others for it: they are of two releases'
        )
    return [renumber(numbers, table, where).astype(np.uint16)]


def _read_index(downloads, file):
    """Read ADE20K's index.

    Returns:
        (list of str, list of str, array): names of the objects; names of the images; and (objects, images) bool,
            whether an image shows an object, other than as a part.
    """
    data = downloads.read(file)
    try:
        index = _Unpickler(io.BytesIO(data)).load()
        names = list(index['objectnames'])
        stems = [name.removesuffix('.jpg') for name in index['filename']]
        shows = np.asarray(index['objectPresence']) > np.asarray(index['objectIsPart'])
        if shows.shape != (len(names), len(stems)):
            raise ValueError(
                f'objectPresence has shape {shows.shape}, for {len(names)} objects and {len(stems)} images'
            )
    except Exception as error:  # a damaged pickle raises any kind
        raise UserError(f'{file} is no index of ADE20K: {error!r}') from None
    return names, stems, shows


class _Unpickler(pickle.Unpickler):
    """Reads numpy arrays and plain values; a pickle that imports another name is refused."""

    def find_class(self, module: str, name: str):
        """Return the object that a pickle imports by this name."""
        if (module, name) not in _PICKLED:
            raise pickle.UnpicklingError(f'{module}.{name} has no place in an index')
        return _PICKLED[module, name]


_RECONSTRUCT, _FROM_BUFFER = np.zeros(1).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0]
_PICKLED = {  # names that pickles of numpy arrays import, under numpy 1 and 2
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _RECONSTRUCT for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): np.float64(0).__reduce__()[0] for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _FROM_BUFFER for core in ('core', '_core')},
    ('_codecs', 'encode'): codecs.encode,
    ('collections', 'OrderedDict'): collections.OrderedDict,
}


ADE20K = Preparation(
    'ade/ADEChallengeData2016',
    ('ade20k',),
    plan_ade20k,
    (Download('http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip', 967),),
)
ADE20K847 = Preparation(
    'ade/ADE20K_2021_17_01',
    ('ade20k847',),
    plan_ade20k847,
    by_hand='register at https://ade20k.csail.mit.edu and fetch ADE20K_2021_17_01.zip',
)
