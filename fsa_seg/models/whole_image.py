"""What hooks on whole images see: an image's pixels, its file, its regions, and VFM features that are computed once.

Shape legend: C feature channels, (I, J) a VFM's grid; images (3, height, width).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from mmseg.registry import TRANSFORMS
from torch import Tensor

from fsa_seg.methods.base import Method
from fsa_seg.models.vfm import vfm_grid, window_multiple
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import WindowPlace, cut_features, cut_window, windows

if TYPE_CHECKING:
    from fsa_seg.models.segmentor import TrainingFreeSegmentor

# the path of an image's file, and the image itself, (height, width, 3) uint8 RGB; None: unknown
Original: TypeAlias = 'tuple[str | None, np.ndarray | None]'


class WholeImages:
    """The images of a pass; what several members ask of an image is computed once, while its windows are worked on.

    Args:
        images: index -> normalised image, as the windows are cut from it.
        sizes: index -> (height, width) of the original; by default the image's own.
        originals: index -> the original image; by default unknown.
        contents: index -> (height, width) without padding; by default the image's own.
        made: what earlier passes computed of each image: index -> key -> value; changed in place.
    """

    def __init__(
        self,
        images: Sequence[Tensor] | Mapping[int, Tensor] | Tensor,
        sizes: Sequence[tuple[int, int]] | None = None,
        originals: Sequence[Original] | None = None,
        contents: Sequence[tuple[int, int]] | None = None,
        made: dict[int, dict[tuple, Any]] | None = None,
    ):
        self._images, self._sizes, self._originals, self._contents = images, sizes, originals, contents
        self._made = {} if made is None else made
        self.most = 1  # windows that go through a VFM at once

    def of(self, segmentor: 'TrainingFreeSegmentor', index: int) -> 'SeenImage':
        """Return an image as a segmentor's method sees it."""
        image = self._images[index]
        shape = pair(image.shape[1:])
        return SeenImage(
            segmentor,
            image,
            shape if self._contents is None else self._contents[index],
            shape if self._sizes is None else pair(self._sizes[index]),
            (None, None) if self._originals is None else self._originals[index],
            self._made.setdefault(index, {}),
            self.most,
        )

    def forget(self, index: int, original_alone: bool = False) -> None:
        """Drop what was computed of an image, or its original pixels alone."""
        if original_alone:
            self._made.get(index, {}).pop(('original',), None)
        else:
            self._made.pop(index, None)


class SeenImage:
    """One image as a segmentor's method sees it; a `fsa_seg.ops.windows.WholeImage`.

    Attributes:
        shape, size, path: see `fsa_seg.ops.windows.WholeImage`.
        content (int, int): height and width of the resized image without padding.

    Args:
        segmentor: whose VFMs run.
        image (3, height, width): normalised.
        content, size: see above.
        original: see `Original`.
        made (dict): what was computed of the image; changed in place.
        most (int): windows that go through a VFM at once.
    """

    def __init__(
        self,
        segmentor: 'TrainingFreeSegmentor',
        image: Tensor,
        content: tuple[int, int],
        size: tuple[int, int],
        original: Original,
        made: dict[tuple, Any],
        most: int = 1,
    ):
        self.shape, self.content, self.size = pair(image.shape[1:]), content, size
        self.path, self._original = original
        self._segmentor, self._image, self._made, self._most = segmentor, image, made, most

    @property
    def made(self) -> Any:
        """What the hook `whole` of the part that merges made of the image."""
        return self.made_by(self._segmentor.method.merging)

    def made_by(self, part: Method) -> Any:
        """Return what the hook `whole` of a part of the method made of the image; None without the hook."""
        if not part.overrides('whole'):
            return None
        return self._once(('whole', self._segmentor.member_key, part.path), lambda: part.whole(self))

    def rgb(self) -> Tensor:
        """Return the resized image (3, height, width), RGB from 0 to 1, without padding."""
        height, width = self.content
        return self._segmentor.to_rgb(self._image)[:, :height, :width]

    def original(self) -> Tensor:
        """Return the original image (3, height, width), RGB from 0 to 1; the resized image where no file is known."""

        def read() -> Tensor:
            array = self._original
            if array is None:
                if self.path is None:
                    return self.rgb()
                array = load_image(self.path)
            return torch.from_numpy(np.ascontiguousarray(array)).to(self._image.device).movedim(2, 0).float() / 255

        return self._once(('original',), read)

    def input_side(self, role: str) -> int | None:
        """Return the side in pixels of the square that a role's VFM sees; None for a VFM of any size."""
        return getattr(self._segmentor.vfms[role], 'input_side', None)

    def padding(self, role: str) -> Tensor:
        """Return the colour (3,), RGB from 0 to 1, that a role's VFM normalises to 0; black where it does not tell."""
        return torch.tensor(getattr(self._segmentor.vfms[role], 'mean', (0.0, 0.0, 0.0)), device=self._image.device)

    def run(self, role: str, pixels: Tensor, kind: str | None = None) -> Tensor:
        """Return a role's features (B, C, I, J) of pixels (B, 3, height, width), RGB from 0 to 1."""
        features = self._segmentor.run(role, pixels, kind)
        self._made.setdefault(('finite', *self._segmentor.role_key(role)), []).append(features.isfinite().all())
        return features

    def finite(self) -> Tensor:
        """Return whether all features that the method's VFMs gave of the image here are finite, bool."""
        keys = [('finite', *self._segmentor.role_key(role)) for role in self._segmentor.vfms]
        flags = [flag for key in keys for flag in self._made.get(key, [])]
        return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool, device=self._image.device)

    def weights(self, role: str) -> str:
        """Return a digest of the settings and the weights of a role's VFM."""
        return self._segmentor.vfm_digest(role)

    def once(self, role: str, key: tuple, make: Callable[[], Any]) -> Any:
        """Return what `make` makes of the image and a role's VFM; it is called once for each `key`."""
        return self._once(('once', *self._segmentor.role_key(role), *key), make)

    def features(self, role: str) -> Tensor:
        """Return a role's features (1, C, I, J) of the resized image, padded to what the VFM takes."""

        def run() -> Tensor:
            padded = cut_window(self._image, (0, self.shape[0]), (0, self.shape[1]), self.multiple(role))
            return self.run(role, self._segmentor.to_rgb(padded))

        return self._once(('features', *self._segmentor.role_key(role)), run)

    def window_features(self, role: str) -> list[Tensor]:
        """Return a role's features (1, C, I, J) of every window of the image, in order."""
        segmentor = self._segmentor

        def run() -> list[Tensor]:
            places = [WindowPlace(*place) for place in windows(*self.shape, segmentor.window, segmentor.stride)]
            if segmentor.sees_image(role):
                return [self.cut(role, place) for place in places]
            cut = [cut_window(self._image, *place, segmentor.multiple, segmentor.window == 0) for place in places]
            starts = range(0, len(cut), self._most)
            batches = [torch.cat(cut[start : start + self._most]) for start in starts]
            return [one for batch in batches for one in self.run(role, segmentor.to_rgb(batch)).split(1)]

        return self._once(('windows', segmentor.multiple, *segmentor.role_key(role)), run)

    def window(self, role: str, place: WindowPlace) -> Tensor:
        """Return a role's features (1, C, I, J) of one window of the image."""
        segmentor = self._segmentor
        if segmentor.method.roles[role] != 'windows':
            return self.cut(role, place)
        places = windows(*self.shape, segmentor.window, segmentor.stride)
        return self.window_features(role)[places.index((place.rows, place.columns))]

    def cut(self, role: str, place: WindowPlace) -> Tensor:
        """Return a role's features (1, C, I, J) of one window, cut from those of the whole image."""
        segmentor = self._segmentor
        sides = cut_window(self._image, *place, segmentor.multiple, segmentor.window == 0).shape[2:]
        grid = vfm_grid(segmentor.vfms[role], *sides)
        features = self.features(role)
        return cut_features(features, self.shape, self.multiple(role), place, pair(sides), grid)

    def regions(self) -> Tensor:
        """Return the region map (height, width) of the original image, int64."""
        source = self._segmentor.regions
        assert source is not None  # the method asked for regions
        vfm = self._segmentor.role_key(source.role) if source.role else ()
        return self._once(('regions', id(source), vfm), lambda: source.maps(self).to(self._image.device).long())

    def window_regions(self, place: WindowPlace) -> Tensor:
        """Return the region map (height, width) of a window's pixels; its padding has the regions at its edge.

        The map of the original is brought to the resized image, nearest pixel.
        """
        segmentor, regions = self._segmentor, self.regions()
        sides = cut_window(self._image, *place, segmentor.multiple, segmentor.window == 0).shape[2:]
        indices = []
        for span, side, content, size in zip((place.rows, place.columns), sides, self.content, self.size):
            before = max(side - (span[1] - span[0]), 0) // 2
            pixels = (torch.arange(side) + span[0] - before).clamp(0, content - 1)
            indices.append((pixels * size // content).to(regions.device))
        return regions[indices[0]][:, indices[1]]

    def multiple(self, role: str) -> tuple[int, int]:
        """Return what the height and width that a role's VFM sees are multiples of."""
        return window_multiple(self._segmentor.vfms[role])

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def load_image(path: str) -> np.ndarray:
    """Return an image file as (height, width, 3) uint8 RGB, as the data sets load it."""
    loaded = TRANSFORMS.build(dict(type='mmseg.LoadImage')).transform(dict(img_path=path))['img']
    return np.ascontiguousarray(loaded[..., ::-1])
