"""The registered segmentors: one for each method, over a base that takes any method.

Shape legend: B images, Q queries, K classes; images (3, height, width), each of its own size.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Literal, NoReturn, cast

import torch
from mmengine.device import get_device
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import Registry
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.nn.functional import interpolate

from fsa_seg.errors import UserError, check_keys, one_line, one_of, warn_once
from fsa_seg.methods import find_method, make_method, method_key, method_names, with_stage
from fsa_seg.methods.base import Method, check_feedback, sees_windows
from fsa_seg.models.clip import (
    BACKBONE_KEYS,
    check_finite,
    check_inner_blocks,
    load_clip,
    trunk_and_inner,
    weights_digest,
)
from fsa_seg.models.kept import keep_only, once, shared_models
from fsa_seg.models.refinements import Refinements, join_tiles
from fsa_seg.models.regions import shared_regions
from fsa_seg.models.sam_refinement import SAMRefinement  # noqa: F401  (registers it)
from fsa_seg.models.shared_pass import (
    Images,
    Member,
    Pixels,
    enough_memory,
    finite_field,
    image_files,
    merged_images,
    original_sizes,
)
from fsa_seg.models.text import Text, TextEncoder
from fsa_seg.models.vfm import VisionModel, build_vfm, check_kind, run_vfm, vfm_grid, window_multiple
from fsa_seg.ops.device import batch_that_fits, exact_float32
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.labels import class_scores, label_tiles
from fsa_seg.ops.pamr import PAMR
from fsa_seg.ops.propagation import TLP
from fsa_seg.ops.sfr import SFR, SFRAndFSA
from fsa_seg.ops.types import ImageTower, Tile, pair
from fsa_seg.settings import BACKBONE, SEGMENTOR, check_values
from fsa_seg.system.progress import note

# scores of pixels with queries that are made at once: 2 MiB, 64 MiB in float32
TILE_SCORES = dict(cpu=2**19, cuda=2**24)
ROLE_KEYS = ('features', 'scope')  # of a VFM's config: what belongs to its role, see `TrainingFreeSegmentor`
PRECISIONS = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)

WITHOUT_FILES = ('fsa_seg.ops.', 'fsa_seg.datasets.', 'mmcv.', 'mmseg.')  # modules whose constructors read none
_built: set[tuple[Any, str]] = set()  # class and config of what was built without an error

for _part in (FSA, SFR, SFRAndFSA, PAMR, TLP):
    MODELS.register_module(module=_part)


def resolve_precision(precision: str, device: str | torch.device | None = None) -> str:
    """Return 'fp32', 'fp16' or 'bf16'; 'auto' is half precision on a GPU and float32 without one.

    Args:
        precision (str): 'auto' or one of the three.
        device (str): where the model will run; by default the runner's choice.

    Raises:
        UserError: another name.
    """
    one_of(precision, ('auto', *PRECISIONS), 'precision')
    if precision == 'auto':
        return 'fp16' if str(device or get_device()).startswith('cuda') else 'fp32'
    return precision


def check_settings(settings: dict[str, Any], method: Method | None = None) -> None:
    """Raise a UserError if a setting of a segmentor has a wrong type, is out of its range, or not for the method."""
    check_values(settings, SEGMENTOR, 'model')
    if settings['window'] and settings['stride'] > settings['window']:
        raise UserError(
            f'model: window is {settings["window"]} and stride {settings["stride"]}; the stride has to be at most the '
            'window, or pixels between windows would have no score'
        )
    if method is None:
        return
    if settings['window'] == 0 and not method.takes_whole_images():
        raise UserError(
            f'model: window is 0, the whole image, which the method {method.name} cannot take; name a window '
            'in pixels, such as 336'
        )
    check_feedback(method, feedback_class(settings.get('feedback')))


def feedback_class(config: Mapping[str, Any] | None) -> Any:
    """Return the class of a feedback's config; None without one, and the config where no class has the name."""
    return config and (MODELS.module_dict.get(config.get('type')) or config)


@functools.lru_cache
def check_compiler() -> None:
    """Raise a UserError if `torch.compile` does not work here."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=get_device()))
    except Exception as error:  # no compiler, no Triton, ...
        raise UserError(
            'torch.compile does not work here: leave out --compile, or install what it needs, such as g++ '
            f'({one_line(error)})'
        ) from error


def check_window(window: int, patch: tuple[int, int], vfms: dict[str, VisionModel] | None = None) -> tuple[int, int]:
    """Return what a window's height and width have to be multiples of.

    Args:
        window: side of the windows, in pixels; 0 is the whole image.
        patch (int, int): the backbone's patch.
        vfms: role -> VFM, of those that see windows.

    Raises:
        UserError: a window smaller than a patch, or one that a VFM has no grid for.
    """
    vfms = vfms or {}
    multiples = [('backbone', patch), *(('VFM', window_multiple(vfm)) for vfm in vfms.values())]
    for name, sides in multiples:
        if 0 < window < max(sides):
            raise UserError(f'window is {window} pixels, smaller than a patch of the {name}, {sides[0]}×{sides[1]}')
    multiple = pair(math.lcm(*sides) for sides in zip(*(sides for _, sides in multiples)))
    for vfm in vfms.values() if window else ():
        height, width = (-(-window // side) * side for side in multiple)
        grid = vfm_grid(vfm, height, width)
        if not all(grid):
            raise UserError(
                f'the VFM has no features for a window of {window} pixels: its grid would be '
                f'{"×".join(map(str, grid))}; use a larger window'
            )
    return multiple


@MODELS.register_module()
class ImageListPreprocessor(BaseDataPreprocessor):
    """Normalises images that may differ in size: uint8 BGR (3, height, width) each -> a list of float RGB ones.

    Args:
        mean, std (3 floats): of the backbone, on 0..1 RGB.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__(non_blocking=True)
        self.register_buffer('mean', torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer('std', torch.tensor(std)[:, None, None] * 255, persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        inputs = [(image.flip(0).float() - self.mean) / self.std for image in self.cast_data(data['inputs'])]
        return dict(inputs=inputs, data_samples=data.get('data_samples'))


@MODELS.register_module()
class TrainingFreeSegmentor(BaseSegmentor):
    """Segments images into classes named by words, with CLIP under a training-free method.

    Every method of `fsa_seg.methods` is registered under its title as well: dict(type='SCLIP', backbone=...).

    Args:
        backbone (dict): arguments of `fsa_seg.models.clip.load_clip`.
        method (str or dict): see `fsa_seg.methods.make_method`; of a segmentor that is named after its method, the
            settings of that method alone.
        words (list of lists of str): the query words of each class, in label order. Without words `encode` makes the
            text that prediction takes.
        stage (str or dict): a method whose hooks on the whole image the method carries: dict(type='LPOSS', ...).
        vfm (dict): a registered VFM for the method's only role, or a dict of role -> VFM. The keys of ROLE_KEYS belong
            to the role: `scope`, 'image' for features of the whole image, cut for each window; and `features`, their
            kind in place of the method's.
        feedback (dict): None, or dict(type='FSA', lam=..., p=...).
        refinement (dict): None, or a refinement of every image's cosines, scores or labels: dict(type='PAMR', ...).
        window (int), stride (int): of the sliding windows, in pixels of the resized image; a window of 0 is the whole
            image.
        fit (str): how an image is brought to sides that are multiples of CLIP's patch, before windows are cut: None
            leaves it; 'stretch' resizes it, see `stretched_size`; 'pad' adds black at the right and below.
        logit_scale (float): factor on the cosines before the softmax over queries.
        prob_thd (float), area_thd (float): see `fsa_seg.ops.labels.label_map`.
        precision (str): of trunk and VFM: 'auto', 'fp32', 'fp16' or 'bf16'. FSA, cosines and scores are float32.
        keep_scores (bool): also put the class scores, (K, height, width), into each data sample's `seg_logits`.
        text_cache (str): folder of the text embeddings' cache, see `fsa_seg.models.text.TextEncoder`.
        window_batch (int): how many windows go through trunk and VFM at once; 'auto' is 1 on a CPU, where more is no
            faster, and on a GPU what half of its free memory holds.
        compile (bool): whether trunk and VFM are compiled by `torch.compile`.
        models (dict): the models of segmentors that share theirs, see `fsa_seg.models.shared_pass.SharedPass`; by
            default those of `fsa_seg.models.kept.kept_models`.
        pretrained, train_cfg: None, which `mmseg.apis.init_model` gives every segmentor.

    Raises:
        UserError: a setting that cannot be used, or weights that are missing or do not fit.
    """

    method_name: str | None = None  # of a segmentor that is named after its method
    feedback: Any  # None, or an `FSA`
    refinement: Any  # None, or an object with `refines` and `refine`

    def __init__(
        self,
        backbone: dict[str, Any],
        method: str | dict[str, Any] | Method | None = None,
        stage: str | dict[str, Any] | None = None,
        words: Sequence[Sequence[str]] | None = None,
        vfm: dict[str, Any] | None = None,
        feedback: dict[str, Any] | None = None,
        refinement: dict[str, Any] | None = None,
        window: int = 336,
        stride: int = 112,
        fit: str | None = None,
        logit_scale: float = 40.0,
        prob_thd: float = 0.0,
        area_thd: float | None = None,
        precision: str = 'auto',
        keep_scores: bool = False,
        text_cache: str | None = None,
        window_batch: int | Literal['auto'] = 'auto',
        compile: bool = False,
        models: dict[str, Any] | None = None,
        pretrained: None = None,
        train_cfg: None = None,
    ):
        settings = dict(
            window=window,
            stride=stride,
            fit=fit,
            stage=stage,
            logit_scale=logit_scale,
            prob_thd=prob_thd,
            area_thd=area_thd,
            precision=precision,
            keep_scores=keep_scores,
            text_cache=text_cache,
            window_batch=window_batch,
            compile=compile,
            words=words,
            feedback=feedback,
            refinement=refinement,
        )
        if pretrained is not None or train_cfg is not None:
            raise UserError('model: pretrained and train_cfg have to be None; backbone and vfm name their weights')
        method = method_of(self.method_name, method, stage)
        check_settings(settings, method)
        vfms = vfms_by_role(method, vfm)
        check_values(backbone, BACKBONE, 'model.backbone')
        check_keys(backbone, BACKBONE_KEYS, 'backbone')
        precision, models = resolve_precision(precision), shared_models() if models is None else models
        keys = _model_keys(backbone, vfms, refinement, precision, text_cache, compile)
        feedback = MODELS.build(feedback) if feedback else None
        refinement, refinement_digest = (
            once(models, keys['refinement'], functools.partial(load_refinement, refinement))
            if refinement
            else (None, None)
        )
        clip, tokenizer, digest = once(models, keys['backbone'], functools.partial(_load_backbone, backbone, precision))
        mean, std = (clip.visual.preprocess_cfg[key] for key in ('mean', 'std'))
        super().__init__(data_preprocessor=ImageListPreprocessor(mean, std))

        self.method, self.feedback, self.refinement = method, feedback, refinement
        self.window, self.stride, self.fit, self.window_batch = window, stride, fit, window_batch
        self.logit_scale, self.prob_thd, self.area_thd = logit_scale, prob_thd, area_thd
        self.keep_scores = keep_scores
        depth = len(clip.visual.transformer.resblocks)
        self.inner_blocks = check_inner_blocks(method.inner_blocks(depth), depth)
        self.weights = dict(backbone=digest, **({'refinement': refinement_digest} if refinement_digest else {}))
        self._fitting: dict[int, int] = {}  # number of queries -> how many windows fit
        self._halved: int | None = None  # how many windows go through at once since memory ran out
        self.encoder: TextEncoder | None = once(
            models, keys['encoder'], functools.partial(TextEncoder, clip, tokenizer, text_cache)
        )
        self.register_buffer('text_rows', torch.empty(0), persistent=False)
        self._text: Text | None = None
        self.visual: ImageTower = clip.visual
        self.vfms = cast(MutableMapping[str, VisionModel], torch.nn.ModuleDict())
        if compile:
            check_compiler()
        self.trunk = torch.compile(trunk_and_inner) if compile else trunk_and_inner
        self._role_options = {
            role: {key: config[key] for key in ROLE_KEYS if key in config} for role, config in vfms.items()
        }
        for role, config in vfms.items():
            self.vfms[role], self.weights[f'vfm.{role}'] = once(
                models, keys[f'vfm.{role}'], functools.partial(_load_vfm, vfm_config(config), precision, compile)
            )
        self._vfm_settings = {role: json.dumps([config, precision], sort_keys=True) for role, config in vfms.items()}
        check_kinds(method, vfms, self.vfms)
        sources = [part.regions for part in method.parts if part.regions]
        self.regions = shared_regions(sources[0]) if sources else None
        self.member_key = json.dumps([method.key(), *(self.role_key(role) for role in self.vfms)])
        self.multiple = check_window(window, self.visual.patch_size, self.window_vfms())
        self._check_patches()
        if words is not None:
            self.keep_words(words)  # last, since it may take minutes
        self.eval()

    def keep_words(self, words: Sequence[Sequence[str]]) -> None:
        """Embed words, which `predict` segments into by default, and drop the text tower.

        Args:
            words: the query words of each class.
        """
        assert self.encoder is not None  # words come once
        text = self.encoder.encode(words, get_device())
        self.encoder.to_host()  # a kept model leaves a GPU's memory to the images
        self._text, self.text_rows, self.encoder = text, text.rows, None

    @property
    def text(self) -> Text:
        """The text of the words that the segmentor was built with, on its device."""
        if self._text is None:
            raise RuntimeError('the segmentor was built without words: pass the text of `encode` to predict')
        return self._text._replace(rows=self.text_rows)

    @property
    def device(self) -> torch.device:
        """Where the segmentor is."""
        return self.text_rows.device

    def encode(self, words: list[list[str]]) -> Text:
        """Return the text of other words, on the segmentor's device; it has to be built without words.

        Args:
            words: the query words of each class.
        """
        assert self.encoder is not None, 'the segmentor was built with words'
        return self.encoder.encode(words, self.device).to(self.device)

    def _check_patches(self) -> None:
        """Raise a UserError if a whole window has fewer patches than the method or the feedback needs."""
        if self.window == 0:  # each image's own size
            return
        sides = (-(-self.window // side) * side for side in self.multiple)
        of_clip = math.prod(side // patch for side, patch in zip(sides, self.visual.patch_size))
        needs = [(self.method.title, self.method.least_patches, of_clip)]
        if hasattr(self.feedback, 'least_patches'):
            of_output = math.prod(self.grid(self.window, self.window))
            needs.append((type(self.feedback).__name__, self.feedback.least_patches, of_output))
        for name, least, count in needs:
            if count < least:
                raise UserError(
                    f'model: window is {self.window} pixels or {count} patches, and {name} needs at least {least}; '
                    'use a larger window'
                )

    def window_vfms(self) -> dict[str, VisionModel]:
        """Return the VFMs that see each window, or whose features are cut for each, by role."""
        return {role: vfm for role, vfm in self.vfms.items() if sees_windows(self.method.roles[role])}

    def image_roles(self) -> list[str]:
        """Return the roles whose features of the whole image the windows and the merge find."""
        return [role for role in self.vfms if self.method.roles[role] == 'image']

    def sees_image(self, role: str) -> bool:
        """Return whether a role's VFM sees the whole image, by its setting `scope`."""
        return self._role_options[role].get('scope', 'window') == 'image'

    def sees_more_than_windows(self) -> bool:
        """Return whether the attention of a window depends on more than the window."""
        method = self.method
        return method.overrides('whole') or self.regions is not None or any(map(self.sees_image, self.vfms))

    def kind(self, role: str) -> str:
        """Return the kind of a role's features."""
        return self._role_options[role].get('features') or self.method.kinds.get(role, 'tokens')

    def vfm_digest(self, role: str) -> str:
        """Return a digest of the settings and the weights of a role's VFM."""
        return hashlib.sha256(f'{self._vfm_settings[role]} {self.weights[f"vfm.{role}"]}'.encode()).hexdigest()

    def role_key(self, role: str) -> tuple:
        """Return what decides a role's features of given pixels: the VFM, the kind, and what the VFM sees."""
        return id(self.vfms[role]), self.kind(role), self.sees_image(role)

    def fitted(self, image: torch.Tensor) -> torch.Tensor:
        """Return a normalised image (3, height, width) as windows are cut from it, see `fit`."""
        patch = self.visual.patch_size
        if self.fit == 'stretch':
            size = stretched_size(pair(image.shape[1:]), patch, self.window)
            if size != pair(image.shape[1:]):
                return interpolate(image[None].float(), size, mode='bilinear', align_corners=False)[0]
        if self.fit == 'pad':
            rows, columns = (-side % count for side, count in zip(image.shape[1:], patch))
            black = -self.data_preprocessor.mean / self.data_preprocessor.std
            padded = black.expand(3, image.shape[1] + rows, image.shape[2] + columns).to(image).clone()
            padded[:, : image.shape[1], : image.shape[2]] = image
            return padded
        return image

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid (h, w) of patch cosines for a window of height × width pixels."""
        height, width = (
            max(side // multiple, 1) * multiple if self.window == 0 else -(-side // multiple) * multiple
            for side, multiple in zip((height, width), self.multiple)
        )
        clip = height // self.visual.patch_size[0], width // self.visual.patch_size[1]
        vfms = {role: vfm_grid(vfm, height, width) for role, vfm in self.window_vfms().items()}
        return pair(self.method.grid(clip, vfms))

    def batch_size(self, run: Callable[[], Any], queries: int = 0) -> int:
        """Return how many windows go through the models at once.

        Where that is to be by free memory, it is found out when it is first asked for, for each number of queries.

        Args:
            run: see `fsa_seg.ops.device.batch_that_fits`.
            queries: how many the text has.
        """
        if self.window_batch != 'auto':
            return min(self.window_batch, self._halved or self.window_batch)
        if queries not in self._fitting:
            self._fitting[queries] = batch_that_fits(run, self.device)
        return min(self._fitting[queries], self._halved or self._fitting[queries])

    def halve_batch(self, most: int) -> int:
        """Return half of a number of windows for which a GPU's memory was too small; no more go through from now on."""
        self._halved = most // 2
        torch.cuda.empty_cache()  # what the allocator keeps in pieces
        note(f'out of GPU memory: windows go through the models {self._halved} at a time')
        return self._halved

    @property
    def windows_at_once(self) -> int:
        """How many windows go through the models at once, at most; after memory ran out, in the end."""
        most = max(self._fitting.values(), default=1) if self.window_batch == 'auto' else self.window_batch
        return min(most, self._halved or most)

    def predict(
        self, inputs: Images, data_samples: list[SegDataSample] | None = None, text: Text | None = None
    ) -> list[SegDataSample]:
        """Return data samples with `pred_sem_seg` (1, height, width) int64 at each image's original size.

        Args:
            inputs (sequence of tensors (3, height, width), or (B, 3, height, width)): normalised.
            data_samples (list of SegDataSample): their `ori_shape` is the original size; without it, the input's.
            text: of `encode`; by default that of the segmentor's words.
        """
        text = self.text if text is None else text
        samples = data_samples or [SegDataSample() for _ in inputs]
        merged = merged_images([Member(self, text)], inputs, original_sizes(inputs, samples), image_files(samples))
        for image, sample, (pixels,) in zip(inputs, samples, merged):
            labels, scores = self.labels(pixels, text, image)
            sample.pred_sem_seg = PixelData(data=labels[None])
            sample.set_field(pixels.finite, finite_field('pred_sem_seg'), torch.Tensor)
            if self.keep_scores:
                sample.seg_logits = PixelData(data=scores)
        return samples

    def labels(
        self,
        pixels: Pixels,
        text: Text,
        image: torch.Tensor,
        prob_thd: float | None = None,
        keep_scores: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the labels (height, width) of an image, and its scores (K, height, width) or None.

        Scores are made tile by tile, and held whole only where they are asked for or refined.

        Args:
            pixels: of the image, see `fsa_seg.models.shared_pass.merged_images`.
            text: the words' text.
            image (3, height, width): normalised; refinements see it at the size of the cosines.
            prob_thd (float), keep_scores (bool): in place of the segmentor's own.

        Raises:
            UserError: the image takes more memory than the GPU has free.
        """
        with enough_memory('the labels of an image', [Member(self, text)]):
            return self._labels(pixels, text, image, prob_thd, keep_scores)

    @torch.no_grad()
    def _labels(
        self, pixels: Pixels, text: Text, image: torch.Tensor, prob_thd: float | None, keep_scores: bool | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        prob_thd = self.prob_thd if prob_thd is None else prob_thd
        keep_scores = self.keep_scores if keep_scores is None else keep_scores
        cosines = pixels.cosines
        refine = Refinements(self.method, self.refinement, image, cosines.size, text, pixels.seen)
        whole_scores = keep_scores or refine.need_scores
        most = TILE_SCORES.get(self.device.type, TILE_SCORES['cuda'])
        cosine_tiles = refine.tiles('cosines', lambda: cosines.tiles(most), most)
        kept = None

        def scores() -> Iterator[Tile]:
            nonlocal kept
            for (rows, columns), tile in cosine_tiles():
                classes = class_scores(tile, text.words_per_class, self.logit_scale)
                if whole_scores and not refine.stages('scores'):
                    kept = classes.new_empty((len(classes), *cosines.size)) if kept is None else kept
                    kept[:, rows, columns] = classes
                yield (rows, columns), classes

        tiles = refine.tiles('scores', scores, most)
        if whole_scores and refine.stages('scores'):
            kept = refine.refined['scores']
        labels = label_tiles(tiles, cosines.size, prob_thd, self.area_thd)
        for part in self.method.parts:
            labels = part.correct(labels, pixels.seen)
        return refine.values('labels', labels, kept), kept if keep_scores else None

    def pixel_cosines(
        self, image: torch.Tensor, size: tuple[int, int] | None = None, text: Text | None = None
    ) -> torch.Tensor:
        """Return the cosines of an image's pixels with the queries, (Q, height, width) float32, without refinement.

        Args:
            image (3, height, width): normalised with the backbone's mean and std.
            size (int, int): height and width of the result; by default the image's.
            text: as of `predict`.
        """
        text = self.text if text is None else text
        [(pixels,)] = merged_images([Member(self, text)], [image], [size or pair(image.shape[1:])])
        return join_tiles(pixels.cosines.tiles(image.numel() * len(text.rows)), pixels.cosines.size)

    def features(self, images: torch.Tensor, roles: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
        """Return the features (B, C, I, J) of normalised images, by role.

        Args:
            images (B, 3, height, width): normalised for the backbone.
            roles: whose VFMs run; by default those that see windows.

        Raises:
            UserError: features of another shape than the VFM's `grid` says.
        """
        vfms = self.window_vfms() if roles is None else {role: self.vfms[role] for role in roles}
        if not vfms:
            return {}
        pixels = self.to_rgb(images)
        return {role: self.run(role, pixels) for role in vfms}

    def to_rgb(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised images (..., 3, height, width) as RGB from 0 to 1."""
        return (images * self.data_preprocessor.std + self.data_preprocessor.mean) / 255

    def run(self, role: str, pixels: torch.Tensor, kind: str | None = None) -> torch.Tensor:
        """Return a role's features (B, C, I, J) of pixels (B, 3, height, width), RGB from 0 to 1."""
        return run_vfm(self.vfms[role], pixels, kind or self.kind(role))

    def train(self, mode: bool = True) -> 'TrainingFreeSegmentor':
        """Stay in evaluation mode; training mode is refused."""
        if mode:
            raise RuntimeError('the segmentors are training-free: there is no training mode')
        return super().train(False)

    def loss(self, inputs: Any, data_samples: Any) -> NoReturn:
        """Raise: the segmentors are training-free."""
        raise RuntimeError('the segmentors are training-free: they have no loss')

    def _forward(self, inputs: Images, data_samples: Any = None) -> list[torch.Tensor]:
        """Return each image's cosines (Q, height, width), without post-processing."""
        return [self.pixel_cosines(image) for image in inputs]

    def extract_feat(self, inputs: Any) -> NoReturn:
        raise NotImplementedError('use fsa_seg.patch_logits')

    def encode_decode(self, inputs: Any, batch_data_samples: Any) -> NoReturn:
        raise NotImplementedError('use predict')


def stretched_size(size: tuple[int, int], patch: tuple[int, int], window: int) -> tuple[int, int]:
    """Return the size to which Trident stretches an image: both sides are multiples of the patch.

    A size of multiples stays. Else the longer side goes up to the next multiple, the other in proportion and up to its
    next multiple; both are at least the window.

    >>> stretched_size((448, 597), (16, 16), 336)
    (464, 608)

    Args:
        size (int, int), patch (int, int), window (int): in pixels.
    """
    if not any(side % count for side, count in zip(size, patch)):
        return size
    longer = int(size[1] > size[0])
    long_side = -(-size[longer] // patch[longer]) * patch[longer]
    scale = long_side / size[longer]
    sides = [max(math.ceil(int(side * scale) / count) * count, window) for side, count in zip(size, patch)]
    sides[longer] = max(long_side, window)
    return pair(sides)


def method_of(
    name: str | None, method: str | dict | Method | None, stage: str | Mapping[str, Any] | None = None
) -> Method:
    """Return the method of a segmentor: `method` as of `make_method`, or the settings of the method `name`.

    Args:
        name, method: see above.
        stage: of the method, see `fsa_seg.methods.with_stage`.
    """
    if name is None:
        if method is None:
            raise UserError("the segmentor has no method: name one, such as method='sclip' or type='SCLIP'")
        built = make_method(method)
    elif not isinstance(method, (dict, type(None))):
        raise UserError(f'model: method is {method!r}; it has to be a dict of settings of the method {name}')
    else:
        built = make_method(dict(method or {}, type=name))
    if stage is None:
        return built
    return with_stage(built, dict(stage) if isinstance(stage, Mapping) else stage)


def vfm_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that builds a VFM: that of a role without the keys of ROLE_KEYS."""
    return {key: value for key, value in config.items() if key not in ROLE_KEYS}


def check_kinds(method: Method, configs: Mapping[str, Mapping[str, Any]], vfms: Mapping[str, Any]) -> None:
    """Raise a UserError if a VFM does not have the kind of features that its role asks for.

    Args:
        method: the method.
        configs: role -> config.
        vfms: role -> VFM.
    """
    for role, config in configs.items():
        if config.get('scope') == 'image' and not sees_windows(method.roles[role]):
            raise UserError(
                f'the role {role} of {method.row_title} sees what the method shows it, the whole image: leave out '
                'scope=image (@image)'
            )
        check_kind(vfms[role], config.get('features') or method.kinds.get(role, 'tokens'))


def vfms_by_role(method: Method, vfm: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the config of each role's VFM.

    Args:
        method: the method.
        vfm: one VFM's config, for a method of one role, or a dict of role -> config.

    Raises:
        UserError: a role without a VFM, or a VFM for a role that the method does not have.
    """
    roles = list(method.roles)
    if not vfm or not roles:
        vfm = {}
    elif 'type' in vfm:
        if len(roles) > 1:
            raise UserError(f'the method {method.name} has the roles {", ".join(roles)}: name a VFM for each')
        vfm = {roles[0]: vfm}
    check_keys(vfm, roles, f'the VFMs of the method {method.name}')
    missing = [role for role in roles if not vfm.get(role)]
    if missing:
        option = 'dino_vit-b8' if len(roles) == 1 else ','.join(f'{role}=dino_vit-b8' for role in roles)
        raise UserError(
            f'the method {method.name} needs a VFM for the role {", ".join(missing)}: name it, such as --vfm {option}'
        )
    return dict(vfm)


def register_method(method: type[Method]) -> str:
    """Register a segmentor under a method's title, and return the title.

    Raises:
        UserError: another class has the title.
    """
    registered = MODELS.module_dict.get(method.title)
    if registered is not None and getattr(registered, 'method_path', None) != method.path:
        raise UserError(f'{method.path}: a class {method.title!r} is registered already; give the method another title')
    if registered is None or registered.method_class is not method:
        about = dict(
            __doc__=method.__doc__,
            __module__=__name__,
            method_name=method_key(method),
            method_path=method.path,
            method_class=method,
        )
        MODELS.register_module(method.title, True, type(method.title, (TrainingFreeSegmentor,), about))
    return method.title


def register_own_methods(title: str | None = None) -> None:
    """Register the methods that lie in methods/ of the folders of FSA_SEG_CONFIGS.

    A file that cannot be used is a warning, or an error where no other file has the title.

    Args:
        title: that a config asks for; nothing is done where a class has it.
    """
    if title in MODELS.module_dict:
        return
    faults = []
    for name in sorted(set(method_names()) - set(method_names(users=False))):
        try:
            register_method(find_method(name))
        except UserError as error:
            faults.append(str(error))
    if title is None or title in MODELS.module_dict:
        for fault in faults:
            warn_once(f'a method is not registered: {fault}')
    elif faults:
        raise UserError('; '.join(faults))


def registered(registry: Registry, name: str) -> Any:
    """Return the class of a name, as `registry.get`, which also writes a line to the log; None for an unknown name."""
    registry.import_from_location()
    node, own = registry, name.removeprefix(f'{registry.scope}.')
    while node is not None:
        if own in node.module_dict:
            return node.module_dict[own]
        node = node.parent if own == name else None  # a name with a scope is that of no parent's class
    return registry.get(name)


def check_built(registry: Registry, config: Mapping[str, Any]) -> None:
    """Build an object, whose class checks its arguments; raise what the class raises.

    An object whose arguments alone decide that is built once for equal arguments.
    """
    cls = registered(registry, config['type']) if isinstance(config.get('type'), str) else None
    key = cls, repr(config)
    if key not in _built:
        registry.build(config)
        if str(getattr(cls, '__module__', '')).startswith(WITHOUT_FILES):
            _built.add(key)


def configured_method(model: Mapping[str, Any]) -> Method | None:
    """Return the method of a segmentor's config; None for a segmentor of another base."""
    cls = registered(MODELS, model['type'])
    return (
        method_of(cls.method_name, model.get('method'), model.get('stage'))
        if issubclass(cls, TrainingFreeSegmentor)
        else None
    )


for _name in method_names(users=False):
    register_method(find_method(_name))


def _model_keys(
    backbone: Mapping[str, Any],
    vfms: Mapping[str, Mapping[str, Any]],
    refinement: Mapping[str, Any] | None,
    precision: str,
    text_cache: str | None = None,
    compile: bool = False,
) -> dict[str, list]:
    """Return the keys of a segmentor's models, see `fsa_seg.models.kept.once`: part of the segmentor -> key."""
    keys: dict[str, list] = dict(
        backbone=['backbone', backbone, precision], encoder=['encoder', backbone, precision, text_cache]
    )
    if refinement:
        keys['refinement'] = ['refinement', refinement]
    keys.update((f'vfm.{role}', ['vfm', vfm_config(config), precision, compile]) for role, config in vfms.items())
    return keys


def keep_models_of(configs: Iterable[Mapping[str, Any]]) -> None:
    """Drop the models of `fsa_seg.models.kept.kept_models` that the segmentors of no config need.

    A pass drops them before it loads its own, so that both never lie in memory.

    Args:
        configs: of segmentors; one of another base needs none of these models.
    """
    needed: list[list] = []
    for model in configs:
        method = configured_method(model)
        if method is not None:
            options = {key: model[key] for key in ('text_cache', 'compile') if key in model}
            vfms, precision = vfms_by_role(method, model.get('vfm')), resolve_precision(model.get('precision', 'auto'))
            needed += _model_keys(model['backbone'], vfms, model.get('refinement'), precision, **options).values()
    keep_only(needed)


def _load_backbone(config: dict[str, Any], precision: str) -> tuple[Any, Callable, str]:
    """Return a CLIP model with its image tower in a precision, its tokenizer, and the digest of its weights."""
    exact_float32()
    clip, tokenizer = load_clip(**config)
    what = f'the backbone {config["model"]!r} ({config.get("checkpoint") or config.get("pretrained") or "its folder"})'
    check_finite(clip, what)
    digest = weights_digest(clip)
    check_finite(clip.visual.to(PRECISIONS[precision]), what, precision)
    return clip, tokenizer, digest


def load_refinement(config: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the refinement of a config with its weights, and their digest; None without weights."""
    refinement = MODELS.build(config)
    if hasattr(refinement, 'load'):
        refinement.load()  # weights, which a check of the config does without
    return refinement, weights_digest(refinement) if isinstance(refinement, torch.nn.Module) else None


def _load_vfm(config: dict[str, Any], precision: str, compile: bool) -> tuple[torch.nn.Module, str]:
    """Return a VFM in a precision, and the digest of its weights."""
    vfm = build_vfm(config)
    what = f'the VFM {config.get("model", config["type"])!r} ({config.get("checkpoint") or "its download"})'
    check_finite(vfm, what)
    digest = weights_digest(vfm)
    check_finite(vfm.to(PRECISIONS[precision]), what, precision)
    if compile:
        vfm.compile()
    return vfm, digest
