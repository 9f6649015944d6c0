"""Trident's refinement of labels by a promptable SAM, through an unmodified `transformers` model.

Source: Trident (ICCV 2025, arXiv 2411.09219) and its published code.

Shape legend: K classes, height and width in pixels of the image; h and w half of them; R regions; S the side of SAM's
square input, and s that of its mask prompts and mask logits.
"""

from typing import Any, NamedTuple

import cv2
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from fsa_seg.errors import UserError, built, one_line
from fsa_seg.ops.device import constant
from fsa_seg.settings import Rule, choice, either, number, whole

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of SAM's input, on 0..1 RGB
PROMPT_FACTOR = 0.005  # from a class's scores to the logits of its mask prompt
PROMPTS = 16  # that go through the mask decoder at once: some 200 MiB
SETTINGS: tuple[tuple[str, Rule, str], ...] = (
    ('coarse_thresh', number(0, 1), '0.2 on VOC, 0.05 to 0.25 on other data sets'),
    ('iou_thresh', number(0, 1), '0.8'),
    ('least_area', whole(1), '225'),
    ('random_weights', either(choice(None), whole(0)), 'none'),
)


class Regions(NamedTuple):
    """The regions of one class, at half size.

    Attributes:
        places (h, w): int64; 0 outside of the regions, and 1 to R within.
        boxes (R, 4): x and y of the first pixel, x and y of the last.
        points (R, 2): x and y of the pixel with the class's best score.
    """

    places: Tensor
    boxes: Tensor
    points: Tensor


@MODELS.register_module()
class SAMRefinement(nn.Module):
    """A refinement of an image's labels: SAM segments each region anew, prompted by the region.

    1. Labels (nearest) and scores (bilinear) are halved, sides rounded down.
    2. The pixels of a class are those with its label whose score of the class is at least `coarse_thresh`. Their
       8-connected regions of at least `least_area` pixels are kept.
    3. Prompts: the region's box (first and last pixel), a positive point at the region's best score of the class (the
       first of equal ones), and one mask for the class. The mask is the class's scores, bilinear to SAM's mask size
       along the longer side and padded with 0: 0.005·score where the score exceeds `coarse_thresh`, 0 elsewhere.
    4. Of SAM's single mask per prompt, those are kept whose IoU, as SAM estimates, exceeds `iou_thresh`. The region of
       any other mask has failed.
    5. A class's new score is max over kept masks of sigmoid(mask logit) · score, where a kept mask has a logit above 0;
       in the class's failed regions it is at least the score itself. The best new score gives the label, the lower
       class among equals. Nearest to full size; a pixel without a new score keeps its label.

    The published description leaves some of that open: the box's corners, equal scores, and that what keeps its label
    keeps it at full size, not halved, are ours. SAM's input is the image at its original size, bilinear (antialiased)
    to a longer side of 1024 pixels, normalised, and padded with 0.

    Args:
        model (str): a local folder, or a name on the Hugging Face hub, of a SAM of `transformers`.
        coarse_thresh (float): from 0 to 1. Published: 0.2 on VOC, 0.05 to 0.25 on other data sets.
        iou_thresh (float): from 0 to 1. Published: 0.8.
        least_area (int): in pixels of half size. Published: 225.
        random_weights (int): seed of random weights, which replace trained weights.
        model_args (dict): with random weights, of `transformers.SamConfig`; by default that of ViT-B.

    Raises:
        UserError: `transformers` is missing, or a value is out of its range; by `load`, weights are missing or do not
            fit.
    """

    refines = 'labels'
    needs_scores = True  # `refine` takes the scores
    sees_original = True  # `refine` takes the image as it was read, not resized and not normalised

    def __init__(
        self,
        model: str = 'facebook/sam-vit-base',
        coarse_thresh: float = 0.2,
        iou_thresh: float = 0.8,
        least_area: int = 225,
        random_weights: int | None = None,
        model_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        values = dict(
            coarse_thresh=coarse_thresh, iou_thresh=iou_thresh, least_area=least_area, random_weights=random_weights
        )
        for key, rule, published in SETTINGS:
            if not rule.fits(values[key]):
                raise UserError(
                    f'SAMRefinement: {key} is {values[key]!r}; it has to be {rule.allowed} (published: {published})'
                )
        self.coarse_thresh, self.iou_thresh, self.least_area = coarse_thresh, iou_thresh, least_area
        _transformers()
        self.model, self.random_weights, self.model_args = model, random_weights, model_args or {}

    def load(self) -> 'SAMRefinement':
        """Load SAM, and return the refinement. A config's check builds a refinement without that."""
        self.sam = (
            _load_sam(self.model) if self.random_weights is None else _random_sam(self.model_args, self.random_weights)
        )
        return self.float().eval().requires_grad_(False)

    @torch.no_grad()
    def refine(self, labels: Tensor, image: Tensor, text: Any, scores: Tensor) -> Tensor:
        """Return refined labels (height, width) int64.

        Args:
            labels (height, width): int64, from 0 to K − 1.
            image (3, height, width): RGB in 0..1, at its original size.
            text: not looked at.
            scores (K, height, width): of the classes, in 0..1.
        """
        half = [max(1, side // 2) for side in labels.shape]
        coarse = F.interpolate(labels[None, None].float(), half, mode='nearest')[0, 0].long()
        regions: dict[int, tuple[Tensor, Regions]] = {}
        for label in coarse.unique().tolist():
            score = F.interpolate(scores[None, label, None].float(), half, mode='bilinear', align_corners=False)[0, 0]
            found = self._regions((coarse == label) & (score >= self.coarse_thresh), score)
            if len(found.boxes):
                regions[label] = score, found
        if not regions:
            return labels
        encoded, size = self._encode(image)
        best, refined = scores.new_zeros(half, dtype=torch.float32), coarse
        for label, (score, found) in regions.items():
            new = self._new_scores(encoded, size, score, found)
            refined = torch.where(new > best, label, refined)
            best = torch.maximum(new, best)
        pixels = torch.stack([refined.float(), (best > 0).float()])[None]
        refined, scored = F.interpolate(pixels, tuple(labels.shape), mode='nearest')[0]
        return torch.where(scored > 0, refined.long(), labels)

    def _regions(self, pixels: Tensor, score: Tensor) -> Regions:
        """Return the large enough regions of pixels (h, w) bool, with the best scores (h, w) within."""
        found = cv2.connectedComponentsWithStats(pixels.cpu().numpy().astype('uint8'), connectivity=8)
        count, places, stats, _ = found
        large = [i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= self.least_area]
        numbers = torch.zeros(count, dtype=torch.int64)
        numbers[large] = torch.arange(1, len(large) + 1)
        places = numbers[torch.from_numpy(places).long()].to(score.device)
        boxes, points = torch.zeros(len(large), 4), torch.zeros(len(large), 2)
        for i, component in enumerate(large):
            left, top, width, height = (int(value) for value in stats[component, :4])
            rows, columns = slice(top, top + height), slice(left, left + width)
            inside = score[rows, columns].masked_fill(places[rows, columns] != i + 1, -1.0)
            y, x = divmod(int(inside.argmax()), width)
            boxes[i] = torch.tensor([left, top, left + width - 1, top + height - 1])
            points[i] = torch.tensor([left + x, top + y])
        return Regions(places, boxes, points)

    def _encode(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return SAM's embedding of an image (3, height, width), and the size of the image in SAM's input."""
        side = self.sam.config.vision_config.image_size
        size = _longer_side(image.shape[1:], side)
        pixels = F.interpolate(image[None].float(), size, mode='bilinear', align_corners=False, antialias=True)
        mean, std = (constant(values, image.device)[:, None, None] for values in (MEAN, STD))
        pixels = F.pad((pixels - mean) / std, (0, side - size[1], 0, side - size[0]))
        return self.sam.get_image_embeddings(pixels), size

    def _new_scores(self, encoded: Tensor, size: tuple[int, int], score: Tensor, regions: Regions) -> Tensor:
        """Return a class's new scores (h, w), 0 where it has none.

        Args:
            encoded, size: of `_encode`.
            score (h, w): of the class.
            regions: of the class.
        """
        greatest = torch.full_like(score, float('-inf'))
        failed = [torch.zeros(1, dtype=torch.bool, device=score.device)]  # outside of the regions
        mask = self._mask_prompt(score)
        scale = score.new_tensor([size[1] / score.shape[1], size[0] / score.shape[0]])  # of x and y
        boxes, points = regions.boxes.to(scale) * scale.repeat(2), regions.points.to(scale) * scale
        for start in range(0, len(boxes), PROMPTS):
            part = slice(start, start + PROMPTS)
            logits, ious = self._segment(encoded, boxes[part], points[part], mask)
            kept = ious > self.iou_thresh
            failed.append(~kept)
            logits = self._to_pixels(logits, size, score.shape)
            greatest = torch.maximum(greatest, logits.masked_fill_(~kept[:, None, None], float('-inf')).amax(0))
        new = torch.where(greatest > 0, greatest.sigmoid() * score, 0)
        return torch.where(torch.cat(failed)[regions.places], torch.maximum(new, score), new)

    def _mask_prompt(self, score: Tensor) -> Tensor:
        """Return the mask prompt (1, 1, s, s) of a class with scores (h, w)."""
        side = 4 * self.sam.config.prompt_encoder_config.image_embedding_size
        size = _longer_side(score.shape, side)
        resized = F.interpolate(score[None, None], size, mode='bilinear', align_corners=False)
        prompt = torch.where(resized > self.coarse_thresh, PROMPT_FACTOR * resized, 0)
        return F.pad(prompt, (0, side - size[1], 0, side - size[0]))

    def _segment(self, encoded: Tensor, boxes: Tensor, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits (R, s, s) and SAM's estimates of their IoU (R,).

        Args:
            encoded: of `_encode`.
            boxes (R, 4), points (R, 2): x and y in SAM's input.
            mask (1, 1, s, s): of `_mask_prompt`.
        """
        output = self.sam(
            image_embeddings=encoded,
            input_boxes=boxes[None],
            input_points=points[None, :, None],
            input_labels=torch.ones(1, len(points), 1, dtype=torch.int64, device=points.device),
            input_masks=mask,
            multimask_output=False,
        )
        return output.pred_masks[0, :, 0].float(), output.iou_scores[0, :, 0].float()

    def _to_pixels(self, logits: Tensor, size: tuple[int, int], half: torch.Size) -> Tensor:
        """Return mask logits (R, s, s) at the pixels (R, h, w): resized to SAM's input, cut, and resized again."""
        side = self.sam.config.vision_config.image_size
        logits = F.interpolate(logits[None], (side, side), mode='bilinear', align_corners=False)
        logits = logits[..., : size[0], : size[1]]
        return F.interpolate(logits, tuple(half), mode='bilinear', align_corners=False)[0]


def _longer_side(shape: torch.Size, side: int) -> tuple[int, int]:
    """Return height and width in proportion, the longer one being `side` pixels."""
    height, width = (max(1, int(length * side / max(shape) + 0.5)) for length in shape)
    return height, width


def _transformers() -> Any:
    """Return `transformers`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f'SAMRefinement needs `transformers`, which cannot be imported ({one_line(error)}): '
            "pip install 'fsa-seg[masks]'"
        ) from error
    return transformers


def _load_sam(model: str) -> Any:
    """Return a SAM of `transformers` with its weights, from a folder, the hub's cache, or the hub.

    Raises:
        UserError: the model cannot be loaded, or its weights do not fit.
    """
    sam_class, faults = _transformers().SamModel, []
    for local in (True, False):  # without a look at the network where the files are there
        try:
            sam, report = sam_class.from_pretrained(
                model, local_files_only=local, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # the library and its downloader raise many kinds of errors
            faults.append(one_line(error))
            continue
        wrong = [key for kind in ('missing_keys', 'mismatched_keys') for key in report[kind]]
        if wrong:
            raise UserError(
                f'SAMRefinement: the weights of {model!r} do not fit a SAM: {len(wrong)} are missing or of another '
                f"shape, such as {wrong[0]}; name a SAM, such as model='facebook/sam-vit-base'"
            )
        return sam
    raise UserError(
        f'SAMRefinement: the SAM {model!r} could not be loaded ({"; ".join(dict.fromkeys(faults))}). Name a folder '
        'with config.json and model.safetensors, or a model on the Hugging Face hub. Without a network, either run '
        '`hf download facebook/sam-vit-base` on a machine that has one, and copy that cache, or name a local folder: '
        "model='FOLDER'"
    )


def _random_sam(model_args: dict[str, Any], seed: int) -> Any:
    """Return a SAM of `transformers` with random weights."""
    transformers = _transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return built('SAMRefinement', lambda: transformers.SamModel(transformers.SamConfig(**model_args)))
