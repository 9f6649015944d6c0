"""Colours of the classes that a picture shows, chosen so that the eye tells them apart."""

import functools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from fsa_seg.datasets.palette import even_palette

Color = tuple[int, int, int]  # RGB, 0..255

FAR = 30  # CIELAB distance from which two colours are told apart at a glance; 2.3 is just noticeable
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
STEPS = 10  # free colours are a grid of this many values of each channel,
LEAST_CHROMA = 25  # without greys,
LIGHTNESS = (25, 92)  # without what is almost black or white


def distinct_colors(palette: Sequence[Sequence[int]], shown: Iterable[int]) -> dict[int, Color]:
    """Return label -> colour of the classes that a picture shows; the same classes get the same colours.

    In the order of labels, a class keeps its colour of the palette if the colour is FAR from white, the colour of
    void, and from the colours kept before. Then each other class gets the free colour that is farthest from all
    colours given. The colours of up to 20 classes are FAR from each other; those of more classes may come nearer.

    Args:
        palette: the data set's colours, RGB, 0..255.
        shown: labels of the classes; each has a colour in the palette.
    """
    shown, colors = sorted(set(shown)), {}
    given = [_lab([WHITE])[0]]
    for label in shown:
        (place,) = _lab([palette[label]])
        if _distances(np.array(given), place).min() >= FAR:
            colors[label] = tuple(int(channel) for channel in palette[label])
            given.append(place)
    free, places = _free_colors()
    gaps = np.min([_distances(places, place) for place in (*given, _lab([BLACK])[0])], 0)
    for label in shown:
        if label not in colors:
            best = gaps.argmax()
            colors[label] = free[best]
            gaps = np.minimum(gaps, _distances(places, places[best]))
    return colors


def class_colors(count: int) -> list[Color]:
    """Return the colours of `count` classes that have none of their own: of `even_palette`, told apart.

    Of up to 20 classes, a picture shows each in this colour, whichever classes it shows.
    """
    colors = distinct_colors(even_palette(count), range(count))
    return [colors[label] for label in range(count)]


@functools.cache
def _free_colors():
    """Return the free colours, and their places in CIELAB (count, 3)."""
    levels = np.linspace(0, 255, STEPS).round().astype(int)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(-1, 3)
    places = _lab(colors)
    lightness, chroma = places[:, 0], np.hypot(places[:, 1], places[:, 2])
    free = (chroma >= LEAST_CHROMA) & (LIGHTNESS[0] <= lightness) & (lightness <= LIGHTNESS[1])
    return [tuple(color) for color in colors[free].tolist()], places[free]


def _lab(colors):
    """Return the places of RGB colours (count, 3), 0..255, in CIELAB."""
    return cv2.cvtColor(np.array([colors], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


def _distances(places, place):
    """Return the distances of places (count, 3) in CIELAB from one place."""
    return np.linalg.norm(places - place, axis=1)
