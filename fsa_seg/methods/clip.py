"""CLIP as trained, read out at every patch."""

from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, named_map
from fsa_seg.ops.last_block import LastBlock


class CLIP(Method):
    """CLIP as trained: softmax(qkᵀ/√d), residual and MLP. It has no segmentation protocol of its own."""

    title = 'CLIP'
    publication = 'Radford et al., ICML 2021, arXiv 2103.00020'
    protocol = 'clearclip'
    residual = True
    mlp = True

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return softmax(qkᵀ/√d)."""
        return named_map('qk', block)
