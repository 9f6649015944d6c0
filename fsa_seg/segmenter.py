"""One image, words given on the spot: `Segmenter`."""
import colorsys
from typing import NamedTuple

import numpy as np
import torch
from mmcv.transforms import Resize
from mmengine.device import get_device
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image

from fsa_seg.config import MAX_LONG_SIDE, model_config
from fsa_seg.errors import UserError
from fsa_seg.parts import load_parts, load_protocol, protocol_settings
from fsa_seg.text import split_words
from fsa_seg.visualization import panel


class Segmentation(NamedTuple):
    """What one image was segmented into.

    Attributes:
        labels (height, width): int64, index of the class given.
        scores (K, height, width): float32, softmax over all words, the best word of each class.
        picture: PIL.Image, the image beside its labels, with a legend.
    """
    labels: np.ndarray
    scores: np.ndarray
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

    def __init__(self, backbone='clip_vit-b16', method='proxyclip', feedback=True, vfm='dino_vit-b8',
                 protocol='own', precision='auto', device=None):
        parts = load_parts(method, feedback, backbone, vfm)
        settings = protocol_settings(load_protocol(protocol, parts), None)
        self.resize = Resize(scale=(MAX_LONG_SIDE, settings['short']), keep_ratio=True)
        device = device or get_device()
        config = dict(model_config(parts, settings, precision, device), keep_scores=True)
        self.model = MODELS.build(config).to(device)

    @torch.no_grad()
    def segment(self, image, classes, prob_thd=0.0):
        """Return the `Segmentation` of one image.

        Args:
            image (str, PIL.Image or (height, width, 3) uint8 RGB array).
            classes (list of str): one per class, synonyms separated by ';' ('cat; kitten').
            prob_thd (float): a pixel whose best score is under it gets the first class.

        Raises:
            UserError: no class, a class without a word, or an image that cannot be read.
        """
        words = [split_words(line) for line in classes]
        if not words or not all(words):
            raise UserError(f'classes {list(classes)!r}: give at least one, each with a word, such as "cat; kitten"')
        rgb = _as_array(image)
        resized = self.resize(dict(img=np.ascontiguousarray(rgb[..., ::-1])))['img']
        self.model.set_words(words)
        self.model.prob_thd = prob_thd
        sample = SegDataSample(metainfo=dict(ori_shape=rgb.shape[:2]))
        data = dict(inputs=[torch.from_numpy(resized.transpose(2, 0, 1).copy())], data_samples=[sample])
        sample = self.model.test_step(data)[0]
        labels, scores = sample.pred_sem_seg.data[0].cpu().numpy(), sample.seg_logits.data.cpu().numpy()
        picture = panel(rgb, dict(labels=labels), [group[0] for group in words], _palette(len(words)))
        return Segmentation(labels, scores, picture)


def _as_array(image):
    """Return a path, a PIL image or an array as (height, width, 3) uint8 RGB."""
    if isinstance(image, Image.Image):
        return np.array(image.convert('RGB'))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f'the image has shape {image.shape} and type {image.dtype}; give (height, width, 3) uint8')
        return image
    try:
        return np.array(Image.open(image).convert('RGB'))
    except OSError as error:
        raise UserError(f'the image {image} cannot be read: {error}') from None


def _palette(count):
    """Return `count` colours (3 ints in 0..255), hues evenly apart and lightness alternating."""
    colors = [colorsys.hsv_to_rgb(i / count, 0.85, 1.0 if i % 2 == 0 else 0.65) for i in range(count)]
    return [tuple(round(255 * c) for c in color) for color in colors]
