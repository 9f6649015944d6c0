import glob
import os

import pytest
import torch

from fsa_seg import patch_logits
from fsa_seg.errors import UserError
from fsa_seg.models.clip import trunk
from fsa_seg.models.window import inspect_patch, window_cosines
from fsa_seg.ops import reference
from fsa_seg.profiling.self_checks import golden_cases, load_golden

from conftest import ROOT

MAPS = ('qk', 'qq', 'kk', 'vv', 'qq+kk', 'qq+kk+vv', 'identity', 'proxy')
GOLDEN = sorted(glob.glob(os.path.join(ROOT, 'tests', 'golden', '[!i]*.safetensors')))  # of windows, not of an image


@pytest.fixture(params=GOLDEN, ids=[os.path.basename(path)[:-12] for path in GOLDEN])
def golden(request):
    return load_golden(request.param)


@pytest.mark.parametrize(
    'device',
    ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'))],
)
def test_golden(golden, device):
    visual, t = golden[0].to(device), {key: value.to(device) for key, value in golden[1].items()}
    torch.backends.cudnn.allow_tf32 = False
    cases = golden_cases(t)
    assert len(cases) == 10
    for method, feedback, logits_of in cases.values():
        logits, grid = patch_logits(
            visual, t['images'], t['text'], method=method, feedback=feedback, vfm_features=t.get('vfm_features')
        )
        assert grid[0] * grid[1] == logits.shape[1]
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, logits_of, atol=1e-5, rtol=0)


@pytest.mark.parametrize('fsa', [None, dict(lam=3.0, p=0.45), dict(lam=2.3, p=0.7), dict(lam=4.5, p=1.0)])
@pytest.mark.parametrize('readout', [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize('attention', MAPS)
def test_reference(tiny, attention, readout, fsa):
    """Every attention map under every readout agrees with the dense evaluation (no row here is near the threshold)."""
    visual, text = tiny
    torch.manual_seed(1)
    images, features = torch.randn(2, 3, 64, 96), torch.randn(2, 12, 5, 7)
    method = dict(attention=attention, residual=readout[0], mlp=readout[1])
    logits, grid = patch_logits(visual, images, text, method=method, feedback=fsa, vfm_features=features)
    tokens, clip_grid = trunk(visual, images)
    expected = reference.logits(visual, tokens, clip_grid, text, **method, fsa=fsa, features=features)
    assert grid == ((5, 7) if attention == 'proxy' else (4, 6))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    per_head = reference.logits(visual, tokens, clip_grid, text, **method, fsa=fsa, features=features, per_head=True)
    torch.testing.assert_close(per_head, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('shape', [(5, 7), (9, 10), (10, 9)])
@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('feedback', [None, True])
def test_a_shared_map_on_coarser_equal_and_finer_grids(tiny, shape, residual, feedback):
    """More patches than the width (90 and 64), so that the map mixes embeddings, not the columns of the resize."""
    visual, text = tiny
    torch.manual_seed(1)
    images, features = torch.randn(2, 3, 144, 160), torch.randn(2, 12, *shape)
    method = dict(attention='proxy', residual=residual, mlp=residual)
    logits, grid = patch_logits(visual, images, text, method=method, feedback=feedback, vfm_features=features)
    expected = reference.logits(visual, *trunk(visual, images), text, **method, fsa=feedback and {}, features=features)
    assert grid == shape
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'fsa',
    [
        dict(isolation=False),
        dict(scale=8.0),
        dict(uniform_scale=12.0),
        dict(similarity='jeffreys'),
        dict(similarity='cosine'),
        dict(terms=('WA',)),
        dict(terms=('AW', 'W')),
        dict(rounds=2),
        dict(rounds=3, terms=('W',), isolation=False, p=0.7, lam=1.0),
    ],
)
@pytest.mark.parametrize('attention, readout', [('qq+kk', True), ('identity', False), ('proxy', False)])
def test_ablations_agree_with_the_reference(tiny, attention, readout, fsa):
    visual, text = tiny
    torch.manual_seed(1)
    images, features = torch.randn(2, 3, 64, 96), torch.randn(2, 12, 5, 7)
    method = dict(attention=attention, residual=readout, mlp=readout)
    logits, _ = patch_logits(visual, images, text, method=method, feedback=fsa, vfm_features=features)
    tokens, grid = trunk(visual, images)
    expected = reference.logits(visual, tokens, grid, text, **method, fsa=fsa, features=features)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    default, _ = patch_logits(visual, images, text, method=method, feedback=True, vfm_features=features)
    same = attention == 'identity' and set(fsa) == {'terms'}  # with A = I all three terms are W
    assert same or (logits - default).abs().max() > 1e-5


@pytest.mark.parametrize('rounds', [1, 2])
@pytest.mark.parametrize('method', ['sclip', 'proxyclip'])
def test_inspect_patch(tiny, method, rounds):
    """The rows are those of the dense maps; Â's gives the patch its logits."""
    visual, text = tiny
    torch.manual_seed(1)
    images, features = torch.randn(1, 3, 64, 96), torch.randn(1, 12, 5, 7)
    index = (2, 4)
    found = inspect_patch(
        visual, images, text, index, method=method, feedback=dict(rounds=rounds), vfm_features=features
    )
    tokens, clip_grid = trunk(visual, images)
    grid = (5, 7) if method == 'proxyclip' else clip_grid
    assert all(row.shape == grid for row in found)
    block = visual.transformer.resblocks[-1]
    q, k, v = torch.nn.functional.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(
        3, -1
    )
    cls = int(method != 'proxyclip')
    patch = index[0] * grid[1] + index[1]
    dense = reference.attention_matrix(reference.METHODS[method]['attention'], q, k, v, 4, features)
    torch.testing.assert_close(found.attention.flatten(), dense[0, :, patch + cls, cls:].mean(0))
    bare = window_cosines(visual, tokens, clip_grid, text, method, features if method == 'proxyclip' else None)
    z = bare.first
    if rounds == 2:
        z, _ = patch_logits(visual, images, text, method=method, feedback=True, vfm_features=features)
    s = reference.similarities(z, bare.uniform)
    w = reference.adapted_attention(z, bare.uniform)
    torch.testing.assert_close(found.similarity.flatten(), s[0, patch], atol=1e-5, rtol=1e-5)
    kept = found.pruned.isfinite()
    assert torch.equal(found.pruned[kept], found.similarity[kept])
    assert torch.equal(kept.flatten(), s[0, patch] >= reference.threshold(s, 0.45)[0, patch])
    torch.testing.assert_close(found.adapted.flatten(), w[0, patch], atol=1e-5, rtol=1e-5)
    mass = bare.attention.row_sum
    a = dense.mean(1)[0] / mass
    extended = torch.block_diag(torch.ones(cls, cls), w[0])
    expected = mass * (extended @ a + a @ extended + extended)[patch + cls, cls:] / 3
    torch.testing.assert_close(found.ensemble.flatten(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'change', [dict(lam=3.1), dict(p=0.5), dict(uniform_scale=36), dict(scale=21), dict(terms=['W', 'WA'])]
)
@pytest.mark.parametrize('path', [path for path in GOLDEN if 'attention' not in path], ids=os.path.basename)
def test_constants_matter(path, change):
    """The golden comparison is one that a wrong constant fails."""
    visual, t = load_golden(path)
    logits, _ = patch_logits(visual, t['images'], t['text'], feedback=change, vfm_features=t['vfm_features'])
    assert (logits - t['logits.proxyclip+fsa']).abs().max() > 1e-5


@pytest.mark.parametrize('feedback', [None, True])
@pytest.mark.parametrize('method', reference.METHODS)
def test_batch_of_two_equals_two_singles(tiny, method, feedback):
    visual, text = tiny
    images, features = torch.randn(2, 3, 64, 96), torch.randn(2, 12, 5, 7)
    both, _ = patch_logits(visual, images, text, method=method, feedback=feedback, vfm_features=features)
    for i in range(2):
        one, _ = patch_logits(
            visual, images[i : i + 1], text, method=method, feedback=feedback, vfm_features=features[i : i + 1]
        )
        torch.testing.assert_close(both[i : i + 1], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('feedback', [None, True])
@pytest.mark.parametrize('method', reference.METHODS)
def test_transpose(tiny, method, feedback):
    """A transposed image under a transposed tower gives the transposed result: height and width are never mixed up."""
    visual, text = tiny
    images, features = torch.randn(1, 3, 64, 112), torch.randn(1, 12, 5, 7)
    logits, (h, w) = patch_logits(visual, images, text, method=method, feedback=feedback, vfm_features=features)
    visual.conv1.weight.data = visual.conv1.weight.transpose(2, 3).contiguous()
    side = visual.grid_size[0]
    position = visual.positional_embedding
    turned = position[1:].unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1)
    visual.positional_embedding.data = torch.cat([position[:1], turned])
    other, grid = patch_logits(
        visual, images.transpose(2, 3), text, method=method, feedback=feedback, vfm_features=features.transpose(2, 3)
    )
    assert grid == (w, h)
    other = other.unflatten(1, grid).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(logits, other, atol=1e-5, rtol=1e-5)


def test_clip_without_feedback_is_clip(tiny):
    """Plain CLIP's CLS row is what the tower itself returns: the trunk and the readout are open_clip's."""
    visual, text = tiny
    images = torch.randn(2, 3, 64, 64)
    tokens, _ = trunk(visual, images)
    last = visual.transformer.resblocks[-1](tokens)
    patches = torch.nn.functional.normalize(visual.ln_post(last) @ visual.proj, dim=-1)[:, 1:]
    logits, _ = patch_logits(visual, images, text, method='clip')
    torch.testing.assert_close(logits, patches @ text.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(visual.ln_post(last[:, 0]) @ visual.proj, visual(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(method='sclap'), "did you mean 'sclip'"),
        (dict(method=dict(attention='qk', residul=True)), "did you mean 'residual'"),
        (dict(method=dict(attention='xx')), 'unknown attention map'),
        (dict(method='proxyclip'), 'needs a VFM'),
        (dict(method='clip', feedback=dict(lamb=3)), "did you mean 'lam'"),
        (dict(method='clip', feedback=dict(p=0)), 'above 0 and at most 1'),
        (dict(method='clip', feedback=dict(lam=-1)), 'from 0 to 80'),
        (dict(method=dict(attention='qq', residual='no')), "residual is 'no'; it has to be True or False"),
    ],
)
def test_bad_arguments(tiny, arguments, message):
    visual, text = tiny
    with pytest.raises(UserError, match=message):
        patch_logits(visual, torch.randn(1, 3, 64, 64), text, **arguments)
