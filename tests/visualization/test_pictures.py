import itertools
import tracemalloc

import numpy as np
import pytest
from mmseg.datasets import COCOStuffDataset
from PIL import Image, ImageDraw, ImageFont

from fsa_seg.datasets.palette import even_palette
from fsa_seg.visualization import pictures
from fsa_seg.visualization.pictures import GAP, TITLE, overlay, picture_grid, write_picture

PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]


def text_width(text):
    return int(ImageFont.load_default(14).getlength(text)) + 1


def drawn_texts(monkeypatch, image, titles, classes, columns=None):
    """Return a picture of labels 0, 1, ... under each title, and each text with its box (left, top, right, bottom)."""
    texts, draw = [], ImageDraw.ImageDraw.text

    def text(self, place, words, fill, font):
        texts.append((words, self.textbbox(place, words, font)))
        draw(self, place, words, fill, font)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', text)
    labels = np.arange(image.shape[0] * image.shape[1]).reshape(image.shape[:2]) % len(classes)
    palette = even_palette(len(classes))
    return picture_grid(image, dict.fromkeys(titles, labels), classes, palette, columns), texts


def test_overlay_colours_regions_and_edges():
    labels = np.zeros((4, 6), int)
    labels[:, 3:] = 1
    labels[0, 0] = 255
    out = overlay(np.full((4, 6, 3), 100, np.uint8), labels, PALETTE)
    assert out[2, 1].tolist() == [25, 25, 25]  # a quarter of the image's grey, three quarters of the colour
    assert out[2, 5].tolist() == [216, 25, 25]
    assert out[2, 3].tolist() == [255, 255, 255]


def test_an_overlay_is_drawn_in_blocks_of_rows(monkeypatch):
    """The block's height does not change the picture, and memory never holds float values of all rows."""
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (37, 50, 3), dtype=np.uint8), rng.integers(0, 5, (37, 50))
    monkeypatch.setattr(pictures, 'ROWS', 10**6)
    expected, maps = overlay(image, labels, PALETTE), dict(a=labels, b=labels // 2)
    picture = picture_grid(image, maps, 'abc', PALETTE)
    for rows in (1, 5, 36):
        monkeypatch.setattr(pictures, 'ROWS', rows)
        assert np.array_equal(overlay(image, labels, PALETTE), expected)
        assert picture_grid(image, maps, 'abc', PALETTE).tobytes() == picture.tobytes()
    monkeypatch.setattr(pictures, 'ROWS', 16)
    image, labels = np.zeros((1000, 500, 3), np.uint8), np.zeros((1000, 500), np.int64)
    tracemalloc.start()
    overlay(image, labels, PALETTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * image.nbytes


def test_a_picture_grid_places_image_and_maps_side_by_side():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    truth, prediction = np.zeros((40, 60), int), np.ones((40, 60), int)
    maps = dict(truth=truth, prediction=prediction)
    picture = np.array(picture_grid(image, maps, ['a', 'b', 'c'], PALETTE))
    top, step = GAP + TITLE, text_width('prediction') + GAP
    assert np.array_equal(picture[top : top + 40, GAP : GAP + 60], image)
    drawn = picture[top : top + 40, GAP + 2 * step : GAP + 2 * step + 60]
    assert np.array_equal(drawn, overlay(image, prediction, PALETTE))
    legend = picture[top + 40 :].reshape(-1, 3).tolist()
    assert [255, 0, 0] in legend and [0, 0, 255] not in legend  # the legend names the classes in the maps alone
    rows = picture_grid(image, maps, ['a', 'b', 'c'], PALETTE, columns=2)
    assert rows.width < picture.shape[1] and rows.height > picture.shape[0]


def test_classes_of_one_picture_are_told_apart():
    """Two greens of a palette: the second class gets another colour, the same in all tiles and in the legend."""
    palette = [[0, 255, 0], [20, 255, 0], [0, 0, 255]]
    image, labels = np.zeros((8, 60, 3), np.uint8), np.arange(60)[None].repeat(8, 0) // 30
    picture = np.array(picture_grid(image, dict(truth=labels, prediction=labels[:, ::-1]), 'abc', palette))
    top, step = GAP + TITLE, text_width('prediction') + GAP
    first, second = (picture[top + 4, GAP + step + x].tolist() for x in (10, 50))
    assert first == [0, 191, 0] and np.abs(np.subtract(first, second)).max() > 100
    assert [picture[top + 4, GAP + 2 * step + x].tolist() for x in (50, 10)] == [first, second]
    legend = picture[top + 8 :].reshape(-1, 3).tolist()
    assert [0, 255, 0] in legend and [20, 255, 0] not in legend
    alone = np.array(picture_grid(image, dict(truth=labels * 0 + 1), 'abc', palette))
    assert [20, 255, 0] in alone.reshape(-1, 3).tolist()  # a class that no other class looks like keeps its colour


def test_the_legend_shows_first_words(monkeypatch):
    names = [
        'person; child; man',
        'bed ',
        'door-stuff',
        'chest of drawers;chest',
        'light, lamp',
        'bar; pub',
        '; x',
        ';',
    ]
    _, texts = drawn_texts(monkeypatch, np.zeros((9, 400, 3), np.uint8), ['labels'], names)
    words = [text for text, _ in texts]
    assert words[2:] == ['person', 'bed', 'door-stuff', 'chest of drawers', 'light', 'bar', 'x', ';']
    _, texts = drawn_texts(
        monkeypatch, np.zeros((9, 400, 3), np.uint8), ['labels'], ['cat, black', 'cat,  white', 'dog']
    )
    assert [text for text, _ in texts][2:] == ['cat, black', 'cat, white', 'dog']  # one first word names two classes


@pytest.mark.parametrize('width', [1, 60, 400])
@pytest.mark.parametrize('columns', [None, 1])
@pytest.mark.parametrize('title', ['labels', 'ProxyCLIP + FSA similarity=jeffreys isolation=False p=1.0'])
def test_no_text_leaves_the_picture_or_covers_another(monkeypatch, width, columns, title):
    names = [
        'television receiver',
        'x' * 300,
        'structural-other',
        'a',
        'wall ' * 30,
        *COCOStuffDataset.METAINFO['classes'],
    ]
    titles = ['truth', title]
    picture, texts = drawn_texts(monkeypatch, np.zeros((400, width, 3), np.uint8), titles, names, columns)
    assert len(texts) == 3 + len(names) and any(text.endswith('…') for text, _ in texts)
    assert [text for text, _ in texts][:2] == ['image', 'truth']
    for _, (left, top, right, bottom) in texts:
        assert left >= 0 and top >= 0 and right <= picture.width and bottom <= picture.height
    for (_, a), (_, b) in itertools.combinations(texts, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_picture_file(tmp_path):
    write_picture(Image.new('RGB', (3, 2)), tmp_path / 'new' / 'p.png')
    assert Image.open(tmp_path / 'new' / 'p.png').size == (3, 2)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['p.png']
