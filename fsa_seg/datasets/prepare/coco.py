"""COCO: the maps of COCO-Stuff 164k, which hold COCO-Object too, and the MATLAB files of COCO-Stuff 10K."""

import functools

import numpy as np

from fsa_seg.datasets.data_sets import THINGS
from fsa_seg.datasets.label_images import VOID, decode_labels
from fsa_seg.datasets.prepare.downloads import Download, Downloads
from fsa_seg.datasets.prepare.plan import (
    NOT_ALLOWED,
    Plan,
    Preparation,
    convert_matlab,
    import_optional,
    index_files,
    read_matlab,
    read_split,
    renumber,
)
from fsa_seg.errors import UserError

# category ids of COCO-Stuff's 171 classes; the other ids up to 182 have no pixels
STUFF_IDS = [i for i in range(1, 183) if i - 1 not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)]
HOST = 'http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset'


def plan_coco(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan COCO-Stuff 164k and COCO-Object, whose label images are made from the same maps."""
    plan = Plan(downloads)
    for split in splits:
        images = index_files(downloads, rf'{split}2017/\d{{12}}\.jpg', '.jpg', f'images of {split}2017')
        labels = index_files(
            downloads, rf'{split}2017/\d{{12}}\.png', '.png', f'annotations of stuffthingmaps_trainval2017, {split}2017'
        )
        target = f'annotations/{split}2017/{{name}}'
        plan.add(
            sorted(images),
            images,
            f'images/{split}2017/{{name}}.jpg',
            labels,
            _convert_stuff_map,
            f'{target}_labelTrainIds.png',
            f'{target}_instanceTrainIds.png',
        )
    return plan


def _convert_stuff_map(data, where):
    """Return two label maps of a COCO-Stuff map, whose values are category id − 1, and 255 for void.

    The first is COCO-Stuff's: train ids 0 to 170, and 255. The second is COCO-Object's: things 1 to 80, and 0.
    """
    table = np.full(VOID + 1, NOT_ALLOWED)
    table[np.array(STUFF_IDS) - 1] = range(len(STUFF_IDS))
    table[VOID] = VOID
    labels = renumber(decode_labels(data, where), table, where)
    return [labels.astype(np.uint8), np.where(labels < THINGS, labels + 1, 0).astype(np.uint8)]


def plan_coco_stuff10k(downloads: Downloads, splits: tuple[str, ...]) -> Plan:
    """Plan COCO-Stuff 10K: label 0 is unlabeled, and classes are 1 to 171."""
    import_optional('scipy.io')
    plan = Plan(downloads)
    images = index_files(downloads, r'images/COCO_train2014_\d{12}\.jpg', '.jpg', 'images/COCO_train2014_*.jpg')
    labels = index_files(
        downloads, r'annotations/COCO_train2014_\d{12}\.mat', '.mat', 'annotations/COCO_train2014_*.mat'
    )
    table = np.full(1 + max(STUFF_IDS), NOT_ALLOWED)
    table[[0, *STUFF_IDS]] = range(1 + len(STUFF_IDS))
    for split in splits:
        folder = dict(train='train', val='test')[split]
        names = read_split(downloads, f'imageLists/{folder}.txt')
        plan.add(
            names,
            images,
            f'images/{folder}2014/{{name}}.jpg',
            labels,
            functools.partial(convert_matlab, variable='S', table=table),
            f'annotations/{folder}2014/{{name}}_labelTrainIds.png',
        )
    plan.texts['classes.txt'] = _read_class_names(downloads, next(iter(labels.values())))
    return plan


def _read_class_names(downloads, file):
    """Return the names of the 171 classes, which every annotation of COCO-Stuff 10K lists."""
    names = [str(np.squeeze(name)) for name in read_matlab(downloads.read(file), str(file), 'names').ravel()]
    names = names[1:] if names and names[0] == 'unlabeled' else names
    if len(names) != max(STUFF_IDS):
        raise UserError(f'{file} names {len(names)} classes; COCO-Stuff 10K v1.1 has {max(STUFF_IDS)}')
    return [names[i - 1] for i in STUFF_IDS]


COCO = Preparation(
    'coco_stuff164k',
    ('coco_object', 'coco_stuff164k'),
    plan_coco,
    (
        Download('http://images.cocodataset.org/zips/val2017.zip', 816),
        Download(f'{HOST}/stuffthingmaps_trainval2017.zip', 690),
    ),
)
COCO_STUFF10K = Preparation(
    'coco_stuff10k', ('coco_stuff10k',), plan_coco_stuff10k, (Download(f'{HOST}/cocostuff-10k-v1.1.zip', 2000),)
)
