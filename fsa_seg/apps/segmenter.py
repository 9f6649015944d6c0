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

from fsa_seg.config.components import has_toy_models, load_components, load_protocol, protocol_settings
from fsa_seg.config.compose import MAX_LONG_SIDE, model_config
from fsa_seg.datasets.images import as_rgb
from fsa_seg.datasets.palette import even_palette
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import feedback_title
from fsa_seg.models.segmentor import resolve_precision
from fsa_seg.models.shared_pass import Member, check_finite_stages, merged_images
from fsa_seg.models.text import Text, check_distinct, split_words
from fsa_seg.models.window import Inspection
from fsa_seg.ops.sfr import SFRAndFSA
from fsa_seg.ops.windows import cut_window, patch_at, to_window, window_spans
from fsa_seg.settings import SEGMENTOR, check_values
from fsa_seg.visualization.pictures import attention_picture, picture_grid

TOY_MODELS = 'These are toy models, which know the toy world alone: what they find in other pictures means nothing.'
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

    Attributes:
        note (str): what a user of the results has to know; None for real models.

    Raises:
        UserError: a component that does not exist, weights that are missing or do not fit, or a device that torch
            cannot use.
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
    ):
        device = get_device() if device is None else check_device(device)
        components = load_components(method, feedback, backbone, vfm)
        settings = protocol_settings(load_protocol(protocol, components), None)
        self.resize = Resize(scale=(MAX_LONG_SIDE, settings['short']), keep_ratio=True)
        names = [components['method'].name]
        if components['feedback']:
            names.append(feedback_title(components['feedback'].name))
        self.settings = f'{" + ".join(names)}, {resolve_precision(precision, device)}'
        self.note = TOY_MODELS if has_toy_models(components) else None
        self.model = MODELS.build(model_config(components, settings, precision, device)).to(device)

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
        words = self._words(classes, prob_thd)
        pictures = image if isinstance(image, (list, tuple)) else [image]
        arrays = [as_rgb(picture, image_max) for picture in pictures]  # a bad image is found before time is spent
        text, names = self.model.encode(words), [group[0] for group in words]
        done = []
        for picture, rgb in zip(pictures, arrays):
            labels, kept = self._labels(self.model, rgb, self._resized(rgb), text, prob_thd, scores, picture)
            drawn = picture_grid(rgb, dict(labels=labels), names, even_palette(len(names)))
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
        words, rgb = self._words(classes, prob_thd), as_rgb(image, image_max)
        height, width = rgb.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f'the pixel {x},{y} lies outside the image, which has {width}×{height} (x from 0 to '
                f'{width - 1}, y from 0 to {height - 1})'
            )
        if self.model.feedback is None:
            raise UserError('there is no feedback to look at: the segmenter was made without FSA')
        if self.model.sees_more_than_windows():
            raise UserError(
                f'{self.model.method.row_title} sees the whole image, and the rows that could be shown are those of '
                'one window alone; choose another method, such as proxyclip'
            )
        text, inputs, bare = self.model.encode(words), self._resized(rgb), copy.copy(self.model)
        bare.feedback = None
        labels, without = (self._labels(model, rgb, inputs, text, prob_thd)[0] for model in (self.model, bare))
        scale = inputs.shape[1] / height, inputs.shape[2] / width
        rows, columns, patch, inspection, shown = self._inspected(
            inputs, text, (y + 0.5) * scale[0], (x + 0.5) * scale[1]
        )
        edges = columns[0] / scale[1], rows[0] / scale[0], columns[1] / scale[1], rows[1] / scale[0]
        window = tuple(round(edge) for edge in edges)
        names = [group[0] for group in words]
        maps = {'without FSA': without, 'with FSA': labels}
        if isinstance(self.model.feedback, SFRAndFSA):
            maps = {'without feedback': without, 'with SFR and FSA': labels}
        drawn = attention_picture(rgb, (x, y), window, shown, maps, names, even_palette(len(names)))
        found = AttentionRows(inspection, window, patch, without, labels, drawn)
        found.classes = tuple(names)
        return found

    def _inspected(self, inputs: torch.Tensor, text: Text, row: float, column: float):
        """Return window, patch, `Inspection` of arrays, and its maps at the window's pixels, at a place in pixels."""
        model, whole_image = self.model, self.model.window == 0
        rows, columns = (
            min(window_spans(side, model.window, model.stride), key=lambda span: abs(sum(span) / 2 - place))
            for side, place in zip(inputs.shape[1:], (row, column))
        )
        crop = cut_window(inputs, rows, columns, model.multiple, whole_image)
        patch = tuple(
            patch_at(place, span, multiple, count, whole_image)
            for place, span, multiple, count in zip(
                (row, column), (rows, columns), model.multiple, model.grid(*crop.shape[2:])
            )
        )
        maps = [values.cpu() for values in model.inspect(crop, patch, text)]
        shown = {
            name: to_window(values, rows, columns, model.multiple, whole_image).numpy()
            for name, values in zip(Inspection._fields, maps)
        }
        return rows, columns, patch, Inspection(*(values.numpy() for values in maps)), shown

    def _words(self, classes: Sequence[str], prob_thd: float) -> list[list[str]]:
        """Return the words of each class; what cannot be segmented into is a UserError."""
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

    def _resized(self, rgb: np.ndarray) -> torch.Tensor:
        """Return an image (height, width, 3) as the model takes it: resized and normalised, (3, h, w)."""
        resized = self.resize(dict(img=np.ascontiguousarray(rgb[..., ::-1])))['img']
        pixels = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        return self.model.data_preprocessor(dict(inputs=[pixels]))['inputs'][0]

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
        path = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else None
        [(pixels,)] = merged_images([Member(model, text)], [inputs], [rgb.shape[:2]], [(path, rgb)])
        labels, kept = model.labels(pixels, text, inputs, prob_thd, scores)
        check_finite_stages(pixels.finite, 'the image', self.settings)
        return labels.cpu().numpy(), None if kept is None else kept.cpu().numpy()


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
