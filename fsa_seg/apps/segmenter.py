"""One image, words given on the spot: `Segmenter`."""

import copy
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmcv.transforms import Resize
from mmengine.device import get_device
from mmseg.registry import MODELS
from PIL import Image

from fsa_seg.config.components import (
    check_constructor,
    has_toy_models,
    load_components,
    load_protocol,
    protocol_settings,
)
from fsa_seg.config.compose import MAX_LONG_SIDE, model_config
from fsa_seg.datasets.images import as_rgb
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import feedback_title
from fsa_seg.models.segmentor import TrainingFreeSegmentor, check_built, resolve_precision
from fsa_seg.models.shared_pass import (
    Crop,
    KeptImage,
    Member,
    check_finite_stages,
    fitted_images,
    merged_images,
    window_under,
)
from fsa_seg.models.text import Text, check_distinct, split_words
from fsa_seg.models.whole_image import Original
from fsa_seg.models.window import Inspection, inspect_window
from fsa_seg.ops.sfr import SFRAndFSA
from fsa_seg.ops.windows import patch_at, to_window, window_spans
from fsa_seg.settings import SEED, SEGMENTOR, check_values
from fsa_seg.visualization.colors import class_colors
from fsa_seg.visualization.pictures import attention_picture, picture_grid

TOY_MODELS = 'These are toy models, which know the toy world alone: what they find in other pictures means nothing.'
RANDOM_WEIGHTS = 'The weights are random: what they find means nothing.'
SUMMARY = 3  # classes that the text of a result names
Picture = str | Image.Image | np.ndarray


_SEGMENTATION = [('labels', np.ndarray), ('scores', np.ndarray | None), ('picture', Image.Image)]
_ATTENTION_ROWS = [
    ('rows', Inspection),
    ('window', tuple),
    ('patch', tuple),
    ('without', np.ndarray),
    ('labels', np.ndarray),
    ('picture', Image.Image),
]


class Segmentation(NamedTuple('Segmentation', _SEGMENTATION)):
    """What one image was segmented into.

    Attributes:
        labels (height, width): int64, index of the class in the given list.
        scores (K, height, width): float32, softmax over all words, the best word of each class; None unless asked for.
        picture: PIL.Image, the image beside its labels, with a legend.
        classes: each class's first word; no element of the tuple.
    """

    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        scores = 'no scores' if self.scores is None else f'scores {self.scores.shape}'
        return f'Segmentation({_summary(self.labels, self.classes)}; {scores})'


class AttentionRows(NamedTuple('AttentionRows', _ATTENTION_ROWS)):
    """What FSA makes of the patch at one pixel of an image.

    Attributes:
        rows: `fsa_seg.models.window.Inspection` of numpy arrays (h, w): the patch's rows of A, S before and after
            pruning, W and Â, over the grid of the window.
        window (left, top, right, bottom): the window they belong to, in pixels of the image.
        patch (row, column): the patch on that grid.
        without, labels (height, width): int64, the labels without FSA and with it.
        picture: PIL.Image of all of that.
        classes: each class's first word; no element of the tuple.
    """

    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        rows, columns = self.rows.attention.shape
        patch = f'patch {self.patch} of {rows}×{columns} in window {self.window}'
        return f'AttentionRows({patch}; {_summary(self.labels, self.classes)})'


def _summary(labels, classes):
    """Return height, width, and the largest classes' shares as a text: '240×320, 2 classes: 80 % wood; 20 % cat'."""
    present, counts = np.unique(labels, return_counts=True)
    largest = []
    for i in np.argsort(-counts, kind='stable')[:SUMMARY]:
        share, label = 100 * counts[i] / labels.size, present[i]
        name = classes[label] if label < len(classes) else f'class {label}'
        largest.append(f'{share:.0f} % {name}' if share >= 0.5 else f'<1 % {name}')
    more = ['…'] * (len(present) > SUMMARY)
    count = f'{len(present)} class{"es" * (len(present) > 1)}'
    return f'{labels.shape[0]}×{labels.shape[1]}, {count}: {"; ".join([*largest, *more])}'


class Segmenter:
    """Segments images into classes named on the spot.

    >>> segmenter = Segmenter(backbone='toy', vfm='toy')                    # doctest: +SKIP
    >>> segmenter.segment('street.jpg', ['car', 'road; street']).labels     # doctest: +SKIP

    Args:
        backbone, method, vfm (str): name or file of a component.
        feedback (bool, dict or str): FSA off or on, its settings (dict(lam=..., p=...)), or a feedback component.
        protocol (str): its default settings are used (window, stride, resize, logit_scale); 'own' is the method's.
        precision (str): 'auto', 'fp32', 'fp16' or 'bf16'.
        device (str or torch.device): by default the GPU, on a machine that has a GPU.
        random_weights (int): seed of random weights in place of trained weights, to measure time without them.

    Attributes:
        note (str): what a user of the results has to know; None for real models with trained weights.

    Raises:
        UserError: a component that does not exist, a setting of the feedback that cannot be used, weights that are
            missing or do not fit, or a device that torch cannot use.
    """

    def __init__(
        self,
        backbone='clip_vit-b16',
        method='proxyclip',
        feedback=True,
        vfm=None,
        protocol='own',
        precision='auto',
        device=None,
        random_weights=None,
    ):
        if random_weights is not None:
            check_values(dict(random_weights=random_weights), dict(random_weights=SEED), 'options')
        device = get_device() if device is None else check_device(device)
        components = load_components(method, feedback, backbone, vfm)
        settings = protocol_settings(load_protocol(protocol, components), None)
        self.short = settings['short']
        names = [components['method'].name]
        if components['feedback']:
            names.append(feedback_title(components['feedback'].name))
        self.settings = f'{" + ".join(names)}, {resolve_precision(precision, device)}'
        self.note = TOY_MODELS if has_toy_models(components) else None
        self.note = self.note if random_weights is None else RANDOM_WEIGHTS
        config = model_config(components, settings, precision, device, random_weights)
        if config['feedback']:  # before models are loaded
            check_constructor(config['feedback'], MODELS, 'feedback')
            check_built(MODELS, config['feedback'])
        self.model = MODELS.build(config).to(device)

    @torch.no_grad()
    def segment(
        self,
        image: Picture | list[Picture],
        classes: Sequence[str],
        prob_thd: float = 0.0,
        scores: bool = False,
        image_max: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Return the `Segmentation` of an image, or a list of them for a list of images.

        Several threads may call at a time, with different words.

        Args:
            image: a path, a PIL image, an array (height, width, 3) of uint8 RGB, or a list of them.
            classes: one per class, synonyms separated by ';' ('cat; kitten').
            prob_thd: a pixel whose best score is under it gets the first class.
            scores: keep the scores: 4 bytes for each pixel and class, which a photograph multiplies to gigabytes.
            image_max: the value of white in a 16-bit image, see `fsa_seg.datasets.images.read_image`.

        Raises:
            UserError: classes that are one text, no class, a class without a word, or an image that cannot be read.
        """
        words = split_classes(classes, prob_thd)
        pictures = image if isinstance(image, (list, tuple)) else [image]
        arrays = [as_rgb(picture, image_max) for picture in pictures]  # a bad image is found before time is spent
        text, names = self.model.encode(words), [group[0] for group in words]
        done = []
        for picture, rgb in zip(pictures, arrays):
            labels, kept = self._labels(self.model, rgb, self._resized(rgb), text, prob_thd, scores, picture)
            drawn = picture_grid(rgb, dict(labels=labels), names, class_colors(len(names)))
            done.append(Segmentation(labels, kept, drawn))
            done[-1].classes = tuple(names)
        return done if isinstance(image, (list, tuple)) else done[0]

    @torch.no_grad()
    def attention(
        self,
        image: Picture,
        classes: Sequence[str],
        x: int,
        y: int,
        prob_thd: float = 0.0,
        image_max: int | None = None,
    ) -> AttentionRows:
        """Return the `AttentionRows` of the patch at column x and row y (pixels from the upper left corner).

        Of the windows that cover the pixel, the window whose centre is nearest to it is looked at.

        Args:
            image, classes, prob_thd, image_max: as of `segment`; one image.

        Raises:
            UserError: a pixel outside the image, a segmenter without feedback, or as of `segment`.
        """
        words, rgb = split_classes(classes, prob_thd), as_rgb(image, image_max)
        check_pixel(x, y, rgb.shape[:2])
        if self.model.feedback is None:
            raise UserError('there is no feedback to look at: the segmenter was made without FSA')
        text, inputs, bare = self.model.encode(words), self._resized(rgb), copy.copy(self.model)
        bare.feedback = None
        labels, without = (
            self._labels(model, rgb, inputs, text, prob_thd, picture=image)[0] for model in (self.model, bare)
        )
        looked = look_at(Member(self.model, text), inputs, rgb.shape[:2], (x, y), (_path(image), rgb))
        names = [group[0] for group in words]
        maps = {'without FSA': without, 'with FSA': labels}
        if isinstance(self.model.feedback, SFRAndFSA):
            maps = {'without feedback': without, 'with SFR and FSA': labels}
        drawn = attention_picture(rgb, (x, y), looked.window, looked.maps, maps, names, class_colors(len(names)))
        found = AttentionRows(looked.rows, looked.window, looked.patch, without, labels, drawn)
        found.classes = tuple(names)
        return found

    def _resized(self, rgb: np.ndarray) -> torch.Tensor:
        """Return an image (height, width, 3) as the model takes it, see `model_input`."""
        return model_input(self.model, self.short, rgb)

    def _labels(
        self,
        model,
        rgb: np.ndarray,
        inputs: torch.Tensor,
        text: Text,
        prob_thd: float,
        scores: bool = False,
        picture: Picture | None = None,
    ):
        """Return the labels (height, width) and scores (K, height, width) of an image as arrays, or None."""
        [(pixels,)] = merged_images([Member(model, text)], [inputs], [rgb.shape[:2]], [(_path(picture), rgb)])
        labels, kept = model.labels(pixels, text, inputs, prob_thd, scores)
        check_finite_stages(pixels.finite, 'the image', self.settings)
        return labels.cpu().numpy(), None if kept is None else kept.cpu().numpy()


def _path(picture: Picture | None) -> str | None:
    """Return the path of a picture that is a file."""
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else None


class LookedAt(NamedTuple):
    """What a segmentor makes of the patch at one pixel, under its feedback.

    Attributes:
        rows: `Inspection` of numpy arrays, see `AttentionRows`.
        window (left, top, right, bottom), patch (row, column): see `AttentionRows`.
        maps: name of a row -> the row's values at the pixels of the window, as the model sees it, without padding.
        cosines (2, Q): of the patch with the queries, without feedback and with it.
    """

    rows: Inspection
    window: tuple[int, int, int, int]
    patch: tuple[int, int]
    maps: dict[str, np.ndarray]
    cosines: np.ndarray


@torch.no_grad()
def look_at(
    member: Member,
    inputs: torch.Tensor,
    size: tuple[int, int],
    pixel: tuple[int, int],
    original: Original = (None, None),
    kept: KeptImage | None = None,
) -> LookedAt:
    """Return what a member makes of the patch at a pixel; of the windows there, the one with the nearest centre.

    Args:
        member: a segmentor with feedback, and its text.
        inputs (3, h, w): of `model_input`.
        size (height, width): of the original image, in pixels.
        pixel (x, y): of the original image.
        original, kept: as of `fsa_seg.models.shared_pass.merged_images`.
    """
    model, whole_image = member.segmentor, member.segmentor.window == 0
    [image], whole_images = fitted_images(model, [inputs], [size], [original], kept)
    content = whole_images.of(model, 0).content
    scale = content[0] / size[0], content[1] / size[1]
    place = (pixel[1] + 0.5) * scale[0], (pixel[0] + 0.5) * scale[1]
    spans = [
        min(window_spans(side, model.window, model.stride), key=lambda span: abs(sum(span) / 2 - at))
        for side, at in zip(image.shape[1:], place)
    ]
    windows = window_under(member, Crop(0, image, *spans), whole_images, kept)
    patch = tuple(
        patch_at(at, span, multiple, count, whole_image)
        for at, span, multiple, count in zip(place, spans, model.multiple, windows.grid)
    )
    rows, cosines = inspect_window(windows, model.feedback, patch)
    rows = Inspection(*(values.cpu().numpy() for values in rows))
    (top, bottom), (left, right) = ((start, min(end, side)) for (start, end), side in zip(spans, content))
    maps = {
        name: to_window(torch.from_numpy(values), *spans, model.multiple, whole_image).numpy()
        for name, values in rows._asdict().items()
    }
    maps = {name: values[: bottom - top, : right - left] for name, values in maps.items()}
    edges = left / scale[1], top / scale[0], right / scale[1], bottom / scale[0]
    return LookedAt(rows, tuple(round(edge) for edge in edges), patch, maps, cosines.cpu().numpy())


def split_classes(classes: Sequence[str], prob_thd: float = 0.0) -> list[list[str]]:
    """Return the words of each class.

    Args:
        classes: one text per class, synonyms separated by ';'.
        prob_thd: see `Segmenter.segment`.

    Raises:
        UserError: what cannot be segmented into: no class, a class without a word, or one word for two classes; or a
            threshold that is no share.
    """
    check_values(dict(prob_thd=prob_thd), SEGMENTOR, 'options')
    if isinstance(classes, str) or not all(isinstance(line, str) for line in classes):
        raise UserError(
            f'classes is {classes!r}; give a list with a text for each class, such as ["cat; kitten", "grass"]'
        )
    words = [split_words(line) for line in classes]
    if not words or not all(words):
        raise UserError(f'classes {list(classes)!r}: give at least one, each with a word, such as "cat; kitten"')
    check_distinct(words, classes, 'classes')
    return words


def check_pixel(x: int, y: int, size: tuple[int, int]) -> None:
    """Raise a UserError unless column x and row y lie in an image of size (height, width)."""
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f'the pixel {x},{y} lies outside the image, which has {width}×{height} (x from 0 to {width - 1}, y from 0 '
            f'to {height - 1})'
        )


def model_input(model: TrainingFreeSegmentor, short: int, rgb: np.ndarray) -> torch.Tensor:
    """Return an image (height, width, 3) uint8 as a segmentor takes it: resized and normalised, (3, h, w).

    Args:
        model: the segmentor.
        short: the shorter side after the resize, in pixels, unless the longer side would exceed MAX_LONG_SIDE.
        rgb: the image.
    """
    resize = Resize(scale=(MAX_LONG_SIDE, short), keep_ratio=True)
    resized = resize(dict(img=np.ascontiguousarray(rgb[..., ::-1])))['img']
    pixels = torch.from_numpy(resized.transpose(2, 0, 1).copy())
    return model.data_preprocessor(dict(inputs=[pixels]))['inputs'][0]


def check_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; raise a UserError if torch cannot use the device on this machine.

    The check leaves a GPU untouched: `fsa_seg.ops.device.exact_float32` comes before CUDA starts.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        named = torch.device(device)
        if named.type != 'cuda':
            torch.zeros(1, device=named).cpu()
        elif (named.index or 0) >= gpus:
            raise IndexError
    except Exception:  # torch's errors are of many types
        others = ['mps'] if torch.backends.mps.is_available() else []
        usable = ', '.join(['cpu', *(f'cuda:{i}' for i in range(gpus)), *others])
        raise UserError(
            f'device={str(device)!r}: this machine has {gpus or "no"} GPU{"s" * (gpus > 1)} that torch can use; leave '
            f'device out, or give one of: {usable}'
        ) from None
    return named
