"""CorrCLIP on windows whose region maps are set by hand."""

import os
from types import SimpleNamespace

import pytest
import torch
from test_field import LargeTensors, tower

from fsa_seg.errors import UserError
from fsa_seg.methods import make_method
from fsa_seg.methods.base import WindowCosines
from fsa_seg.methods.corrclip import spatial_blocks
from fsa_seg.models.clip import trunk_and_inner
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.last_block import LastBlock, Projections
from fsa_seg.ops.sfr import SFR
from fsa_seg.profiling.self_checks import load_golden

from conftest import ROOT


@pytest.fixture(scope='module')
def golden():
    visual, tensors = load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))
    crops = [tensors['image'][:, top:bottom, left:right] for top, left, bottom, right in tensors['boxes'].tolist()]
    return visual, torch.stack(crops), tensors


def windows(visual, images, features, regions, text, **settings):
    """Return the cosines of windows; `regions` (B, height, width) or None."""
    method = make_method(dict(type='corrclip', **settings))
    blocks = visual.transformer.resblocks
    tokens, grid, inner = trunk_and_inner(visual, images, method.inner_blocks(len(blocks)))
    inner = {index: Projections(blocks[index], before) for index, before in inner.items()}
    block = LastBlock(visual, tokens, grid, dict(proxy=features), inner, images=images)
    block.regions = regions
    return WindowCosines(method, block, text)


def golden_windows(golden, some=slice(None), **settings):
    visual, crops, t = golden
    maps = t['corrclip.regions'][some].repeat_interleave(8, 1).repeat_interleave(8, 2)  # in pixels
    return windows(visual, crops[some], t['vfm_features'][some], maps, t['text'], **settings)


def test_golden_logits(golden):
    cosines = golden_windows(golden)
    assert cosines.grid == (12, 12)
    torch.testing.assert_close(cosines.first, golden[2]['corrclip.logits'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('wrong', [dict(semantic_weight=0.51), dict(spatial_weight=0.98), dict(semantic_weight=0)])
def test_settings_matter(golden, wrong):
    assert (golden_windows(golden, **wrong).first - golden[2]['corrclip.logits']).abs().max() > 1e-4


@pytest.mark.parametrize('feedback', [None, FSA(p=1.0), SFR()])
def test_batch_equals_single_windows(golden, feedback):
    """The windows have other regions, in other numbers."""
    visual, crops, t = golden
    maps = t['corrclip.regions'].clone()
    maps[1], maps[2] = 4, maps[2].clamp(max=1)

    def of(some):
        cosines = windows(visual, crops[some], t['vfm_features'][some], maps[some], t['text'])
        *_, z = cosines.rounds(feedback)
        return z

    together = of(slice(0, 4))
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], of(slice(i, i + 1)), atol=1e-5, rtol=1e-5)


def test_windows_that_are_not_square(golden):
    """Transposed images, maps and features give transposed cosines, with a tower that is transposed itself."""
    visual, _, t = golden
    torch.manual_seed(0)
    images, features = torch.randn(1, 3, 64, 112), torch.randn(1, 24, 9, 15)
    maps = torch.randint(0, 3, (1, 8, 14)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    *_, z = windows(visual, images, features, maps, t['text']).rounds(FSA(p=1.0))
    visual, _ = load_golden(os.path.join(ROOT, 'tests', 'golden', 'image_seed0.safetensors'))
    visual.conv1.weight.data = visual.conv1.weight.transpose(2, 3).contiguous()
    position = visual.positional_embedding
    turned = position[1:].unflatten(0, visual.grid_size).transpose(0, 1).flatten(0, 1)
    visual.positional_embedding.data = torch.cat([position[:1], turned])
    images, features, maps = (x.transpose(-1, -2) for x in (images, features, maps))
    *_, other = windows(visual, images, features, maps, t['text']).rounds(FSA(p=1.0))
    other = other.unflatten(1, (15, 9)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(other, z, atol=1e-5, rtol=1e-5)


def test_fsa_adapts_both_branches_and_computes_the_regions_tokens_once(golden, monkeypatch):
    calls, method = [], make_method('corrclip')
    inner = type(method)._semantic
    monkeypatch.setattr(type(method), '_semantic', lambda self, block: calls.append(1) or inner(self, block))
    cosines = golden_windows(golden)
    *_, z = cosines.rounds(FSA())
    assert len(calls) == 1 and z.isfinite().all()
    assert 1e-3 < (z - cosines.first).abs().max()
    kept, attention = cosines.block.kept, FSA().adapted_map(cosines.attention, cosines.first, cosines.uniform)
    adapted = attention.apply(torch.eye(144).expand(6, -1, -1))
    torch.testing.assert_close(adapted.sum(2), torch.ones(6, 144))
    values = cosines.block.values(cosines.attention)
    visual = cosines.block.visual
    branches = [visual.ln_post(adapted @ values @ kept[name]) for name in ('main', 'spatial')]
    total = torch.nn.functional.normalize(sum(branches) @ visual.proj + kept['semantic'], dim=-1)
    torch.testing.assert_close(z, total @ golden[2]['text'].T, atol=1e-5, rtol=1e-5)


def test_one_region_and_one_colour(golden):
    visual, _, t = golden
    images, features = torch.zeros(1, 3, 96, 96), torch.ones(1, 24, 12, 12)
    for maps in (torch.zeros(1, 96, 96).long(), torch.arange(96 * 96).view(1, 96, 96)):
        for feedback in (None, FSA(), SFR()):
            *_, z = windows(visual, images, features, maps, t['text']).rounds(feedback)
            assert z.isfinite().all()


@pytest.mark.parametrize('depth, blocks', [(12, (6, 10)), (24, (11, 22)), (32, (3, 30)), (3, (1, 1)), (5, (2, 3))])
def test_blocks_of_the_spatial_branch(depth, blocks):
    found = spatial_blocks(depth)
    assert (found[0], found[-1]) == blocks
    assert make_method('corrclip').inner_blocks(depth) == tuple(range(depth - 1))


def test_roles():
    assert make_method('corrclip').roles == {'proxy': 'window', 'regions': 'asked'}
    method = make_method(dict(type='corrclip', regions=dict(type='files', folder='maps')))
    assert method.roles == type(method).roles == {'proxy': 'window'}
    assert method.settings == dict(regions=dict(type='files', folder='maps'), semantic_weight=0.5, spatial_weight=1.0)


def test_correction(golden):
    t = golden[2]
    image = SimpleNamespace(regions=lambda: t['corrclip.label_regions'])
    corrected = make_method('corrclip').correct(t['corrclip.labels'], image)
    assert torch.equal(corrected, t['corrclip.corrected'])


def test_refused(golden):
    visual, crops, t = golden
    with pytest.raises(UserError, match='CorrCLIP needs region maps, which come with a pass over images'):
        windows(visual, crops, t['vfm_features'], None, t['text'])
    with pytest.raises(UserError, match='the image tower has 2 blocks, and CorrCLIP needs at least 3'):
        spatial_blocks(2)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(regions='sam2'), r"regions is 'sam2'; it has to be a dict that names the source"),
        (dict(regions=dict(folder='maps')), r'it has to be a dict that names the source'),
        (dict(semantic_weight=-1), r'semantic_weight is -1; it has to be at least 0 \(published: 0.5'),
        (dict(spatial_weight='1'), r"spatial_weight is '1'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        make_method(dict(type='corrclip', **settings))


@pytest.mark.parametrize('feedback', [None, FSA()])
def test_two_matrices_at_most(feedback):
    """N = 1764: not more than two (N, N) float32 matrices at a time, and none for each head."""
    visual, text = tower(12)
    images, features = torch.randn(1, 3, 336, 336), torch.randn(1, 12, 42, 42)
    maps = torch.arange(336) // 60 * 6
    maps = (maps[:, None] + maps // 6)[None]
    with torch.no_grad(), LargeTensors(4 * 1764**2) as held:
        *_, z = windows(visual, images, features, maps, text[:3]).rounds(feedback)
    assert z.isfinite().all() and z.shape == (1, 1764, 3)
    assert held.most <= 2 and held.largest < 1.3 * 4 * 1765**2, (held.most, held.largest)
