"""Ways to damage the folder of VOC2012, and the error of the data check for each."""

import shutil

import numpy as np
from PIL import Image


def split(folder):
    return folder / 'ImageSets' / 'Segmentation' / 'val.txt'


def break_root(folder):
    shutil.rmtree(folder)


def break_split(folder):
    split(folder).unlink()


def break_empty(folder):
    split(folder).write_text('')


def break_missing(folder):
    (folder / 'JPEGImages' / '2007_000033.jpg').unlink()


def break_image(folder):
    (folder / 'JPEGImages' / '2007_000033.jpg').write_bytes(b'no picture')


def break_label(folder):
    path = folder / 'SegmentationClass' / '2007_000130.png'
    path.write_bytes(path.read_bytes()[:60])


def break_range(folder):
    path = folder / 'SegmentationClass' / '2007_000130.png'
    labels = np.array(Image.open(path))
    labels[0, :2] = 21, 254
    Image.fromarray(labels).save(path)


def break_channels(folder):
    path = folder / 'SegmentationClass' / '2007_000130.png'
    Image.open(path).convert('RGB').save(path)


def break_size(folder):
    path = folder / 'SegmentationClass' / '2007_000130.png'
    Image.open(path).crop((0, 0, 100, 90)).save(path)


DAMAGE = [  # (function that damages the folder of VOC2012, pattern of the error)
    (break_root, 'lacks the folder .*VOC2012.*--data-root'),
    (break_split, 'split file .*val.txt does not exist'),
    (break_empty, 'no image found: .*val.txt is empty'),
    (break_missing, '1 of 20 files are missing, the first is .*2007_000033.jpg'),
    (break_image, 'the image .*2007_000033.jpg cannot be decoded'),
    (break_label, 'the label image .*2007_000130.png cannot be decoded'),
    (break_range, r'2007_000130.png has the labels \[21, 254\]; the data set has 0 to 20'),
    (break_channels, '2007_000130.png has 3 channels'),
    (break_size, r'the label image .*2007_000130.png has 90×100 pixels, its image .*2007_000130.jpg'),
]
