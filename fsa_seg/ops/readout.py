"""Readout: from attended values of CLIP's last block to patch embeddings in the space that text shares.

Shape legend: B images, T tokens, D width, E embedding.
"""

import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.types import ImageTower


def readout(visual: ImageTower, attended: Tensor, tokens: Tensor | None = None, mlp: bool = False) -> Tensor:
    """Return unit embeddings (B, T, E): optional residual and MLP, then `ln_post @ proj`.

    Args:
        visual: an `open_clip` image tower.
        attended (B, T, D): out-projection of the attention map times values.
        tokens (B, T, D): the block's input, added as residual; None leaves the residual out.
        mlp (bool): whether the block's MLP, with its own residual, follows.
    """
    return embeddings(visual, stream(visual, attended, tokens, mlp))


def stream(visual: ImageTower, attended: Tensor, tokens: Tensor | None = None, mlp: bool = False) -> Tensor:
    """Return the tokens (B, T, D) that leave the last block; arguments as of `readout`."""
    block = visual.transformer.resblocks[-1]
    x = block.ls_1(attended)
    if tokens is not None:
        x = tokens + x
    return x + block.ls_2(block.mlp(block.ln_2(x))) if mlp else x


def embeddings(visual: ImageTower, tokens: Tensor) -> Tensor:
    """Return unit embeddings (B, any, E) of tokens (B, any, D): `ln_post @ proj`."""
    return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)
