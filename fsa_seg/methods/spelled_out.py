"""A method that a config spells out: an attention map by its name, and a readout."""

import functools
from typing import Any

from fsa_seg.errors import UserError
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap, check_map_name, named_map, proxy_map
from fsa_seg.ops.last_block import LastBlock

PROXY = 'proxy'


class SpelledOut(Method):
    """An attention map by its name, with or without residual and MLP.

    Args:
        attention (str): a sum of 'qk', 'qq', 'kk' and 'vv', such as 'qq+kk'; 'identity'; or 'proxy', which needs a VFM.
        residual (bool), mlp (bool): whether the block's residual and its MLP follow.

    Raises:
        UserError: an unknown map, or a value that is neither True nor False.
    """

    title = 'SpelledOut'

    def __init__(self, attention: str = 'qk', residual: bool = False, mlp: bool = False):
        if attention != PROXY:
            check_map_name(attention)
        for key, value in dict(residual=residual, mlp=mlp).items():
            if not isinstance(value, bool):
                raise UserError(f'method: {key} is {value!r}; it has to be True or False')
        self.map_name, self.residual, self.mlp = attention, residual, mlp
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

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the named map."""
        return proxy_map(block.features[PROXY]) if self.map_name == PROXY else named_map(self.map_name, block)

    def grid(self, clip: tuple[int, int], vfms: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """Return CLIP's grid, or the VFM's under a proxy map."""
        return vfms.get(PROXY, clip)
