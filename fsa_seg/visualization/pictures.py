"""Pictures: an image beside its truth and predictions, with a legend of the classes that the label maps show.

Images are (height, width, 3) uint8 RGB. Label maps are (height, width) integers. Labels beyond the palette are void.
Pictures change colours of a palette where shown classes would look alike, see `fsa_seg.visualization.colors`.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from PIL import Image, ImageDraw, ImageFont

from fsa_seg.datasets.data_sets import read_as_loaded
from fsa_seg.errors import UserError
from fsa_seg.system.paths import check_file, new_file
from fsa_seg.visualization.colors import WHITE, distinct_colors

TITLE, LEGEND, GAP = 22, 20, 6  # height of a title, height of a legend line, margin; in pixels
LONGEST = 220  # width from which a title or a class name is cut, in pixels; a wider tile allows a longer title
SPOT = 3  # radius of a pixel's mark
ROW_TITLES = dict(  # titles of a patch's rows of FSA's maps
    attention='A', similarity='S', pruned='S pruned', adapted='W', ensemble='A with FSA'
)
ROWS = 64  # rows of an image drawn at once; float values of a large photograph would fill gigabytes
_OPACITY = 0.75


def picture_grid(
    image: np.ndarray,
    label_maps: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    columns: int | None = None,
) -> Image.Image:
    """Return a grid of tiles with a legend: the image, then each label map over the image under its title.

    Args:
        image: (height, width, 3) uint8 RGB.
        label_maps: title -> label map (height, width).
        classes: names of the labels.
        palette: RGB colours of the labels, 0..255.
        columns: tiles per row; by default all tiles share a row.
    """
    shown, palette = _shown(label_maps.values(), palette)
    tiles = {'image': lambda: image, **_overlays(image, label_maps, palette)}
    return _compose(tiles, image.shape[:2], _legend(shown, classes, palette), columns or len(tiles))


def attention_picture(
    image: np.ndarray,
    pixel: tuple[int, int],
    window: tuple[int, int, int, int],
    rows: Mapping[str, np.ndarray],
    label_maps: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Image.Image:
    """Return a grid of tiles for one patch: the image with the window, the patch's rows of FSA's maps, label maps.

    Args:
        image: (height, width, 3) uint8 RGB.
        pixel: (x, y) of the marked pixel.
        window: (left, top, right, bottom) in the image's pixels.
        rows: name -> values (h, w) over the window, −∞ where pruned. The least value is dark, the greatest bright;
            the title gives both.
        label_maps, classes, palette: as of `picture_grid`.
    """
    shown, palette = _shown(label_maps.values(), palette)
    tiles = {f'patch at {pixel[0]},{pixel[1]}': functools.partial(_framed, image, window)}
    for name, values in rows.items():
        kept = values[np.isfinite(values)]
        title = f'{ROW_TITLES.get(name, name)}: {kept.min():.2g} to {kept.max():.2g}'
        tiles[title] = functools.partial(heat, image, window, values)
    tiles.update(_overlays(image, label_maps, palette))
    tiles = {title: functools.partial(_spotted, tile, pixel) for title, tile in tiles.items()}
    return _compose(tiles, image.shape[:2], _legend(shown, classes, palette), 4)


def _overlays(image, label_maps, palette):
    """Return title -> function that draws the label map over the image."""
    return {title: functools.partial(overlay, image, labels, palette) for title, labels in label_maps.items()}


def _framed(image, window):
    """Return the image with the window's edge in white."""
    picture = Image.fromarray(image)
    x_min, y_min, x_max, y_max = window
    ImageDraw.Draw(picture).rectangle((x_min, y_min, x_max - 1, y_max - 1), outline=WHITE)
    return np.array(picture)


def _spotted(tile, pixel):
    """Return a tile's image with a mark at a pixel (x, y); `tile` is a function without arguments."""
    spot = Image.fromarray(tile())
    x, y = pixel
    ImageDraw.Draw(spot).ellipse((x - SPOT, y - SPOT, x + SPOT, y + SPOT), outline=WHITE, fill=(0, 160, 255))
    return np.array(spot)


def heat(image: np.ndarray, window: tuple[int, int, int, int], values: np.ndarray) -> np.ndarray:
    """Return the image in grey, its window in the colours of `values`; places of −∞ stay grey and dark.

    Args:
        image: (height, width, 3) uint8 RGB.
        window: (left, top, right, bottom) in the image's pixels.
        values: (h, w) over the window. The least finite value is dark, the greatest bright.
    """
    x_min, y_min, x_max, y_max = window
    out = np.empty_like(image)
    for rows in _blocks(len(image)):
        out[rows] = image[rows].mean(2, keepdims=True) * 0.4
    kept = np.isfinite(values)
    low, high = values[kept].min(), values[kept].max()
    level = np.where(kept, (np.where(kept, values, low) - low) / max(high - low, 1e-12), 0)
    colors = cv2.applyColorMap((255 * level).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    size = x_max - x_min, y_max - y_min
    colors = cv2.resize(np.ascontiguousarray(colors), size, interpolation=cv2.INTER_NEAREST)
    kept = cv2.resize(kept.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    out[y_min:y_max, x_min:x_max][kept] = colors[kept]
    return out


def _shown(label_maps, palette):
    """Return the labels in the label maps, and the palette with distinct colours for these labels."""
    shown = sorted(
        {label for labels in label_maps for rows in _blocks(len(labels)) for label in np.unique(labels[rows]).tolist()}
    )
    colors = distinct_colors(palette, [label for label in shown if label < len(palette)])
    return shown, [colors.get(label, color) for label, color in enumerate(palette)]


def _legend(shown, classes, palette):
    """Return (name, colour) of each shown label: a class's first word, or all of its words if two first words agree."""
    names = [classes[i] if i < len(classes) else 'void' for i in shown]
    words = [first_word(name) for name in names]
    return [
        (word if words.count(word) == 1 else ' '.join(name.split()), palette[i] if i < len(classes) else WHITE)
        for i, name, word in zip(shown, names, words)
    ]


def first_word(name: str) -> str:
    """Return the first of a class's words: 'chest of drawers; chest' -> 'chest of drawers'."""
    words = (' '.join(word.split()) for word in re.split('[;,]', name))
    return next(filter(None, words), name)


def _compose(tiles, size, entries, columns):
    """Return tiles in rows of `columns`, each tile under its title, and a legend below.

    Args:
        tiles (dict): title -> function that returns the tile's image, uint8 RGB. Memory holds one tile at a time.
        size (int, int): height and width of an image; a tile is wider where its title is.
        entries (list): (name, colour) of the legend.
        columns (int): tiles per row.
    """
    font = ImageFont.load_default(14)
    height, width = size
    width = max(width, *(min(LONGEST, int(font.getlength(title)) + 1) for title in tiles))
    rows = -(-len(tiles) // columns)
    total = columns * (width + GAP) + GAP
    entries = [(_cut(name, font, min(LONGEST, total - 2 * GAP - 17)), color) for name, color in entries]
    places, legend_height = _legend_places(entries, font, total)
    canvas = Image.new('RGB', (total, rows * (height + TITLE + GAP) + GAP + legend_height), 'white')
    draw = ImageDraw.Draw(canvas)
    for i, (title, tile) in enumerate(tiles.items()):
        x, y = GAP + (i % columns) * (width + GAP), GAP + (i // columns) * (height + TITLE + GAP)
        draw.text((x, y), _cut(title, font, width), 'black', font)
        canvas.paste(Image.fromarray(tile()), (x, y + TITLE))
    top = canvas.height - legend_height
    for (name, color), (x, y) in zip(entries, places):
        draw.rectangle((x, top + y + 3, x + 12, top + y + 15), tuple(int(c) for c in color), 'black')
        draw.text((x + 17, top + y), name, 'black', font)
    return canvas


def _cut(text, font, width):
    """Return a text cut to a width in pixels; '…' marks a cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'{text}…') > width:
        text = text[:-1]
    return f'{text.rstrip()}…'


def overlay(image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the image under its labels' colours, with white edges between regions: (height, width, 3) uint8."""
    colors = np.array([*palette, WHITE], np.float32)
    out = np.empty_like(image)
    for rows in _blocks(len(image)):
        part = labels[rows]
        block = (1 - _OPACITY) * image[rows].mean(2, keepdims=True) + _OPACITY * colors[np.minimum(part, len(palette))]
        edge = np.zeros(part.shape, bool)
        edge[:, 1:] |= part[:, 1:] != part[:, :-1]
        below = labels[max(rows.start, 1) : rows.stop]  # no row lies above the image's first row
        edge[len(edge) - len(below) :] |= below != labels[max(rows.start, 1) - 1 : rows.stop - 1]
        block[edge] = 255
        out[rows] = block
    return out


def _blocks(height):
    """Return slices of at most ROWS rows that together cover `height` rows."""
    return [slice(start, min(start + ROWS, height)) for start in range(0, height, ROWS)]


def check_picture(path: str, option: str) -> None:
    """Raise a UserError unless a picture can be written to `path`; `option` names the path in the message."""
    check_file(path, option)
    suffix = os.path.splitext(path)[1].lower()
    if suffix and Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise UserError(f'{option} {path}: pictures are not written as {suffix}; use .png, .jpg, .webp or .tif')


def write_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a PIL image; a half-written file never appears at `path`."""
    with new_file(path) as part:
        picture.save(part, Image.registered_extensions().get(os.path.splitext(path)[1].lower(), 'PNG'))


def picture_path(folder: str, image: str, root: str | None) -> str:
    """Return the path of an image's picture: the image's path below the data root, in `folder`, with suffix .png."""
    name = os.path.splitext(os.path.relpath(image, root or '.'))[0] + '.png'
    return os.path.join(folder, *(part for part in name.split(os.sep) if part != os.pardir))  # never above the folder


@HOOKS.register_module()
class SideBySideHook(Hook):
    """Write image, truth and prediction side by side for every tested image, see `picture_path`.

    Args:
        folder: folder of the pictures; made when needed.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        """Write the pictures of one batch; mmengine's `Hook` gives the arguments."""
        dataset = runner.test_dataloader.dataset
        meta = dataset.metainfo
        for sample in outputs:
            maps = dict(truth=sample.gt_sem_seg.data, prediction=sample.pred_sem_seg.data)
            maps = {title: data.squeeze(0).cpu().numpy() for title, data in maps.items()}
            image = read_as_loaded(dataset, sample.img_path)
            picture = picture_grid(image, maps, meta['classes'], meta['palette'])
            write_picture(picture, picture_path(self.folder, sample.img_path, dataset.data_root))


def _legend_places(entries, font, width):
    """Return the place (x, y) of each entry, and the legend's height; lines break at `width` pixels."""
    places, x, y = [], GAP, 0
    for name, _ in entries:
        length = 17 + int(font.getlength(name)) + 14
        if x + length > width and x > GAP:
            x, y = GAP, y + LEGEND
        places.append((x, y))
        x += length
    return places, y + LEGEND + GAP
