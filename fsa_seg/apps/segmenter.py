"""One image, words given on the spot: `Segmenter`."""

from typing import NamedTuple

import numpy as np
import torch
from mmcv.transforms import Resize
from mmengine.device import get_device
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image

from fsa_seg.config.components import load_parts, load_protocol, protocol_settings
from fsa_seg.config.compose import MAX_LONG_SIDE, model_config
from fsa_seg.datasets.images import as_rgb
from fsa_seg.errors import UserError
from fsa_seg.models.segmentor import resolve_precision
from fsa_seg.models.shared_pass import check_finite_stages, finite_field
from fsa_seg.models.text import check_distinct, split_words
from fsa_seg.models.window import Inspection
from fsa_seg.ops.windows import cut_window, patch_at, to_window, window_spans
from fsa_seg.settings import SEGMENTOR, check_values
from fsa_seg.visualization.pictures import attention_panel, even_palette, panel


class Segmentation(NamedTuple):
    """What one image was segmented into.

    Attributes:
        labels (height, width): int64, index of the class given.
        scores (K, height, width): float32, softmax over all words, the best word of each class; None unless asked for.
        picture: PIL.Image, the image beside its labels, with a legend.
    """

    labels: np.ndarray
    scores: np.ndarray | None
    picture: Image.Image


class AttentionRows(NamedTuple):
    """What FSA makes of the patch at one pixel of an image.

    Attributes:
        rows: `fsa_seg.models.window.Inspection` of numpy arrays (h, w): the patch's rows of A, S before and after pruning, W
            and Â, over the grid of the window.
        window (left, top, right, bottom): the window they belong to, in pixels of the image.
        patch (row, column): the patch on that grid.
        without, labels (height, width): int64, the labels without FSA and with it.
        picture: PIL.Image of all of that.
    """

    rows: Inspection
    window: tuple
    patch: tuple
    without: np.ndarray
    labels: np.ndarray
    picture: Image.Image


class Segmenter:
    """Segments images into classes named on the spot.

    >>> segmenter = Segmenter(backbone='toy', vfm='toy')                    # doctest: +SKIP
    >>> segmenter.segment('street.jpg', ['car', 'road; street']).labels     # doctest: +SKIP

    Args:
        backbone, method, vfm (str): name or file of a part.
        feedback (bool, dict or str): FSA off or on, its settings (dict(lam=..., p=...)), or a feedback part.
        protocol (str): its default settings are used (window, stride, resize, logit_scale); 'own' is the method's.
        precision (str): 'auto', 'fp32', 'fp16' or 'bf16'.
        device (str): by default the GPU where there is one.

    Raises:
        UserError: a part that does not exist, or weights that are missing or do not fit.
    """

    def __init__(
        self,
        backbone='clip_vit-b16',
        method='proxyclip',
        feedback=True,
        vfm='dino_vit-b8',
        protocol='own',
        precision='auto',
        device=None,
    ):
        parts = load_parts(method, feedback, backbone, vfm)
        settings = protocol_settings(load_protocol(protocol, parts), None)
        self.resize = Resize(scale=(MAX_LONG_SIDE, settings['short']), keep_ratio=True)
        device = device or get_device()
        self.settings = f'{parts["method"].name}{" + FSA" if feedback else ""}, {resolve_precision(precision, device)}'
        self.model = MODELS.build(model_config(parts, settings, precision, device)).to(device)

    @torch.no_grad()
    def segment(self, image, classes, prob_thd=0.0, scores=False, image_max=None):
        """Return the `Segmentation` of one image.

        Args:
            image (str, PIL.Image or (height, width, 3) uint8 RGB array).
            classes (list of str): one per class, synonyms separated by ';' ('cat; kitten').
            prob_thd (float): a pixel whose best score is under it gets the first class.
            scores (bool): keep the scores: 4 bytes for each pixel and class, which a photograph multiplies to gigabytes.
            image_max (int): the value of white in a 16-bit image, see `fsa_seg.datasets.images.read_image`.

        Raises:
            UserError: no class, a class without a word, or an image that cannot be read.
        """
        rgb, data = self._prepared(image, classes, prob_thd, image_max)
        sample = self._segmented(data, prob_thd, scores)
        labels = sample.pred_sem_seg.data[0].cpu().numpy()
        kept = sample.seg_logits.data.cpu().numpy() if scores else None
        picture = panel(
            rgb, dict(labels=labels), [split_words(line)[0] for line in classes], even_palette(len(classes))
        )
        return Segmentation(labels, kept, picture)

    @torch.no_grad()
    def attention(self, image, classes, x, y, prob_thd=0.0, image_max=None):
        """Return the `AttentionRows` of the patch at column x and row y (pixels from the upper left corner).

        Of the windows that cover the pixel, the one whose centre is nearest to it is looked at.

        Args:
            image, classes, prob_thd, image_max: as of `segment`.

        Raises:
            UserError: a pixel outside the image, a segmenter without feedback, or as of `segment`.
        """
        rgb, data = self._prepared(image, classes, prob_thd, image_max)
        model, (height, width) = self.model, rgb.shape[:2]
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(
                f'the pixel {x},{y} lies outside the image, which has {width}×{height} (x from 0 to '
                f'{width - 1}, y from 0 to {height - 1})'
            )
        feedback = model.feedback
        if feedback is None:
            raise UserError('there is no feedback to look at: the segmenter was made without FSA')
        labels = self._segmented(data, prob_thd).pred_sem_seg.data[0].cpu().numpy()
        model.feedback = None
        try:
            without = self._segmented(data, prob_thd).pred_sem_seg.data[0].cpu().numpy()
        finally:
            model.feedback = feedback
        inputs = model.data_preprocessor(dict(inputs=data['inputs']))['inputs'][0]
        scale = inputs.shape[1] / height, inputs.shape[2] / width
        pixel = (y + 0.5) * scale[0], (x + 0.5) * scale[1]
        rows, columns = (
            min(window_spans(side, model.window, model.stride), key=lambda s: abs(sum(s) / 2 - place))
            for side, place in zip(inputs.shape[1:], pixel)
        )
        crop = cut_window(inputs, rows, columns, model.multiple)
        patch = tuple(
            patch_at(place, span, multiple, count)
            for place, span, multiple, count in zip(pixel, (rows, columns), model.multiple, model.grid(*crop.shape[2:]))
        )
        found = Inspection(*(row.cpu() for row in model.inspect(crop, patch)))
        shown = {name: to_window(row, rows, columns, model.multiple).numpy() for name, row in found._asdict().items()}
        window = tuple(
            round(edge)
            for edge in (columns[0] / scale[1], rows[0] / scale[0], columns[1] / scale[1], rows[1] / scale[0])
        )
        names = [split_words(line)[0] for line in classes]
        picture = attention_panel(
            rgb, (x, y), window, shown, {'without FSA': without, 'with FSA': labels}, names, even_palette(len(classes))
        )
        return AttentionRows(Inspection(*(row.numpy() for row in found)), window, patch, without, labels, picture)

    def _prepared(self, image, classes, prob_thd, image_max):
        """Return an image as an array, and as the model's input; the model's words are set to the classes'."""
        check_values(dict(prob_thd=prob_thd), SEGMENTOR, 'options')
        words = [split_words(line) for line in classes]
        if not words or not all(words):
            raise UserError(f'classes {list(classes)!r}: give at least one, each with a word, such as "cat; kitten"')
        check_distinct(words, classes, 'classes')
        rgb = as_rgb(image, image_max)
        resized = self.resize(dict(img=np.ascontiguousarray(rgb[..., ::-1])))['img']
        self.model.set_words(words)
        sample = SegDataSample(metainfo=dict(ori_shape=rgb.shape[:2]))
        return rgb, dict(inputs=[torch.from_numpy(resized.transpose(2, 0, 1).copy())], data_samples=[sample])

    def _segmented(self, data, prob_thd, keep_scores=False):
        self.model.prob_thd, self.model.keep_scores = prob_thd, keep_scores
        sample = self.model.test_step(data)[0]
        check_finite_stages(sample.get(finite_field('pred_sem_seg')), 'the image', self.settings)
        return sample
