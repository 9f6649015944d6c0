"""The newer methods against golden numbers and the dense reference, with and without feedback."""

import os
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fsa_seg.models.clip as clip_module
from fsa_seg import patch_logits
from fsa_seg.errors import UserError
from fsa_seg.methods import make_method
from fsa_seg.models.clip import trunk_and_inner
from fsa_seg.models.window import token_logits
from fsa_seg.ops import reference_methods as reference
from fsa_seg.profiling.self_checks import load_golden

from conftest import ROOT

SFR = dict(tau=2.2, lam=0.7, threshold=0.115)
METHODS = dict(  # what the suite calls a method, and what the reference does
    pearl=('pearl', dict(name='pearl')),
    resclip=('resclip', dict(name='resclip')),
    resclip_clearclip=(
        dict(type='resclip', host='clearclip', lam=0.6),
        dict(name='resclip', host='clearclip', lam=0.6),
    ),
    resclip_sclip=(dict(type='resclip', host='sclip'), dict(name='resclip', host='sclip')),
    scclip=('scclip', dict(name='scclip')),
    sfp=('sfp', dict(name='sfp')),
    gem=('gem', dict(name='gem')),
    itaclip=(dict(attention='itaclip', residual=True), dict(name='itaclip')),
    cliptrase=(dict(attention='qq+kk+vv', residual=True, mlp=True), dict(name='cliptrase')),
)
ADAPTABLE = [name for name in METHODS if name not in ('scclip', 'sfp', 'gem')]  # of them the reference has SFR


@pytest.fixture(scope='module')
def golden():
    return load_golden(os.path.join(ROOT, 'tests', 'golden', 'attention_seed0.safetensors'))


def tower(depth, seed=0):
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    vision = dict(image_size=64, layers=depth, width=48, head_width=16, patch_size=16)
    visual = CLIP(32, vision, dict(vocab_size=64, width=32, heads=2, layers=1)).eval().requires_grad_(False).visual
    for parameter in visual.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return visual, torch.nn.functional.normalize(torch.randn(9, 32), dim=-1)


def dense(visual, images, text, name, **options):
    depth = len(visual.transformer.resblocks)
    tokens, grid, inner = trunk_and_inner(visual, images, range(depth - 1))
    layers = [*(inner[i] for i in range(depth - 1)), tokens]
    return reference.logits(visual, layers, grid, text, name, images=images, **options)


@pytest.mark.parametrize('feedback', [None, 'fsa'])
@pytest.mark.parametrize('depth', [5, 12, 24])
@pytest.mark.parametrize('method', METHODS)
def test_dense_reference(method, depth, feedback):
    """Two windows that are not square; a tower of the published depth, a shallower and a deeper one."""
    visual, text = tower(depth, seed=1)
    images = torch.randn(2, 3, 112, 96)
    spelled, options = METHODS[method]
    logits, grid = patch_logits(visual, images, text, method=spelled, feedback=feedback and {})
    expected = dense(visual, images, text, **options, fsa=feedback and {})
    assert grid == (7, 6)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('method', ADAPTABLE)
def test_sfr_and_both_agree_with_the_reference(method):
    visual, text = tower(12)
    images = torch.nn.functional.interpolate(torch.randn(2, 3, 4, 4), (96, 112), mode='bilinear')
    spelled, options = METHODS[method]
    bare, _ = patch_logits(visual, images, text, method=spelled)
    for fsa, feedback in (
        (None, dict(type='SFR', **SFR)),
        ({}, dict(type='SFRAndFSA', **{f'sfr_{key}': value for key, value in SFR.items()})),
    ):
        logits, _ = patch_logits(visual, images, text, method=spelled, feedback=feedback)
        expected = dense(visual, images, text, **options, sfr=SFR, fsa=fsa)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert (logits - bare).abs().max() > 1e-3


def test_gems_golden_numbers(golden, monkeypatch):
    """They were made with position embeddings resized to size with antialiasing."""

    def antialiased(embedding, grid, new_grid):
        patches = embedding[1:].T.unflatten(1, grid)[None]
        patches = torch.nn.functional.interpolate(patches, new_grid, mode='bicubic', antialias=True)
        return torch.cat([embedding[:1], patches[0].flatten(1).T])

    visual, t = golden
    other, _ = patch_logits(visual, t['images'], t['text'], method='gem')
    monkeypatch.setattr(clip_module, 'resize_position_embedding', antialiased)
    logits, _ = patch_logits(visual, t['images'], t['text'], method='gem')
    torch.testing.assert_close(logits, t['logits.gem'], atol=1e-5, rtol=0)
    assert (other - logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    'method, wrong',
    [
        ('pearl', dict(alpha=0.09)),
        ('pearl', dict(steps=6)),
        ('resclip', dict(tau=2.1)),
        ('resclip', dict(lam=0.31)),
        ('resclip', dict(blocks=[6, 7, 8, 9])),
        ('scclip', dict(beta=0.5)),
        ('scclip', dict(cls_weight=0.31)),
        ('sfp', dict(beta=0.5)),
        ('gem', dict(layers=5)),
    ],
)
def test_settings_matter(golden, method, wrong):
    visual, t = golden
    right, _ = patch_logits(visual, t['images'], t['text'], method=method)
    other, _ = patch_logits(visual, t['images'], t['text'], method=dict(type=method, **wrong))
    assert (right - other).abs().max() > 1e-5


@pytest.mark.parametrize('key, value', [('tau', 2.1), ('lam', 0.6), ('threshold', 0.5), ('sigma', 4.0), ('steps', 9)])
def test_settings_of_sfr_matter(golden, key, value):
    visual, t = golden
    method, feedback = dict(type='resclip', host='clearclip'), dict(type='SFR', **SFR)
    right, _ = patch_logits(visual, t['images'], t['text'], method=method, feedback=feedback)
    other, _ = patch_logits(visual, t['images'], t['text'], method=method, feedback={**feedback, key: value})
    assert (right - other).abs().max() > 1e-5


TURNED = ['pearl', 'resclip', 'scclip', 'sfp', 'gem', dict(attention='itaclip', residual=True)]


@pytest.mark.parametrize('feedback', [None, True, dict(type='SFR')])
@pytest.mark.parametrize('method', TURNED, ids=[m if isinstance(m, str) else 'itaclip' for m in TURNED])
def test_transpose(method, feedback):
    """Height and width are never mixed up; but SFR, which blurs along the flattened index as published, tells them."""
    visual, text = tower(12)
    images = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), (80, 144), mode='bilinear')
    if isinstance(feedback, dict) and method in ('scclip', 'sfp'):
        pytest.skip('SFR is refused')
    logits, (h, w) = patch_logits(visual, images, text, method=method, feedback=feedback)
    visual.conv1.weight.data = visual.conv1.weight.transpose(2, 3).contiguous()
    position = visual.positional_embedding
    turned = position[1:].unflatten(0, visual.grid_size).transpose(0, 1).flatten(0, 1)
    visual.positional_embedding.data = torch.cat([position[:1], turned])
    other, grid = patch_logits(visual, images.transpose(2, 3), text, method=method, feedback=feedback)
    assert grid == (w, h)
    other = other.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    alike = torch.allclose(logits, other, atol=1e-5, rtol=1e-5)
    assert alike != isinstance(feedback, dict)


@pytest.mark.parametrize('feedback', [None, dict(p=1.0), dict(type='SFR'), dict(type='SFRAndFSA', p=1.0)])
@pytest.mark.parametrize('method', ['pearl', 'resclip', 'scclip', 'sfp', 'gem'])
def test_batch_of_two_equals_two_singles(method, feedback):
    """Nothing is pruned: at a threshold, two correct evaluations may differ by an entry."""
    visual, text = tower(12)
    if feedback and 'type' in feedback and method in ('scclip', 'sfp'):
        pytest.skip('SFR is refused')
    images = torch.randn(2, 3, 80, 128)
    both, _ = patch_logits(visual, images, text, method=method, feedback=feedback)
    for i in range(2):
        one, _ = patch_logits(visual, images[i : i + 1], text, method=method, feedback=feedback)
        torch.testing.assert_close(both[i : i + 1], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'method, depth, blocks',
    [
        ('resclip', 12, (5, 6, 7, 8)),
        ('resclip', 24, (5, 6, 7, 8)),
        ('resclip', 32, (13, 16, 18, 21)),
        (dict(type='resclip', blocks=[3, 4]), 12, (3, 4)),
        ('scclip', 12, (4, 5, 6, 7, 8, 9, 10)),
        ('scclip', 24, (8, 10, 12, 14, 16, 18, 20)),
        ('sfp', 24, (8, 10, 12, 14, 16, 18, 20, 22)),
        ('gem', 12, (6, 7, 8, 9, 10)),
        ('gem', 32, (26, 27, 28, 29, 30)),
        ('gem', 5, (3,)),
        (dict(type='gem', layers=4), 5, (1, 2, 3)),
        (dict(type='gem', layers=1), 12, ()),
        (dict(attention='itaclip'), 12, (6, 7, 9)),
        (dict(attention='itaclip'), 32, (16, 18, 24)),
    ],
)
def test_which_blocks_are_read(method, depth, blocks):
    assert make_method(method).inner_blocks(depth) == blocks


@pytest.mark.parametrize('method', ['resclip', 'scclip', 'sfp', dict(attention='itaclip')])
def test_a_tower_with_too_few_blocks(method):
    visual, text = tower(3)
    with pytest.raises(UserError, match='the image tower has 3 blocks, and the method needs at least 4'):
        patch_logits(visual, torch.randn(1, 3, 96, 96), text, method=method)


def test_blocks_that_a_tower_does_not_have():
    visual, text = tower(5)
    with pytest.raises(UserError, match='has 5 blocks, of which 0 to 3 are earlier ones; the method reads block 4'):
        patch_logits(visual, torch.randn(1, 3, 96, 96), text, method=dict(type='resclip', blocks=[4]))
    with pytest.raises(UserError, match='GEM: layers is 13, and the image tower has 12 blocks'):
        make_method(dict(type='gem', layers=13)).inner_blocks(12)


@pytest.mark.parametrize(
    'method, feedback, message',
    [
        ('scclip', None, 'SCCLIP needs at least 31 patches, and a window has 4×7 = 28; use a larger window'),
        ('scclip', 'sfr', 'SCCLIP: SFR adapts the logits of a softmax, and this attention map is none'),
        ('sfp', 'sfr+fsa', 'SFP: SFR adapts the logits of a softmax'),
        ('maskclip', 'sfr', 'MaskCLIP: SFR adapts the logits of a softmax'),
        (dict(attention='identity'), 'sfr', 'SpelledOut: SFR adapts the logits of a softmax'),
    ],
)
def test_refused(method, feedback, message):
    visual, text = tower(5)
    feedback = feedback and dict(type=dict(sfr='SFR').get(feedback, 'SFRAndFSA'))
    with pytest.raises(UserError, match=message):
        patch_logits(visual, torch.randn(1, 3, 64, 112), text, method=method, feedback=feedback)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(type='pearl', alpha=-1), r'alpha is -1; it has to be a number, at least 0 \(published: 0.08 and 0.3\)'),
        (dict(type='pearl', steps=0), 'steps is 0; it has to be a whole number, at least 1'),
        (dict(type='resclip', host='proxyclip'), 'unknown host of ResCLIP'),
        (dict(type='resclip', tau=0), 'tau is 0; it has to be a number above 0'),
        (dict(type='resclip', lam=1.5), 'lam is 1.5; it has to be a number from 0 to 1'),
        (dict(type='resclip', blocks=[]), r'blocks is \[\]; it has to be None, or a list of indices'),
        (dict(type='scclip', beta=1), 'SCCLIP: beta is 1; it has to be at least 0 and below 1'),
        (dict(type='sfp', cls_weight=-0.1), 'SFP: cls_weight is -0.1; it has to be at least 0'),
        (dict(type='gem', layers=0), 'layers is 0; it has to be None or a whole number, at least 1'),
        (dict(attention='itaclap'), "did you mean 'itaclip'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        make_method(settings)


def test_an_image_of_one_colour():
    """Tokens that are all but alike: no number is lost."""
    visual, text = tower(12)
    for method in ('pearl', 'resclip', 'scclip', 'sfp', 'gem'):
        for feedback in (None, True, *([dict(type='SFR')] if make_method(method).has_logits else [])):
            logits, _ = patch_logits(visual, torch.zeros(1, 3, 96, 96), text, method=method, feedback=feedback)
            assert logits.isfinite().all()


class LargeTensors(TorchDispatchMode):
    """Counts the tensors of at least so many bytes that live at once; what shares memory counts once."""

    def __init__(self, least):
        super().__init__()
        self.least, self.most, self.largest, self.alive = least, 0, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.least:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
                self.alive.append(weakref.ref(tensor))
        self.alive = [ref for ref in self.alive if ref() is not None]
        self.most = max(self.most, len({ref().untyped_storage().data_ptr() for ref in self.alive}))
        return out


@pytest.mark.parametrize('feedback', [None, True, dict(type='SFR'), dict(type='SFRAndFSA')])
@pytest.mark.parametrize('method', METHODS)
def test_two_matrices_at_most(method, feedback, monkeypatch):
    """N = 1764: not more than two (N, N) float32 matrices at a time, and none for each head."""
    if isinstance(feedback, dict) and method in ('scclip', 'sfp'):
        pytest.skip('SFR is refused')
    monkeypatch.setattr('fsa_seg.ops.sfr.pamr', lambda values, *rest: values)  # holds pixels, not patches
    visual, text = tower(12)
    tokens, inner = torch.randn(1, 1765, 48), {i: torch.randn(1, 1765, 48) for i in range(11)}
    images = torch.randn(1, 3, 672, 672)
    options = dict(method=METHODS[method][0], feedback=feedback, inner=inner, images=images)
    with torch.no_grad(), LargeTensors(4 * 1764**2) as held:
        logits, _ = token_logits(visual, tokens, (42, 42), text[:3], **options)
    assert logits.isfinite().all()
    assert held.most <= 2 and held.largest < 1.3 * 4 * 1765**2, (held.most, held.largest)
