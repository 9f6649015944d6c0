"""SCLIP: correlative self-attention."""

from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, named_map
from fsa_seg.ops.last_block import LastBlock


class SCLIP(Method):
    """SCLIP (arXiv 2312.01597): softmax(qqᵀ/√d) + softmax(kkᵀ/√d), residual and MLP."""

    title = 'SCLIP'
    publication = 'Wang et al., ECCV 2024, arXiv 2312.01597'
    protocol = 'sclip'
    residual = True
    mlp = True

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return softmax(qqᵀ/√d) + softmax(kkᵀ/√d); its rows sum to 2."""
        return named_map('qq+kk', block)
