"""The methods, and the logits of one window under any of them: `patch_logits`.

A method is an attention map and a readout of CLIP's last block; FSA wraps any of them.

Shape legend: B images, T = 1 + N tokens (CLS first), N = h·w patches, D width, E embedding, Q queries; images (B, 3,
height, width).
"""
import torch.nn.functional as F

from fsa_seg.attention import ATTENTIONS, proxy_map, resize_tokens, self_map
from fsa_seg.clip import trunk
from fsa_seg.errors import UserError, check_keys, one_of
from fsa_seg.feedback import FSA, ensemble
from fsa_seg.readout import readout

METHODS = dict(
    clip=dict(attention='qk', residual=True, mlp=True),
    maskclip=dict(attention='identity', residual=False, mlp=False),
    sclip=dict(attention='qq+kk', residual=True, mlp=True),
    clearclip=dict(attention='qq', residual=False, mlp=False),
    proxyclip=dict(attention='proxy', residual=False, mlp=False))


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
    method = resolve_method(method)
    feedback = resolve_feedback(feedback)
    tokens, grid = trunk(visual, images)
    block = visual.transformer.resblocks[-1]
    q, k, v = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
    if method['attention'] == 'proxy':
        if vfm_features is None:
            raise UserError("the attention map 'proxy' needs a VFM: pass vfm_features (B, C, I, J)")
        attention = proxy_map(vfm_features)
        new_grid = tuple(vfm_features.shape[2:])
        v, tokens = (resize_tokens(x[:, 1:], grid, new_grid) for x in (v, tokens))
        grid = new_grid
    else:
        attention = self_map(method['attention'], q, k, v, block.attn.num_heads)

    def cosines(mixed):
        embeddings = readout(visual, mixed, tokens if method['residual'] else None, method['mlp'])
        return embeddings[:, int(attention.cls):] @ text.float().T

    logits = cosines(attention.apply(v))
    if feedback is not None:
        uniform = attention.mass * v.mean(1, keepdim=True)
        # without residual the uniform map's embedding is one for all patches; with it, each keeps its own
        uniform = uniform.expand_as(v) if method['residual'] else uniform.expand(-1, 1 + attention.cls, -1)
        adapted = feedback.adapted_attention(logits, cosines(uniform))
        logits = cosines(ensemble(attention, adapted, v))
    return logits, grid


def resolve_method(method):
    """Return `method`, a name or a dict, as dict(attention, residual, mlp); UserError names what is wrong with it."""
    if isinstance(method, str):
        return METHODS[one_of(method, METHODS, 'method')]
    check_keys(method, ('attention', 'residual', 'mlp'), 'method')
    resolved = dict(dict(residual=False, mlp=False), **method)
    one_of(resolved.get('attention'), ATTENTIONS, 'attention map')
    return resolved


def resolve_feedback(feedback):
    """Return None or an `FSA`: feedback is None, a bool, a dict of FSA's settings, or an FSA already."""
    if feedback is None or feedback is False:
        return None
    if isinstance(feedback, FSA):
        return feedback
    settings = {} if feedback is True else dict(feedback)
    check_keys(settings, ('lam', 'p'), 'feedback')
    return FSA(**settings)
