"""One pass over images for several segmentors: windows go through trunk and VFMs in batches, once for all of them.

Shape legend: B windows, N patches, Q queries; images (3, height, width), each of its own size.
"""

import collections
import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from fsa_seg.errors import UserError, one_line
from fsa_seg.methods.base import Method, WindowCosines
from fsa_seg.models.kept import shared_models
from fsa_seg.models.text import Text
from fsa_seg.models.whole_image import Original, SeenImage, WholeImages
from fsa_seg.ops.device import OutOfMemoryError
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.readout import embeddings
from fsa_seg.ops.types import ImageTower, pair
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
    'fit',
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
        models (dict): as of `TrainingFreeSegmentor`.

    Raises:
        ValueError: members that differ in one of SHARED_KEYS.
    """

    members: 'Sequence[TrainingFreeSegmentor]'

    def __init__(self, members: Sequence[dict[str, Any]], models: dict[str, Any] | None = None):
        for key in SHARED_KEYS:
            whole_images = key == 'stride' and members[0].get('window') == 0  # a whole image has no stride
            if not whole_images and len({json.dumps(member.get(key), sort_keys=True) for member in members}) > 1:
                raise ValueError(f'the members of a shared pass differ in {key}')
        models = shared_models() if models is None else models
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
        merged = merged_images(members, inputs, original_sizes(inputs, samples), image_files(samples))
        for image, sample, results in zip(inputs, samples, merged):
            for i, (member, pixels) in enumerate(zip(members, results)):
                labels, _ = member.segmentor.labels(pixels, member.text, image)
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
        seen: the image as the method sees it.
    """

    cosines: Any
    finite: Tensor
    seen: SeenImage


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


def image_files(samples: Sequence[SegDataSample]) -> list[Original]:
    """Return each image's `Original`: the path of its file, where a data sample tells it."""
    return [(sample.metainfo.get('img_path'), None) for sample in samples]


@torch.no_grad()
def merged_images(
    members: Sequence[Member],
    images: Images,
    sizes: Sequence[tuple[int, int]],
    originals: Sequence[Original] | None = None,
    kept: 'KeptImage | None' = None,
) -> Iterator[list[Pixels]]:
    """Yield for each image, in order, the `Pixels` of each member, as soon as the image's last window is done.

    Windows go in batches of `window_batch`, across the images. A GPU that is out of memory halves the batch, for the
    rest of the run.

    Args:
        members: whose segmentors share trunk, window and stride.
        images (list of (3, height, width)): normalised.
        sizes (list of (int, int)): height and width of each result.
        originals: of each image its file and the original itself; see `fsa_seg.models.whole_image.Original`.
        kept: what earlier passes left of the image, of a pass over one image.

    Raises:
        UserError: a single window, or a stage on a whole image, takes more memory than the GPU has free.
    """
    first = members[0].segmentor
    images, whole_images = fitted_images(first, images, sizes, originals, kept)
    crops = [
        Crop(index, image, *place)
        for index, image in enumerate(images)
        for place in windows(image.shape[1], image.shape[2], first.window, first.stride)
    ]
    queries = max(len(member.text.rows) for member in members)
    largest = max(crops, key=lambda crop: crop.size)
    with enough_memory('what the methods make of a whole image', members):
        for segmentor, _ in members:  # what is made of a whole image is no part of a window's memory
            whole_images.of(segmentor, largest.image_index).made_by(segmentor.method)
    with enough_memory('one window', members):
        most = first.batch_size(lambda: list(window_results(members, [largest], whole_images, kept)), queries)
    left = collections.Counter(crop.image_index for crop in crops)
    done: dict[int, dict[int, list[tuple[Window, Tensor]]]] = {}  # image -> member -> its windows and their flags
    for batch, results in _batches(members, crops, whole_images, most, kept):
        for member, window, flags, index in results:
            done.setdefault(index, {}).setdefault(member, []).append((window, flags))
        left.subtract(crop.image_index for crop in batch)
        for index in [index for index in done if not left[index]]:
            with enough_memory('the merge of the windows', members):
                merged = _merge(members, done.pop(index), whole_images, index)
            yield merged
            whole_images.forget(index, original_alone=kept is not None)


def fitted_images(
    segmentor: 'TrainingFreeSegmentor',
    images: Images,
    sizes: Sequence[tuple[int, int]],
    originals: Sequence[Original] | None = None,
    kept: 'KeptImage | None' = None,
) -> tuple[list[Tensor], WholeImages]:
    """Return images as windows are cut from them, and what hooks on whole images see; arguments as of `merged_images`.

    Args:
        segmentor: whose `fit` counts.
    """
    contents = [pair(image.shape[1:]) for image in images]
    fitted = [segmentor.fitted(image) for image in images]
    if segmentor.fit == 'stretch':
        contents = [pair(image.shape[1:]) for image in fitted]
    return fitted, WholeImages(fitted, sizes, originals, contents, kept.of_size(sizes[0]) if kept else None)


def window_under(
    member: Member, crop: Crop, whole_images: WholeImages, kept: 'KeptImage | None' = None
) -> WindowCosines:
    """Return the cosines of one window under a member's method; arguments as of `window_results`."""
    seen = whole_images.of(member.segmentor, crop.image_index)
    return _batch([member.segmentor], [crop], kept).cosines(*member, [seen])


def _merge(
    members: Sequence[Member], done: dict[int, list[tuple[Window, Tensor]]], whole_images: WholeImages, index: int
) -> list[Pixels]:
    """Return the `Pixels` of each member from its windows of one image."""
    results = []
    for i, (segmentor, text) in enumerate(members):
        seen, part = whole_images.of(segmentor, index), segmentor.method.merging
        layout = Layout(
            seen.shape,
            seen.size,
            segmentor.window,
            segmentor.stride,
            segmentor.multiple,
            {role: seen.features(role) for role in segmentor.image_roles()},
            seen.content,
            seen,
            segmentor.visual.patch_size,
            functools.partial(_read_out, segmentor.visual, text.rows),
        )
        member_windows, flags = zip(*done[i])
        cosines = part.merge(list(member_windows), layout)
        if not hasattr(cosines, 'tiles') or tuple(getattr(cosines, 'size', ())) != seen.size:
            raise UserError(
                f'{part.title}: merge returned {type(cosines).__name__}; it has to have `tiles(most)` and '
                f'`size` = {seen.size}, as fsa_seg.ops.windows.OverlapAdd has'
            )
        finite = torch.stack(flags).all(0)
        finite[1] &= seen.finite()  # of VFMs that see more than a window
        results.append(Pixels(cosines, finite, seen))
    return results


def _read_out(visual: ImageTower, rows: Tensor, tokens: Tensor) -> Tensor:
    """Return the cosines (any, Q) of tokens (any, D) before `ln_post` with unit rows (Q, E)."""
    return embeddings(visual, tokens.to(visual.proj.dtype)) @ rows.float().T


def window_results(
    members: Sequence[Member],
    crops: Sequence[Crop],
    whole_images: WholeImages | None = None,
    kept: 'KeptImage | None' = None,
) -> Iterator[tuple[int, Window, Tensor, int]]:
    """Yield (index of a member, `Window`, flags, index of the image) of windows of one size.

    Trunk and VFMs run once each. The flags (3,) bool say which of FINITE_STAGES gave finite numbers; they stay on the
    device, so that it is not waited for.

    Args:
        members: whose segmentors share the trunk.
        crops: the windows.
        whole_images: the images of the pass.
        kept: as of `merged_images`.
    """
    whole_images = whole_images or WholeImages({crop.image_index: crop.image for crop in crops})
    batch = _batch([member.segmentor for member in members], crops, kept)
    groups: dict[tuple, list[int]] = {}
    for i, (segmentor, text) in enumerate(members):  # members that share the last block, but for their feedback
        groups.setdefault(_block_key(segmentor, text), []).append(i)
    for group in groups.values():
        segmentor, text = members[group[0]]
        seen = [whole_images.of(segmentor, crop.image_index) for crop in crops]
        cosines = batch.cosines(segmentor, text, seen)
        left_for_merge = _kept(segmentor.method.merging, cosines.block, len(crops))
        for i in group:
            finite = []
            for z in cosines.rounds(members[i].segmentor.feedback):
                finite.append(_finite(z))
            flags = torch.stack([*batch.finite(segmentor), torch.stack(finite).all(0)], 1)
            tokens = [None] * len(crops) if cosines.last is None else cosines.last
            for crop, window_cosines, window_flags, window_kept, left in zip(crops, z, flags, left_for_merge, tokens):
                window = Window(crop.rows, crop.columns, window_cosines, cosines.grid, window_kept, left)
                yield i, window, window_flags, crop.image_index
        del cosines, z, tokens


def _block_key(segmentor: 'TrainingFreeSegmentor', text: Text) -> tuple:
    """Return what members have in common that share the last block under their method's own map."""
    return segmentor.member_key, segmentor.multiple, segmentor.window, text.queries  # equal words are equal rows


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


class KeptImage:
    """What passes over one image leave for the next ones: trunk, VFM features, what was made of the whole image.

    A later pass under another feedback runs the last block alone; under the method that came last, the feedback alone.
    A pass gives the same with it as without. The image stays the same; windows, stride and fit do, too.

    Attributes:
        batches (dict): place of the windows -> their `_Batch`.
    """

    def __init__(self) -> None:
        self.batches: dict[tuple, _Batch] = {}
        self._made: dict[tuple[int, int], dict[int, dict[tuple, Any]]] = {}

    def of_size(self, size: tuple[int, int]) -> dict[int, dict[tuple, Any]]:
        """Return what was made of the whole image for results of a size, see `WholeImages`; to be changed in place."""
        return self._made.setdefault(pair(size), {})


def _batch(segmentors: 'Sequence[TrainingFreeSegmentor]', crops: Sequence[Crop], kept: KeptImage | None) -> '_Batch':
    """Return the batch of windows for segmentors, an earlier pass's where it has all that they need."""
    if kept is None:
        return _Batch(segmentors, crops)
    place = tuple((crop.rows, crop.columns) for crop in crops)
    if place not in kept.batches:
        kept.batches[place] = _Batch(segmentors, crops)
    kept.batches[place].read_for(segmentors)
    return kept.batches[place]


class _Batch:
    """Windows of one size: their pixels, trunk and features, each computed once for the segmentors that ask.

    Windows that are padded alike hold the same pixels, so that their size stands for them.
    """

    def __init__(self, segmentors: 'Sequence[TrainingFreeSegmentor]', crops: Sequence[Crop]):
        self._crops = crops
        self._cut: dict[tuple[tuple[int, int], bool], Tensor] = {}  # by multiple, and whether windows are whole images
        self._trunk: dict[tuple[int, int], tuple[Tensor, tuple[int, int], dict[int, Projections]]] = {}  # by size
        self._features: dict[tuple, Tensor] = {}  # by VFM, what it sees, kind and size
        self._finite: dict[tuple, Tensor] = {}  # by size, and as the features
        self._inner: list[int] = []  # earlier blocks whose tokens the trunk gives
        self._cosines: tuple[Any, WindowCosines] | None = None
        self.read_for(segmentors)

    def read_for(self, segmentors: 'Sequence[TrainingFreeSegmentor]') -> None:
        """Have the trunk give the tokens of the earlier blocks that segmentors read; else it runs once more."""
        inner = {index for segmentor in segmentors for index in segmentor.inner_blocks}
        if not inner <= set(self._inner):
            self._inner, self._cosines = sorted({*self._inner, *inner}), None
            self._trunk.clear()

    def cosines(self, segmentor: 'TrainingFreeSegmentor', text: Text, seen: list[SeenImage]) -> WindowCosines:
        """Return the cosines under a segmentor's method; those under the method and the words that came last stay.

        Args:
            segmentor: the segmentor.
            text: what it segments into.
            seen: of each window its image.
        """
        key = _block_key(segmentor, text)
        if segmentor.sees_more_than_windows():
            key += tuple(image.size for image in seen)  # regions are those of the original's size
        if self._cosines is None or self._cosines[0] != key:
            self._cosines = None  # the earlier maps are not held beside the next ones
            self._cosines = key, WindowCosines(segmentor.method, self.last_block(segmentor, seen), text.rows)
        return self._cosines[1]

    def last_block(self, segmentor: 'TrainingFreeSegmentor', seen: list[SeenImage]) -> LastBlock:
        images = self._images(segmentor)
        tokens, grid, inner = self._run_trunk(segmentor, images)
        places = [WindowPlace(crop.rows, crop.columns) for crop in self._crops]
        regions = None
        if segmentor.regions is not None:
            regions = torch.stack([image.window_regions(place) for image, place in zip(seen, places)])
        return LastBlock(
            segmentor.visual,
            tokens,
            grid,
            self._run_vfms(segmentor, images, seen, places),
            inner,
            {role: [image.features(role) for image in seen] for role in segmentor.image_roles()},
            places,
            images,
            [image.made_by(segmentor.method) for image in seen],
            regions,
        )

    def finite(self, segmentor: 'TrainingFreeSegmentor') -> list[Tensor]:
        """Return the flags of the trunk and of all VFMs of a segmentor."""
        size = pair(self._images(segmentor).shape[2:])
        keys = [(*segmentor.role_key(role), size) for role in segmentor.window_vfms()]
        vfms = [self._finite[key] for key in keys]
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

    def _run_vfms(
        self, segmentor: 'TrainingFreeSegmentor', images: Tensor, seen: list[SeenImage], places: list[WindowPlace]
    ) -> dict[str, Tensor]:
        keys = {role: (*segmentor.role_key(role), pair(images.shape[2:])) for role in segmentor.window_vfms()}
        for role, key in keys.items():
            if key in self._features:
                continue
            if segmentor.method.roles[role] == 'window' and not segmentor.sees_image(role):
                features = segmentor.features(images, [role])[role]
            else:
                features = torch.cat([image.window(role, place) for image, place in zip(seen, places)])
            self._features[key], self._finite[key] = features, _finite(features)
        return {role: self._features[key] for role, key in keys.items()}


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


def _batches(
    members: Sequence[Member],
    crops: Sequence[Crop],
    whole_images: WholeImages,
    most: int,
    kept: 'KeptImage | None' = None,
) -> Iterator[tuple[list[Crop], list]]:
    """Yield consecutive windows of one size, at most so many at once, and their `window_results`."""
    for _, alike in itertools.groupby(crops, lambda crop: crop.size):
        group = list(alike)
        while group:
            whole_images.most, batch, results = most, group[:most], None
            with enough_memory('one window', members) if most == 1 else contextlib.suppress(OutOfMemoryError):
                results = list(window_results(members, batch, whole_images, kept))
            if results is None:  # nothing of the batch is kept: its windows are computed again
                most = members[0].segmentor.halve_batch(most)
                continue
            yield batch, results
            group = group[len(batch) :]


@contextlib.contextmanager
def enough_memory(stage: str, members: Sequence[Member]) -> Iterator[None]:
    """Turn the error of a GPU that is out of memory into a UserError that says what takes less.

    Args:
        stage: what is computed in the block.
        members: for which it is computed.
    """
    try:
        yield
    except OutOfMemoryError as error:
        segmentor, queries = members[0].segmentor, max(len(member.text.rows) for member in members)
        precision = str(segmentor.visual.proj.dtype).removeprefix('torch.')
        raise UserError(
            f'the GPU is out of memory in {stage}, for {len(members)} cells, windows of {segmentor.window} pixels and '
            f'{queries} queries, in {precision}: less is taken by --precision fp16, by fewer cells in a pass '
            f'(--cells-per-pass 1), and by fewer images at a time (--batch-size 1). {one_line(error)}'
        ) from None
