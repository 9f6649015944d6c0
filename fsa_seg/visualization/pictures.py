"""Pictures: an image beside its truth and predictions, with a legend of the classes that they show.

Images are (height, width, 3) uint8 RGB; label maps (height, width) integers; labels beyond the palette are void.
"""

import colorsys
import functools
import os

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmseg.registry import HOOKS
from PIL import Image, ImageDraw, ImageFont

from fsa_seg.datasets.data_sets import read_as_loaded
from fsa_seg.errors import UserError
from fsa_seg.system.paths import check_file, new_file

TITLE, LEGEND, GAP = 22, 20, 6  # heights of a title and of a line of the legend, and the margin, in pixels
SPOT = 3  # radius of the mark of a pixel
ROW_TITLES = dict(
    attention='A', similarity='S', pruned='S pruned', adapted='W', ensemble='A with FSA'
)  # of a patch's rows
ROWS = 64  # of an image that are drawn at once: floating point numbers of a whole photograph would fill gigabytes
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
    tiles = {'image': lambda: image, **_overlays(image, label_maps, palette)}
    return _compose(tiles, image.shape[:2], _legend(label_maps.values(), classes, palette), columns or len(tiles))


def attention_panel(image, pixel, window, rows, label_maps, classes, palette):
    """Return one picture: the image with a pixel and its window, that patch's rows of FSA's maps, and label maps.

    Args:
        image (height, width, 3): uint8 RGB.
        pixel (x, y): the pixel looked at.
        window (left, top, right, bottom): in pixels of the image.
        rows (dict): name -> values over the window, of any resolution; −∞ where nothing was kept. Each is drawn from
            its least value (dark) to its greatest (bright), which its title gives.
        label_maps, classes, palette: as of `panel`.

    Returns:
        PIL.Image
    """

    def marked():
        picture = Image.fromarray(image)
        left, top, right, bottom = window
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255))
        return np.array(picture)

    tiles = {f'patch at {pixel[0]},{pixel[1]}': marked}
    for name, values in rows.items():
        kept = values[np.isfinite(values)]
        title = f'{ROW_TITLES.get(name, name)}: {kept.min():.2g} to {kept.max():.2g}'
        tiles[title] = functools.partial(_heat, image, window, values)
    tiles.update(_overlays(image, label_maps, palette))
    tiles = {title: functools.partial(_spotted, tile, pixel) for title, tile in tiles.items()}
    return _compose(tiles, image.shape[:2], _legend(label_maps.values(), classes, palette), 4)


def _overlays(image, label_maps, palette):
    return {title: functools.partial(overlay, image, labels, palette) for title, labels in label_maps.items()}


def _spotted(tile, pixel):
    """Return what a tile's function draws, with a mark at a pixel (x, y)."""
    spot = Image.fromarray(tile())
    x, y = pixel
    ImageDraw.Draw(spot).ellipse((x - SPOT, y - SPOT, x + SPOT, y + SPOT), outline=(255, 255, 255), fill=(0, 160, 255))
    return np.array(spot)


def _heat(image, window, values):
    """Return the image in grey, its window under the colours of `values`; what is −∞ stays grey and dark."""
    left, top, right, bottom = window
    out = np.empty_like(image)
    for rows in _blocks(len(image)):
        out[rows] = image[rows].mean(2, keepdims=True) * 0.4
    kept = np.isfinite(values)
    low, high = values[kept].min(), values[kept].max()
    level = np.where(kept, (np.where(kept, values, low) - low) / max(high - low, 1e-12), 0)
    colors = cv2.applyColorMap((255 * level).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    size = right - left, bottom - top
    colors = cv2.resize(np.ascontiguousarray(colors), size, interpolation=cv2.INTER_NEAREST)
    kept = cv2.resize(kept.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    out[top:bottom, left:right][kept] = colors[kept]
    return out


def _legend(label_maps, classes, palette):
    """Return name and colour of each label that is shown."""
    shown = sorted(
        {label for labels in label_maps for rows in _blocks(len(labels)) for label in np.unique(labels[rows]).tolist()}
    )
    return [(classes[i], palette[i]) if i < len(classes) else ('void', (255, 255, 255)) for i in shown]


def _compose(tiles, size, entries, columns):
    """Return tiles in rows of `columns`, each under its title, and a legend below.

    Args:
        tiles (dict): title -> function that draws it: uint8 RGB. One at a time is held.
        size (int, int): height and width of each.
        entries (list): of `_legend`.
        columns (int): tiles per row.
    """
    height, width = size
    rows = -(-len(tiles) // columns)
    font = ImageFont.load_default(14)
    total = columns * (width + GAP) + GAP
    places, legend_height = _legend_places(entries, font, total)
    canvas = Image.new('RGB', (total, rows * (height + TITLE + GAP) + GAP + legend_height), 'white')
    draw = ImageDraw.Draw(canvas)
    for i, (title, tile) in enumerate(tiles.items()):
        x, y = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + TITLE + GAP)
        draw.text((x, y), title, 'black', font)
        canvas.paste(Image.fromarray(tile()), (x, y + TITLE))
    top = canvas.height - legend_height
    for (name, color), (x, y) in zip(entries, places):
        draw.rectangle((x, top + y + 3, x + 12, top + y + 15), tuple(int(c) for c in color), 'black')
        draw.text((x + 17, top + y), name, 'black', font)
    return canvas


def overlay(image, labels, palette):
    """Return the image under its labels' colours, regions edged in white: (height, width, 3) uint8."""
    colors = np.array([*palette, (255, 255, 255)], np.float32)
    out = np.empty_like(image)
    for rows in _blocks(len(image)):
        own = labels[rows]
        block = (1 - _OPACITY) * image[rows].mean(2, keepdims=True) + _OPACITY * colors[np.minimum(own, len(palette))]
        edge = np.zeros(own.shape, bool)
        edge[:, 1:] |= own[:, 1:] != own[:, :-1]
        below = labels[max(rows.start, 1) : rows.stop]  # the image's first row has none above it
        edge[len(edge) - len(below) :] |= below != labels[max(rows.start, 1) - 1 : rows.stop - 1]
        block[edge] = 255
        out[rows] = block
    return out


def _blocks(height):
    """Return slices of ROWS rows that make up a height."""
    return [slice(start, min(start + ROWS, height)) for start in range(0, height, ROWS)]


def even_palette(count):
    """Return `count` colours (3 ints in 0..255), hues evenly apart and lightness alternating."""
    colors = [colorsys.hsv_to_rgb(i / count, 0.85, 1.0 if i % 2 == 0 else 0.65) for i in range(count)]
    return [tuple(round(255 * c) for c in color) for color in colors]


def check_picture(path, what):
    """Raise a UserError unless a picture can be written under `path`; `what` is the option that names it."""
    check_file(path, what)
    suffix = os.path.splitext(path)[1].lower()
    if suffix and Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise UserError(f'{what} {path}: pictures are not written as {suffix}; use .png, .jpg, .webp or .tif')


def write_picture(picture, path):
    """Write a PIL image; a half-written one never appears under `path`."""
    with new_file(path) as part:
        picture.save(part, Image.registered_extensions().get(os.path.splitext(path)[1].lower(), 'PNG'))


def picture_path(folder, image, root):
    """Return where an image's picture goes: its path below the data root, under `folder`, with the suffix .png."""
    name = os.path.splitext(os.path.relpath(image, root or '.'))[0] + '.png'
    return os.path.join(folder, *(part for part in name.split(os.sep) if part != os.pardir))  # never above the folder


@HOOKS.register_module()
class SideBySideHook(Hook):
    """Writes image, truth and prediction side by side for every tested image, see `picture_path`.

    Args:
        folder (str): where the pictures go; made when needed.
    """

    def __init__(self, folder):
        self.folder = folder

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo
        for sample in outputs:
            maps = dict(truth=sample.gt_sem_seg.data, prediction=sample.pred_sem_seg.data)
            maps = {title: data.squeeze(0).cpu().numpy() for title, data in maps.items()}
            picture = panel(read_as_loaded(dataset, sample.img_path), maps, meta['classes'], meta['palette'])
            write_picture(picture, picture_path(self.folder, sample.img_path, dataset.data_root))


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
