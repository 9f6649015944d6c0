"""Pictures: an image beside its truth and predictions, with a legend of the classes that they show.

Images are (height, width, 3) uint8 RGB; label maps (height, width) integers, 255 void.
"""
import os

import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from mmcv import imfrombytes
from PIL import Image, ImageDraw, ImageFont

VOID = 255
TITLE, LEGEND, GAP = 22, 20, 6  # heights of a title and of a line of the legend, and the margin, in pixels
_OPACITY = 0.75


def panel(image, label_maps, classes, palette, columns=None):
    """Return one picture: the image, then each label map laid over it under its title, and a legend below.

    Args:
        image (height, width, 3): uint8 RGB.
        label_maps (dict): title -> label map of the image's size.
        classes (sequence of str), palette (sequence of 3 ints): names and colours of the labels.
        columns (int): tiles per row; by default all in one.

    Returns:
        PIL.Image
    """
    tiles = [('image', image)] + [(title, overlay(image, labels, palette)) for title, labels in label_maps.items()]
    columns = columns or len(tiles)
    height, width = image.shape[:2]
    rows = -(-len(tiles) // columns)
    shown = np.unique(np.concatenate([labels.ravel() for labels in label_maps.values()]))
    entries = [(classes[i] if i != VOID else 'void', palette[i] if i != VOID else (255, 255, 255)) for i in shown]
    font = ImageFont.load_default(14)
    total = columns * (width + GAP) + GAP
    places, legend_height = _legend_places(entries, font, total)
    canvas = Image.new('RGB', (total, rows * (height + TITLE + GAP) + GAP + legend_height), 'white')
    draw = ImageDraw.Draw(canvas)
    for i, (title, tile) in enumerate(tiles):
        x, y = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + TITLE + GAP)
        draw.text((x, y), title, 'black', font)
        canvas.paste(Image.fromarray(tile), (x, y + TITLE))
    top = canvas.height - legend_height
    for (name, color), (x, y) in zip(entries, places):
        draw.rectangle((x, top + y + 3, x + 12, top + y + 15), tuple(int(c) for c in color), 'black')
        draw.text((x + 17, top + y), name, 'black', font)
    return canvas


def overlay(image, labels, palette):
    """Return the image under its labels' colours, regions edged in white: (height, width, 3) uint8."""
    colors = np.zeros((max(VOID + 1, len(palette)), 3), np.float32)
    colors[:len(palette)] = palette
    colors[VOID] = 255
    out = (1 - _OPACITY) * image.mean(2, keepdims=True) + _OPACITY * colors[labels]
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    out[edge] = 255
    return out.astype(np.uint8)


def write_picture(picture, path):
    """Write a PIL image; a half-written one never appears under `path`."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = f'{path}.{os.getpid()}.part'
    picture.save(part, Image.registered_extensions().get(os.path.splitext(path)[1].lower(), 'PNG'))
    os.replace(part, path)


def read_image(path):
    """Return an image file as (height, width, 3) uint8 RGB."""
    return imfrombytes(get(path), channel_order='rgb')


@HOOKS.register_module()
class SideBySideHook(Hook):
    """Writes image, truth and prediction side by side for every tested image, as `folder`/NAME.png.

    Args:
        folder (str): where the pictures go; made when needed.
    """

    def __init__(self, folder):
        self.folder = folder

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        meta = runner.test_dataloader.dataset.metainfo
        for sample in outputs:
            maps = dict(truth=sample.gt_sem_seg.data, prediction=sample.pred_sem_seg.data)
            maps = {title: data.squeeze(0).cpu().numpy() for title, data in maps.items()}
            picture = panel(read_image(sample.img_path), maps, meta['classes'], meta['palette'])
            name = os.path.splitext(os.path.basename(sample.img_path))[0]
            write_picture(picture, os.path.join(self.folder, name + '.png'))


def _legend_places(entries, font, width):
    """Return the place (x, y) of each entry, lines broken at `width`, and the legend's height."""
    places, x, y = [], GAP, 0
    for name, _ in entries:
        length = 17 + int(font.getlength(name)) + 14
        if x + length > width and x > GAP:
            x, y = GAP, y + LEGEND
        places.append((x, y))
        x += length
    return places, y + LEGEND + GAP
