"""The classes that a picture shows have colours that the eye tells apart."""

import itertools

import cv2
import numpy as np
import pytest
from mmseg.registry import DATASETS

from fsa_seg.config.compose import compose
from fsa_seg.datasets.palette import even_palette
from fsa_seg.visualization.colors import FAR, WHITE, class_colors, distinct_colors

from conftest import MINI

DATASET_NAMES = ('voc21', 'context60', 'coco_object', 'voc20', 'context59', 'coco_stuff164k', 'cityscapes', 'ade20k')


def palette_of(name):
    """Return a data set's palette, or for a number the palette of so many named classes."""
    if isinstance(name, int):
        return even_palette(name)
    config = compose(name, 'clip', None, 'toy', data_root=MINI).test_dataloader.dataset
    return DATASETS.build(config).metainfo['palette']


def least_distance(colors):
    """Return the least CIELAB distance between two of the colours, white being one of them."""
    places = cv2.cvtColor(np.array([[*colors, WHITE]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))


@pytest.mark.parametrize('name', [*DATASET_NAMES, 12, 20, 60, 150])
def test_shown_classes_are_told_apart(name):
    palette, rng = palette_of(name), np.random.default_rng(0)
    for count in [12] * 30 + [20] * 10:
        shown = rng.permutation(len(palette))[:count].tolist()
        colors = distinct_colors(palette, shown)
        assert sorted(colors) == sorted(shown) and least_distance(colors.values()) >= FAR - 1e-3
        assert colors == distinct_colors(palette, sorted(shown))


def test_three_greens_of_pascal_context():
    """'book', 'table' and 'track' are one green to the eye in mmseg's palette; the first class keeps its green."""
    config = compose('context59', 'clip', None, 'toy', data_root=MINI).test_dataloader.dataset
    meta = DATASETS.build(config).metainfo
    shown = [meta['classes'].index(name) for name in ('book', 'table', 'track')]
    assert least_distance([meta['palette'][i] for i in shown]) < 15
    colors = distinct_colors(meta['palette'], shown)
    assert list(colors[shown[0]]) == list(meta['palette'][shown[0]]) and least_distance(colors.values()) >= FAR


@pytest.mark.parametrize('count', [1, 2, 13, 20])
def test_a_class_has_one_colour_in_all_pictures(count):
    palette = class_colors(count)
    for shown in (range(count), range(0, count, 2), [count - 1]):
        assert distinct_colors(palette, shown) == {label: palette[label] for label in shown}
    assert len(class_colors(500)) == 500


def test_colours_that_are_far_apart_stay():
    palette = [(0, 0, 0), (255, 0, 0), (0, 0, 255), (250, 255, 250)]
    assert distinct_colors(palette, [0, 1, 2]) == {i: palette[i] for i in range(3)}
    assert distinct_colors(palette, [3])[3] != palette[3]  # void is white


def test_more_classes_than_can_be_told_apart_still_differ():
    colors = distinct_colors([(9, 9, 9)] * 171, range(171))
    assert len(set(colors.values())) == 171 and least_distance(colors.values()) > 5
    assert len(distinct_colors([(9, 9, 9)] * 2000, range(2000))) == 2000
