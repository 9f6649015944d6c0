"""The methods, and the logits of one window under any of them: `patch_logits`.

A method is an attention map and a readout of CLIP's last block; FSA wraps any of them.

Shape legend: B images, T = 1 + N tokens (CLS first), N = h·w patches, D width, E embedding, Q queries; images (B, 3,
height, width).
"""

import functools
import inspect
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fsa_seg.errors import UserError, check_keys, one_of
from fsa_seg.models.clip import trunk
from fsa_seg.ops.attention import Block, find_attention, map_rows, resize_tokens
from fsa_seg.ops.feedback import FSA, adapt, ensemble, prune
from fsa_seg.ops.readout import readout

METHODS = dict(
    clip=dict(attention='qk', residual=True, mlp=True),
    maskclip=dict(attention='identity', residual=False, mlp=False),
    sclip=dict(attention='qq+kk', residual=True, mlp=True),
    clearclip=dict(attention='qq', residual=False, mlp=False),
    proxyclip=dict(attention='proxy', residual=False, mlp=False),
)
FEEDBACK_KEYS = tuple(inspect.signature(FSA).parameters)


def patch_logits(visual, images, text, *, method='proxyclip', feedback=None, vfm_features=None):
    """Return the cosine of every patch with every query, and the patches' grid: ((B, h·w, Q) float32, (h, w)).

    Args:
        visual: the image tower of an `open_clip` model (`model.visual`), unmodified.
        images (B, 3, height, width): normalised with the backbone's mean and std; sides are multiples of the patch.
        text (Q, E): unit rows.
        method (str or dict): a name ('clip', 'maskclip', 'sclip', 'clearclip', 'proxyclip') or
            dict(attention=..., residual=..., mlp=...).
        feedback (None, bool or dict): FSA off; on with its defaults; or with settings such as dict(lam=3.0, p=0.45).
        vfm_features (B, C, I, J): needed by the attention map 'proxy', whose output grid is (I, J).

    Raises:
        UserError: an unknown method, a missing VFM, a tower or an image size that does not fit.
    """
    method, feedback = resolve_method(method), resolve_feedback(feedback)
    tokens, grid = trunk(visual, images)
    return token_logits(visual, tokens, grid, text, method=method, feedback=feedback, vfm_features=vfm_features)


def token_logits(visual, tokens, grid, text, *, method='proxyclip', feedback=None, vfm_features=None):
    """Return what `patch_logits` does, from the trunk's tokens: the last block under a method, and its feedback.

    Args:
        tokens (B, 1 + h·w, D), grid (int, int): of `fsa_seg.models.clip.trunk`.
        visual, text, method, feedback, vfm_features: as of `patch_logits`.
    """
    block = LastBlock(visual, tokens, grid, text, resolve_method(method), vfm_features)
    feedback = resolve_feedback(feedback)
    *_, logits = block.rounds(feedback)
    return logits, block.grid


class Inspection(NamedTuple):
    """What FSA makes of one patch, (h, w) float32 each: the patch's rows, over the grid of patches.

    Attributes:
        attention: A, the mean of its heads.
        similarity: S, before pruning.
        pruned: S after it; −∞ outside what is kept.
        adapted: W.
        ensemble: Â, the mean of its heads.
    """

    attention: Tensor
    similarity: Tensor
    pruned: Tensor
    adapted: Tensor
    ensemble: Tensor


def inspect_patch(visual, images, text, index, *, method='proxyclip', feedback=True, vfm_features=None):
    """Return the `Inspection` of one patch; with several rounds of feedback, of the last one.

    Args:
        images (1, 3, height, width): one image.
        index (int, int): row and column of the patch on the output's grid, which is the VFM's where there is one.
        visual, text, method, feedback, vfm_features: as of `patch_logits`.
    """
    feedback = resolve_feedback(feedback)
    block = LastBlock(visual, *trunk(visual, images), text, resolve_method(method), vfm_features)
    attention = block.attention
    patch, first = index[0] * block.grid[1] + index[1], int(attention.cls)
    before, _ = list(block.rounds(feedback))[-2:]
    similarity = feedback.similarities(before, block.uniform_cosines)
    pruned = prune(similarity, feedback.p)
    adapted = adapt(similarity, feedback.lam, feedback.p)

    def row_of(apply):
        return map_rows(apply, patch + first, block.values, block.heads).mean(0)[first:]

    rows = (
        row_of(attention.apply),
        similarity[0, patch],
        pruned[0, patch],
        adapted[0, patch],
        row_of(
            lambda unit: ensemble(
                attention, lambda *x: [adapted.to(one.dtype) @ one for one in x], unit, feedback.terms
            )
        ),
    )
    return Inspection(*(row.unflatten(0, block.grid) for row in rows))


class LastBlock:
    """CLIP's last block on given tokens, under a method; what several feedbacks share is computed once.

    Where all heads share the map, it commutes with the out-projection, which then comes first; and where patches come
    from a coarser grid whose count is below the width D, the map mixes the columns of the resize, (N, h·w), and their
    embeddings come last: both are products of fewer terms.

    Attributes:
        attention: the method's `AttentionMap`.
        values (B, T, any): what it is applied to; T = N, or 1 + N where it covers CLS.
        heads (int): how many of the map's own the columns of values belong to; 1 where all heads share it.
        grid (int, int): of the output's patches.

    Args:
        visual, tokens, grid, text: as of `token_logits`.
        method (dict): of `resolve_method`.
        features (B, C, I, J): of a VFM, or None.
    """

    def __init__(self, visual, tokens, grid, text, method, features=None):
        build, needs_vfm = find_attention(method['attention'])
        if needs_vfm and features is None:
            raise UserError(f'the attention map {method["attention"]!r} needs a VFM: pass vfm_features (B, C, I, J)')
        block = visual.transformer.resblocks[-1]
        self._visual, self._text, self._method, self._out = visual, text.float(), method, block.attn.out_proj
        projections = Block(block.ln_1(tokens), block.attn, grid, features)
        self.attention, self.values, self.grid = build(projections), projections.v, grid
        self.heads = 1 if self.attention.shared else block.attn.num_heads
        self._embeddings = None
        if not self.attention.cls:
            self.grid = tuple(features.shape[2:]) if needs_vfm else grid
            tokens = resize_tokens(tokens[:, 1:], grid, self.grid) if method['residual'] else None
            self.values = self.values[:, 1:]
        if self.attention.shared:
            self.values, self._out = (
                F.linear(self.values, self._out.weight),
                lambda mixed, out=self._out: mixed + out.bias,
            )
        if tuple(self.grid) != tuple(grid):
            if self.attention.shared and self.values.shape[1] < self.values.shape[2]:
                self._embeddings = self.values
                eye = torch.eye(self.values.shape[1], device=self.values.device, dtype=self.values.dtype)[None]
                self.values = resize_tokens(eye, grid, self.grid).expand(len(self.values), -1, -1)
            else:
                self.values = resize_tokens(self.values, grid, self.grid)
        self._tokens = tokens

    def rounds(self, feedback):
        """Yield the logits (B, N, Q) under the method's map, and, with feedback (an `FSA`), those after each round."""
        logits = self.logits
        yield logits
        if feedback is not None:
            uniform = self.uniform_cosines if feedback.isolation else None
            for _ in range(feedback.rounds):
                logits = self.cosines(feedback.attend(self.attention, logits, uniform, self.values, self.attended))
                yield logits

    @functools.cached_property
    def attended(self):
        """A·values."""
        return self.attention.apply(self.values)

    @functools.cached_property
    def logits(self):
        """The patches' cosines with the queries under the method's map, (B, N, Q)."""
        return self.cosines(self.attended)

    @functools.cached_property
    def uniform_cosines(self):
        """The cosines z(U) under the uniform map, (B, N, Q), or (B, 1, Q) where they are alike for all patches."""
        uniform = self.attention.mass * self.values.mean(1, keepdim=True)
        if self._method['residual']:  # each patch keeps its own embedding
            return self.cosines(uniform.expand_as(self.values))
        return self.cosines(uniform.expand(-1, 1 + self.attention.cls, -1))

    def cosines(self, mixed):
        """Return the patches' cosines with the queries, (B, N, Q), of attended values (B, T, any)."""
        mixed = mixed if self._embeddings is None else mixed @ self._embeddings
        method = self._method
        embeddings = readout(
            self._visual, self._out(mixed), self._tokens if method['residual'] else None, method['mlp']
        )
        return embeddings[:, int(self.attention.cls) :] @ self._text.T


def resolve_method(method):
    """Return `method`, a name or a dict, as dict(attention, residual, mlp); UserError names what is wrong with it."""
    if isinstance(method, str):
        return METHODS[one_of(method, METHODS, 'method')]
    check_keys(method, ('attention', 'residual', 'mlp'), 'method')
    resolved = dict(dict(attention=None, residual=False, mlp=False), **method)
    find_attention(resolved['attention'])
    for key in ('residual', 'mlp'):
        if not isinstance(resolved[key], bool):
            raise UserError(f'method: {key} is {resolved[key]!r}; it has to be True or False')
    return resolved


def resolve_feedback(feedback):
    """Return None or an `FSA`: feedback is None, a bool, a dict of FSA's settings, or an FSA already."""
    if feedback is None or feedback is False:
        return None
    if isinstance(feedback, FSA):
        return feedback
    settings = {} if feedback is True else dict(feedback)
    check_keys(settings, FEEDBACK_KEYS, 'feedback')
    return FSA(**settings)
