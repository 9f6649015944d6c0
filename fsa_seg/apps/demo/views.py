"""Views of the web page: gradio components that draw in the browser, and the values that they draw.

A value is a dict that JSON can hold. Images in a value are `data:` addresses, so that no file is written for them.
Words of users are data in a value; the views show them as text, never as markup.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from fsa_seg.apps.demo.comparison import preview_size
from fsa_seg.datasets.palette import even_palette
from fsa_seg.visualization.colors import Color, distinct_colors
from fsa_seg.visualization.pictures import first_word, heat

MAPS = dict(  # titles of a patch's rows, `fsa_seg.models.window.Inspection`
    attention='A attention', similarity='S similarity', pruned='S pruned', adapted='W adapted', ensemble='Â ensemble'
)
TILE = 480  # longest side of a patch's map, in pixels
VOID = 65535
STEADY = 20  # up to this many classes all differ in colour; of more, those that the rows show
LONGEST = 300  # characters of a word that a view gets
_BLOCK = 256  # rows of labels counted at once; counting widens labels to 8 bytes


def picture_view(**settings: Any) -> gr.HTML:
    """Return the view that opens a picture; its value is of `picture_value`.

    Events:
        opened: the server holds a new picture. Data: `words`, the words that go with an example, or None.
    """
    return _view('picture', settings)


def stage_view(**settings: Any) -> gr.HTML:
    """Return the view of several rows' labels over one picture; its value is of `stage_value`.

    Events:
        pixel: a pixel is clicked. Data: `row`, and `x`, `y` in pixels of the original.
    """
    return _view('stage', settings)


def why_view(**settings: Any) -> gr.HTML:
    """Return the view of a patch's maps and words; its value is of `why_value`.

    Events:
        pixel: a pixel is clicked. Data: `x`, `y` in pixels of the original.
    """
    return _view('why', settings)


def _view(name, settings):
    """Return a gr.HTML of the files of `name`, each after what the views share; `settings` are of gr.HTML."""

    def text(*names):
        return '\n'.join((files(__package__) / 'view' / each).read_text('utf-8') for each in names)

    return gr.HTML(
        settings.pop('value', None),
        html_template=text(f'{name}.html'),
        css_template=text('common.css', f'{name}.css'),
        js_on_load=text('common.js', f'{name}.js'),
        apply_default_css=False,
        **settings,
    )


def picture_entry(preview: np.ndarray, size: tuple[int, int], name: str) -> dict:
    """Return what the views know of an open picture: `url`, `width`, `height` of the original, and `name`.

    Args:
        preview: (h, w, 3) uint8 RGB.
        size: height and width of the original, in pixels.
        name: the file's name.
    """
    return dict(url=webp_address(preview), width=size[1], height=size[0], name=_short(name))


def picture_value(
    page: str | None, limit: int | None = None, examples: Sequence[Mapping] = (), picture: dict | None = None
) -> dict:
    """Return the value of the picture view.

    Args:
        page: the token of the page, which the routes `demo/PAGE/...` take.
        limit: greatest size of an upload in bytes; None for no limit.
        examples: `name` and `url` of each example, in the order of the route `example/I`.
        picture: the open picture, of `picture_entry`.
    """
    return dict(page=page, limit=limit, examples=[dict(each) for each in examples], picture=picture)


def stage_row(
    title: str,
    labels: np.ndarray,
    count: int,
    *,
    caption: str | None = None,
    png: str | None = None,
    npz: str | None = None,
    command: str | None = None,
) -> dict:
    """Return one row of a stage.

    Args:
        title: the row's name, such as 'SCLIP + FSA'.
        labels: (height, width) labels at the original's size; labels from `count` on are void.
        count: number of classes.
        caption: a remark beside the title.
        png: address of the labels as a file.
        npz: address of the scores as a file.
        command: the command line that gives the same labels.
    """
    counts = np.zeros(count, np.int64)
    for start in range(0, len(labels), _BLOCK):
        counts += np.bincount(labels[start : start + _BLOCK].ravel(), minlength=count)[:count]
    shares = [round(float(share), 6) for share in counts / max(1, labels.size)]
    address = index_address(labels, preview_size(labels.shape), count)
    return dict(title=title, caption=caption, labels=address, shares=shares, png=png, npz=npz, command=command)


def shown_colors(count: int, rows: Sequence[Mapping]) -> list[Color]:
    """Return the RGB colour of each class, chosen so that the eye tells apart the classes that the rows show.

    Up to STEADY classes have the same colours whatever the rows show, those of `class_colors`.

    Args:
        count: number of classes.
        rows: the rows, of `stage_row`.
    """
    palette = even_palette(count)
    distinct = distinct_colors(palette, range(count) if count <= STEADY else _shown(rows))
    return [distinct.get(label, color) for label, color in enumerate(palette)]


def _shown(rows):
    """Return the classes that have pixels in some row, the largest first."""
    totals = np.sum([row['shares'] for row in rows], 0) if rows else np.zeros(0)
    return [int(label) for label in np.argsort(-totals, kind='stable') if totals[label] > 0]


def stage_value(
    picture: dict | None,
    classes: Sequence[str] = (),
    rows: Sequence[Mapping] = (),
    colors: Sequence[Color] = (),
    *,
    clickable: bool = False,
    error: str | None = None,
    keep: bool = False,
    note: str | None = None,
    empty: str | None = None,
) -> dict:
    """Return the value of the stage.

    Args:
        picture: the open picture, of `picture_entry`.
        classes: texts of the classes, synonyms separated by ';'.
        rows: the rows, of `stage_row`; without rows, the stage shows the picture alone.
        colors: RGB colour of each class, of `shown_colors`.
        clickable: whether a click on a row gives the event `pixel`.
        error: a line above the rows.
        keep: with an error, whether the rows that are shown stay.
        note: a remark above the rows.
        empty: what a stage without a picture says.
    """
    return dict(
        picture=picture,
        classes=_classes(classes, colors),
        legend=_shown(rows),
        rows=list(rows),
        clickable=clickable,
        error=error,
        keep=keep,
        note=note,
        empty=empty,
    )


def why_value(
    why: Any,
    picture: dict,
    preview: np.ndarray,
    classes: Sequence[str],
    colors: Sequence[Color],
    *,
    title: str,
    x: int,
    y: int,
    command: str | None = None,
    seconds: float | None = None,
) -> dict:
    """Return the value of the view of a patch's maps and words.

    Args:
        why: `fsa_seg.apps.demo.comparison.Why`: the maps, words and labels of the patch.
        picture: the open picture, of `picture_entry`.
        preview: (h, w, 3) uint8 RGB of the picture.
        classes: texts of the classes.
        colors: RGB colour of each class, as of the stage.
        title: the title of the method with FSA.
        x: column of the clicked pixel of the original.
        y: row of the clicked pixel of the original.
        command: the command line that gives the same maps.
        seconds: duration of the computation.
    """
    size = picture['height'], picture['width']
    maps = {'Without FSA': why.without, 'With FSA': why.labels}
    inks = _hex(colors)
    return dict(
        title=f'{title}: patch {why.patch[1] + 1}, {why.patch[0] + 1} of {why.grid[1]} × {why.grid[0]}',
        x=int(x),
        y=int(y),
        width=size[1],
        height=size[0],
        tiles=[
            dict(title=MAPS[name], caption=_range(values), url=heat_address(preview, why.window, values, size))
            for name, values in why.maps.items()
        ],
        picture=picture,
        classes=_classes(classes, colors),
        rows=[stage_row(name, labels, len(classes)) for name, labels in maps.items()],
        changed=float(np.mean(why.without != why.labels)),
        words=[
            {'word': _short(word), 'color': inks[label], 'without': float(before), 'with': float(after)}
            for word, label, before, after in why.words
        ],
        command=command,
        seconds=seconds,
        error=None,
    )


def why_error(error: str | None = None) -> dict:
    """Return the value of the view of a patch where there is no patch; `error` is a line, None asks for a click."""
    return dict(picture=None, error=error)


def _range(values):
    """Return the least and greatest finite value, and how much of a map is kept where some of it is pruned."""
    kept = values[np.isfinite(values)]
    text = f'{kept.min():.2g} to {kept.max():.2g}'
    return text if kept.size == values.size else f'{text}, {100 * kept.size / values.size:.0f} % of patches kept'


def _classes(classes, colors):
    """Return the name, full text and colour of each class; names are first words, or full texts where these agree."""
    words = [first_word(text) for text in classes]
    counts = Counter(words)
    names = [word if counts[word] == 1 else text for word, text in zip(words, classes)]
    return [
        dict(name=_short(' '.join(name.split())), full=_short(text), color=color)
        for name, text, color in zip(names, classes, _hex(colors))
    ]


def _hex(colors):
    return ['#{:02x}{:02x}{:02x}'.format(*color) for color in colors]


def _short(text):
    return text if len(text) <= LONGEST else f'{text[: LONGEST - 1]}…'


def webp_address(rgb: np.ndarray) -> str:
    """Return an image (height, width, 3) uint8 RGB as the address of a WebP."""
    return _address(Image.fromarray(rgb), 'WEBP', quality=88, method=2)


def index_address(labels: np.ndarray, size: tuple[int, int], count: int = VOID) -> str:
    """Return labels as the address of a PNG whose R + 256 G is the class, or VOID.

    Args:
        labels: (height, width), from 0.
        size: height and width of the PNG; each of its pixels has the label at its centre.
        count: number of classes; labels from `count` on are void.
    """
    lines, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(labels.shape, size))
    labels = labels[lines[:, None], columns].astype(np.int64)
    labels[labels >= count] = VOID
    channels = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], -1).astype(np.uint8)
    return _address(Image.fromarray(channels), 'PNG')


def heat_address(
    preview: np.ndarray, window: tuple[int, int, int, int], values: np.ndarray, size: tuple[int, int]
) -> str:
    """Return a patch's map over the picture in grey as the address of a JPEG, its longest side TILE.

    Args:
        preview: (h, w, 3) uint8 RGB of the picture.
        window: (left, top, right, bottom) in pixels of the original.
        values: (h, w) over the window, −∞ where pruned.
        size: height and width of the original.
    """
    height, width = (max(1, round(side * TILE / max(preview.shape[:2]))) for side in preview.shape[:2])
    image = np.asarray(Image.fromarray(preview).resize((width, height), Image.Resampling.BILINEAR))
    (left, right), (top, bottom) = _inside(window[::2], width / size[1]), _inside(window[1::2], height / size[0])
    return _address(Image.fromarray(heat(image, (left, top, right, bottom), values)), 'JPEG', quality=88, subsampling=0)


def _inside(edges, scale):
    """Return a window's two edges at another scale, at least a pixel apart."""
    first, last = (round(edge * scale) for edge in edges)
    return min(first, max(0, last - 1)), max(last, 1)


def _address(image, form, **options):
    """Return a PIL image as a `data:` address."""
    data = io.BytesIO()
    image.save(data, form, **options)
    return f'data:image/{form.lower()};base64,{base64.b64encode(data.getvalue()).decode()}'
