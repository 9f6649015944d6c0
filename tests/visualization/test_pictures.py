import tracemalloc

import numpy as np
from PIL import Image

from fsa_seg.visualization import pictures
from fsa_seg.visualization.pictures import GAP, TITLE, overlay, panel, write_picture

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
    """Whatever their height, the picture is the same, and no floating point numbers of the whole image are held."""
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (37, 50, 3), dtype=np.uint8), rng.integers(0, 5, (37, 50))
    monkeypatch.setattr(pictures, 'ROWS', 10**6)
    whole, both = overlay(image, labels, PALETTE), dict(a=labels, b=labels // 2)
    picture = panel(image, both, 'abc', PALETTE)
    for rows in (1, 5, 36):
        monkeypatch.setattr(pictures, 'ROWS', rows)
        assert np.array_equal(overlay(image, labels, PALETTE), whole)
        assert panel(image, both, 'abc', PALETTE).tobytes() == picture.tobytes()
    monkeypatch.setattr(pictures, 'ROWS', 16)
    image, labels = np.zeros((1000, 500, 3), np.uint8), np.zeros((1000, 500), np.int64)
    tracemalloc.start()
    overlay(image, labels, PALETTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * image.nbytes


def test_panel_places_image_and_maps_side_by_side():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    truth, other = np.zeros((40, 60), int), np.ones((40, 60), int)
    picture = np.array(panel(image, dict(truth=truth, other=other), ['a', 'b', 'c'], PALETTE))
    top, step = GAP + TITLE, 60 + GAP
    assert np.array_equal(picture[top : top + 40, GAP : GAP + 60], image)
    assert np.array_equal(picture[top : top + 40, GAP + 2 * step : GAP + 2 * step + 60], overlay(image, other, PALETTE))
    legend = picture[top + 40 :].reshape(-1, 3).tolist()
    assert [255, 0, 0] in legend and [0, 0, 255] not in legend  # the classes present alone
    rows = panel(image, dict(truth=truth, other=other), ['a', 'b', 'c'], PALETTE, columns=2)
    assert rows.width < picture.shape[1] and rows.height > picture.shape[0]


def test_picture_file(tmp_path):
    write_picture(Image.new('RGB', (3, 2)), tmp_path / 'new' / 'p.png')
    assert Image.open(tmp_path / 'new' / 'p.png').size == (3, 2)
    assert [p.name for p in (tmp_path / 'new').iterdir()] == ['p.png']
