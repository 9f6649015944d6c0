"""Trident: windows are spliced before they are read out, and mixed by the last attention of SAM's encoder."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.affinity import affinity_product
from fsa_seg.ops.attention import AttentionMap, proxy_map, proxy_mean, resize_tokens
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import Layout, OverlapAdd, WholeImage, Window, splice, stretched
from fsa_seg.settings import is_number

PROXY, AFFINITY = 'proxy', 'affinity'
WIDTH = 1280  # of CLIP's widest tower, ViT-H/14


class Trident(Method):
    """Trident (arXiv 2411.09219) without refinement: stages A to D of its publication.

    A. ProxyCLIP's map, with one mean of the similarities over all windows of an image. No residual, no MLP.
    B. What leaves the block is averaged where windows overlap, on CLIP's grid of the whole image, times a whole number
       where the VFM's grid is finer: `fsa_seg.ops.windows.splice`.
    C. An affinity of the last attention of SAM's encoder, which sees the original image: `ops.affinity`.
    D. Affinity times splice is read out: one map of cosines, resized to the original.

    Its refinement by SAM (stage E) is a refinement of the suite, dict(type='SAMRefinement'). As a stage, Trident
    carries B to D to any host. FSA adapts the proxy map of each window. Another VFM in place of SAM sees the whole
    image at the resized image's size; that is ours.

    Args:
        alpha (float): α of the threshold, at least 0. Published: 1.2, 0 on VOC20, 3 on Cityscapes.
        negative (float): what a negative threshold becomes, from 0 to 1; None keeps it. Published: 0.6 on two sets.
        halves (bool): whether the left and right half of an image go through SAM apart, as published for Cityscapes.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'Trident'
    publication = 'Shi et al., ICCV 2025, arXiv 2411.09219'
    protocol = 'trident'
    roles = {PROXY: 'windows', AFFINITY: 'asked'}
    stage_roles = {AFFINITY: 'asked'}
    kinds = {AFFINITY: 'attention'}
    vfms = {PROXY: 'dino_vit-b16', AFFINITY: 'sam_vit-b16'}
    needs_tokens = True

    def __init__(self, alpha: float = 1.2, negative: float | None = None, halves: bool = False):
        if not is_number(alpha) or alpha < 0:
            raise UserError(f'Trident: alpha is {alpha!r}; it has to be a number, at least 0 (published: 1.2)')
        if negative is not None and not (is_number(negative) and 0 <= negative <= 1):
            raise UserError(f'Trident: negative is {negative!r}; it has to be None or a number from 0 to 1')
        if not isinstance(halves, bool):
            raise UserError(f'Trident: halves is {halves!r}; it has to be True or False')
        self.alpha, self.negative, self.halves = alpha, negative, halves

    def whole(self, image: WholeImage) -> Tensor:
        """Return the mean of the proxy similarities over all windows of an image."""
        return proxy_mean(image.window_features(PROXY))

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the proxy map; outside of a pass each window has its own mean."""
        mean = torch.stack(block.whole) if block.whole else None
        return proxy_map(block.features[PROXY], mean=mean)

    def grid(self, clip: tuple[int, int], vfms: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """Return the proxy VFM's grid."""
        return vfms[PROXY]

    def merge(self, windows: list[Window], layout: Layout) -> OverlapAdd:
        """Return the cosines of an image's pixels: splice, affinity, readout."""
        assert layout.read_out is not None and layout.image is not None  # of every pass
        parts = [(window.rows, window.columns, cast(Tensor, window.tokens), window.grid) for window in windows]
        cell = layout.cell(windows[0])
        content = layout.content or layout.shape  # without the padding at the right and below
        spliced, grid = splice(parts, content, cell, layout.multiple, layout.window == 0)
        spliced = spliced.unflatten(0, grid)
        halves, original = [spliced], layout.image.original()
        images = [original]
        if self.halves and spliced.shape[1] > 1 < original.shape[2]:
            halves, images = (list(whole.tensor_split(2, axis)) for whole, axis in ((spliced, 1), (original, 2)))
        mixed = [
            self._mixed(half, layout, image, (len(images), i)) for i, (half, image) in enumerate(zip(halves, images))
        ]
        if len(mixed) > 1:
            mixed[1] = _on_grid(mixed[1], pair(mixed[0].shape[:2]))  # where the halves differ by a column
        tokens = torch.cat(mixed, 1)
        return stretched(layout.read_out(tokens.flatten(0, 1)), pair(tokens.shape[:2]), layout.size)

    def memory(self, windows: int, patches: int, queries: int, pixels: int) -> tuple[int, str]:
        """Return the bytes of the windows' tokens, of their splice, and of SAM's last attention on its 64×64 cells."""
        return 4 * (
            2 * windows * patches * WIDTH + 64**2 * 12 * (3 * 64 + 2 * 64)
        ), 'a larger stride or a smaller `short`'

    def _mixed(self, spliced: Tensor, layout: Layout, image: Tensor, part: tuple[int, int]) -> Tensor:
        """Return affinity times splice (r, c, D) on the valid cells of the affinity's VFM.

        Args:
            spliced (h, w, D): of the image or its half.
            layout: of the image.
            image (3, height, width): RGB from 0 to 1.
            part: number of parts of the image, and the index of this one.
        """
        seen: WholeImage = layout.image
        shown, size = self._sizes(image, layout, seen)
        attention = seen.once(
            AFFINITY, (*part, layout.patch, shown), lambda: seen.run(AFFINITY, self._input(image, layout, seen)[None])
        )
        valid = pair(max(1, side * count // length) for side, count, length in zip(shown, attention.shape[2:], size))
        values = _on_grid(spliced, valid).flatten(0, 1)
        product = affinity_product(attention, valid, values, self.alpha, self.negative)
        return product.unflatten(0, valid)

    def _sizes(self, image: Tensor, layout: Layout, seen: WholeImage) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the size of the image in what the affinity's VFM sees, and the size of all that it sees.

        SAM sees the image with its longer side at SAM's, padded. Another VFM sees it at the resized image's size.
        """
        side, multiple = seen.input_side(AFFINITY), seen.multiple(AFFINITY)
        longer = max(image.shape[1:])
        if side is not None:
            whole = _whole_patches(image, layout.patch)
            return pair(int(length * side / max(whole) + 0.5) for length in whole), (side, side)
        scale = max(layout.content or layout.shape) / longer
        shown = pair(max(1, round(length * scale / count)) * count for length, count in zip(image.shape[1:], multiple))
        return shown, shown

    def _input(self, image: Tensor, layout: Layout, seen: WholeImage) -> Tensor:
        """Return what the affinity's VFM sees of an image, (3, height, width).

        For SAM the sides go to multiples of CLIP's patch, then the longer one to SAM's side, and the rest is padded.
        """
        shown, size = self._sizes(image, layout, seen)
        if shown == size and seen.input_side(AFFINITY) is None:
            return _resized(image, shown)
        whole = _resized(image, _whole_patches(image, layout.patch))
        padded = seen.padding(AFFINITY)[:, None, None].repeat(1, *size)
        padded[:, : shown[0], : shown[1]] = _resized(whole, shown, antialias=True)
        return padded


def _whole_patches(image: Tensor, patch: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an image (3, height, width), each up to the next multiple of the patch."""
    return pair(-(-length // count) * count for length, count in zip(image.shape[1:], patch))


def _on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens (h, w, D) resized bilinearly to another grid."""
    return resize_tokens(tokens.flatten(0, 1)[None], pair(tokens.shape[:2]), grid)[0].unflatten(0, grid)


def _resized(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """Return an image (3, height, width) resized bilinearly to a size; the smoothing is torch's."""
    if pair(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode='bilinear', align_corners=False, antialias=antialias)[0]
