"""ResCLIP: attention of earlier blocks beside a host's own map."""

from fsa_seg.errors import UserError, one_of
from fsa_seg.methods.base import Method
from fsa_seg.methods.clearclip import ClearCLIP
from fsa_seg.methods.clip import CLIP
from fsa_seg.methods.naclip import NACLIP
from fsa_seg.methods.sclip import SCLIP
from fsa_seg.ops.attention import AttentionMap, blocks_at, named_map, weighted_sum
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.settings import is_number, list_of, whole

HOSTS = dict(naclip=NACLIP, clearclip=ClearCLIP, sclip=SCLIP, clip=CLIP)
BLOCKS = (5, 6, 7, 8)  # 6 to 9 if the first block counts as 1
PUBLISHED_DEPTHS = (12, 24)  # the released code reads the same blocks of ViT-B/16 and ViT-L/14


class ResCLIP(Method):
    """ResCLIP (arXiv 2411.15851) without its feedback: τ((1 − λ)·A + λ·R).

    A is the map of a host, whose residual and MLP it keeps; R is the mean of softmax(qkᵀ/√d) of earlier blocks (RCS).
    The published figures have the feedback SFR as well (`--feedback sfr`).

    Args:
        host (str): 'naclip' (the released default), 'clearclip', 'sclip' or 'clip'.
        tau (float): τ, above 0. Published: 2.0.
        lam (float): λ, from 0 to 1. Published: 0.2 to 0.6, by data set.
        blocks (list of int): indices of the earlier blocks, from 0. By default 5 to 8 of a tower of 12 or 24 blocks, as
            published, and of any other those that lie as deep, which is ours.

    Raises:
        UserError: a setting out of its range.
    """

    title = 'ResCLIP'
    publication = 'Yang et al., CVPR 2025, arXiv 2411.15851'
    protocol = 'resclip'

    def __init__(self, host: str = 'naclip', tau: float = 2.0, lam: float = 0.3, blocks: list | None = None):
        one_of(host, HOSTS, 'host of ResCLIP')
        for key, value, fits, allowed in (
            ('tau', tau, is_number(tau) and tau > 0, 'a number above 0 (published: 2.0)'),
            ('lam', lam, is_number(lam) and 0 <= lam <= 1, 'a number from 0 to 1 (published: 0.2 to 0.6)'),
            (
                'blocks',
                blocks,
                blocks is None or list_of(whole(0), least=1).fits(blocks),
                'None, or a list of indices of blocks, from 0 (published: [5, 6, 7, 8])',
            ),
        ):
            if not fits:
                raise UserError(f'ResCLIP: {key} is {value!r}; it has to be {allowed}')
        self.host, self.tau, self.lam, self.blocks = host, tau, lam, blocks
        self._host = HOSTS[host]()
        self.residual, self.mlp = self._host.residual, self._host.mlp

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the indices of the blocks whose maps R is the mean of."""
        if self.blocks is not None:
            return tuple(self.blocks)
        return BLOCKS if depth in PUBLISHED_DEPTHS else blocks_at(BLOCKS, depth)

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return τ((1 − λ)·A + λ·R); R·v is a mean of products, and no map is held."""
        earlier = self.inner_blocks(block.depth)
        maps = [named_map('qk', block.inner[index])._replace(with_logits=None) for index in earlier]
        share = self.tau * self.lam / len(maps)
        host = self.tau * (1 - self.lam), self._host.attention(block)
        return weighted_sum([host, *((share, attention) for attention in maps)])
