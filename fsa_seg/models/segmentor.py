"""The registered segmentors: CLIP, MaskCLIP, SCLIP, ClearCLIP, ProxyCLIP, over one base that spells a method out.

Shape legend: B images, Q queries, K classes; images (3, height, width), each of its own size.
"""

import functools
import json
import math

import torch
from mmengine.device import get_device
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from fsa_seg.errors import UserError, check_keys, one_of
from fsa_seg.models.clip import BACKBONE_KEYS, check_finite, load_clip, trunk, weights_digest
from fsa_seg.models.shared_pass import finite_field, original_sizes, overlap_adds
from fsa_seg.models.text import encode_queries
from fsa_seg.models.window import METHODS, inspect_patch, resolve_method
from fsa_seg.ops.attention import find_attention
from fsa_seg.ops.device import batch_that_fits, exact_float32
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.windows import class_scores, label_tiles
from fsa_seg.settings import BACKBONE, SEGMENTOR, check_values

TILE_SCORES = dict(
    cpu=2**19, cuda=2**24
)  # scores of pixels with queries that are made at once: 2 MiB, 64 MiB in float32
PRECISIONS = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)

MODELS.register_module(module=FSA)


def resolve_precision(precision, device=None):
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


def check_settings(settings):
    """Raise a UserError if one of a segmentor's settings (dict) is of a wrong type or out of its range."""
    check_values(settings, SEGMENTOR, 'model')
    if settings['stride'] > settings['window']:
        raise UserError(
            f'model: window is {settings["window"]} and stride {settings["stride"]}; the stride has to be at most the '
            'window, or pixels between windows would have no score'
        )


@functools.lru_cache
def check_compiler():
    """Raise a UserError if `torch.compile` does not work here."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=get_device()))
    except Exception as error:  # no compiler, no Triton, ...
        raise UserError(
            'torch.compile does not work here: leave out --compile, or install what it needs, such as g++ '
            f'({type(error).__name__}: {" ".join(str(error).split())[:200]})'
        ) from error


def check_window(window, patch, vfm=None):
    """Return what a window's height and width have to be multiples of: (int, int).

    Args:
        window (int): side of the windows, in pixels.
        patch (int, int): the backbone's patch.
        vfm: the VFM, where there is one.

    Raises:
        UserError: a window smaller than a patch, or one that the VFM has no grid for.
    """
    vfm_multiple = vfm.multiple if vfm is not None else (1, 1)
    for name, sides in (('backbone', patch), ('VFM', vfm_multiple)):
        if window < max(sides):
            raise UserError(f'window is {window} pixels, smaller than a patch of the {name}, {sides[0]}×{sides[1]}')
    multiple = tuple(math.lcm(*sides) for sides in zip(patch, vfm_multiple))
    grid = vfm.grid(*(-(-window // side) * side for side in multiple)) if vfm is not None else patch
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

    def __init__(self, mean, std):
        super().__init__(non_blocking=True)
        self.register_buffer('mean', torch.tensor(mean)[:, None, None] * 255, persistent=False)
        self.register_buffer('std', torch.tensor(std)[:, None, None] * 255, persistent=False)

    def forward(self, data, training=False):
        inputs = [(image.flip(0).float() - self.mean) / self.std for image in self.cast_data(data['inputs'])]
        return dict(inputs=inputs, data_samples=data.get('data_samples'))


@MODELS.register_module()
class TrainingFreeSegmentor(BaseSegmentor):
    """Segments images into classes named by words, with CLIP's last block run under a chosen attention map.

    Args:
        backbone (dict): `model` and `pretrained` of `fsa_seg.models.clip.load_clip`.
        words (list of lists of str): the query words of each class, in label order. Without them the text tower is
            kept, and `set_words` has to be called first.
        attention (str), residual (bool), mlp (bool): attention map (`fsa_seg.ops.attention.ATTENTIONS`) and readout; by
            default a named method's own.
        vfm (dict): a registered VFM, needed by the attention map 'proxy'.
        feedback (dict): None, or dict(type='FSA', lam=..., p=...).
        window (int), stride (int): of the sliding windows, in pixels of the resized image.
        logit_scale (float): factor on the cosines before the softmax over queries.
        prob_thd (float), area_thd (float): see `fsa_seg.ops.windows.label_map`.
        precision (str): of trunk and VFM: 'auto', 'fp32', 'fp16' or 'bf16'. FSA, cosines and scores are float32.
        keep_scores (bool): also put the class scores, (K, height, width), into each data sample's `seg_logits`.
        text_cache (str): folder of the text embeddings' cache, see `fsa_seg.models.text.encode_queries`.
        window_batch (int): how many windows go through trunk and VFM at once; 'auto' is 1 on a CPU, where more is no
            faster, and on a GPU what half of its free memory holds.
        compile (bool): whether trunk and VFM are compiled by `torch.compile`.
        models (dict): the models of segmentors that share theirs, see `fsa_seg.models.shared_pass.Panel`.

    Raises:
        UserError: a setting that cannot be used, or weights that are missing or do not fit.
    """

    own_method = None  # name of the method that a subclass stands for

    def __init__(
        self,
        backbone,
        words=None,
        attention=None,
        residual=None,
        mlp=None,
        vfm=None,
        feedback=None,
        window=336,
        stride=112,
        logit_scale=40.0,
        prob_thd=0.0,
        area_thd=None,
        precision='auto',
        keep_scores=False,
        text_cache=None,
        window_batch='auto',
        compile=False,
        models=None,
    ):
        given = dict(attention=attention, residual=residual, mlp=mlp)
        own = METHODS[self.own_method] if self.own_method else {}
        method = resolve_method({**own, **{key: value for key, value in given.items() if value is not None}})
        needs_vfm = find_attention(method['attention'])[1]
        if needs_vfm and vfm is None:
            raise UserError(
                f'the attention map {method["attention"]!r} needs a VFM: name one, such as --vfm dino_vit-b8'
            )
        check_settings(
            dict(
                window=window,
                stride=stride,
                logit_scale=logit_scale,
                prob_thd=prob_thd,
                area_thd=area_thd,
                precision=precision,
                keep_scores=keep_scores,
                text_cache=text_cache,
                window_batch=window_batch,
                compile=compile,
                words=words,
            )
        )
        check_values(backbone, BACKBONE, 'model.backbone')
        feedback = MODELS.build(feedback) if feedback else None
        check_keys(backbone, BACKBONE_KEYS, 'backbone')
        precision, models = resolve_precision(precision), {} if models is None else models
        clip, tokenizer, digest = _once(models, _load_backbone, backbone, precision)
        mean, std = (clip.visual.preprocess_cfg[key] for key in ('mean', 'std'))
        super().__init__(data_preprocessor=ImageListPreprocessor(mean, std))

        self.method, self.feedback = method, feedback
        self.window, self.stride, self.window_batch = window, stride, window_batch
        self.logit_scale, self.prob_thd, self.area_thd = logit_scale, prob_thd, area_thd
        self.keep_scores = keep_scores
        self.weights = dict(backbone=digest)
        self.text_tower, self.text_cache = (clip, tokenizer), text_cache  # a tuple: its device is not the runner's
        self.register_buffer('text', torch.empty(0), persistent=False)
        self.queries, self._fitting = (), None
        if words is not None:
            self.set_words(words, get_device())
            self.text_tower = None
        self.visual, self.vfm = clip.visual, None
        if compile:
            check_compiler()
        self.trunk = torch.compile(trunk) if compile else trunk
        if needs_vfm:
            self.vfm, self.weights['vfm'] = _once(models, _load_vfm, vfm, precision, compile)
        self.multiple = check_window(window, self.visual.patch_size, self.vfm)
        self.eval()

    def grid(self, height, width):
        """Return the grid (h, w) of patch cosines for a window of height × width pixels."""
        height, width = (-(-side // multiple) * multiple for side, multiple in zip((height, width), self.multiple))
        if self.vfm is not None:
            return tuple(self.vfm.grid(height, width))
        return height // self.visual.patch_size[0], width // self.visual.patch_size[1]

    def set_words(self, words, device=None):
        """Segment into these classes from now on.

        Args:
            words (list of lists of str): the query words of each class.
            device (str): where the text tower works; by default where the model is.
        """
        self.words_per_class = [len(group) for group in words]
        self.queries, self._fitting = tuple(query for group in words for query in group), None
        text = encode_queries(
            *self.text_tower, self.queries, self.weights['backbone'], device or self.text.device, self.text_cache
        )
        self.text = text.to(self.text.device)

    def batch_size(self, run):
        """Return how many windows go through the models at once.

        Where that is to be by free memory, it is found out when it is first asked for, and again after `set_words`.

        Args:
            run: see `fsa_seg.ops.device.batch_that_fits`.
        """
        if self.window_batch != 'auto':
            return self.window_batch
        if self._fitting is None:
            self._fitting = batch_that_fits(run, self.text.device)
        return self._fitting

    def predict(self, inputs, data_samples=None):
        """Return data samples with `pred_sem_seg` (1, height, width) int64 at each image's original size.

        Args:
            inputs (sequence of tensors (3, height, width), or (B, 3, height, width)): normalised.
            data_samples (list of SegDataSample): their `ori_shape` is the original size; without it, the input's.
        """
        if not self.queries:
            raise RuntimeError('the segmentor has no words yet: call set_words first')
        samples = data_samples or [SegDataSample() for _ in inputs]
        for sample, (cosines,) in zip(samples, overlap_adds([self], inputs, original_sizes(inputs, samples))):
            labels, scores = self.labels(cosines)
            sample.pred_sem_seg = PixelData(data=labels[None])
            sample.set_field(cosines.finite, finite_field('pred_sem_seg'), torch.Tensor)
            if self.keep_scores:
                sample.seg_logits = PixelData(data=scores)
        return samples

    @torch.no_grad()
    def labels(self, cosines):
        """Return the labels (height, width) of an image's `OverlapAdd`, and its scores (K, height, width) or None.

        Scores are made tile by tile, and kept only where that is asked for.
        """
        kept = None

        def tiles():
            nonlocal kept
            for place, tile in cosines.tiles(TILE_SCORES.get(self.text.device.type, TILE_SCORES['cuda'])):
                scores = class_scores(tile, self.words_per_class, self.logit_scale)
                if self.keep_scores:
                    kept = scores.new_empty((len(scores), *cosines.size)) if kept is None else kept
                    kept[(slice(None), *place)] = scores
                yield place, scores

        return label_tiles(tiles, cosines.size, self.prob_thd, self.area_thd), kept

    def pixel_cosines(self, image, size=None):
        """Return the cosines of an image's pixels with the queries: (Q, height, width) float32.

        Args:
            image (3, height, width): normalised with the backbone's mean and std.
            size (int, int): height and width of the result; by default the image's.
        """
        [(cosines,)] = overlap_adds([self], [image], [size or image.shape[1:]])
        return cosines.strip()()

    @torch.no_grad()
    def inspect(self, image, index):
        """Return the `fsa_seg.models.window.Inspection` of the patch at row and column `index` of one window (1, 3, h, w)."""
        return inspect_patch(
            self.visual,
            image,
            self.text,
            index,
            method=self.method,
            feedback=self.feedback,
            vfm_features=self.features(image),
        )

    def features(self, images):
        """Return the VFM's features of normalised windows, or None where the method has no VFM."""
        if self.vfm is None:
            return None
        normalise = self.data_preprocessor
        return self.vfm((images * normalise.std + normalise.mean) / 255)

    def train(self, mode=True):
        """Stay in evaluation mode; training mode is refused."""
        if mode:
            raise RuntimeError('the segmentors are training-free: there is no training mode')
        return super().train(False)

    def loss(self, inputs, data_samples):
        """Raise: the segmentors are training-free."""
        raise RuntimeError('the segmentors are training-free: they have no loss')

    def _forward(self, inputs, data_samples=None):
        """Return each image's cosines (Q, height, width), without post-processing."""
        return [self.pixel_cosines(image) for image in inputs]

    def extract_feat(self, inputs):
        raise NotImplementedError('use fsa_seg.patch_logits')

    def encode_decode(self, inputs, batch_data_samples):
        raise NotImplementedError('use predict')


@MODELS.register_module()
class CLIP(TrainingFreeSegmentor):
    """CLIP as trained: softmax(qkᵀ/√d), residual and MLP."""

    own_method = 'clip'


@MODELS.register_module()
class MaskCLIP(TrainingFreeSegmentor):
    """MaskCLIP (arXiv 2112.01071): identity attention, no residual, no MLP."""

    own_method = 'maskclip'


@MODELS.register_module()
class SCLIP(TrainingFreeSegmentor):
    """SCLIP (arXiv 2312.01597): softmax(qqᵀ/√d) + softmax(kkᵀ/√d), residual and MLP."""

    own_method = 'sclip'


@MODELS.register_module()
class ClearCLIP(TrainingFreeSegmentor):
    """ClearCLIP (arXiv 2407.12442): softmax(qqᵀ/√d), no residual, no MLP."""

    own_method = 'clearclip'


@MODELS.register_module()
class ProxyCLIP(TrainingFreeSegmentor):
    """ProxyCLIP (arXiv 2408.04883): attention of a VFM's features, no residual, no MLP."""

    own_method = 'proxyclip'


def _once(made, make, *arguments):
    """Return what `make` makes of JSON-ready arguments, from `made` (dict) if it is there."""
    key = json.dumps([make.__name__, *arguments], sort_keys=True)
    if key not in made:
        made[key] = make(*arguments)
    return made[key]


def _load_backbone(config, precision):
    """Return a CLIP model with its image tower in a precision, its tokenizer, and the digest of its weights."""
    exact_float32()
    clip, tokenizer = load_clip(**config)
    what = f'the backbone {config["model"]!r} ({config.get("checkpoint") or config.get("pretrained") or "its folder"})'
    check_finite(clip, what)
    digest = weights_digest(clip)
    check_finite(clip.visual.to(PRECISIONS[precision]), what, precision)
    return clip, tokenizer, digest


def _load_vfm(config, precision, compile):
    """Return a VFM in a precision, and the digest of its weights."""
    vfm = MODELS.build(config)
    what = f'the VFM {config.get("model", config["type"])!r} ({config.get("checkpoint") or "its download"})'
    check_finite(vfm, what)
    digest = weights_digest(vfm)
    check_finite(vfm.to(PRECISIONS[precision]), what, precision)
    if compile:
        vfm.compile()
    return vfm, digest
