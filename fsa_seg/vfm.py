"""Vision foundation models: an image to a grid of features, through unmodified `timm` models.

Shape legend: B images, C feature channels, (h, w) the VFM's grid; images (B, 3, height, width).
"""
import timm
import torch
from mmseg.registry import MODELS
from timm.models import load_pretrained
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn
from torchvision.transforms.functional import normalize

from fsa_seg.clip import POSITION_OFFSET, loading_weights, resize_position_embedding
from fsa_seg.errors import UserError, one_of
from fsa_seg.paths import local_path


@MODELS.register_module()
class TimmViT(nn.Module):
    """A plain ViT of `timm`; its features are the last block's normalised patch tokens.

    Args:
        model (str): `timm` name with its weight's tag ('vit_base_patch8_224.dino').
        checkpoint (str): a local file of weights in place of the download; converted as `timm` converts its own.
        model_args (dict): arguments of the architecture, such as dict(img_size=...).
        mean, std (3 floats): the VFM's own normalisation, on 0..1 RGB.
        pos_embed (str): 'published' resizes position embeddings as the published code does, 'timm' as `timm` does.

    Raises:
        UserError: an unknown model or option, or weights that are missing or do not fit.
    """

    def __init__(self, model, checkpoint=None, model_args=None, mean=timm.data.IMAGENET_DEFAULT_MEAN,
                 std=timm.data.IMAGENET_DEFAULT_STD, pos_embed='published'):
        super().__init__()
        self.pos_embed = one_of(pos_embed, ('published', 'timm'), 'pos_embed')
        name = model.split('.')[0]
        one_of(name, timm.list_models('vit_*'), 'timm model')
        checkpoint = checkpoint and local_path(checkpoint, f'checkpoint of the VFM {model}')
        overlay = dict(file=checkpoint) if checkpoint else None
        try:
            self.vit = timm.create_model(model, pretrained_cfg_overlay=overlay, num_classes=0, dynamic_img_size=True,
                                         **(model_args or {}))
        except (RuntimeError, TypeError) as error:  # timm: an unknown tag; an unknown argument
            raise UserError(f'the VFM {model!r} with model_args {model_args} cannot be built: {error}') from error
        if not isinstance(self.vit, VisionTransformer) or self.vit.pos_embed is None:
            raise UserError(f'{model!r} is no plain ViT with absolute position embeddings; it needs a class of its own')
        with loading_weights(f'VFM {model!r}', checkpoint or model):
            _load_strictly(self.vit)
        self.vit.eval().requires_grad_(False)
        self.patch_size = self.vit.patch_embed.patch_size
        self.mean, self.std = mean, std

    def grid(self, height, width):
        """Return the grid (h, w) of features for a window of height × width pixels."""
        return height // self.patch_size[0], width // self.patch_size[1]

    def forward(self, images):
        """Return features (B, C, h, w) of images (B, 3, height, width) in 0..1 RGB.

        Raises:
            UserError: a side is no multiple of the patch size.
        """
        height, width = images.shape[-2:]
        grid = self.grid(height, width)
        if not all(grid) or height % self.patch_size[0] or width % self.patch_size[1]:
            raise UserError(f'a window of {height}×{width} pixels does not divide into the patches of the VFM, '
                            f'{self.patch_size[0]}×{self.patch_size[1]}')
        images = normalize(images, self.mean, self.std).to(self.vit.patch_embed.proj.weight.dtype)
        if self.pos_embed == 'timm':
            tokens = self.vit.forward_features(images)
        else:
            tokens = self.vit.norm(self.vit.blocks(self._embed(images, grid)))
        patches = tokens[:, self.vit.num_prefix_tokens:]
        return patches.transpose(1, 2).unflatten(2, grid)

    def _embed(self, images, grid):
        """Return the tokens that enter the first block, with position embeddings resized as published."""
        vit = self.vit
        x = vit.patch_embed(images).flatten(1, 2)  # (B, h, w, C) -> (B, N, C)
        prefix = [t.expand(len(x), -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        embedded_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        position = resize_position_embedding(vit.pos_embed[0], vit.patch_embed.grid_size, grid, embedded_prefix,
                                             POSITION_OFFSET)
        if vit.no_embed_class:
            x = torch.cat([*prefix, x + position], 1)
        else:
            x = torch.cat([*prefix, x], 1) + position
        return vit.norm_pre(x)


def _load_strictly(vit):
    """Load a ViT's pretrained weights through `timm`, which itself lets missing and surplus keys pass."""
    found = []
    hook = vit.register_load_state_dict_post_hook(lambda _, keys: found.append(keys))
    try:
        load_pretrained(vit, num_classes=0, filter_fn=checkpoint_filter_fn, strict=False)
    finally:
        hook.remove()
    missing = [key for keys in found for key in keys.missing_keys]
    surplus = [key for keys in found for key in keys.unexpected_keys if not key.startswith(('head.', 'fc_norm.'))]
    if missing or surplus or not found:
        raise RuntimeError(f'state_dict: {len(missing)} keys missing ({", ".join(missing[:5])}), '
                           f'{len(surplus)} surplus ({", ".join(surplus[:5])})')
