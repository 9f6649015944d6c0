"""A method that a config spells out: an attention map by its name, and a readout."""

import functools
from typing import Any

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, blocks_at, check_map_name, named_map, proxy_map, weighted_sum
from fsa_seg.ops.last_block import LastBlock

PROXY = 'proxy'
ITACLIP = 'itaclip'
ITACLIP_BLOCKS = (6, 7, 9)  # 7, 8 and 10 of 12 if the first block counts as 1


class SpelledOut(Method):
    """An attention map by its name, with or without residual and MLP.

    Args:
        attention (str): a sum of 'qk', 'qq', 'kk' and 'vv', such as 'qq+kk', or CLIPtrase's 'qq+kk+vv'; 'identity';
            'proxy', which needs a VFM; or 'itaclip', the mean of the block's 'qq+kk' and the mean of those of three
            earlier blocks (ITACLIP, arXiv 2411.12044).
        residual (bool), mlp (bool): whether the block's residual and its MLP follow.

    Raises:
        UserError: an unknown map, or a value that is neither True nor False.
    """

    title = 'SpelledOut'

    def __init__(self, attention: str = 'qk', residual: bool = False, mlp: bool = False):
        if attention not in (PROXY, ITACLIP):
            check_map_name(attention, (PROXY, ITACLIP))
        for key, value in dict(residual=residual, mlp=mlp).items():
            if not isinstance(value, bool):
                raise UserError(f'method: {key} is {value!r}; it has to be True or False')
        self.map_name, self.residual, self.mlp = attention, residual, mlp
        self.has_logits = attention != 'identity'
        if attention == PROXY:
            self.roles = {PROXY: 'window'}

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(attention=self.map_name, residual=self.residual, mlp=self.mlp)

    @functools.cached_property
    def row_title(self) -> str:
        """The map and what follows it, such as 'qq_residual_mlp'."""
        return '_'.join([self.map_name, *(key for key in ('residual', 'mlp') if getattr(self, key))])

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the blocks that ITACLIP's map reads; of a tower of another depth those as deep, which is ours."""
        return blocks_at(ITACLIP_BLOCKS, depth) if self.map_name == ITACLIP else ()

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the named map."""
        if self.map_name == PROXY:
            return proxy_map(block.features[PROXY])
        if self.map_name != ITACLIP:
            return named_map(self.map_name, block)
        earlier = [block.inner[index] for index in self.inner_blocks(block.depth)]
        maps = [named_map('qq+kk', part)._replace(with_logits=None) for part in earlier]
        return weighted_sum([(0.5, named_map('qq+kk', block)), *((0.5 / len(maps), part) for part in maps)])

    def grid(self, clip: tuple[int, int], vfms: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """Return CLIP's grid, or the VFM's under a proxy map."""
        return vfms.get(PROXY, clip)
