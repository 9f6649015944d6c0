"""Train the toy models on toy scenes: a CLIP by contrast with captions, a VFM by masked reconstruction.

Every step draws scenes from the step's seed, so that training from a checkpoint equals training without a stop.
"""

import json
import math
import os
from collections.abc import Sequence

import open_clip
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm

from fsa_seg.errors import UserError

from .world import World

CLIP_CONFIG = dict(
    model_cfg=dict(
        embed_dim=128,
        vision_cfg=dict(image_size=96, layers=5, width=160, head_width=32, patch_size=16),
        text_cfg=dict(context_length=32, vocab_size=49408, width=64, heads=2, layers=2),
    ),
    preprocess_cfg=dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD),
)
VFM_NAME = 'vit_tiny_patch16_224'
VFM_ARGS = dict(patch_size=8, embed_dim=96, depth=4, num_heads=3, img_size=96, num_classes=0)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 20_000_000  # training scenes: SEED + step for CLIP, 2 * SEED + step for the VFM; splits have lower seeds
MIN_SHARE = 0.04  # a caption is true of a scene if its concept has at least this share of the pixels
SCALES = (1.3, 2.3)  # enlargement of native pixels, as the protocols' resizes enlarge the mini splits
SIZE = 96
TEMPLATES = open_clip.OPENAI_IMAGENET_TEMPLATES


def scenes(
    world: World, step_seed: int, batch: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of scenes, normalised (batch, 3, 96, 96), and the concepts' shares of pixels (batch, C)."""
    generator = torch.Generator().manual_seed(step_seed)
    scale = float(torch.rand(1, generator=generator)) * (SCALES[1] - SCALES[0]) + SCALES[0]
    native = round(SIZE / scale)
    images, shares = world.random_scenes(batch, (native, native), generator)
    images = F.interpolate(images, (SIZE, SIZE), mode='bilinear', align_corners=False)
    light = 1 + 0.1 * torch.randn(batch, 1, 1, 1, generator=generator)
    images = (images * light).clamp(0, 1)
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None], shares


def contrastive_loss(
    image_features: torch.Tensor, text_features: torch.Tensor, shares: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return a loss that contrasts scenes with their true captions, and captions with their true scenes.

    As InfoNCE, with each true pair as a positive, and false pairs alone as negatives. Pairs of a small share, above 0
    and below MIN_SHARE, are neither.

    Args:
        image_features: (B, E), unit rows.
        text_features: (V, E), unit rows.
        shares: (B, V), share of the scene's pixels that show the caption's concept.
        scale: factor on the cosines, a scalar.
    """
    logits = scale * image_features @ text_features.T
    true, false = shares >= MIN_SHARE, shares == 0
    negatives = logits.masked_fill(~false, float('-inf'))
    by_scene = F.softplus(negatives.logsumexp(1, keepdim=True) - logits)[true].mean()
    by_caption = F.softplus(negatives.logsumexp(0, keepdim=True) - logits)[true].mean()
    return (by_scene + by_caption) / 2


def train_clip(world: World, folder: str, work: str, steps: int = 2600, batch: int = 256, lr: float = 1.5e-3) -> None:
    """Train the toy CLIP, and write its config and its weights (half precision) for `open_clip`.

    A step has a caption for each word of the world, in a random ImageNet template.

    Args:
        world: the toy world.
        folder: folder of open_clip_config.json and open_clip_model.safetensors.
        work: folder of the checkpoint.
        steps, batch, lr: length of training, scenes of a step, greatest learning rate.
    """
    torch.manual_seed(SEED)
    model = open_clip.CLIP(**CLIP_CONFIG['model_cfg'])
    torch.nn.init.zeros_(model.visual.positional_embedding)
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    tokens = torch.stack([tokenizer([t(word) for word in world.words]) for t in TEMPLATES], 1)  # (V, templates, ctx)
    preprocess = CLIP_CONFIG['preprocess_cfg']

    def step_loss(step):
        images, shares = scenes(world, SEED + step, batch, preprocess['mean'], preprocess['std'])
        generator = torch.Generator().manual_seed(SEED + step)
        choice = torch.randint(len(TEMPLATES), (len(tokens),), generator=generator)
        captions = tokens[torch.arange(len(tokens)), choice]
        with torch.autocast('cpu', torch.bfloat16):
            image_features, text_features = model.encode_image(images), model.encode_text(captions)
        image_features, text_features = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
        return contrastive_loss(
            image_features, text_features, shares[:, world.concept_of_word], model.logit_scale.exp().clamp(max=50)
        )

    _train(model, step_loss, steps, lr, os.path.join(work, 'clip.pt'), 'toy CLIP', world)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, 'open_clip_config.json'), 'w') as f:
        json.dump(CLIP_CONFIG, f, indent=1)
    _save_half(model, os.path.join(folder, 'open_clip_model.safetensors'))


def train_vfm(
    world: World, folder: str, work: str, steps: int = 1200, batch: int = 128, lr: float = 1e-3, mask_share: float = 0.5
) -> None:
    """Train the toy VFM by masked reconstruction, and write its weights (half precision) for `timm`.

    Some 2×2 groups of patches are hidden, and the model predicts the statistics of the colours around every patch.

    Args:
        world: the toy world.
        folder: folder of model.safetensors.
        work: folder of the checkpoint.
        steps, batch, lr: length of training, scenes of a step, greatest learning rate.
        mask_share: share of the groups of patches that are hidden.
    """
    torch.manual_seed(2 * SEED)
    vit = timm.create_model(VFM_NAME, pretrained=False, **VFM_ARGS)
    torch.nn.init.zeros_(vit.pos_embed)
    patch, width = VFM_ARGS['patch_size'], VFM_ARGS['embed_dim']
    grid = SIZE // patch
    targets = _statistics(torch.zeros(1, 3, patch, patch), patch).shape[1]
    model = torch.nn.ModuleDict(dict(vit=vit, head=torch.nn.Linear(width, targets)))
    model.register_parameter('mask_token', torch.nn.Parameter(torch.zeros(width)))

    def step_loss(step):
        images, _ = scenes(world, 2 * SEED + step, batch, IMAGENET_MEAN, IMAGENET_STD)
        generator = torch.Generator().manual_seed(2 * SEED + step)
        hidden = torch.rand(batch, 1, grid // 2, grid // 2, generator=generator) < mask_share
        hidden = F.interpolate(hidden.float(), scale_factor=2).flatten(2).transpose(1, 2)
        target = _statistics(images, patch).flatten(2).transpose(1, 2)
        with torch.autocast('cpu', torch.bfloat16):
            x = vit.patch_embed(images)
            x = x * (1 - hidden) + model.mask_token * hidden
            x = vit.norm_pre(vit._pos_embed(x))
            x = vit.norm(vit.blocks(x))[:, vit.num_prefix_tokens :]
            predicted = model['head'](x)
        return F.smooth_l1_loss(predicted.float(), target)

    _train(model, step_loss, steps, lr, os.path.join(work, 'vfm.pt'), 'toy VFM', world)
    os.makedirs(folder, exist_ok=True)
    _save_half(vit, os.path.join(folder, 'model.safetensors'))


def _statistics(images, patch, bins=5):
    """Return mean, standard deviation and soft histogram of each channel around each patch: (B, channels, h, w).

    The surroundings are 3×3 patches. The statistics do not depend on the place of a stripe, so that patches of one
    texture have similar features.
    """
    centers = torch.linspace(-2, 2, bins)
    histogram = torch.softmax(-4 * (images[:, :, None] - centers[:, None, None]) ** 2, 2).flatten(1, 2)
    pooled = F.avg_pool2d(torch.cat([images, images**2, 3 * histogram], 1), patch)
    pooled = F.avg_pool2d(pooled, 3, 1, 1, count_include_pad=False)
    mean, square, histogram = pooled.split([3, 3, 3 * bins], 1)
    return torch.cat([mean, (square - mean**2).clamp(min=1e-6).sqrt(), histogram], 1)


def _train(model, step_loss, steps, lr, checkpoint, name, world, warmup=100, every=100):
    """Minimise `step_loss(step)` with AdamW, warm-up and cosine decay; save a checkpoint every `every` steps.

    A checkpoint of other settings or of another world is a UserError.
    """
    settings = f'{world.words} {steps} {lr} {[tuple(p.shape) for p in model.parameters()]}'
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [dict(params=matrices, weight_decay=0.05), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr)
    factor = lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / max(steps, 1))))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule)
    start = _load_checkpoint(checkpoint, parts, settings)
    model.train()
    mean = None
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10)
    for step in bar:
        loss = step_loss(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f'{mean:.3f}')
        if (step + 1) % every == 0 or step + 1 == steps:
            _save_checkpoint(checkpoint, parts, settings, step + 1)
    model.eval()


def _load_checkpoint(path, parts, settings):
    """Load the states of model, optimizer and schedule; return the next step, 0 without a checkpoint."""
    if not os.path.exists(path):
        return 0
    state = torch.load(path, weights_only=True)
    if state['settings'] != settings:
        raise UserError(f'{path} was made with other settings; remove it, or give another --work-dir')
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state['step']


def _save_checkpoint(path, parts, settings, step):
    """Write the states of model, optimizer and schedule; a half-written checkpoint never appears at `path`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save(dict(states, step=step, settings=settings), path + '.part')
    os.replace(path + '.part', path)


def _save_half(model, path):
    """Write a model's weights in half precision."""
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}, path)
