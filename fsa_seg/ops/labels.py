"""From the cosines of pixels to the scores of classes, and to labels.

Shape legend: Q queries, K classes; height and width in pixels.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fsa_seg.ops.device import count_labels
from fsa_seg.ops.types import Tile, pair

BACKGROUND = 0  # the class of pixels whose best score is below `prob_thd`, and the one that `area_thd` leaves out


def class_scores(cosines: Tensor, words_per_class: Sequence[int], logit_scale: float) -> Tensor:
    """Return the scores of the classes, (K, height, width): softmax over queries, then the best query of a class.

    Args:
        cosines (Q, height, width): queries of one class side by side, in class order.
        words_per_class (list of int): how many queries each class has.
        logit_scale (float): factor on the cosines before the softmax.
    """
    probs = (logit_scale * cosines.movedim(0, -1)).softmax(-1).movedim(-1, 0)  # quickest where queries lie side by side
    if len(words_per_class) == len(probs):
        return probs
    return torch.stack([queries.amax(0) for queries in probs.split(list(words_per_class))])


def label_map(scores: Tensor, prob_thd: float = 0.0, area_thd: float | None = None) -> Tensor:
    """Return the label of each pixel, (height, width) int64.

    Args:
        scores (K, height, width): at original size; not changed.
        prob_thd (float): a pixel whose best score is under it becomes class 0.
        area_thd (float): acts first: a foreground class whose share of all foreground pixels is at most this gives
            its pixels to their next-best class. None switches it off.
    """
    return label_tiles(lambda: [((slice(None), slice(None)), scores)], pair(scores.shape[1:]), prob_thd, area_thd)


def label_tiles(
    tiles: Callable[[], Iterable[Tile]], size: tuple[int, int], prob_thd: float = 0.0, area_thd: float | None = None
) -> Tensor:
    """Return what `label_map` does, from scores that are made tile by tile.

    Args:
        tiles: function that yields each tile's place (slices of rows and columns) and scores (K, rows, columns). With
            `area_thd` several tiles are made twice: the areas are known only when all has been seen.
        size (int, int): height and width.
        prob_thd (float), area_thd (float): see `label_map`.
    """
    small: Tensor | None = None
    labels: Tensor | None = None
    if area_thd is not None:
        counts = []
        for tile in tiles():
            counts.append(count_labels(tile[1].argmax(0), len(tile[1])))
        areas = torch.stack(counts).sum(0)
        small = areas <= area_thd * (areas.sum() - areas[BACKGROUND])
        small[BACKGROUND].fill_(False)  # without a copy from the host
        if len(counts) == 1:  # made once, though it is asked for twice
            tiles = lambda: [tile]  # noqa: E731
    for place, scores in tiles():
        if small is not None:
            scores = scores.masked_fill(small[:, None, None], 0)
        best, label = scores.max(0)
        if labels is None:
            labels = label.new_empty(tuple(size))
        labels[place] = label.masked_fill_(best < prob_thd, BACKGROUND)
    assert labels is not None  # an image has a tile
    return labels
