"""Sources of region maps: files, a VFM's features, or a mask generator of `transformers`.

A source has

    maps(image)         the region map (H, W) int32 of an image at its original size; 0 stands for "not segmented"
    digest              SHA-256 of what decides the maps: settings and weights, or the files
    role, kind          of the VFM that the source runs, and of its features; None for a source without VFM

and sees an image through `RegionImage`. Source of the settings: CorrCLIP (arXiv 2411.10086) and GramSeg.
"""

import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torchvision.ops import nms

from fsa_seg.errors import UserError, check_keys, constructor_keys, one_line, one_of
from fsa_seg.models.clip import loading_weights, weights_digest
from fsa_seg.ops import regions as ops_regions
from fsa_seg.ops.device import constant
from fsa_seg.ops.regions import ROUNDS, TEMPERATURE, feature_regions, nearest
from fsa_seg.settings import MAPPING, NONE, RANDOM, TEXT, check_values, either, number, whole
from fsa_seg.system.files import check_memory, read_file
from fsa_seg.system.paths import file_digest, files_digest, new_file

CELLS = 56  # of a VFM's grid along an image's longest side: GramSeg's 896 pixels at patches of 16
SEEDS = 64  # GramSeg's
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, SAM2's normalisation
POINTS = 8  # points per side, CorrCLIP's released default; its paper has 32
PROMPTS = 64  # points of one pass through SAM2's decoder
STABILITY_OFFSET = 1.0  # SAM2's
MOST_OVERLAP = 0.7  # of two masks' boxes, SAM2's
HELD_PIXELS = 2**25  # of masks at the image's size that are held at once
LARGEST = 2**16 - 1  # label in a 16-bit PNG
IMAGE_KEY, SOURCE_KEY = 'image_sha256', 'source_sha256'  # text entries of a PNG


class RegionImage(Protocol):
    """An image, as a source of region maps sees it.

    Attributes:
        path (str): of the image's file; None for an image without a file.
        size (int, int): height and width of the upright image.
    """

    path: str | None
    size: tuple[int, int]

    def original(self) -> Tensor:
        """Return the pixels at original size, (3, H, W) float32 RGB in 0..1."""
        ...

    def run(self, role: str, pixels: Tensor, kind: str, /) -> Tensor:
        """Return the features (B, C, I, J) of a role's VFM for pixels (B, 3, h, w) in 0..1."""
        ...

    def multiple(self, role: str, /) -> tuple[int, int]:
        """Return what height and width of a role's pixels have to be multiples of."""
        ...

    def weights(self, role: str, /) -> str:
        """Return a digest of the settings and the weights of a role's VFM."""
        ...


class RegionSource(Protocol):
    """A source of region maps, see the head of this file."""

    role: str | None
    kind: str | None

    @property
    def digest(self) -> str: ...

    def maps(self, image: RegionImage, /) -> Tensor: ...


def build_regions(config: dict[str, Any]) -> RegionSource:
    """Return a source of region maps.

    Args:
        config: `type` is 'files', 'vfm', 'sam2' or 'mask2former'; the other keys are arguments of the type's class.
            `cache`, which 'files' does not take, names a folder in which maps are kept.

    Raises:
        UserError: an unknown type or key (the nearest name is given), or a value out of its range.
    """
    settings = dict(config)
    name = one_of(settings.pop('type', None), SOURCES, 'source of region maps')
    cls, folder = SOURCES[name], settings.pop('cache', None)
    where = f'the region source {name}'
    check_keys(settings, constructor_keys(cls), where)
    check_values({**settings, 'cache': folder}, RULES, where)
    if folder is None:
        return cls(**settings)
    if cls is FileRegions:
        raise UserError(f'{where}: its maps are files already; leave out cache')
    return CachedRegions(cls(**settings), folder)


@functools.lru_cache(16)
def _shared(config: str) -> RegionSource:
    return build_regions(json.loads(config))


def shared_regions(config: dict[str, Any]) -> RegionSource:
    """Return the source of `build_regions`, one for each config of the process: a generator is loaded once."""
    return _shared(json.dumps(config, sort_keys=True))


class FileRegions:
    """Region maps from files: one PNG (8 or 16 bit, or a palette's indices) or .npy of whole numbers per image.

    A PNG's text entry 'image_sha256' has to be the SHA-256 of the image's file. Maps without the entry are taken.

    Args:
        folder (str): of the maps.
        pattern (str): of a map's path in it. '{name}' stands for the name of the image's file without its ending,
            '{path}' for its path below `root` without its ending.
        root (str): folder of the images; needed for '{path}' alone.

    Raises:
        UserError: no such folder, or another pattern.
    """

    role = kind = None

    def __init__(self, folder: str, pattern: str = '{name}.png', root: str | None = None):
        self.folder, self.pattern, self.root = os.path.expanduser(folder), pattern, root
        if not os.path.isdir(self.folder):
            raise UserError(f'the folder of region maps {folder!r} does not exist; name another (folder=...)')
        try:
            varies = pattern.format(name='a', path='a') != pattern.format(name='b', path='b')
        except (KeyError, IndexError, ValueError):
            varies = False
        if not varies or not pattern.endswith(('.png', '.npy')):
            raise UserError(
                f'pattern is {pattern!r}; it has to hold {{name}} or {{path}}, and to end in .png or .npy, such as '
                "'{name}.png'"
            )
        if '{path}' in pattern and not root:
            raise UserError(f'pattern is {pattern!r}: {{path}} is below `root`; name the folder of the images (root)')
        self._paths: list[str] | None = None

    def path_of(self, image_path: str | None) -> str:
        """Return the path of an image's map; an image without a file, or outside `root`, is a UserError."""
        if not image_path:
            raise UserError('region maps from files need images from files; choose another source of region maps')
        below = os.path.relpath(image_path, self.root) if self.root else image_path
        if '{path}' in self.pattern and below.startswith(os.pardir):
            raise UserError(f'the image {image_path} does not lie below {self.root} (root of the region maps)')
        name = os.path.splitext(os.path.basename(image_path))[0]
        return os.path.join(self.folder, self.pattern.format(name=name, path=os.path.splitext(below)[0]))

    def check(self, paths: Sequence[str], sizes: Sequence[tuple[int, int]] | None = None) -> None:
        """Raise a UserError unless every image has a usable map; absent maps are looked for first.

        Args:
            paths: of the images' files.
            sizes: height and width of each image; by default sizes are not compared.
        """
        files = [self.path_of(path) for path in paths]
        missing = [(path, file) for path, file in zip(paths, files) if not os.path.isfile(file)]
        if missing:
            raise UserError(
                f'{len(missing)} of {len(paths)} images have no region map; the first is {missing[0][0]}, whose map '
                f'would be {missing[0][1]}: make it, or name another folder or pattern'
            )
        for i, (path, file) in enumerate(zip(paths, files)):
            _checked_map(file, path, sizes[i] if sizes else None)
        self._paths = files

    @property
    def digest(self) -> str:
        """The SHA-256 of all maps that were checked, or of all files of the folder with the pattern's ending."""
        ending = os.path.splitext(self.pattern)[1]
        files = self._paths
        if files is None:
            files = [os.path.join(at, name) for at, _, names in os.walk(self.folder) for name in names]
            files = [file for file in files if file.endswith(ending)]
        return _digest([(os.path.relpath(file, self.folder), file_digest(file)) for file in sorted(set(files))])

    def maps(self, image: RegionImage) -> Tensor:
        """Return an image's map."""
        return torch.from_numpy(_checked_map(self.path_of(image.path), image.path, image.size))


class VFMRegions:
    """GramSeg's regions: farthest-point seeds among a VFM's tokens, see `fsa_seg.ops.regions.feature_regions`.

    Each cell takes its most probable seed, and each pixel the region of the cell that covers it. No pixel is left out:
    labels start at 1.

    Args:
        side (int): pixels of the image's longest side for the VFM; by default 56 patches, GramSeg's 896 at its
            patch of 16. Sides become the nearest multiples of the patch.
        seeds (int), rounds (int), temperature (float): as of `feature_regions`.
    """

    role, kind = 'regions', 'tokens'

    def __init__(
        self, side: int | None = None, seeds: int = SEEDS, rounds: int = ROUNDS, temperature: float = TEMPERATURE
    ):
        self.side, self.seeds, self.rounds, self.temperature = side, seeds, rounds, temperature

    @property
    def digest(self) -> str:
        """The digest of the settings; the VFM's weights are the role's."""
        return _digest(['vfm', self.side, self.seeds, self.rounds, self.temperature])

    @torch.no_grad()
    def maps(self, image: RegionImage) -> Tensor:
        """Return an image's map."""
        multiple = image.multiple(self.role)
        scale = (self.side or CELLS * max(multiple)) / max(image.size)
        size = [max(1, round(side * scale / of)) * of for side, of in zip(image.size, multiple)]
        features = image.run(self.role, _resized(image.original(), size), self.kind)
        soft = feature_regions(features[0].flatten(1), self.seeds, self.rounds, self.temperature)
        labels = soft.argmax(0).unflatten(0, features.shape[2:]) + 1
        return nearest(labels[None], image.size)[0].int()


class _HubModel:
    """A model of `transformers`, loaded when a map is first asked for.

    Args:
        model (str): a repository of the Hugging Face hub, or a local folder.
        random_weights (int): seed of random weights, which replace trained weights.
        model_args (dict): the model's configuration, with random weights alone.
    """

    role = kind = None
    classes = ('', '')  # of the model and of its configuration

    def __init__(self, model: str, random_weights: int | None = None, model_args: dict | None = None):
        self.model, self.random_weights, self.model_args = model, random_weights, model_args
        if model_args is not None and random_weights is None:
            raise UserError('model_args belong to random weights; name a seed (random_weights), or leave them out')

    @functools.cached_property
    def module(self) -> nn.Module:
        """The model in float32 and evaluation mode."""
        cls, config = (_from_transformers(name) for name in self.classes)
        if self.random_weights is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.random_weights)
                return cls(config(**(self.model_args or {}))).eval().requires_grad_(False)
        model = os.path.expanduser(self.model)
        with loading_weights(f'the mask generator {self.classes[0]}', model):
            # pickled weights could run code
            return cls.from_pretrained(model, use_safetensors=True).eval().requires_grad_(False).float()

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the settings, of the model's configuration and of its weights."""
        config: Any = self.module.config
        return _digest([self.classes[0], self.settings(), _described(config.to_dict()), weights_digest(self.module)])

    def settings(self) -> dict[str, Any]:
        """Return what decides the maps beside the model."""
        raise NotImplementedError

    def on(self, device: torch.device) -> Any:
        """Return the model on a device."""
        return self.module.to(device)


class SAM2Regions(_HubModel):
    """SAM2's masks at a grid of points, CorrCLIP's main generator.

    One mask per point is kept where both the predicted IoU and the stability are above their thresholds. Of masks whose
    boxes overlap by more than 0.7, the one of the highest predicted IoU is kept. Masks are painted in ascending order
    of area, larger ones over smaller ones, with labels from 1. What no mask covers is 0.

    Args:
        model (str), random_weights (int), model_args (dict): see `_HubModel`.
        points (int): per side. Published: 32 in the paper, 8 in the released code.
        pred_iou (float), stability (float): thresholds, from 0 to 1. Published: 0.4.
    """

    classes = ('Sam2Model', 'Sam2Config')

    def __init__(
        self,
        model: str = 'facebook/sam2-hiera-large',
        points: int = POINTS,
        pred_iou: float = 0.4,
        stability: float = 0.4,
        random_weights: int | None = None,
        model_args: dict | None = None,
    ):
        super().__init__(model, random_weights, model_args)
        self.points, self.pred_iou, self.stability = points, pred_iou, stability

    def settings(self) -> dict[str, Any]:
        """Return what decides the maps beside the model."""
        return dict(points=self.points, pred_iou=self.pred_iou, stability=self.stability)

    @torch.no_grad()
    def maps(self, image: RegionImage) -> Tensor:
        """Return an image's map."""
        pixels = image.original()
        masks = list(self._masks(pixels))
        labels = torch.zeros(image.size, dtype=torch.int32, device=pixels.device)
        if not masks:
            return labels
        boxes, scores = torch.stack([mask.box for mask in masks]), torch.stack([mask.score for mask in masks])
        kept = [masks[i] for i in nms(boxes, scores, MOST_OVERLAP).tolist()]
        for label, mask in enumerate(sorted(kept, key=lambda mask: mask.area), 1):
            labels[_enlarged(mask.logits[None], image.size)[0] > 0] = label
        return labels

    def _masks(self, pixels: Tensor) -> 'Iterator[_Mask]':
        """Yield the masks that pass the thresholds, point by point, row by row."""
        model, device = self.on(pixels.device), pixels.device
        side = model.config.prompt_encoder_config.image_size
        mean, std = (constant(values, device)[:, None, None] for values in (MEAN, STD))
        embeddings = model.get_image_embeddings((_resized(pixels, [side, side]) - mean) / std)
        places = (torch.arange(self.points, device=device) + 0.5) * (side / self.points)
        grid = torch.stack(torch.meshgrid(places, places, indexing='xy'), -1).flatten(0, 1)
        for points in grid.split(PROMPTS):
            found = model(
                image_embeddings=list(embeddings),
                input_points=points[None, :, None],
                input_labels=torch.ones(1, len(points), 1, dtype=torch.int64, device=device),
                multimask_output=False,
            )
            yield from self._kept(found.pred_masks[0, :, 0].float(), found.iou_scores[0, :, 0].float(), pixels)

    def _kept(self, logits: Tensor, scores: Tensor, pixels: Tensor) -> 'Iterator[_Mask]':
        likely = scores > self.pred_iou
        logits, scores, size = logits[likely], scores[likely], pixels.shape[1:]
        step = max(1, HELD_PIXELS // pixels[0].numel())
        for some, some_scores in zip(logits.split(step), scores.split(step)):
            large = _enlarged(some, size)
            sure, possible = ((large > offset).sum((1, 2)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
            stable = sure > self.stability * possible
            areas = (large > 0).sum((1, 2)).tolist()
            for i in (stable & (large > 0).any(2).any(1)).nonzero()[:, 0].tolist():
                yield _Mask(some[i], some_scores[i], _box(large[i] > 0), areas[i])


class _Mask(NamedTuple):
    logits: Tensor  # (h, w), at the decoder's size
    score: Tensor
    box: Tensor  # left, top, right, bottom
    area: int


class Mask2FormerRegions(_HubModel):
    """Mask2Former's panoptic segments, by `transformers`' post-processing; what is no segment is 0.

    The published weights were trained on COCO's masks, so that results on COCO's images are no equal comparison.

    Args:
        model (str), random_weights (int), model_args (dict): see `_HubModel`.
        threshold (float): least score of a segment, from 0 to 1.
        side (int): pixels of the shortest side, with random weights alone; trained models bring their own.
    """

    classes = ('Mask2FormerForUniversalSegmentation', 'Mask2FormerConfig')

    def __init__(
        self,
        model: str = 'facebook/mask2former-swin-large-coco-panoptic',
        threshold: float = 0.5,
        random_weights: int | None = None,
        model_args: dict | None = None,
        side: int = 800,
    ):
        super().__init__(model, random_weights, model_args)
        self.threshold, self.side = threshold, side

    def settings(self) -> dict[str, Any]:
        """Return what decides the maps beside the model."""
        return dict(threshold=self.threshold, processor=self.processor.to_dict())

    @functools.cached_property
    def processor(self) -> Any:
        """The processor that resizes and normalises images."""
        cls = _from_transformers('Mask2FormerImageProcessor')
        if self.random_weights is not None:
            return cls(size=dict(shortest_edge=self.side, longest_edge=2 * self.side))
        model = os.path.expanduser(self.model)
        with loading_weights('the processor of Mask2Former', model):
            return cls.from_pretrained(model)

    @torch.no_grad()
    def maps(self, image: RegionImage) -> Tensor:
        """Return an image's map."""
        pixels = image.original()
        model = self.on(pixels.device)
        array = (pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        inputs = self.processor(images=[array], return_tensors='pt').to(pixels.device)
        (found,) = self.processor.post_process_panoptic_segmentation(
            model(**inputs), threshold=self.threshold, label_ids_to_fuse=set(), target_sizes=[image.size]
        )
        return found['segmentation'].clamp(min=0).int()


class CachedRegions:
    """A source whose maps are kept as 16-bit PNG files: FOLDER/DIGEST/NAME.png.

    A map is read again where its text entries agree with the image's file and with the source, and made anew
    otherwise. Images without a file are not kept.

    Args:
        source: the source.
        folder (str): see above; it is made where it is absent.
    """

    def __init__(self, source: RegionSource, folder: str):
        self.source, self.folder = source, os.path.expanduser(folder)
        self.role, self.kind = source.role, source.kind

    @functools.cached_property
    def digest(self) -> str:
        """The source's digest."""
        return self.source.digest

    def maps(self, image: RegionImage) -> Tensor:
        """Return an image's map, from its file where it is kept."""
        if not image.path:
            return self.source.maps(image)
        digest = _digest([self.digest, _code(), *([image.weights(self.role)] if self.role else [])])
        name = os.path.splitext(os.path.basename(image.path))[0]
        path = os.path.join(self.folder, digest[:16], f'{name}.png')
        entries = {IMAGE_KEY: file_digest(image.path), SOURCE_KEY: digest}
        kept = _kept_map(path, entries, image.size)
        if kept is not None:
            return torch.from_numpy(kept)
        labels = self.source.maps(image)
        _write_map(path, labels.cpu().numpy(), entries)
        return labels


SOURCES: dict[str, type] = dict(files=FileRegions, vfm=VFMRegions, sam2=SAM2Regions, mask2former=Mask2FormerRegions)
SHARE = number(0, 1)
RULES = dict(
    folder=TEXT,
    pattern=TEXT,
    root=either(TEXT, NONE),
    cache=either(TEXT, NONE),
    model=TEXT,
    random_weights=RANDOM,
    model_args=either(MAPPING, NONE),
    side=either(whole(1, 2**15), NONE),
    seeds=whole(1, LARGEST),
    rounds=whole(1),
    temperature=number(0, 1e6, above=True),
    points=whole(1, 256),
    pred_iou=SHARE,
    stability=SHARE,
    threshold=SHARE,
)


def read_map(path: str) -> tuple[np.ndarray, dict[str, str]]:
    """Return a region map's file as (height, width) int32, and a PNG's text entries.

    Raises:
        UserError: the file cannot be read, or does not hold whole numbers of two axes.
    """
    data, what = read_file(path, 'the region map'), f'the region map {path}'
    entries: dict[str, str] = {}
    try:
        if path.endswith('.npy'):
            labels = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(data)) as image:
                check_memory(8 * image.width * image.height, what)
                labels = np.array(image)
                entries = dict(getattr(image, 'text', {}))
    except UserError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise UserError(f'{what} cannot be decoded: {one_line(error)}') from None
    if labels.dtype.kind not in 'uib':
        raise UserError(f'{what} holds values of type {labels.dtype}; labels of regions are whole numbers')
    if labels.ndim != 2:
        raise UserError(
            f'{what} has the shape {labels.shape}; it has to be (height, width): a single-channel or a palette image'
        )
    if labels.size and (labels.min() < -(2**31) or labels.max() >= 2**31):
        raise UserError(f'{what} has labels from {labels.min()} to {labels.max()}, beyond 32 bits; renumber them')
    return labels.astype(np.int32), entries


def _checked_map(path: str, image_path: str | None, size: tuple[int, int] | None) -> np.ndarray:
    """Return the map of an image, see `FileRegions`; an unusable map is a UserError."""
    labels, entries = read_map(path)
    if size is not None and labels.shape != tuple(size):
        raise UserError(
            f'the region map {path} has {labels.shape[0]}×{labels.shape[1]} pixels, its image {image_path} '
            f'{size[0]}×{size[1]}; make the map of the image at its original size'
        )
    if not labels.size or labels.min() == labels.max():
        raise UserError(f'the region map {path} is a single region; it tells nothing of the image: make it again')
    if image_path and IMAGE_KEY in entries and entries[IMAGE_KEY] != file_digest(image_path):
        raise UserError(
            f'the region map {path} was made of another image than {image_path}: its {IMAGE_KEY} is '
            f"{entries[IMAGE_KEY][:16]}..., the image's is {file_digest(image_path)[:16]}...; make the map again"
        )
    return labels


def _kept_map(path: str, entries: dict[str, str], size: tuple[int, int]) -> np.ndarray | None:
    """Return the map of a cache's file; None where the file is absent, damaged or of another image or source."""
    if not os.path.isfile(path):
        return None
    try:
        labels, found = read_map(path)
    except UserError:
        return None
    agree = all(found.get(key) == value for key, value in entries.items()) and labels.shape == tuple(size)
    return labels if agree else None


def _write_map(path: str, labels: np.ndarray, entries: dict[str, str]) -> None:
    """Write a map as a 16-bit PNG with text entries; the file appears when it is complete."""
    if labels.min() < 0 or labels.max() > LARGEST:
        raise UserError(
            f'the region map for {path} has labels from {labels.min()} to {labels.max()}; a cache keeps 0 to {LARGEST}'
        )
    text = PngInfo()
    for key, value in entries.items():
        text.add_text(key, value)
    with new_file(path) as part:
        Image.fromarray(labels.astype(np.uint16)).save(part, format='PNG', pnginfo=text)


def _from_transformers(name: str) -> Any:
    """Return a class of `transformers`; a UserError says how to install it."""
    try:
        import transformers

        return getattr(transformers, name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name} of transformers cannot be loaded ({one_line(error)}): pip install 'fsa-seg[masks]'"
        ) from None


def _resized(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Return pixels (3, H, W) as (1, 3, *size), resized bilinearly with antialiasing."""
    return F.interpolate(pixels[None], list(size), mode='bilinear', align_corners=False, antialias=True)


def _enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return mask logits (M, h, w) at a size, resized bilinearly: (M, *size)."""
    return F.interpolate(logits[None], list(size), mode='bilinear', align_corners=False)[0]


def _box(mask: Tensor) -> Tensor:
    """Return the box (left, top, right, bottom) of a mask with at least one pixel, both ends included, float32."""
    rows, columns = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    return torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()


def _described(config: Any) -> Any:
    """Return a model's configuration without what says where and how its weights were loaded."""
    left_out = ('_name_or_path', 'architectures', 'dtype', 'torch_dtype', 'transformers_version')
    if not isinstance(config, dict):
        return config
    return {key: _described(value) for key, value in config.items() if key not in left_out}


@functools.cache
def _code() -> str:
    """Return the digest of the code that makes maps."""
    return files_digest([__file__, ops_regions.__file__])


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=repr).encode()).hexdigest()
