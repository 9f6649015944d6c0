"""Plots of a report as SVG elements for a page of HTML, in the page's colours.

matplotlib draws each plot without a window. A text stays a text, in the page's font; no text is read as TeX. The
element's colours are the page's variables, so that it follows light and dark.
"""

import io
import re
import warnings
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fsa_seg.evaluation.report.tables import plain

COLORS = {  # colour in matplotlib -> variable of the page's style
    '#010101': '--ink',
    '#020202': '--faint',
    '#030303': '--good',
    '#040404': '--bad',
    '#050505': '--grey',
    '#060606': '--accent',
}
INK, FAINT, GOOD, BAD, GREY, ACCENT = COLORS
LINES = (ACCENT, BAD, GOOD, GREY, INK)
MARKERS = 'osD^v<>p*X'
ACCENT_RGB = (37, 106, 191)  # of heat maps, whose pixels are an image; their opacity is the value
GAIN_RGB, LOSS_RGB = (20, 130, 80), (190, 50, 40)
LABELLED = 30  # classes up to which a heat map has their names
BINS = 41  # of a histogram; the one in the middle is around 0
CUT = 24  # characters of a name in a plot
STYLE = {
    'svg.fonttype': 'none',
    'text.parse_math': False,
    'axes.unicode_minus': True,
    'font.size': 9,
    'axes.edgecolor': FAINT,
    'axes.labelcolor': INK,
    'text.color': INK,
    'xtick.color': INK,
    'ytick.color': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'figure.facecolor': 'none',
    'axes.facecolor': 'none',
    'legend.frameon': False,
}


def gains_plot(entries: Sequence[tuple[str, float, float, float]], about: str) -> str:
    """Return gains with their intervals as points with bars.

    Args:
        entries: (name, gain, low, high), from the top.
        about: describes the plot to readers who do not see it.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure((6, 0.7 + 0.22 * len(entries)))
        axes = figure.subplots()
        for y, (_, value, low, high) in enumerate(entries):
            color = GREY if low <= 0 <= high else GOOD if value > 0 else BAD
            axes.plot([low, high], [y, y], color=color, linewidth=2)
            axes.plot([value], [y], 'o', color=color, markersize=4)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(entries)), [_short(name, 60) for name, *_ in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.set_xlabel('gain in mIoU, percent points')
        return _svg(figure, about)


def histogram(gains: np.ndarray, about: str) -> str:
    """Return the histogram of gains (N) of images; NaN is left out."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((5, 2.2))
        axes = figure.subplots()
        values = gains[np.isfinite(gains)]
        if len(values):
            most = max(np.abs(values).max(), 1e-3)
            counts, edges = np.histogram(values, BINS, (-most, most))
            middles = (edges[1:] + edges[:-1]) / 2
            colors = [*[BAD] * (BINS // 2), GREY, *[GOOD] * (BINS // 2)]
            axes.bar(middles, counts, (edges[1] - edges[0]) * 0.9, color=colors)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_xlabel("gain in an image's own mIoU, percent points")
        axes.set_ylabel('images')
        axes.yaxis.get_major_locator().set_params(integer=True)
        return _svg(figure, about)


def confusion_heat_map(matrix: np.ndarray, classes: Sequence[str], about: str, signed: bool = False) -> str:
    """Return a heat map of shares in percent.

    Args:
        matrix: (K truth, K predicted) shares, or differences of shares if `signed`.
        classes: K names; a map of more than LABELLED classes has numbers in their place.
        about: as of `gains_plot`.
        signed: whether values above 0 are drawn as good, and values below 0 as bad.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure((5, 5))
        axes = figure.subplots()
        most = max(np.abs(matrix).max(), 1e-9) if signed else 100
        rgb = np.array(ACCENT_RGB)
        if signed:
            rgb = np.where(matrix[..., None] > 0, GAIN_RGB, LOSS_RGB)
        pixels = np.empty((*matrix.shape, 4), np.uint8)
        pixels[..., :3] = rgb
        pixels[..., 3] = np.round(255 * np.sqrt(np.abs(matrix) / most)).clip(0, 255)
        axes.imshow(pixels, interpolation='none')
        if len(classes) <= LABELLED:
            names = [_short(name) for name in classes]
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlabel('called')
        axes.set_ylabel('truth')
        return _svg(figure, about)


def curves(setting: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], about: str) -> str:
    """Return mIoU against a setting's values.

    Args:
        setting: name on the x axis.
        series: (name, points); a point is (value, mIoU in percent), in the order of the values.
        about: as of `gains_plot`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure((5, 3))
        axes = figure.subplots()
        for i, (name, points) in enumerate(series):
            axes.plot(
                *zip(*points),
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                color=LINES[i % len(LINES)],
                label=_short(name, 60),
            )
        axes.set_xlabel(plain(setting))
        axes.set_ylabel('mIoU, percent')
        axes.legend(fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.2))
        return _svg(figure, about)


def figures_heat_map(values: np.ndarray, rows: Sequence[str], names: Sequence[str], about: str) -> str:
    """Return a heat map of figures (rows, names) with the figures in it; NaN stays empty."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((2.4 + 0.9 * len(names), 1.2 + 0.28 * len(rows)))
        axes = figure.subplots()
        shown = np.isfinite(values)
        low, high = values[shown].min(), values[shown].max()
        level = np.where(shown, (np.where(shown, values, low) - low) / max(high - low, 1e-9), 0)
        pixels = np.empty((*values.shape, 4), np.uint8)
        pixels[..., :3] = ACCENT_RGB
        pixels[..., 3] = np.where(shown, 25 + 140 * level, 0)
        axes.imshow(pixels, interpolation='none', aspect='auto')
        for i, j in zip(*shown.nonzero()):
            axes.text(j, i, f'{values[i, j]:.1f}', ha='center', va='center', color=INK)
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=20, ha='right')
        axes.set_yticks(range(len(rows)), [_short(name, 40) for name in rows])
        return _svg(figure, about)


def _short(name, most=CUT):
    """Return a name for a plot, cut to `most` characters."""
    name = plain(name)
    return name if len(name) <= most else name[: most - 1] + '…'


_number = iter(range(10**9))  # of the elements of this process: their ids share one page


def _svg(figure, about):
    """Return a figure as an SVG element."""
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # the page's font draws the text
        figure.savefig(out, format='svg', bbox_inches='tight', pad_inches=0.05, metadata=dict(Date=None, Creator=None))
    text = out.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', text, flags=re.DOTALL)  # the page has the style
    text = re.sub(r'font: [\d.]+px [^;"]*', lambda found: f'font-size: {found.group().split()[1]}', text)
    for color, variable in COLORS.items():
        text = text.replace(color, f'var({variable})')
    head, rest = text.split('>', 1)
    size = re.search(r'viewBox="[\d.]+ [\d.]+ ([\d.]+) ([\d.]+)"', head)
    box = f'viewBox="0 0 {size.group(1)} {size.group(2)}"'
    head = (
        f'<svg {box} style="width: {float(size.group(1)) * 4 / 3:.0f}px" role="img" aria-label="{escape(plain(about))}"'
    )
    return f'{head}>{_own_ids(rest, f"s{next(_number)}")}'


def _own_ids(text, prefix):
    """Return SVG whose ids are a page's own; ids without a reference are left out."""
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', text))
    text = re.sub(
        r' id="([\w.-]+)"', lambda found: f' id="{prefix}-{found.group(1)}"' if found.group(1) in used else '', text
    )
    return re.sub(r'(url\(#|href="#)([\w.-]+)', rf'\1{prefix}-\2', text)
