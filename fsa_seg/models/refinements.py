"""The refinements of one image: of its cosines, scores or labels.

Shape legend: Q queries, K classes; values (Q or K, height, width).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.models.text import Text
from fsa_seg.ops.types import Tile, pair
from fsa_seg.ops.windows import WholeImage


class Refinements:
    """The refinements of one image: the method's own, then the protocol's.

    Attributes:
        refined (dict): stage -> the refined values, of stages that hold them whole.

    Args:
        method: the method.
        refinement: of the protocol, with `refines` and `refine`, or None.
        image (3, height, width): normalised.
        size (int, int): of the results.
        text: the `Text` of the prediction.
        seen: the whole image.

    A refinement with `sees_original` gets the original image, RGB from 0 to 1, in place of the normalised one, and with
    `needs_scores` the scores (K, height, width) as `scores`.
    """

    def __init__(
        self, method: Method, refinement: Any, image: Tensor, size: tuple[int, int], text: Text, seen: WholeImage
    ):
        self._all = [part for part in (*method.parts, refinement) if part is not None and part.refines is not None]
        self._image, self._size, self._text, self._seen = image, pair(size), text, seen
        self.need_scores = any(getattr(part, 'needs_scores', False) for part in self._all)
        self.refined: dict[str, Tensor] = {}

    def stages(self, stage: str) -> list:
        """Return the refinements of a stage."""
        return [part for part in self._all if part.refines == stage]

    def values(self, stage: str, values: Tensor, scores: Tensor | None = None) -> Tensor:
        """Return values after the refinements of a stage."""
        for part in self.stages(stage):
            image = self._seen.original() if getattr(part, 'sees_original', False) else self._image
            image = F.interpolate(image[None].float(), self._size, mode='bilinear', align_corners=False)[0]
            more = dict(scores=scores) if getattr(part, 'needs_scores', False) else {}
            refined = part.refine(values, image, self._text, **more)
            if not isinstance(refined, Tensor) or (refined.shape, refined.dtype) != (values.shape, values.dtype):
                kind = f'{tuple(refined.shape)} {refined.dtype}' if isinstance(refined, Tensor) else repr(refined)
                raise UserError(
                    f'{type(part).__name__}: refine returned {kind}; it has to keep shape and type of the {stage}, '
                    f'{tuple(values.shape)} {values.dtype}'
                )
            values = refined
        return values

    def tiles(self, stage: str, tiles: Callable[[], Iterable[Tile]], most: int) -> Callable[[], Iterable[Tile]]:
        """Return a function that yields the tiles of a stage: those given, or those of the refined whole."""
        if not self.stages(stage):
            return tiles
        values = self.refined[stage] = self.values(stage, join_tiles(tiles(), self._size))
        high = max(1, most // (len(values) * self._size[1]))
        places = [(slice(top, top + high), slice(None)) for top in range(0, self._size[0], high)]
        return lambda: (((rows, columns), values[:, rows, columns]) for rows, columns in places)


def join_tiles(tiles: Iterable[Tile], size: tuple[int, int]) -> Tensor:
    """Return the values (any, height, width) of tiles ((rows, columns), values)."""
    values: Tensor | None = None
    for (rows, columns), tile in tiles:
        values = tile.new_empty((len(tile), *size)) if values is None else values
        values[:, rows, columns] = tile
    assert values is not None  # an image has a tile
    return values
