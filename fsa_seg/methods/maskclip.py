"""MaskCLIP: each patch attends itself alone."""

from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, named_map
from fsa_seg.ops.last_block import LastBlock


class MaskCLIP(Method):
    """MaskCLIP (arXiv 2112.01071): identity attention, no residual, no MLP.

    The protocol is that of ClearCLIP's runs of it.
    """

    title = 'MaskCLIP'
    publication = 'Zhou et al., ECCV 2022, arXiv 2112.01071'
    protocol = 'clearclip'
    has_logits = False

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the identity."""
        return named_map('identity', block)
