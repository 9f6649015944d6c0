"""Colours for classes that have no colours of their own."""

import colorsys


def even_palette(count: int) -> list[tuple[int, int, int]]:
    """Return `count` RGB colours (0..255): hues are evenly spaced, and lightness alternates."""
    colors = [colorsys.hsv_to_rgb(i / count, 0.85, 1.0 if i % 2 == 0 else 0.65) for i in range(count)]
    return [tuple(round(255 * channel) for channel in color) for color in colors]
