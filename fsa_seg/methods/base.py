"""The base of all methods: hooks with defaults, and a method's cosines on a batch of windows.

Shape legend: B windows, T = 1 + N tokens (CLS first), N patches, D width, E embedding, Q queries, K classes.
"""

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsa_seg.errors import UserError
from fsa_seg.ops.attention import AttentionMap, dense_map
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.last_block import LastBlock
from fsa_seg.ops.readout import embeddings
from fsa_seg.ops.types import pair
from fsa_seg.ops.windows import Layout, OverlapAdd, WholeImage, Window

SCOPES = ('window', 'image', 'windows', 'asked')  # what a VFM sees: see `Method.roles`
PUBLISHED_VFM = 'dino_vit-b8'  # of a role for which a method names no other
HERE = os.path.dirname(os.path.abspath(__file__))
ROW_SUM_ERROR = 0.02  # share of the sum; half precision and rows of 4096 entries are within it
STAGES = ('cosines', 'scores', 'labels')  # what a refinement works on


class Method:
    """A training-free segmentation method: what it needs, and hooks that each have a default.

    A method is one file; its name is the file's. Most methods write `attention` alone. The constructor is the method's
    config schema: every argument has a default.

    Attributes (of the class):
        name (str), path (str): the file's name and place; set when the file is loaded.
        title (str): in tables, and the name of the registered segmentor.
        publication (str): where the method was published.
        protocol (str): of the publication. fsa_protocol (str): the same with FSA, where it differs.
        roles (dict): role of a VFM that is needed -> what the VFM sees: 'window'; 'image', the whole image once;
            'windows', every window of an image before the hook `whole`; 'asked', what hooks on the whole image show it.
        kinds (dict): role -> kind of the VFM's features, such as 'values'; 'tokens' for a role without an entry.
        vfms (dict): role -> name of the published VFM; PUBLISHED_VFM for a role without an entry.
        stage_roles (dict): roles of the method as a stage of another method; None for a method that is no stage.
        needs_tokens (bool): whether `merge` reads the windows' `tokens`.
        regions (dict): config of the source of region maps; None for a method without them.
        stage (Method): whose hooks on the whole image take the place of the method's own, or follow them.
        residual, mlp (bool): whether the last block's residual and its MLP follow the attention.
        refines (str): what `refine` works on: 'cosines', 'scores' or 'labels'; None without a refinement.
        whole_images (bool): whether a window of 0, the whole image, is possible; by default where no VFM sees windows.
        least_patches (int): how many patches of CLIP a window needs.
        has_logits (bool): whether the map is a softmax of logits (its `with_logits`), which SFR adapts.
    """

    name: str = ''
    path: ClassVar[str] = ''
    title: ClassVar[str] = ''
    publication: ClassVar[str] = ''
    protocol: ClassVar[str] = 'proxyclip'
    fsa_protocol: ClassVar[str | None] = None
    roles: dict[str, str] = {}
    residual: bool = False
    mlp: bool = False
    refines: ClassVar[str | None] = None
    whole_images: bool | None = None
    least_patches: int = 1
    has_logits: bool = True
    kinds: dict[str, str] = {}
    vfms: ClassVar[dict[str, str]] = {}
    stage_roles: dict[str, str] | None = None
    needs_tokens: bool = False
    regions: dict[str, Any] | None = None
    stage: 'Method | None' = None
    given: dict[str, Any] = {}  # settings that came with the method's name, which a protocol does not replace
    rows_checked: bool = False  # whether the map's rows were found to sum to its `row_sum`

    def inner_blocks(self, depth: int) -> tuple[int, ...]:
        """Return the indices of CLIP's earlier blocks whose tokens, q, k or v the method reads; none by default.

        Args:
            depth: number of blocks of the image tower; the last one's index is depth − 1.
        """
        return ()

    def whole(self, image: WholeImage) -> Any:
        """Return what the windows or the merge need of a whole image; called once, before its first window.

        The windows find it in `block.whole`, the merge in `layout.image.made`.
        """
        return None

    def attention(self, block: LastBlock) -> AttentionMap:
        """Return the attention map of a batch of windows. FSA adapts this map; without one FSA is refused."""
        raise NotImplementedError

    def embed(self, block: LastBlock, attention: AttentionMap | None) -> Tensor:
        """Return unit patch embeddings (B, N, E), by default the last block's readout under the map.

        Args:
            block: the last block on a batch of windows, with all that the method asked for.
            attention: the method's own map, or the map that FSA adapted; None for a method without one.
        """
        if type(self).attend is not Method.attend:
            return embeddings(block.visual, self.attend(block, attention))
        assert attention is not None  # a method without a map has its own `embed` or `attend`
        return block.embed(attention, self.residual, self.mlp)

    def attend(self, block: LastBlock, attention: AttentionMap | None) -> Tensor:
        """Return patch tokens (B, N, D) before `ln_post`, by default those that leave the last block under the map.

        `embed` reads them out; a splice of windows averages them. Arguments are as of `embed`.
        """
        assert attention is not None  # a method without a map has its own `attend`
        return block.attend(attention, self.residual, self.mlp)

    def grid(self, clip: tuple[int, int], vfms: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """Return the grid (h, w) of the patch embeddings, by default CLIP's.

        Args:
            clip (int, int): of CLIP's patches.
            vfms (dict): role -> (h, w) of the VFM's features.
        """
        return clip

    def keep(self, block: LastBlock) -> list | None:
        """Return what `merge` needs of each window, a list of B; nothing by default."""
        return None

    def merge(self, windows: list[Window], layout: Layout) -> Any:
        """Return the cosines of an image's pixels, by default the exact overlap-add of its windows.

        The result has `size` (height, width), and `tiles(most)` as of `fsa_seg.ops.windows.OverlapAdd`.

        Args:
            windows: all windows of the image, with their cosines and what `keep` returned.
            layout: how the image was cut.
        """
        overlap = OverlapAdd(layout)
        for window in windows:
            overlap.add(window)
        return overlap

    def refine(self, values: Tensor, image: Tensor, text: Any) -> Tensor:
        """Return refined values of the same shape; called where `refines` names a stage.

        Args:
            values: (Q, height, width) cosines, (K, height, width) scores or (height, width) labels, at original size.
            image (3, height, width): the normalised input, at that size.
            text: the `fsa_seg.models.text.Text` of the prediction.
        """
        return values

    def correct(self, labels: Tensor, image: WholeImage) -> Tensor:
        """Return the corrected labels (height, width) int64 of an image at original size; by default the same."""
        return labels

    def memory(self, windows: int, patches: int, queries: int, pixels: int) -> tuple[int, str]:
        """Return the most bytes that an image's stages hold at once beyond its windows', and what lowers them.

        Args:
            windows: of the image. patches: of a window's VFM. queries: of the text. pixels: of the resized image.
        """
        return 0, ''

    def takes_whole_images(self) -> bool:
        """Return whether a window of 0 is possible."""
        if self.whole_images is not None:
            return self.whole_images
        return not any(map(sees_windows, self.roles.values()))

    @classmethod
    def overrides(cls, hook: str) -> bool:
        """Return whether the method has a hook of its own."""
        return getattr(cls, hook) is not getattr(Method, hook)

    @property
    def parts(self) -> 'list[Method]':
        """The method, and its stage if there is one."""
        return [self, *([self.stage] if self.stage else [])]

    def published_vfms(self) -> dict[str, str]:
        """Return the published VFM of each role, the stage's included."""
        found = {role: self.vfms.get(role, PUBLISHED_VFM) for role in self.roles}
        if self.stage:
            found.update({role: self.stage.vfms.get(role, PUBLISHED_VFM) for role in self.stage.stage_roles or ()})
        return found

    @property
    def merging(self) -> 'Method':
        """The part whose hooks `keep` and `merge` are called."""
        return self.stage if self.stage and self.stage.overrides('merge') else self

    @classmethod
    def has_attention(cls) -> bool:
        """Return whether the method has an attention map, which FSA can adapt."""
        return cls.attention is not Method.attention

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as they are set; each is an attribute of its own name."""
        return {key: getattr(self, key) for key in option_names(type(self))}

    @functools.cached_property
    def row_title(self) -> str:
        """The title in tables."""
        return self.title

    def key(self) -> str:
        """Return a text that is equal for methods of one class, with equal settings and equal stages."""
        return json.dumps([[part.path, part.name, part.settings] for part in self.parts], sort_keys=True, default=repr)


def sees_windows(scope: str) -> bool:
    """Return whether a VFM of a role with this scope sees the windows of an image."""
    return scope in ('window', 'windows')


def option_names(method: type[Method]) -> list[str]:
    """Return the names of a method's constructor arguments."""
    return [] if method.__init__ is object.__init__ else list(_argument_names(method.__init__))


@functools.lru_cache(256)
def _argument_names(constructor: Callable) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(constructor).parameters if name != 'self')


class WindowCosines:
    """The cosines of a batch of windows under one method; what several feedbacks share is computed once.

    Attributes:
        attention: the method's map, or None.
        first (B, N, Q): cosines without feedback.
        last (B, N, D): the tokens behind the cosines that were computed last, if the method's merge needs tokens.
        grid (int, int): (h, w) of the patches.

    Args:
        method: the method.
        block: the last block on the windows.
        text (Q, E): unit rows.

    Raises:
        UserError: a hook that returns another shape than it has to.
    """

    def __init__(self, method: Method, block: LastBlock, text: Tensor):
        self.method, self.block, self._text = method, block, text.float()
        self.title, self.images = method.title, block.images
        patches = block.grid[0] * block.grid[1]
        if patches < method.least_patches:
            raise UserError(
                f'{method.title} needs at least {method.least_patches} patches, and a window has {block.grid[0]}×'
                f'{block.grid[1]} = {patches}; '
                'use a larger window'
            )
        self._needs_tokens = method.merging.needs_tokens
        self.last: Tensor | None = None
        self._fed: tuple[Any, list[Tensor], Tensor | None] | None = None  # the last feedback, its rounds, their tokens
        self.attention = _remembering(method.attention(block)) if method.has_attention() else None
        vfm_grids = {role: pair(features.shape[2:]) for role, features in block.features.items()}
        self.grid = _checked_grid(method, method.grid(block.grid, vfm_grids))
        map_grid = (self.attention and self.attention.grid) or (self.grid if not self.attention else block.grid)
        if tuple(map_grid) != self.grid:
            raise UserError(
                f'{method.title}: the hook `grid` returned {self.grid}, and the attention map is on {tuple(map_grid)}; '
                'both have to be the grid of the patch embeddings'
            )

    def cosines(self, attention: AttentionMap | None) -> Tensor:
        """Return the cosines (B, N, Q) under a map."""
        if self._needs_tokens:
            self.last = self.method.attend(self.block, attention)
            unit = embeddings(self.block.visual, self.last)
        else:
            unit = self.method.embed(self.block, attention)
        expected = len(self.block.tokens), self.grid[0] * self.grid[1], self._text.shape[1]
        if not isinstance(unit, Tensor) or tuple(unit.shape) != expected:
            shape = tuple(unit.shape) if isinstance(unit, Tensor) else type(unit).__name__
            raise UserError(
                f'{self.method.title}: embed returned {shape}; it has to be unit embeddings (B, N, E) = {expected}, '
                f'one for each patch of the grid {self.grid[0]}×{self.grid[1]}'
            )
        return unit @ self._text.T

    @functools.cached_property
    def first(self) -> Tensor:
        """The cosines without feedback."""
        cosines = self.cosines(self.attention)
        self._first_tokens = self.last
        return cosines

    @functools.cached_property
    def matrix(self) -> Tensor:
        """The matrix (T, T) of the method's map on the first window, the mean of its heads; T = N without CLS."""
        assert self.attention is not None  # a feedback adapts a map
        return self.matrix_of(self.attention)

    def matrix_of(self, attention: AttentionMap) -> Tensor:
        """Return the matrix (T, T) of a map on the first window, see `fsa_seg.ops.attention.dense_map`."""
        return dense_map(attention.apply, self.block.values(attention), self.block.value_heads(attention))

    @functools.cached_property
    def uniform(self) -> Tensor:
        """The cosines z(U) under the uniform map, (B, N, Q), or (B, 1, Q) where they are alike for all patches."""
        method, attention = self.method, self.attention
        assert attention is not None and attention.row_sum is not None  # FSA adapts a map, and checks its rows
        mass = attention.row_sum
        if not (method.overrides('embed') or method.overrides('attend')):
            return self.block.embed_uniform(attention, method.residual, method.mlp) @ self._text.T
        uniform = attention._replace(apply=lambda values: (mass * values.mean(1, keepdim=True)).expand_as(values))
        return self.cosines(uniform)

    def rounds(self, feedback: Any = None) -> Iterator[Tensor]:
        """Yield the cosines (B, N, Q) without feedback, and with it those after each of its rounds.

        The rounds of one feedback object, which nobody changes, are computed once.
        """
        yield self.first
        self.last = self._first_tokens  # which an earlier feedback on the same windows replaced
        if feedback is not None:
            assert self.attention is not None  # `check_feedback` said so
            if self._fed is None or self._fed[0] is not feedback:
                if isinstance(feedback, FSA):
                    self._check_row_sums(self.attention)
                self._fed = feedback, list(feedback.loop(self, self.attention, self.first)), self.last
            _, fed, self.last = self._fed
            yield from fed

    def _check_row_sums(self, attention: AttentionMap) -> None:
        """Raise a UserError if a map's rows do not sum to its `row_sum`.

        The first windows of a user's method are looked at; the tests hold the suite's own.
        """
        method = self.method
        if method.rows_checked or os.path.dirname(method.path) == HERE or attention.row_sum is None:
            return
        sums = attention.apply(torch.ones_like(self.block.values(attention))).float()
        if (sums - attention.row_sum).abs().max() > ROW_SUM_ERROR * attention.row_sum:
            raise UserError(
                f'{self.title}: the rows of its attention map sum to {sums.min():.4g} to {sums.max():.4g}, and row_sum '
                f'is {attention.row_sum:g}; FSA needs rows of one sum: set row_sum to it, or to None where '
                'rows differ, and leave the feedback out (--no-fsa)'
            )
        method.rows_checked = True


def _remembering(attention: AttentionMap) -> AttentionMap:
    """Return a map that computes A·values of the first values once."""
    first: list[Tensor] = []  # the first values, and A·values

    def apply(values: Tensor) -> Tensor:
        if first and first[0] is values:
            return first[1]
        product = attention.apply(values)
        if not first:
            first.extend((values, product))
        return product

    if not isinstance(attention, AttentionMap):
        raise UserError(f'attention returned {type(attention).__name__}; it has to be an AttentionMap')
    return attention._replace(apply=apply)


def _checked_grid(method: Method, grid: Any) -> tuple[int, int]:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2 or not all(isinstance(side, int) for side in grid):
        raise UserError(f'{method.title}: grid returned {grid!r}; it has to be two whole numbers, (rows, columns)')
    return tuple(grid)


def check_feedback(method: Method | type[Method], feedback: Any) -> None:
    """Raise a UserError if a method has no attention map that a feedback could adapt, or no logits for SFR.

    Args:
        method: the method.
        feedback: None, a feedback, or its class.
    """
    if feedback and not method.has_attention():
        raise UserError(
            f'{method.title} has no attention map that FSA could adapt; leave out the feedback (--no-fsa), or give the '
            'method the hook `attention`'
        )
    if getattr(feedback, 'needs_logits', False) and not method.has_logits:
        raise UserError(
            f'{method.title}: SFR adapts the logits of a softmax, and this attention map is none; use FSA '
            '(--feedback fsa), or no feedback (--no-fsa)'
        )
