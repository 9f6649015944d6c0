"""ClearCLIP: query-query attention without the residual."""

from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, named_map
from fsa_seg.ops.last_block import LastBlock


class ClearCLIP(Method):
    """ClearCLIP (arXiv 2407.12442): softmax(qqᵀ/√d), no residual, no MLP."""

    title = 'ClearCLIP'
    publication = 'Lan et al., ECCV 2024, arXiv 2407.12442'
    protocol = 'clearclip'

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return softmax(qqᵀ/√d)."""
        return named_map('qq', block)
