"""CLIP: loading an `open_clip` model, and its image tower up to the last block (the trunk).

Shape legend: B images, T = 1 + N tokens (CLS first), N = h·w patches, D width; images (B, 3, height, width).
"""
import hashlib
import logging
import os
from contextlib import contextmanager

import open_clip
import torch
import torch.nn.functional as F
from mmengine.logging import print_log

from fsa_seg.errors import UserError, one_of
from fsa_seg.paths import local_path

POSITION_OFFSET = 0.1  # the published numbers were made with scale factors (n + 0.1) / s


def load_clip(model, pretrained=None, cache_dir=None):
    """Return an `open_clip` model in float32 and evaluation mode, and its tokenizer.

    Args:
        model (str): an `open_clip` architecture ('ViT-B-16-quickgelu'), or 'local-dir:PATH' of a folder with
            open_clip_config.json and weights; a relative PATH is looked up here and in the repository.
        pretrained (str): a tag of `open_clip` ('openai'), or the path of a file of weights; not for 'local-dir:'.
        cache_dir (str): where downloads lie; by default `open_clip`'s own cache.

    Raises:
        UserError: an unknown name, weights that are missing and cannot be downloaded, that do not fit the
            architecture, or that were trained with the other activation.
    """
    if model.startswith('local-dir:'):
        source = local_path(model.removeprefix('local-dir:'), 'folder of a CLIP model')
        model, pretrained = f'local-dir:{source}', None
    else:
        one_of(model, open_clip.list_models(), 'open_clip architecture')
        tag = open_clip.get_pretrained_cfg(model, pretrained or '')
        if not tag:
            tags = open_clip.list_pretrained_tags_by_model(model)
            pretrained = local_path(pretrained, f'pretrained weights of {model} (its tags: {", ".join(tags)})')
        elif tag.get('quick_gelu', False) != (open_clip.get_model_config(model) or {}).get('quick_gelu', False):
            other = model.removesuffix('-quickgelu') if model.endswith('-quickgelu') else model + '-quickgelu'
            raise UserError(f'the weights {pretrained!r} and {model!r} differ in their activation: use {other!r}')
        source = pretrained
    with loading_weights(f'CLIP {model!r}', source, cache_dir):
        clip = open_clip.create_model(model, pretrained=pretrained, cache_dir=cache_dir, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model)
    return clip.eval().requires_grad_(False), tokenizer


@contextmanager
def loading_weights(what, source, cache_dir=None):
    """Turn whatever a library raises while it loads weights into one UserError, without the library's own log of it.

    Args:
        what (str): the model, as the message names it.
        source (str): file, folder or tag of the weights.
        cache_dir (str): where downloads lie.

    Raises:
        UserError: weights that are absent and cannot be downloaded, or that do not fit (the keys are named).
    """
    if not os.path.exists(source):
        print_log(f'loading {what}, {source} (downloaded where it is not cached; without a network that gives up after a '
                  'minute, with HF_HUB_OFFLINE=1 at once)', 'current')
    logging.disable(logging.ERROR)
    try:
        yield
    except Exception as error:  # the libraries and their downloaders raise many kinds
        text = ' '.join(str(error).split())
        if 'state_dict' in text or 'size mismatch' in text:
            raise UserError(f'the weights {source} do not fit {what}: {text[:800]}') from error
        raise UserError(
            f'{what}: the weights {source} could not be loaded ({text[:300]}). Looked in '
            f'{cache_dir or os.environ.get("HF_HOME", "~/.cache/huggingface")} and at their source. Either download '
            'them on a machine with network and copy that cache, or give the path of a local file in the config '
            '(`pretrained` of a backbone, `checkpoint` of a VFM)') from error
    finally:
        logging.disable(logging.NOTSET)


def weights_digest(module):
    """Return the SHA-256 of a module's parameters and buffers, as a hexadecimal string."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else str(tensor.item()).encode())
    return digest.hexdigest()


def check_tower(visual):
    """Raise a UserError that says what `visual` lacks, if it is not an image tower that the methods can run on."""
    missing = []
    blocks = getattr(getattr(visual, 'transformer', None), 'resblocks', None)
    if not blocks:
        missing.append('transformer.resblocks')
    elif getattr(getattr(blocks[-1], 'attn', None), 'in_proj_weight', None) is None:
        missing.append('attn.in_proj_weight in the last block')
    for name in ('conv1', 'class_embedding', 'positional_embedding', 'ln_pre', 'ln_post', 'proj'):
        if getattr(visual, name, None) is None:
            missing.append(name)
    if getattr(visual, 'attn_pool', None) is not None:
        missing.append('a CLS readout (it pools by attention)')
    if missing:
        raise UserError(f'the image tower {type(visual).__name__} lacks {", ".join(missing)}; '
                        "use an open_clip ViT with a class token, such as 'ViT-B-16'")


def trunk(visual, images):
    """Return the tokens that enter the last block, CLS first, and the patch grid: ((B, 1 + h·w, D), (h, w)).

    Args:
        visual: an `open_clip` image tower.
        images (B, 3, height, width): normalised; sides are multiples of the patch size.

    Raises:
        UserError: the tower cannot be used, or a side is no multiple of the patch size.
    """
    check_tower(visual)
    patch_height, patch_width = visual.patch_size
    height, width = images.shape[-2:]
    grid = (height // patch_height, width // patch_width)
    if not all(grid) or height % patch_height or width % patch_width:
        raise UserError(f'a window of {height}×{width} pixels does not divide into patches of '
                        f'{patch_height}×{patch_width}; its sides have to be multiples of them')
    x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
    position = resize_position_embedding(visual.positional_embedding, visual.grid_size, grid)
    x = visual.ln_pre(x + position.to(x.dtype))
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    return x, grid


def resize_position_embedding(embedding, grid, new_grid, prefix=1, offset=POSITION_OFFSET):
    """Return a position embedding (prefix + h·w, D) for another grid, resized bicubically; the prefix is kept.

    With an offset the scale factors are (n + offset) / s, as in the published implementations; with 0 the resize is
    to size.

    Args:
        embedding (prefix + h·w, D): as trained.
        grid (int, int), new_grid (int, int): rows and columns of patches, as trained and as wanted.
        prefix (int): number of tokens before the patches.
        offset (float): see above.
    """
    if tuple(grid) == tuple(new_grid):
        return embedding
    patches = embedding[prefix:].float().T.unflatten(1, tuple(grid))[None]
    if offset:
        scale = tuple((n + offset) / s for n, s in zip(new_grid, grid))
        patches = F.interpolate(patches, scale_factor=scale, mode='bicubic', align_corners=False)
    else:
        patches = F.interpolate(patches, tuple(new_grid), mode='bicubic', align_corners=False)
    if tuple(patches.shape[2:]) != tuple(new_grid):
        raise RuntimeError(f'position embeddings of {tuple(grid)} became {tuple(patches.shape[2:])}, not {new_grid}')
    return torch.cat([embedding[:prefix].float(), patches[0].flatten(1).T]).to(embedding.dtype)
