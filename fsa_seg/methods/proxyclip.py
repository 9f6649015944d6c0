"""ProxyCLIP: the attention of a VFM's features in place of CLIP's own."""

from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, proxy_map
from fsa_seg.ops.last_block import LastBlock


class ProxyCLIP(Method):
    """ProxyCLIP (arXiv 2408.04883): attention of a VFM's features, no residual, no MLP.

    FSA was published on ProxyCLIP, with a protocol of its own.
    """

    title = 'ProxyCLIP'
    publication = 'Lan et al., ECCV 2024, arXiv 2408.04883'
    protocol = 'proxyclip'
    fsa_protocol = 'fsa'
    roles = {'proxy': 'window'}

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the proxy map of the features, on their grid."""
        return proxy_map(block.features['proxy'])

    def grid(self, clip: tuple[int, int], vfms: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """Return the VFM's grid."""
        return vfms['proxy']
