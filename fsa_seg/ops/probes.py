"""Probe tokens: copies of CLS that go through CLIP's blocks, each attending to one region alone (CorrCLIP).

A probe never influences the image's own tokens, so that the trunk's tokens, computed once, serve all probes.

Shape legend: B windows, T = 1 + N tokens (CLS first), D width, H heads, R probes of a window, at most.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.ops.regions import region_indices
from fsa_seg.ops.types import Attention, ImageTower


def region_probes(visual: ImageTower, layers: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
    """Return one probe token per region after all blocks, (B, R, D), and each patch's index into them, (B, N) int64.

    A probe starts as CLS after `ln_pre`. In each block it attends to CLS and to the patches of its region, and neither
    to itself nor to other probes. Residual and MLP follow in every block, the last included; `ln_post` does not.
    Regions are in rising order of their labels. A window of fewer regions than R has probes that attend to CLS alone,
    which no patch points at.

    Args:
        visual: an `open_clip` image tower.
        layers (sequence of (B, T, D)): the tokens that enter each block, the first block first.
        regions (B, N): labels of CLIP's patches, whole numbers.
    """
    index, counts = region_indices(regions)
    order = torch.arange(int(counts.max()), device=index.device)
    outside = F.pad(index[:, None] != order[:, None], (1, 0))  # (B, R, T); CLS is inside
    mask = torch.zeros(outside.shape, device=index.device).masked_fill_(outside, float('-inf'))
    probes = layers[0][:, :1].expand(-1, len(order), -1)
    for block, tokens in zip(visual.transformer.resblocks, layers):
        attended = _attended(block.attn, block.ln_1(probes), block.ln_1(tokens), mask)
        probes = probes + block.ls_1(block.attn.out_proj(attended))
        probes = probes + block.ls_2(block.mlp(block.ln_2(probes)))
    return probes, index


def _attended(attn: Attention, probes: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the attended values (B, R, D) of probes.

    With few probes no token is projected: (W_q p)ᵀ(W_k x) is (W_kᵀ W_q p)ᵀx, and Σ a·W_v x is W_v Σ a·x. This takes
    R·H rows of D in place of 2·T projections. The keys' bias adds the same to all logits of a row, and drops out.

    Args:
        attn: the block's attention.
        probes (B, R, D), tokens (B, T, D): after `ln_1`.
        mask (B, R, T): added to the logits.
    """
    heads, count, width = attn.num_heads, probes.shape[1], probes.shape[2]
    weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    queries = F.linear(probes, weights[0], biases[0]).unflatten(2, (heads, -1))
    if count * heads >= width:
        keys, values = (F.linear(tokens, weights[i], biases[i]).unflatten(2, (heads, -1)) for i in (1, 2))
        query, key, value = (x.transpose(1, 2) for x in (queries, keys, values))
        mixed = F.scaled_dot_product_attention(query, key, value, mask[:, None].to(value.dtype))
        return mixed.transpose(1, 2).flatten(2)
    to_keys, to_values = (weights[i].unflatten(0, (heads, -1)) for i in (1, 2))  # (H, D/H, D)
    queries = torch.einsum('brhd,hdc->bhrc', queries, to_keys).flatten(1, 2)
    logits = (queries @ tokens.transpose(1, 2)).float().unflatten(1, (heads, count))
    logits = logits.div_((width // heads) ** 0.5).add_(mask[:, None])
    mixed = logits.softmax(-1).to(tokens.dtype).flatten(1, 2) @ tokens
    mixed = torch.einsum('bhrc,hdc->brhd', mixed.unflatten(1, (heads, count)), to_values)
    return mixed.flatten(2) + biases[2]
