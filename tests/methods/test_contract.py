"""What every method keeps, whoever adds it: a file in a folder of FSA_SEG_CONFIGS is covered as well."""

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import fsa_seg.register  # noqa: F401
from fsa_seg import patch_logits
from fsa_seg.config.components import component_names, load_components, segmentor_config
from fsa_seg.errors import UserError
from fsa_seg.methods import SPELLED_OUT, find_method, make_method, method_names, option_names
from fsa_seg.methods.base import STAGES, WindowCosines
from fsa_seg.models.clip import load_clip, trunk_and_inner
from fsa_seg.models.text import Text
from fsa_seg.models.window import window_cosines
from fsa_seg.ops.affinity import LastAttention, pack_attention
from fsa_seg.ops.readout import embeddings
from fsa_seg.ops.windows import Layout, Window, window_spans

WORDS = [['sky', 'wall'], ['cat'], ['grass'], ['road']]
TOY_CLIP = dict(model='local-dir:data/mini/models/toy_clip')


def every_method(test):
    return pytest.mark.parametrize('name', method_names())(test)


@pytest.fixture(scope='module')
def tower():
    """The toy's image tower, which has blocks to read, and unit text rows."""
    visual = load_clip(**TOY_CLIP)[0].visual
    return visual, torch.nn.functional.normalize(torch.randn(9, visual.proj.shape[1]), dim=-1)


def windows_of(tower, method, images, features):
    visual, text = tower
    tokens, grid, inner = trunk_and_inner(visual, images, method.inner_blocks(len(visual.transformer.resblocks)))
    return window_cosines(visual, tokens, grid, text, method, features, inner, regions=regions(images))


def regions(images):
    """Return region maps of windows, alike for all methods: four quarters."""
    rows, columns = (torch.arange(side) * 2 // side for side in images.shape[2:])
    return (1 + 2 * rows[:, None] + columns).expand(len(images), -1, -1)


class AnyImage:
    """An image whose last attention is drawn; the affinity's VFM takes any size."""

    def original(self):
        return torch.rand(3, 100, 120)

    rgb = original

    def input_side(self, role):
        return None

    def multiple(self, role):
        return 8, 8

    def once(self, role, key, make):
        return make()

    def run(self, role, pixels, kind=None):
        grid = (pixels.shape[2] // 8, pixels.shape[3] // 8)
        parts = [torch.randn(1, *grid, 2, width) for width in (4, 4, 4, *grid)]
        return pack_attention(LastAttention(*parts))


def inputs(method, count=2):
    """Return windows that are not square, and features of every role, twice as fine as CLIP's patches."""
    torch.manual_seed(1)
    return torch.randn(count, 3, 80, 112), {role: torch.randn(count, 12, 10, 14) for role in method.roles}


@every_method
def test_what_a_method_says_of_itself(name):
    method = find_method(name)
    assert method.name == name and method.__doc__
    assert {method.protocol, method.fsa_protocol or method.protocol} <= set(component_names('protocol'))
    assert method.title in MODELS.module_dict or segmentor_config(method())['type'] == method.title
    assert list(method().settings) == option_names(method)


@every_method
def test_a_misspelt_setting(name):
    with pytest.raises(UserError, match="unknown key 'sigmaa' in method"):
        make_method(dict(type=name, sigmaa=1))


@every_method
def test_embeddings(name, tower):
    """One unit row for each patch; and each window is its own."""
    method = make_method(name)
    images, features = inputs(method)
    windows = windows_of(tower, method, images, features)
    embeddings = method.embed(windows.block, windows.attention)
    assert embeddings.shape == (2, windows.grid[0] * windows.grid[1], tower[1].shape[1])
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(embeddings.shape[:2]))
    alone = windows_of(tower, method, images[1:], {role: value[1:] for role, value in features.items()})
    torch.testing.assert_close(windows.first[1:], alone.first, atol=1e-5, rtol=1e-5)


@every_method
def test_the_attention_map(name, tower):
    """Rows have one sum, and the map is linear in the values."""
    method = make_method(name)
    windows = windows_of(tower, method, *inputs(method))
    if not method.has_attention():
        assert windows.attention is None
        return
    attention, values = windows.attention, windows.block.values(windows.attention)
    sums = attention.apply(torch.ones_like(values))
    expected = torch.full_like(values, attention.row_sum)
    assert torch.allclose(sums, expected, atol=1e-4), f'row_sum is {attention.row_sum}; rows sum to {sums.mean():.4g}'
    other = torch.randn_like(values)
    expected = attention.apply(values) + 2 * attention.apply(other)
    torch.testing.assert_close(attention.apply(values + 2 * other), expected, atol=1e-3, rtol=1e-3)


@every_method
def test_the_map_treats_heads_as_it_says(name, tower):
    """A head's columns come from its own; a map with shared=True treats all columns alike."""
    method = make_method(name)
    attention = windows_of(tower, method, *inputs(method)).attention
    if attention is None:
        return
    block = windows_of(tower, method, *inputs(method)).block
    values, size = torch.randn_like(block.values(attention)), block.tokens.shape[2] // block.heads
    alone = torch.zeros_like(values)
    alone[..., :size] = values[..., :size]
    if not attention.shared:
        mixed = attention.apply(alone)[..., size:].abs().max()
        assert mixed < 1e-5, 'apply mixes heads: keep the D/H columns of a head together, (B, T, heads, D/H)'
    else:
        swapped = attention.apply(values.flip(-1)).flip(-1)
        told = 'the map says shared=True, and treats heads differently: leave shared out'
        assert (swapped - attention.apply(values)).abs().max() < 1e-4, told


@every_method
def test_feedback(name, tower):
    """FSA changes the cosines of a method that has a map, and is refused on any other."""
    method = make_method(name)
    images, features = inputs(method)
    if not method.has_attention():
        with pytest.raises(UserError, match='has no attention map that FSA could adapt'):
            patch_logits(tower[0], images, tower[1], method=method, feedback=True, vfm_features=features)
        return
    options = dict(method=method, vfm_features=features, regions=regions(images))
    bare, grid = patch_logits(tower[0], images, tower[1], **options)
    adapted, same = patch_logits(tower[0], images, tower[1], feedback=True, **options)
    assert adapted.isfinite().all() and grid == same and (adapted - bare).abs().max() > 1e-6


@every_method
def test_merge(name, tower):
    """Windows of an image become the cosines of its pixels, at another size."""
    method = make_method(name)
    patch = tower[0].patch_size
    layout = Layout((80, 144), (50, 60), 112, 32, patch, {}, None, AnyImage(), patch)
    layout = layout._replace(read_out=lambda tokens: embeddings(tower[0], tokens) @ tower[1].T)
    done = []
    for columns in window_spans(144, 112, 32):
        images, features = inputs(method, 1)
        windows = windows_of(tower, method, images, features)
        kept, first = method.keep(windows.block), windows.first[0]
        tokens = None if windows.last is None else windows.last[0]
        done.append(Window((0, 80), columns, first, windows.grid, kept and kept[0], tokens))
    merged = method.merge(done, layout)
    pixels = torch.zeros(9, 50, 60)
    for place, tile in merged.tiles(4000):
        pixels[(slice(None), *place)] = tile
    assert tuple(merged.size) == (50, 60) and pixels.isfinite().all() and pixels.std() > 0


@every_method
def test_refinement(name):
    method = make_method(name)
    if method.refines is None:
        return
    shapes = dict(zip(STAGES, ((9, 20, 30), (4, 20, 30), (20, 30))))
    values = torch.rand(shapes[method.refines])
    values = values.mul(4).long() if method.refines == 'labels' else values
    text = Text(torch.eye(9), (3, 2, 2, 2), tuple('abcdefghi'))
    refined = method.refine(values.clone(), torch.rand(3, 20, 30), text)
    assert refined.shape == values.shape and refined.dtype == values.dtype


@pytest.mark.parametrize('feedback', [None, 'fsa'])
@every_method
def test_the_registered_segmentor(name, feedback):
    """Labels at the original size, for images of several sizes, the same in batches of windows."""
    method = make_method(name)
    if feedback and not method.has_attention():
        pytest.skip('FSA is refused')
    components = load_components(name, feedback, 'toy', dict.fromkeys(method.roles, 'toy'))
    vfm = {
        role: {key: v for key, v in part.items() if key not in ('name', 'toy', 'licence')}
        for role, part in components['vfm'].items()
    }
    config = dict(segmentor_config(components['method']), backbone=TOY_CLIP, words=WORDS, window=96, stride=64)
    config.update(vfm=vfm or None, feedback=feedback and dict(type='FSA'))
    torch.manual_seed(0)
    data = dict(
        inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((96, 128), (90, 96))],
        data_samples=[SegDataSample(metainfo=dict(ori_shape=size)) for size in ((30, 50), (96, 33))],
    )
    outs = [MODELS.build(dict(config, window_batch=size)).test_step(data) for size in (1, 3)]
    for single, batched, size in zip(*outs, ((30, 50), (96, 33))):
        assert isinstance(single.pred_sem_seg, PixelData) and single.pred_sem_seg.shape == size
        assert (single.pred_sem_seg.data == batched.pred_sem_seg.data).float().mean() > 0.99


def test_the_spelled_out_method_keeps_the_contract():
    method = make_method(dict(attention='qq+kk', residual=True))
    assert method.settings == dict(attention='qq+kk', residual=True, mlp=False)
    assert method.row_title == 'qq+kk_residual' and find_method(SPELLED_OUT) is type(method)
    assert make_method(dict(attention='proxy')).roles == {'proxy': 'window'} and not method.roles


def test_wrong_shapes_are_named(tiny):
    """An embed hook that forgets the batch, or returns CLS as well."""

    def embed_with_cls(self, block, attention):
        return torch.zeros(2, 7, 32)

    sclip = find_method('sclip')
    wrong = type('Wrong', (sclip,), dict(embed=embed_with_cls))()
    windows = windows_of(tiny, sclip(), torch.randn(2, 3, 32, 48), {})
    with pytest.raises(UserError, match=r'embed returned \(2, 7, 32\); .* \(B, N, E\) = \(2, 6, 32\), .* grid 2×3'):
        _ = WindowCosines(wrong, windows.block, tiny[1]).first
    wrong = type('Wrong', (sclip,), dict(attention=lambda self, block: None))()
    with pytest.raises(UserError, match='attention returned NoneType; it has to be an AttentionMap'):
        WindowCosines(wrong, windows.block, tiny[1])
