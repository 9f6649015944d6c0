"""Small downloads of every data set, in the publishers' exact folders, file formats and encodings, written by hand.

`SOURCES[name](folder)` writes a data set's downloads into a folder. `EXPECTED[name]` holds the label images that the
preparation makes of them: path below the data set's folder -> (height, width) labels.
"""

import io
import json
import os
import pickle

import numpy as np
from PIL import Image
from pycocotools import mask
from scipy.io import savemat

SIZE = (4, 6)  # height and width of all images
CONTEXT = (
    'aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth '
    'computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain '
    'mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train '
    'tree truck tvmonitor wall water window wood'
).split()


def rows(*values):
    """Return a label map of SIZE; a row is one value, or values from the left of which the last is repeated."""
    return np.array(
        [
            list(row) + [row[-1]] * (SIZE[1] - len(row)) if isinstance(row, (tuple, list)) else [row] * SIZE[1]
            for row in values
        ]
    )


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
        f.write(data.encode() if isinstance(data, str) else data)


def image(path, seed, size=SIZE):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


def png(path, labels, palette=False):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    picture = Image.fromarray(labels.astype(np.uint8))
    if palette:
        picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def matlab(path, **variables):
    out = io.BytesIO()
    savemat(out, variables, do_compression=True)
    write(path, out.getvalue())


def voc(folder):
    root = f'{folder}/VOCdevkit/VOC2012'
    write(f'{root}/ImageSets/Segmentation/val.txt', '2007_000033\n2007_000042\n')
    write(f'{root}/ImageSets/Segmentation/train.txt', '2007_000032\n')
    for i, labels in enumerate((rows(0, 20, 255, 1), rows(0, 1, (2, 255), 0), rows(15, 15, 0, 255))):
        name = ('2007_000032', '2007_000033', '2007_000042')[i]
        image(f'{root}/JPEGImages/{name}.jpg', i)
        png(f'{root}/SegmentationClass/{name}.png', labels, palette=True)
    image(f'{root}/JPEGImages/2008_000001.jpg', 9)  # for detection alone


def voc2010(folder):
    root = f'{folder}/VOCdevkit/VOC2010'
    write(f'{root}/ImageSets/Main/val.txt', '2008_000002\n2008_000007\n')
    write(f'{root}/ImageSets/Main/train.txt', '2008_000003\n')
    for i, name in enumerate(('2008_000002', '2008_000003', '2008_000007')):
        image(f'{root}/JPEGImages/{name}.jpg', i)


def run_length(labels):
    encoded = mask.encode(np.asfortranarray(labels.astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())


def detail():
    """Return the content of trainval_merged.json."""
    height, width = SIZE
    top_half, left_half = rows(1, 1, 0, 0), rows((1, 1, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0))
    corner = rows(0, 0, 0, (1, 0))
    images = [
        dict(image_id=i, file_name=f'{name}.jpg', phase=phase, height=height, width=width)
        for i, name, phase in ((11, '2008_000007', 'val'), (12, '2008_000002', 'val'), (13, '2008_000003', 'train'))
    ]
    annotations = [
        dict(id=number, image_id=of, category_id=category, iscrowd=0, area=1, segmentation=run_length(area), parts=[])
        for number, of, category, area in (
            (1, 12, 458, top_half),
            (2, 13, 2, top_half),
            (3, 12, 2, left_half),
            (4, 12, 113, corner),
            (5, 11, 9, corner),
        )
    ]
    return dict(
        info={},
        images=images,
        annos_segmentation=annotations,
        annos_boundary=[],
        annos_occlusion=[],
        categories=[dict(category_id=2, name='aeroplane', supercategory='vehicle', parts=[])],
    )


def context(folder):
    voc2010(folder)
    write(f'{folder}/trainval_merged.json', json.dumps(detail()))


def context_names():
    """Return the 459 names; the 59 have other numbers than in the Detail file, so that only names match."""
    names = [f'thing {i}' for i in range(1, 460)]
    for i, name in enumerate(CONTEXT):
        names[458 - 7 * i] = name
    return names


def context_mat(folder):
    """The 59-class release: aeroplane is 459, bag 452, wood 53."""
    voc2010(folder)
    names = context_names()
    write(f'{folder}/labels.txt', '0: empty\n' + ''.join(f'{i}: {name}\n' for i, name in enumerate(names, 1)))
    write(f'{folder}/59_labels.txt', ''.join(f'{i}: {name}\n' for i, name in enumerate(CONTEXT, 1)))
    for name, labels in (
        ('2008_000002', rows(459, (452, 1), 53, 255)),
        ('2008_000003', rows(1, 2, 3, 4)),
        ('2008_000007', rows(0, 460 - 1 - 7 * 4, 256, 2)),
    ):
        matlab(f'{folder}/trainval/{name}.mat', LabelMap=labels.astype(np.uint16))


def coco(folder):
    for split, name, labels in (
        ('val', '000000000139', rows(0, (12, 13), 181, 255)),
        ('val', '000000000285', rows(89, 91, 1, 10)),
        ('train', '000000000009', rows(0, 1, 2, 3)),
    ):
        image(f'{folder}/{split}2017/{name}.jpg', 1)
        png(f'{folder}/stuffthingmaps/{split}2017/{name}.png', labels)


def cityscapes(folder):
    """Train ids: road 0, car 13, and 255 outside of the 19 classes."""
    for city, name in (('frankfurt', 'frankfurt_000000_000294'), ('munster', 'munster_000001_000019')):
        image(f'{folder}/leftImg8bit/val/{city}/{name}_leftImg8bit.png', 1)
        objects = [
            ('road', (0, 0), (5, 2), {}),
            ('cargroup', (0, 0), (1, 1), {}),
            ('license plate', (0, 0), (0, 0), {}),
            ('ego vehicle', (3, 2), (5, 2), {}),
            ('sky', (0, 0), (5, 3), dict(deleted=1)),
        ]
        objects = [
            dict(label=label, polygon=[[x0, y0], [x1, y0], [x1, y1], [x0, y1]], **keys)
            for label, (x0, y0), (x1, y1), keys in objects
        ]
        write(
            f'{folder}/gtFine/val/{city}/{name}_gtFine_polygons.json',
            json.dumps(dict(imgHeight=SIZE[0], imgWidth=SIZE[1], objects=objects)),
        )
        png(f'{folder}/gtFine/val/{city}/{name}_gtFine_labelIds.png', rows((26, 26, 7), (26, 26, 7), (7, 7, 7, 1), 0))
        png(f'{folder}/gtFine/val/{city}/{name}_gtFine_instanceIds.png', rows(0, 0, 0, 0))


def ade20k(folder):
    root = f'{folder}/ADEChallengeData2016'
    for split, name, labels in (
        ('validation', 'ADE_val_00000001', rows(0, 150, 1, (2, 3))),
        ('training', 'ADE_train_00000001', rows(1, 1, 1, 1)),
    ):
        image(f'{root}/images/{split}/{name}.jpg', 1)
        png(f'{root}/annotations/{split}/{name}.png', labels)
    write(f'{root}/objectInfo150.txt', 'Idx\tRatio\n')


def ade20k847(folder):
    """847 objects are in both splits: 1, 11 to 855, 857. 2 is in training only, and 3 in validation only as a part."""
    root = f'{folder}/ADE20K_2021_17_01'
    stems = ['ADE_frame_00000001', 'ADE_val_00000001']
    present, part = np.zeros((900, 2)), np.zeros((900, 2))
    for number in (1, *range(11, 856), 857):
        present[number - 1] = 1
    present[1, 0] = present[2, 0] = present[2, 1] = part[2, 1] = 1
    index = dict(
        filename=[f'{stem}.jpg' for stem in stems],
        folder=['a', 'b'],
        objectPresence=present,
        objectIsPart=part,
        objectnames=[f'thing {i}, object {i}' for i in range(1, 901)],
    )
    write(f'{root}/index_ade20k.pkl', pickle.dumps(index))
    for stem, split, scene in ((stems[0], 'training', 'street'), (stems[1], 'validation', 'attic')):
        image(f'{root}/images/ADE/{split}/home/{scene}/{stem}.jpg', 1)
        numbers = rows(0, 1, (300, 3), 857)
        colors = np.stack([numbers // 256 * 10, numbers % 256, np.arange(24).reshape(SIZE)], -1).astype(np.uint8)
        Image.fromarray(colors).save(f'{root}/images/ADE/{split}/home/{scene}/{stem}_seg.png')
        png(f'{root}/images/ADE/{split}/home/{scene}/{stem}_parts_1.png', rows(0, 0, 0, 0))


def stuff_names():
    return np.array(['unlabeled', *(f'stuff {i}' for i in range(1, 183))], dtype=object)[:, None]


def coco_stuff10k(folder):
    names = [f'COCO_train2014_{number:012d}' for number in (77, 90)]
    write(f'{folder}/imageLists/test.txt', names[0] + '\n')
    write(f'{folder}/imageLists/train.txt', names[1] + '\n')
    for name, labels in zip(names, (rows(0, (11, 13), 182, 1), rows(1, 1, 1, 1))):
        image(f'{folder}/images/{name}.jpg', 1)
        matlab(
            f'{folder}/annotations/{name}.mat',
            S=labels.astype(np.uint16),
            names=stuff_names(),
            regionMapStuff=labels,
            captions=np.array(['a', 'b'], dtype=object)[:, None],
            regionLabelsStuff=np.arange(3),
        )


SOURCES = dict(
    voc=voc,
    context=context,
    context_mat=context_mat,
    coco=coco,
    cityscapes=cityscapes,
    ade20k=ade20k,
    context459=context_mat,
    ade20k847=ade20k847,
    coco_stuff10k=coco_stuff10k,
)
CITY = rows((13, 13, 0), (13, 13, 0), (0, 0, 0, 255), 255)
EXPECTED = dict(
    voc={
        'SegmentationClass/2007_000033.png': rows(0, 1, (2, 255), 0),
        'SegmentationClass/2007_000042.png': rows(15, 15, 0, 255),
    },
    context={
        'SegmentationClassContext/2008_000002.png': rows((1, 1, 59), (1, 1, 59), (1, 1, 0), (23, 1, 0)),
        'SegmentationClassContext/2008_000007.png': rows(0, 0, 0, (2, 0)),
    },
    context_mat={
        'SegmentationClassContext/2008_000002.png': rows(1, (2, 0), 59, 0),
        'SegmentationClassContext/2008_000007.png': rows(0, 5, 30, 0),
    },
    coco={
        'annotations/val2017/000000000139_labelTrainIds.png': rows(0, (11, 12), 170, 255),
        'annotations/val2017/000000000139_instanceTrainIds.png': rows(1, (12, 13), 0, 0),
        'annotations/val2017/000000000285_labelTrainIds.png': rows(79, 80, 1, 10),
        'annotations/val2017/000000000285_instanceTrainIds.png': rows(80, 0, 2, 11),
    },
    cityscapes={
        'gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png': CITY,
        'gtFine/val/munster/munster_000001_000019_gtFine_labelTrainIds.png': CITY,
    },
    ade20k={'annotations/validation/ADE_val_00000001.png': rows(0, 150, 1, (2, 3))},
    context459={
        'SegmentationClassContext459/2008_000002.png': rows(459, (452, 1), 53, 255),
        'SegmentationClassContext459/2008_000007.png': rows(0, 431, 256, 2),
    },
    ade20k847={'annotations/validation/ADE_val_00000001.png': rows(0, 1, (291, 0), 847)},
    coco_stuff10k={'annotations/test2014/COCO_train2014_000000000077_labelTrainIds.png': rows(0, (11, 12), 171, 1)},
)
