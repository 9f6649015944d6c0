import tracemalloc

import numpy as np
from PIL import Image

from fsa_seg.visualization import pictures
from fsa_seg.visualization.pictures import GAP, TITLE, overlay, picture_grid, write_picture

PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]


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
    top, step = GAP + TITLE, 60 + GAP
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
    top, step = GAP + TITLE, 60 + GAP
    first, second = (picture[top + 4, GAP + step + x].tolist() for x in (10, 50))
    assert first == [0, 191, 0] and np.abs(np.subtract(first, second)).max() > 100
    assert [picture[top + 4, GAP + 2 * step + x].tolist() for x in (50, 10)] == [first, second]
    legend = picture[top + 8 :].reshape(-1, 3).tolist()
    assert [0, 255, 0] in legend and [20, 255, 0] not in legend
    alone = np.array(picture_grid(image, dict(truth=labels * 0 + 1), 'abc', palette))
    assert [20, 255, 0] in alone.reshape(-1, 3).tolist()  # a class that no other class looks like keeps its colour


def test_picture_file(tmp_path):
    write_picture(Image.new('RGB', (3, 2)), tmp_path / 'new' / 'p.png')
    assert Image.open(tmp_path / 'new' / 'p.png').size == (3, 2)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['p.png']
