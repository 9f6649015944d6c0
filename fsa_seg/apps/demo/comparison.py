"""Several rows on one picture, held in memory: `Comparison`.

A row is a method with or without feedback. Rows of equal windows share one pass; what a pass leaves of the picture
stays for the next one, so that another threshold or another feedback runs the last block alone. No word goes to disk.
"""

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.device import get_device
from mmseg.registry import MODELS
from PIL import Image

from fsa_seg.apps.segmenter import (
    RANDOM_WEIGHTS,
    TOY_MODELS,
    check_device,
    check_pixel,
    look_at,
    model_input,
    split_classes,
)
from fsa_seg.config.components import has_toy_models, load_component, load_components, load_protocol, protocol_settings
from fsa_seg.config.compose import model_config
from fsa_seg.datasets.images import as_rgb, decode_image
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import feedback_title
from fsa_seg.methods import find_method, method_names
from fsa_seg.models.segmentor import TrainingFreeSegmentor, resolve_precision
from fsa_seg.models.shared_pass import KeptImage, Member, check_finite_stages, merged_images
from fsa_seg.models.weights import path_of, weights_from
from fsa_seg.ops.feedback import FSA
from fsa_seg.settings import SEED, check_values

PREVIEW = 1024  # longest side of what is drawn, in pixels; the answer has the picture's own size
WINDOWS = 8  # that a GPU works on at once; the number stays, so that a pass finds the batches of the last one
MOST_WORDS = 10  # words of a patch that are named
FSA_SETTINGS = ('lam', 'p', 'scale', 'uniform_scale', 'terms')  # of a look at a patch


class Row(NamedTuple):
    """One row of a comparison: names of a method and of a feedback; None for the bare method."""

    method: str
    feedback: str | None = None

    @property
    def title(self) -> str:
        """The title in tables: 'SCLIP + FSA'."""
        names = [method_title(self.method), *([feedback_title(self.feedback)] if self.feedback else [])]
        return ' + '.join(names)


class Why(NamedTuple):
    """What FSA makes of the patch at one pixel.

    Attributes:
        window (left, top, right, bottom): the patch's window, in pixels of the original.
        patch (row, column), grid (h, w): the patch, and the grid of the window's patches.
        maps: name of a row (`fsa_seg.models.window.Inspection`) -> values over the window; −∞ where pruned.
        words: (word, index of its class, cosine without FSA, cosine with FSA), the best with FSA first.
        without, labels: label maps without and with FSA, of the size of the preview.
    """

    window: tuple[int, int, int, int]
    patch: tuple[int, int]
    grid: tuple[int, int]
    maps: dict[str, np.ndarray]
    words: list[tuple[str, int, float, float]]
    without: np.ndarray
    labels: np.ndarray


class Comparison:
    """Segments pictures under any rows of one backbone. Models load when a row first needs them, and stay.

    Args:
        backbone, vfm (str): name or file of a component; of a VFM, for all methods with a VFM.
        protocol (str): its default settings are used for all rows; 'own' is each row's own.
        precision, device: as of `fsa_seg.apps.segmenter.Segmenter`.
        random_weights (int): seed of random weights in place of trained weights.

    Attributes:
        note (str): what a user of the results has to know; None for real models.
        backbone, vfm, protocol, precision, random_weights: as given.
        resolved_precision (str): 'fp32', 'fp16' or 'bf16'.

    Raises:
        UserError: a component that does not exist, or a device that torch cannot use.
    """

    def __init__(
        self,
        backbone: str = 'clip_vit-b16',
        vfm: str | None = None,
        protocol: str = 'proxyclip',
        precision: str = 'auto',
        device: str | None = None,
        random_weights: int | None = None,
    ):
        self.device = get_device() if device is None else check_device(device)
        self.backbone, self.vfm, self.protocol = backbone, vfm, protocol
        self.precision, self.random_weights = precision, random_weights
        self.resolved_precision = resolve_precision(precision, self.device)
        load_component('backbone', backbone)
        if protocol != 'own':
            load_component('protocol', protocol)
        self.note = TOY_MODELS if has_toy_models(self._components(Row('proxyclip', 'fsa'))) else None
        if random_weights is not None:
            check_values(dict(random_weights=random_weights), dict(random_weights=SEED), 'options')
            self.note = RANDOM_WEIGHTS
        self._models: dict[str, Any] = {}
        self._segmentors: dict[Row, tuple[TrainingFreeSegmentor, int]] = {}
        self._loading = threading.Lock()

    @property
    def rows(self) -> list[Row]:
        """All rows: every method without feedback, and with FSA where the method has an attention map."""
        return [
            Row(name, feedback)
            for name in method_names()
            for feedback in (None, *(['fsa'] if find_method(name).has_attention() else []))
        ]

    def open(
        self, source: bytes | str | Image.Image | np.ndarray, name: str = 'picture', image_max: int | None = None
    ) -> 'OpenPicture':
        """Return a picture that is ready for `segment` and `why`.

        Args:
            source: a file's content, its path, a PIL image, or an array (height, width, 3) of uint8 RGB.
            name: of the picture, in errors.
            image_max: the value of white in a 16-bit image, see `fsa_seg.datasets.images.read_image`.

        Raises:
            UserError: the picture cannot be decoded.
        """
        return OpenPicture(self, source, name, image_max)

    def fsa_settings(self, method: str) -> dict[str, Any]:
        """Return FSA's settings on a method here, those of FSA_SETTINGS; no model is loaded."""
        config, _ = self._config(self._components(Row(method, 'fsa')))
        return _settings(MODELS.build(config['feedback']))

    def segmentor(self, row: Row) -> tuple[TrainingFreeSegmentor, int]:
        """Return a row's segmentor, and the shorter side of its resized images.

        Raises:
            UserError: weights that are missing or do not fit.
        """
        with self._loading:
            if row not in self._segmentors:
                components = self._components(row)
                if self.random_weights is None:
                    check_weights(components)
                config, short = self._config(components)
                at_once = WINDOWS if str(self.device).startswith('cuda') else 1
                model = MODELS.build(dict(config, models=self._models, window_batch=at_once)).to(self.device)
                model.encoder.writes = False
                self._segmentors[row] = model, short
            return self._segmentors[row]

    def _components(self, row):
        """Return the components of a row."""
        return load_components(row.method, row.feedback, self.backbone, self.vfm)

    def _config(self, components):
        """Return the config of a segmentor, and the shorter side of its resized images."""
        settings = protocol_settings(load_protocol(self.protocol, components), None)
        config = model_config(components, settings, self.precision, self.device, self.random_weights)
        return config, settings['short']


class OpenPicture:
    """A picture, and what passes left of it. Calls of several threads wait for each other.

    Attributes:
        name (str): in errors.
        size (height, width): in pixels, upright.
        path (str): of the picture's file, if the picture was opened by its path.
        preview (h, w, 3): uint8 RGB, at most PREVIEW pixels a side.

    Args:
        comparison: whose rows segment the picture.
        source, name, image_max: as of `Comparison.open`.
    """

    def __init__(
        self,
        comparison: Comparison,
        source: bytes | str | Image.Image | np.ndarray,
        name: str,
        image_max: int | None = None,
    ):
        self.name, self._comparison, self._source, self._image_max = name, comparison, source, image_max
        self.path = source if isinstance(source, str) else None
        rgb = self._rgb()
        self.size, self.preview = rgb.shape[:2], preview(rgb)
        self._inputs: dict[int, torch.Tensor] = {}  # shorter side -> the resized image
        self._kept: dict[tuple, KeptImage] = {}  # what decides the windows -> what passes left of them
        self._bare: tuple[tuple, np.ndarray] | None = None  # method, words and threshold of `why` -> labels without FSA
        self._lock = threading.Lock()

    @torch.no_grad()
    def segment(self, classes: Sequence[str], rows: Sequence[Row], prob_thd: float = 0.0) -> list[np.ndarray]:
        """Return the label map (height, width) of each row: uint8, or uint16 of more than 256 classes.

        Args:
            classes: one text per class, synonyms separated by ';'.
            rows: the rows.
            prob_thd: a pixel whose best score is under it gets the first class.

        Raises:
            UserError: as of `Comparison.segmentor` and `fsa_seg.apps.segmenter.split_classes`.
        """
        words = split_classes(classes, prob_thd)
        models = [self._comparison.segmentor(row) for row in rows]
        groups: dict[tuple, list[int]] = {}
        for i, (model, short) in enumerate(models):
            groups.setdefault(_windows_key(model, short), []).append(i)
        found: dict[int, np.ndarray] = {}
        with self._lock:
            rgb = self._rgb()
            for group in groups.values():
                group_models, short = [models[i][0] for i in group], models[group[0]][1]
                for i, (labels, _) in zip(group, self._pass(group_models, short, words, prob_thd, self.size, rgb)):
                    found[i] = labels
        return [found[i] for i in range(len(rows))]

    @torch.no_grad()
    def scores(self, classes: Sequence[str], row: Row, prob_thd: float = 0.0) -> np.ndarray:
        """Return a row's scores (K, height, width) float32, see `fsa_seg.apps.segmenter.Segmentation`."""
        words, (model, short) = split_classes(classes, prob_thd), self._comparison.segmentor(row)
        with self._lock:
            [(_, scores)] = self._pass([model], short, words, prob_thd, self.size, self._rgb(), keep_scores=True)
        return scores

    @torch.no_grad()
    def why(
        self,
        classes: Sequence[str],
        method: str,
        x: int,
        y: int,
        settings: Mapping[str, Any] | None = None,
        prob_thd: float = 0.0,
    ) -> Why:
        """Return what FSA makes of the patch at column x and row y.

        Args:
            classes, prob_thd: as of `segment`.
            method: name of a method with an attention map.
            x, y: in pixels of the original.
            settings: of FSA, those of FSA_SETTINGS, in place of the published ones.

        Raises:
            UserError: a pixel outside the picture, settings out of range, a method without an attention map.
        """
        words = split_classes(classes, prob_thd)
        check_pixel(x, y, self.size)
        model, short = self._comparison.segmentor(Row(method, 'fsa'))
        fed, bare = copy.copy(model), copy.copy(model)
        fed.feedback, bare.feedback = _changed(model.feedback, settings or {}), None
        with self._lock:
            rgb = self._rgb() if _needs_original(model) else None
            size = self.preview.shape[:2]
            key = method, words, prob_thd
            if self._bare is None or self._bare[0] != key:
                [(without, _)] = self._pass([bare], short, words, prob_thd, size, rgb)
                self._bare = key, without
            [(labels, _)] = self._pass([fed], short, words, prob_thd, size, rgb)
            member, kept = Member(fed, model.encode(words)), self._kept[_windows_key(model, short)]
            looked = look_at(member, self._input(model, short), self.size, (x, y), (None, rgb), kept)
            without = self._bare[1]
        names = [(word, i) for i, group in enumerate(words) for word in group]
        order = np.argsort(-looked.cosines[1], kind='stable')[:MOST_WORDS]
        best = [(*names[i], *map(float, looked.cosines[:, i])) for i in order]
        grid = looked.rows.attention.shape
        return Why(looked.window, looked.patch, grid, looked.maps, best, without, labels)

    def release(self) -> None:
        """Drop what passes left of the picture; the next pass makes it anew."""
        with self._lock:
            self._kept.clear()
            self._bare = None

    def _pass(self, models, short, words, prob_thd, size, rgb, keep_scores=False):
        """Return the labels and the scores, or None, of segmentors of equal windows, at a size."""
        inputs, kept = self._input(models[0], short), self._kept.setdefault(_windows_key(models[0], short), KeptImage())
        text = models[0].encode(words)
        members = [Member(model, text) for model in models]
        [results] = merged_images(members, [inputs], [size], [(None, rgb)], kept)
        kind = np.uint8 if len(words) <= 256 else np.uint16
        found = []
        for model, pixels in zip(models, results):
            labels, scores = model.labels(pixels, text, inputs, prob_thd, keep_scores)
            check_finite_stages(
                pixels.finite, self.name, f'{model.method.row_title}, {self._comparison.resolved_precision}'
            )
            found.append((labels.cpu().numpy().astype(kind), None if scores is None else scores.cpu().numpy()))
        return found

    def _input(self, model, short):
        if short not in self._inputs:
            self._inputs[short] = model_input(model, short, self._rgb())
        return self._inputs[short]

    def _rgb(self):
        """Return the picture (height, width, 3) uint8; it is decoded anew, so that memory holds the file alone."""
        if isinstance(self._source, bytes):
            return decode_image(self._source, f'the image {self.name}', self._image_max)
        return as_rgb(self._source, self._image_max)


def check_weights(components: Mapping[str, Any]) -> None:
    """Raise a UserError if weights would have to be downloaded, which takes minutes in which nothing else is answered.

    Args:
        components: of `fsa_seg.config.components.load_components`.
    """
    named = [('backbone', components['backbone']), *(('vfm', vfm) for vfm in components['vfm'].values())]
    found = [weights_from(kind, component) for kind, component in named]
    missing = dict.fromkeys(
        weights.name for weights in found if (weights.files or '://' in weights.source) and path_of(weights) is None
    )
    if missing:
        raise UserError(
            f'the weights of {" and ".join(missing)} are not on this machine: run '
            f'fsa-seg weights get {" ".join(missing)}'
        )


def method_title(method: str) -> str:
    """Return a method's title in tables."""
    return load_component('method', method).row_title


def _windows_key(model, short):
    """Return what decides the resized image and its windows."""
    return short, model.fit, model.window, model.stride


def _needs_original(model):
    """Return whether a segmentor may look at the original pixels, from one of the hooks that see the image."""
    hooks = any(part.overrides(hook) for part in model.method.parts for hook in ('merge', 'correct', 'refine'))
    return hooks or model.sees_more_than_windows() or model.refinement is not None


def _changed(feedback, settings):
    """Return FSA with some settings changed."""
    unknown = sorted(set(settings) - set(FSA_SETTINGS))
    if unknown:
        raise UserError(f'FSA has no setting {", ".join(unknown)} here; give some of {", ".join(FSA_SETTINGS)}')
    return FSA(**{**_settings(feedback), **settings})


def _settings(feedback):
    """Return the settings of FSA that a look at a patch may change."""
    return dict({key: getattr(feedback, key) for key in FSA_SETTINGS}, terms=list(feedback.terms))


def preview_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size (height, width) at which a picture of `size` is drawn: its longer side is at most PREVIEW."""
    height, width = (max(1, round(side * min(1, PREVIEW / max(size)))) for side in size)
    return height, width


def preview(rgb: np.ndarray) -> np.ndarray:
    """Return a picture (height, width, 3) as it is drawn, see `preview_size`."""
    height, width = preview_size(rgb.shape[:2])
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
