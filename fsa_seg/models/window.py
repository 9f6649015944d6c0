"""The logits of one window under any method: `patch_logits`.

Shape legend: B windows, T = 1 + N tokens (CLS first), N = h·w patches, D width, E embedding, Q queries, C channels;
images (B, 3, height, width).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fsa_seg.errors import UserError, check_keys, constructor_keys, one_of
from fsa_seg.methods import make_method
from fsa_seg.methods.base import Method, WindowCosines, check_feedback, sees_windows
from fsa_seg.models.clip import trunk_and_inner
from fsa_seg.ops.attention import AttentionMap
from fsa_seg.ops.feedback import FSA, adapt, prune, within
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.sfr import SFR, SFRAndFSA
from fsa_seg.ops.types import ImageTower

FEEDBACKS = dict(FSA=FSA, SFR=SFR, SFRAndFSA=SFRAndFSA)
Features = Tensor | dict[str, Tensor] | None
Feedback = FSA | SFR


def patch_logits(
    visual: ImageTower,
    images: Tensor,
    text: Tensor,
    *,
    method: str | dict | Method = 'proxyclip',
    feedback: None | bool | dict | Feedback = None,
    vfm_features: Features = None,
    regions: Tensor | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Return the cosine of every patch with every query, and the patches' grid: ((B, h·w, Q) float32, (h, w)).

    Args:
        visual: the image tower of an `open_clip` model (`model.visual`), unmodified.
        images (B, 3, height, width): normalised with the backbone's mean and std; sides are multiples of the patch.
        text (Q, E): unit rows.
        method: a name such as 'sclip', or a dict, see `fsa_seg.methods.make_method`.
        feedback: FSA off; on with its defaults; or with settings such as dict(lam=3.0, p=0.45); or another feedback,
            such as dict(type='SFR').
        vfm_features (B, C, I, J): of the method's only VFM, or a dict of role -> features.
        regions (B, height, width): region maps of the images, whole numbers, which CorrCLIP needs.

    Raises:
        UserError: an unknown method, a missing VFM, a tower or an image size that does not fit.
    """
    method = make_method(method)
    tokens, grid, inner = trunk_and_inner(visual, images, method.inner_blocks(len(visual.transformer.resblocks)))
    return token_logits(
        visual,
        tokens,
        grid,
        text,
        method=method,
        feedback=feedback,
        vfm_features=vfm_features,
        inner=inner,
        images=images,
        regions=regions,
    )


def token_logits(
    visual: ImageTower,
    tokens: Tensor,
    grid: tuple[int, int],
    text: Tensor,
    *,
    method: str | dict | Method = 'proxyclip',
    feedback: None | bool | dict | Feedback = None,
    vfm_features: Features = None,
    inner: dict[int, Tensor] | None = None,
    images: Tensor | None = None,
    regions: Tensor | None = None,
) -> tuple[Tensor, tuple[int, int]]:
    """Return what `patch_logits` does, from the trunk's tokens: the last block under a method, and its feedback.

    Args:
        tokens (B, 1 + h·w, D), grid (int, int), inner: of `fsa_seg.models.clip.trunk_and_inner`.
        images: as of `patch_logits`; SFR alone looks at them.
        visual, text, method, feedback, vfm_features, regions: as of `patch_logits`.
    """
    feedback, method = resolve_feedback(feedback), make_method(method)
    check_feedback(method, feedback)
    windows = window_cosines(visual, tokens, grid, text, method, vfm_features, inner, images, regions)
    *_, logits = windows.rounds(feedback)
    return logits, windows.grid


def window_cosines(
    visual: ImageTower,
    tokens: Tensor,
    grid: tuple[int, int],
    text: Tensor,
    method: str | dict | Method,
    vfm_features: Features = None,
    inner: dict[int, Tensor] | None = None,
    images: Tensor | None = None,
    regions: Tensor | None = None,
) -> WindowCosines:
    """Return the `WindowCosines` of the trunk's tokens; arguments as of `token_logits`."""
    method = make_method(method)
    features = role_features(method, vfm_features)
    seen = {role: value for role, value in features.items() if sees_windows(method.roles[role])}
    whole = {role: list(value.split(1)) for role, value in features.items() if method.roles[role] == 'image'}
    blocks = visual.transformer.resblocks
    earlier = {index: Projections(blocks[index], before) for index, before in (inner or {}).items()}
    block = LastBlock(visual, tokens, grid, seen, earlier, whole, images=images, regions=regions)
    return WindowCosines(method, block, text)


def role_features(method: Method, features: Features) -> dict[str, Tensor]:
    """Return the features of each of a method's roles; a role without features is a UserError."""
    roles = [role for role, scope in method.roles.items() if scope != 'asked']
    by_role = features if isinstance(features, dict) else {}
    if isinstance(features, Tensor):
        by_role = dict.fromkeys(roles[:1], features)
    missing = [role for role in roles if role not in by_role]
    if missing or isinstance(features, Tensor) and len(roles) > 1:
        raise UserError(
            f'the method {method.name} needs a VFM for the role {", ".join(missing or roles)}: pass vfm_features '
            f'({"(B, C, I, J)" if len(roles) == 1 else "a dict of role -> (B, C, I, J)"})'
        )
    return {role: by_role[role] for role in roles}


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


def inspect_patch(
    visual: ImageTower,
    images: Tensor,
    text: Tensor,
    index: tuple[int, int],
    *,
    method: str | dict | Method = 'proxyclip',
    feedback: bool | dict | Feedback = True,
    vfm_features: Features = None,
) -> Inspection:
    """Return the `Inspection` of one patch; with several rounds of feedback, of the last one.

    Args:
        images (1, 3, height, width): one image.
        index (int, int): row and column of the patch on the output's grid, which is the VFM's where there is one.
        visual, text, method, feedback, vfm_features: as of `patch_logits`.
    """
    fsa, method = resolve_feedback(feedback), make_method(method)
    check_feedback(method, fsa)
    tokens, grid, inner = trunk_and_inner(visual, images, method.inner_blocks(len(visual.transformer.resblocks)))
    windows = window_cosines(visual, tokens, grid, text, method, vfm_features, inner, images)
    inspection, _ = inspect_window(windows, fsa, index)
    return inspection


def inspect_window(windows: WindowCosines, fsa: Any, index: tuple[int, int]) -> tuple[Inspection, Tensor]:
    """Return the `Inspection` of one patch, and the patch's cosines (2, Q) without feedback and with it.

    Args:
        windows: of one window, under a method with an attention map.
        fsa: the feedback.
        index: as of `inspect_patch`.

    Raises:
        UserError: a feedback without S and W.
    """
    if not isinstance(fsa, FSA):
        raise UserError(f'{type(fsa).__name__} has no S and W to look at; use --feedback fsa or sfr+fsa')
    assert windows.attention is not None  # FSA adapts a map
    attention, _ = fsa.start(windows, windows.attention, windows.first)
    matrix = windows.matrix if attention is windows.attention else windows.matrix_of(attention)
    patch = index[0] * windows.grid[1] + index[1]
    *_, before, after = windows.rounds(fsa)
    similarity = within(fsa.similarities(before, windows.uniform), attention, slice(None))
    adapted = adapt(similarity, fsa.lam, fsa.p)
    rows = (
        matrix[patch + attention.covers_cls, int(attention.covers_cls) :],
        similarity[0, patch],
        prune(similarity[:, patch : patch + 1], fsa.p)[0, 0],
        adapted[0, patch],
        _ensemble_row(attention, matrix, adapted[0], patch, fsa.terms),
    )
    cosines = torch.stack([windows.first[0, patch], after[0, patch]])
    return Inspection(*(row.unflatten(0, windows.grid) for row in rows)), cosines


def _ensemble_row(
    attention: AttentionMap, matrix: Tensor, adapted: Tensor, patch: int, terms: tuple[str, ...]
) -> Tensor:
    """Return a patch's row (N) of Â, see `fsa_seg.ops.feedback.ensemble`.

    Args:
        attention: A. matrix (T, T): of A, the mean of its heads, in which Â is linear.
        adapted (N, N): W.
        patch: index among the N patches.
        terms: of FSA.
    """
    first, mass = int(attention.covers_cls), attention.row_sum
    assert mass is not None  # FSA.loop checks it
    row = adapted[patch]
    parts = dict(
        WA=lambda: row @ matrix[first:, first:] / mass,
        AW=lambda: matrix[patch + first, first:] @ adapted / mass,
        W=lambda: row,
    )
    return torch.stack([parts[term]() for term in terms]).sum(0) * (mass / len(terms))


def resolve_feedback(feedback: None | bool | dict | Feedback) -> Any:
    """Return None or a feedback: given None, a bool, a dict of settings (of FSA, unless its `type` says another), or a
    feedback already.
    """
    if feedback is None or feedback is False:
        return None
    if not isinstance(feedback, (bool, dict)):
        return feedback
    settings = {} if feedback is True else dict(feedback)
    cls = FEEDBACKS[one_of(settings.pop('type', 'FSA'), FEEDBACKS, 'feedback')]
    check_keys(settings, constructor_keys(cls), 'feedback')
    return cls(**settings)
