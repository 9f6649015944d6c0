"""One pass over images for several segmentors: windows go through trunk and VFMs in batches, once for all of them.

Shape legend: B windows, N patches, Q queries; images (3, height, width), each of its own size.
"""

import collections
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method, WindowCosines
from fsa_seg.models.text import Text
from fsa_seg.models.vfm import window_multiple
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import Layout, Window, WindowPlace, cut_window, windows

if TYPE_CHECKING:
    from fsa_seg.models.segmentor import TrainingFreeSegmentor

FINITE_STAGES = ("CLIP's trunk", 'the VFM', 'the last block (attention, FSA, readout)')
Images = Sequence[Tensor] | Tensor  # normalised, (3, height, width) each
SHARED_KEYS = (  # settings in which the members of a pass are alike
    'backbone',
    'precision',
    'window',
    'stride',
    'window_batch',
    'compile',
    'text_cache',
)


@MODELS.register_module()
class SharedPass(BaseSegmentor):
    """Several segmentors of one backbone and one choice of windows, in one pass over the images.

    At equal `window_batch` each member gives what it gives alone. Trunk and each VFM run once for a window. Members
    that differ in their feedback alone share the last block under their method's own map. `predict` puts the labels of
    member i into the field `label_field(i)` of a data sample.

    Args:
        members (list of dict): configs of `fsa_seg.models.segmentor.TrainingFreeSegmentor`, alike in SHARED_KEYS.

    Raises:
        ValueError: members that differ in one of SHARED_KEYS.
    """

    members: 'Sequence[TrainingFreeSegmentor]'

    def __init__(self, members: Sequence[dict[str, Any]]):
        for key in SHARED_KEYS:
            whole_images = key == 'stride' and members[0].get('window') == 0  # a whole image has no stride
            if not whole_images and len({json.dumps(member.get(key), sort_keys=True) for member in members}) > 1:
                raise ValueError(f'the members of a shared pass differ in {key}')
        models: dict[str, Any] = {}
        segmentors = [MODELS.build(dict(member, words=None, models=models)) for member in members]
        super().__init__(data_preprocessor=segmentors[0].data_preprocessor)
        for segmentor, member in zip(segmentors, members):  # after all VFMs, since it may take minutes
            if member.get('words') is not None:
                segmentor.keep_words(member['words'])
        self.members = cast('Sequence[TrainingFreeSegmentor]', nn.ModuleList(segmentors))
        self.eval()

    def predict(self, inputs: Images, data_samples: list[SegDataSample] | None = None) -> list[SegDataSample]:
        """Return data samples with one field of labels (1, height, width) int64 for each member.

        Args: as of `TrainingFreeSegmentor.predict`.
        """
        samples = data_samples or [SegDataSample() for _ in inputs]
        members = [Member(segmentor, segmentor.text) for segmentor in self.members]
        merged = merged_images(members, inputs, original_sizes(inputs, samples))
        for image, sample, results in zip(inputs, samples, merged):
            for i, (member, pixels) in enumerate(zip(members, results)):
                labels, _ = member.segmentor.labels(pixels.cosines, member.text, image)
                sample.set_field(PixelData(data=labels[None]), label_field(i), PixelData)
                sample.set_field(pixels.finite, finite_field(label_field(i)), torch.Tensor)
        return samples

    def loss(self, inputs: Any, data_samples: Any) -> NoReturn:
        """Raise: the segmentors are training-free."""
        self.members[0].loss(inputs, data_samples)

    def _forward(self, inputs: Any, data_samples: Any = None) -> NoReturn:
        raise NotImplementedError('use predict')

    extract_feat = encode_decode = _forward


class Member(NamedTuple):
    """One row of a pass: a segmentor, and the text that it segments into."""

    segmentor: 'TrainingFreeSegmentor'
    text: Text


class Pixels(NamedTuple):
    """The cosines of an image's pixels.

    Attributes:
        cosines: of `fsa_seg.methods.base.Method.merge`.
        finite (3): bool, which of FINITE_STAGES gave finite numbers in all windows.
    """

    cosines: Any
    finite: Tensor


class Crop(NamedTuple):
    """A window to be cut.

    Attributes:
        image_index (int): of the image in its batch.
        image (3, height, width): normalised.
        rows (top, bottom), columns (left, right): in pixels.
    """

    image_index: int
    image: Tensor
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def size(self) -> list[int]:
        """The height and the width, in pixels."""
        return [end - start for start, end in (self.rows, self.columns)]


def label_field(member: int | str) -> str:
    """Return the field of a data sample that holds the labels of a pass's member."""
    return f'pred_sem_seg_{member}'


def finite_field(labels: str) -> str:
    """Return the field of a data sample that says whether the stages behind a field of labels gave finite numbers."""
    return labels.replace(label_field('')[:-1], 'finite')


def original_sizes(images: Images, samples: Sequence[SegDataSample]) -> list[tuple[int, int]]:
    """Return the (height, width) of each image before it was resized; where a data sample does not tell, its own."""
    return [sample.metainfo.get('ori_shape', image.shape[1:])[:2] for image, sample in zip(images, samples)]


@torch.no_grad()
def merged_images(
    members: Sequence[Member], images: Images, sizes: Sequence[tuple[int, int]]
) -> Iterator[list[Pixels]]:
    """Yield for each image, in order, the `Pixels` of each member, as soon as the image's last window is done.

    Windows go in batches of `window_batch`, across the images.

    Args:
        members: whose segmentors share trunk, window and stride.
        images (list of (3, height, width)): normalised.
        sizes (list of (int, int)): height and width of each result.
    """
    first = members[0].segmentor
    crops = [
        Crop(index, image, *place)
        for index, image in enumerate(images)
        for place in windows(image.shape[1], image.shape[2], first.window, first.stride)
    ]
    image_features = _WholeImages(images)
    queries = max(len(member.text.rows) for member in members)
    most = first.batch_size(
        lambda: list(window_results(members, [max(crops, key=lambda crop: crop.size)], image_features)), queries
    )
    left = collections.Counter(crop.image_index for crop in crops)
    done: dict[int, dict[int, list[tuple[Window, Tensor]]]] = {}  # image -> member -> its windows and their flags
    for batch in _batches(crops, most):
        for member, window, flags, index in window_results(members, batch, image_features):
            done.setdefault(index, {}).setdefault(member, []).append((window, flags))
        left.subtract(crop.image_index for crop in batch)
        for index in [index for index in done if not left[index]]:
            yield _merge(members, done.pop(index), pair(images[index].shape[1:]), sizes[index], image_features, index)
            image_features.forget(index)


def _merge(
    members: Sequence[Member],
    done: dict[int, list[tuple[Window, Tensor]]],
    shape: tuple[int, int],
    size: tuple[int, int],
    image_features: '_WholeImages',
    index: int,
) -> list[Pixels]:
    """Return the `Pixels` of each member from its windows of one image."""
    results = []
    for i, (segmentor, _) in enumerate(members):
        layout = Layout(
            shape,
            pair(size),
            segmentor.window,
            segmentor.stride,
            segmentor.multiple,
            image_features.features(segmentor, index),
        )
        member_windows, flags = zip(*done[i])
        cosines = segmentor.method.merge(list(member_windows), layout)
        if not hasattr(cosines, 'tiles') or tuple(getattr(cosines, 'size', ())) != tuple(size):
            raise UserError(
                f'{segmentor.method.title}: merge returned {type(cosines).__name__}; it has to have `tiles(most)` and '
                f'`size` = {tuple(size)}, as fsa_seg.ops.windows.OverlapAdd has'
            )
        results.append(Pixels(cosines, torch.stack(flags).all(0)))
    return results


def window_results(
    members: Sequence[Member], crops: Sequence[Crop], image_features: '_WholeImages | None' = None
) -> Iterator[tuple[int, Window, Tensor, int]]:
    """Yield (index of a member, `Window`, flags, index of the image) of windows of one size.

    Trunk and VFMs run once each. The flags (3,) bool say which of FINITE_STAGES gave finite numbers; they stay on the
    device, so that it is not waited for.

    Args:
        members: whose segmentors share the trunk.
        crops: the windows.
        image_features: the VFMs' features of whole images.
    """
    image_features = image_features or _WholeImages({crop.image_index: crop.image for crop in crops})
    batch = _Batch([member.segmentor for member in members], crops)
    groups: dict[tuple, list[int]] = {}
    for i, (segmentor, text) in enumerate(members):  # members that share the last block, but for their feedback
        vfms = tuple((role, id(vfm)) for role, vfm in segmentor.vfms.items())
        method = type(segmentor.method), json.dumps(segmentor.method.settings, sort_keys=True, default=repr)
        key = vfms, segmentor.multiple, segmentor.window, method, text.queries  # equal words are equal rows
        groups.setdefault(key, []).append(i)
    for group in groups.values():
        segmentor, text = members[group[0]]
        of_crops = [image_features.features(segmentor, crop.image_index) for crop in crops]
        block = batch.last_block(segmentor, {role: [seen[role] for seen in of_crops] for role in of_crops[0]})
        cosines = WindowCosines(segmentor.method, block, text.rows)
        kept = _kept(segmentor.method, block, len(crops))
        for i in group:
            finite = []
            for z in cosines.rounds(members[i].segmentor.feedback):
                finite.append(_finite(z))
            flags = torch.stack([*batch.finite(segmentor), torch.stack(finite).all(0)], 1)
            for crop, window_cosines, window_flags, window_kept in zip(crops, z, flags, kept):
                window = Window(crop.rows, crop.columns, window_cosines, cosines.grid, window_kept)
                yield i, window, window_flags, crop.image_index


def _kept(method: Method, block: LastBlock, count: int) -> list:
    """Return what a method keeps of each of `count` windows."""
    kept = method.keep(block)
    if kept is None:
        return [None] * count
    if len(kept) != count:
        raise UserError(
            f'{method.title}: keep returned {len(kept)} values for {count} windows; it has to be one for each'
        )
    return list(kept)


class _Batch:
    """Windows of one size: their pixels, trunk and features, each computed once for the segmentors that ask.

    Windows that are padded alike hold the same pixels, so that their size stands for them.
    """

    def __init__(self, segmentors: 'Sequence[TrainingFreeSegmentor]', crops: Sequence[Crop]):
        self._crops = crops
        self._cut: dict[tuple[tuple[int, int], bool], Tensor] = {}  # by multiple, and whether windows are whole images
        self._trunk: dict[tuple[int, int], tuple[Tensor, tuple[int, int], dict[int, Projections]]] = {}  # by size
        self._features: dict[tuple[int, tuple[int, int]], Tensor] = {}  # by VFM and size
        self._finite: dict[tuple, Tensor] = {}  # by size, and by VFM and size
        self._inner = sorted({index for segmentor in segmentors for index in segmentor.inner_blocks})

    def last_block(self, segmentor: 'TrainingFreeSegmentor', whole_images: dict[str, list[Tensor]]) -> LastBlock:
        images = self._images(segmentor)
        tokens, grid, inner = self._run_trunk(segmentor, images)
        places = [WindowPlace(crop.rows, crop.columns) for crop in self._crops]
        features = self._run_vfms(segmentor, images)
        return LastBlock(segmentor.visual, tokens, grid, features, inner, whole_images, places, images)

    def finite(self, segmentor: 'TrainingFreeSegmentor') -> list[Tensor]:
        """Return the flags of the trunk and of all VFMs of a segmentor."""
        size = pair(self._images(segmentor).shape[2:])
        vfms = [self._finite[id(vfm), size] for vfm in segmentor.window_vfms().values()]
        return [self._finite[size], torch.stack(vfms).all(0) if vfms else self._finite[size]]

    def _images(self, segmentor: 'TrainingFreeSegmentor') -> Tensor:
        key = segmentor.multiple, segmentor.window == 0
        if key not in self._cut:
            cut = [cut_window(crop.image, crop.rows, crop.columns, *key) for crop in self._crops]
            self._cut[key] = torch.cat(cut)
        return self._cut[key]

    def _run_trunk(
        self, segmentor: 'TrainingFreeSegmentor', images: Tensor
    ) -> tuple[Tensor, tuple[int, int], dict[int, Projections]]:
        size = pair(images.shape[2:])
        if size not in self._trunk:
            tokens, grid, entering = segmentor.trunk(segmentor.visual, images, self._inner)
            blocks = segmentor.visual.transformer.resblocks
            inner = {index: Projections(blocks[index], before) for index, before in entering.items()}
            self._trunk[size], self._finite[size] = (tokens, grid, inner), _finite(tokens)
        return self._trunk[size]

    def _run_vfms(self, segmentor: 'TrainingFreeSegmentor', images: Tensor) -> dict[str, Tensor]:
        size, vfms = pair(images.shape[2:]), segmentor.window_vfms()
        if any((id(vfm), size) not in self._features for vfm in vfms.values()):
            for role, features in segmentor.features(images).items():
                self._features[id(vfms[role]), size] = features
                self._finite[id(vfms[role]), size] = _finite(features)
        return {role: self._features[id(vfm), size] for role, vfm in vfms.items()}


class _WholeImages:
    """The features of VFMs that see whole images, each computed once while the image's windows are worked on."""

    def __init__(self, images: Images | Mapping[int, Tensor]):
        self._images = images
        self._features: dict[tuple[int, int], Tensor] = {}  # by VFM and image

    def features(self, segmentor: 'TrainingFreeSegmentor', index: int) -> dict[str, Tensor]:
        """Return the features (1, C, I, J) of an image, by role."""
        features = {}
        for role in [role for role, scope in segmentor.method.roles.items() if scope == 'image']:
            key = id(segmentor.vfms[role]), index
            if key not in self._features:
                image = self._images[index]
                multiple = window_multiple(segmentor.vfms[role])
                padded = cut_window(image, (0, image.shape[1]), (0, image.shape[2]), multiple)
                self._features[key] = segmentor.features(padded, [role])[role]
            features[role] = self._features[key]
        return features

    def forget(self, index: int) -> None:
        self._features = {key: value for key, value in self._features.items() if key[1] != index}


def _finite(values: Tensor) -> Tensor:
    """Return for each of a batch whether all its values are finite, (B,) bool."""
    return values.isfinite().flatten(1).all(1)


def check_finite_stages(flags: Tensor, image: str, settings: str) -> None:
    """Raise a UserError that names the first stage whose numbers are not finite.

    Args:
        flags (3): bool, of `window_results`, of all windows of an image.
        image (str): name of the image.
        settings (str): what the segmentor ran under, such as 'SCLIP + FSA, fp16'.
    """
    wrong = [stage for stage, fine in zip(FINITE_STAGES, flags.tolist()) if not fine]
    if wrong:
        raise UserError(
            f'{image}: {wrong[0]} under {settings} gave numbers that are not finite (NaN or infinite), so that there '
            'are no labels. In half precision use --precision fp32 or bf16; else look at the weights '
            '(fsa-seg weights check) '
            'and at settings far from the published ones'
        )


def _batches(crops: Sequence[Crop], most: int) -> Iterator[list[Crop]]:
    """Yield consecutive windows of one size, at most so many at once."""
    for _, alike in itertools.groupby(crops, lambda crop: crop.size):
        group = list(alike)
        yield from (group[start : start + most] for start in range(0, len(group), most))
