"""What every part has to keep, whoever adds it: parametrised over the registries, so that a new file is covered."""

import json
import os
import subprocess
import sys

import open_clip
import pytest
import timm
import torch
from mmseg.registry import DATASETS, MODELS
from open_clip.transformer import QuickGELU
from torchvision.transforms.functional import normalize

from fsa_seg import patch_logits
from fsa_seg.config.components import (
    KINDS,
    class_names,
    component_config,
    component_names,
    feedback_of,
    load_component,
    load_components,
    method_of,
    parameters,
    protocol_settings,
    weights_of,
    with_classes,
)
from fsa_seg.config.compose import compose
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.errors import UserError
from fsa_seg.models.clip import check_tower, load_clip
from fsa_seg.models.text import class_words
from fsa_seg.models.vfm import TimmModel, TimmViT
from fsa_seg.models.weights import path_of
from fsa_seg.models.window import resolve_feedback
from fsa_seg.ops.attention import ATTENTIONS, Block, attention_files, attention_map, find_attention
from fsa_seg.profiling.architectures import DEFAULTS

from conftest import ROOT

SMALL = dict(embed_dim=48, depth=2, num_heads=2)  # in place of a VFM's own sizes, so that it runs at once


def every(kind):
    return pytest.mark.parametrize('name', component_names(kind))


@pytest.mark.parametrize('kind, name', [(kind, name) for kind in KINDS for name in component_names(kind)])
def test_a_parts_name_is_its_files(kind, name):
    assert load_component(kind, name).name == name


@every('backbone')
def test_backbone(name):
    """At its real size, without memory or time: the meta device knows shapes alone."""
    part = load_component('backbone', name)
    with torch.device('meta'):
        visual = load_clip(**component_config(part, random_weights=0))[0].visual
        check_tower(visual)
        height, width = (side * count for side, count in zip(visual.patch_size, (6, 9)))
        logits, grid = patch_logits(
            visual,
            torch.zeros(2, 3, height, width),
            torch.zeros(7, visual.proj.shape[1]),
            method='sclip',
            feedback=True,
        )
    assert grid == (6, 9) and logits.shape == (2, 54, 7)
    tag = open_clip.get_pretrained_cfg(part.model, part.get('pretrained') or '')
    if tag:
        quick = isinstance(visual.transformer.resblocks[-1].mlp.gelu, QuickGELU)
        assert quick == tag.get('quick_gelu', False)
        assert tuple(visual.preprocess_cfg['mean']) == tuple(tag['mean'])
        assert tuple(visual.preprocess_cfg['std']) == tuple(tag['std'])


@every('vfm')
def test_vfm(name):
    with torch.device('meta'):
        vfm = MODELS.build(component_config(load_component('vfm', name), random_weights=0))
        for rows, columns in ((24, 16), (12, 30)):
            height, width = (
                -(-side * 14 // multiple) * multiple for side, multiple in zip((rows, columns), vfm.multiple)
            )
            features = vfm(torch.zeros(2, 3, height, width))
            assert len(features) == 2 and tuple(features.shape[2:]) == tuple(vfm.grid(height, width))


@every('vfm')
def test_vfm_at_a_small_size(name):
    """A small net of the same kind: batches, windows that are not square, and timm's own public calls."""
    part = load_component('vfm', name)
    if not issubclass(MODELS.get(part.type), TimmModel) or part.get('toy'):
        pytest.skip('no timm model of its own size')
    config = dict(component_config(part, random_weights=0), model_args={**part.get('model_args', {}), **SMALL})
    vfm = MODELS.build(config)
    torch.manual_seed(0)
    for parameter in vfm.parameters():  # no part may be at its (neutral) initial value
        parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.rand(2, 3, 16 * vfm.multiple[0], 10 * vfm.multiple[1])
    features = vfm(images)
    assert tuple(features.shape[2:]) == tuple(vfm.grid(*images.shape[2:])) and features.isfinite().all()
    torch.testing.assert_close(features[1:], vfm(images[1:]), atol=1e-5, rtol=1e-4)
    if not isinstance(vfm, TimmViT):
        return
    timms = MODELS.build(dict(config, pos_embed='timm'))
    timms.load_state_dict(vfm.state_dict())
    expected = timms.vit.forward_features(normalize(images, vfm.mean, vfm.std))[:, vfm.vit.num_prefix_tokens :]
    torch.testing.assert_close(timms(images).flatten(2).transpose(1, 2), expected)
    side = [count * patch for count, patch in zip(vfm.vit.patch_embed.grid_size, vfm.multiple)]
    trained = torch.rand(1, 3, *side)  # at the trained size no rule resizes
    torch.testing.assert_close(vfm(trained), timms(trained), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', [*component_names('vfm'), 'augreg'])
def test_vfms_normalise_as_timm_says(name, tmp_path):
    """By mean and std of their weights' tag; weights that are a file's alone by those that the part gives."""
    other = tmp_path / 'augreg.py'  # whose weights want other values than ImageNet's, which the others have
    other.write_text("vfm = dict(name='augreg', type='TimmViT', model='vit_base_patch16_224.augreg_in21k')")
    part = load_component('vfm', str(other) if name == 'augreg' else name)
    if not issubclass(MODELS.get(part.type), TimmModel):
        pytest.skip('no timm model')
    own = part if {'checkpoint', 'mean', 'std'} <= set(part) else timm.get_pretrained_cfg(part.model).to_dict()
    vfm = MODELS.build(
        dict(component_config(part, random_weights=0), model_args={**part.get('model_args', {}), **SMALL})
    )
    images = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(vfm.normalised(images), normalize(images, own['mean'], own['std']))


@pytest.mark.parametrize('kind, name', [(kind, name) for kind in ('backbone', 'vfm') for name in component_names(kind)])
def test_weights_have_a_source(kind, name):
    weights = weights_of(kind, name)
    assert weights.licence not in ('', '–')
    assert parameters(kind, name) > 0
    part = load_component(kind, name)
    if kind == 'backbone' or issubclass(MODELS.get(part.type), TimmModel):
        assert weights.files or path_of(weights) or '://' in weights.source


@pytest.mark.parametrize('name', dict.fromkeys([*ATTENTIONS, *attention_files()]))
def test_attention_map(name):
    """Rows have one sum; an image's map is its own; maps are linear in the values."""
    torch.manual_seed(0)
    build, vfm = find_attention(name)
    tokens, attn = torch.randn(2, 1 + 12, 8), torch.nn.MultiheadAttention(8, 2).requires_grad_(False)
    features = torch.randn(2, 5, 3, 6) if vfm else None
    attention = build(Block(tokens, attn, (3, 4), features))
    count = 18 if vfm else 12 + attention.cls
    torch.testing.assert_close(attention.apply(torch.ones(2, count, 8)), torch.full((2, count, 8), attention.mass))
    values, other = torch.randn(2, 2, count, 8).unbind(0)
    torch.testing.assert_close(
        attention.apply(values + 2 * other), attention.apply(values) + 2 * attention.apply(other), atol=1e-4, rtol=1e-4
    )
    one = build(Block(tokens[1:], attn, (3, 4), features[1:] if vfm else None))
    torch.testing.assert_close(one.apply(values[1:]), attention.apply(values)[1:], atol=1e-5, rtol=1e-4)


@every('method')
def test_method(name, tiny):
    visual, text = tiny
    part = load_component('method', name)
    assert part.protocol in component_names('protocol') and part.get('fsa_protocol', part.protocol) in component_names(
        'protocol'
    )
    method = method_of(part)
    images = torch.randn(2, 3, 64, 96)
    features = torch.randn(2, 12, 5, 7) if find_attention(method['attention'])[1] else None
    for feedback in (None, True):
        logits, grid = patch_logits(visual, images, text, method=method, feedback=feedback, vfm_features=features)
        assert logits.shape == (2, grid[0] * grid[1], 9) and logits.isfinite().all() and logits.abs().max() <= 1 + 1e-5


@every('feedback')
def test_feedback(name, tiny):
    visual, text = tiny
    feedback = feedback_of(load_components('sclip', name, 'toy', 'toy'))
    images = torch.randn(1, 3, 64, 64)
    bare, _ = patch_logits(visual, images, text, method='sclip')
    logits, _ = patch_logits(
        visual,
        images,
        text,
        method='sclip',
        feedback=resolve_feedback({k: v for k, v in feedback.items() if k != 'type'}),
    )
    assert logits.isfinite().all() and not torch.allclose(logits, bare)


@every('dataset')
def test_dataset(name, tmp_path):
    part = load_component('dataset', name)
    if 'classes' in part:  # it reads them from its folder
        (tmp_path / part.data_root).mkdir(parents=True)
        (tmp_path / part.data_root / part.classes).write_text('cat; kitten\ngrass\n')
        part = with_classes(part, str(tmp_path))
    classes = class_names(part)
    assert len(set(classes)) == len(classes)
    palette = part.get('metainfo', {}).get('palette') or DATASETS.get(part.type).METAINFO.get('palette')
    assert len(palette) >= len(classes)
    for method in component_names('method'):
        assert len(compose(name, method, backbone='toy', vfm='toy', data_root=str(tmp_path)).model.words) == len(
            classes
        )


@every('protocol')
def test_protocol(name):
    protocol = load_component('protocol', name)
    for dataset in component_names('dataset'):
        settings = protocol_settings(protocol, dataset)
        assert 0 < settings['stride'] <= settings['window'] and 0 <= settings['prob_thd'] < 1
        part = load_component('dataset', dataset)
        if 'classes' not in part:
            assert all(class_words(class_names(part), **settings['words']))


@every('suite')
def test_suite(name):
    suite = load_suite(name)
    cells = suite_cells(suite)
    for cell in cells:
        given = {key: value for key, value in cell.items() if key != 'check'}
        if 'window' in suite:
            load_components(*({**DEFAULTS, **given}[kind] for kind in ('method', 'feedback', 'backbone', 'vfm')))
        elif 'dataset' in given:
            compose(**given)
    toys = suite_cells(suite, backbone=['toy'], vfm=['toy'])
    assert len(toys) <= len(cells)


NEW = dict(
    backbones="backbone = dict(name='mine', model='ViT-B-32', pretrained='laion2b_s34b_b79k', licence='MIT')",
    vfms="vfm = dict(name='mine', type='TimmViT', model='vit_small_patch16_224.augreg_in21k')",
    vfms_="custom_imports = dict(imports=['my_vfm'])\nvfm = dict(name='mine_colours', type='Colours', licence='MIT', cell=4)",
    module='''
import torch
from mmseg.registry import MODELS

@MODELS.register_module()
class Colours(torch.nn.Module):
    """A VFM of one's own: mean colours of cells."""

    def __init__(self, cell, random_weights=None):
        super().__init__()
        self.multiple, self.scale = (cell, cell), torch.nn.Parameter(torch.ones(1))

    def grid(self, height, width):
        return height // self.multiple[0], width // self.multiple[1]

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, self.multiple) * self.scale
''',
    methods="method = dict(name='mine', segmentor=dict(type='TrainingFreeSegmentor', attention='mine', mlp=True), "
    "protocol='mine')",
    feedback="feedback = dict(name='mine', type='FSA', rounds=2, similarity='jeffreys')",
    protocols="protocol = dict(name='mine', default=dict(logit_scale=30, short=224, window=224, stride=112, prob_thd=0.1, "
    'area_thd=None), datasets=dict())',
    datasets="dataset = dict(name='mine', type='BaseSegDataset', data_root='mine', metainfo=dict(classes=['a', 'b'], "
    "palette=[[0, 0, 0], [255, 0, 0]]), data_prefix=dict(img_path='i', seg_map_path='l'))",
    suites="suite = dict(name='mine', window=64, queries=5, groups=[dict(backbone=['toy'], method=['mine', "
    "dict(attention='mine', residual=True)], feedback=[None, 'mine'])])",
    attentions='''
import torch
from fsa_seg.ops.attention import AttentionMap, attention_map

@attention_map('mine')
def neighbours(block):
    """Each patch attends the patches of its own row of the grid; CLS attends itself."""
    h, w = block.grid
    rows = torch.arange(h * w) // w
    matrix = torch.block_diag(torch.ones(1, 1), (rows[:, None] == rows[None]).float() / w)
    return AttentionMap(lambda values: matrix.to(values) @ values, 1.0, True)
''',
)


def test_a_new_file_of_any_kind_is_found_built_and_tested(tmp_path):
    """Without any other change: the tests above run on it, and a suite of its own runs."""
    files = dict(vfms_='vfms/mine_colours.py', module='my_vfm.py')
    for kind, text in NEW.items():
        path = tmp_path / files.get(kind, f'{kind}/mine.py')
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path), PYTHONPATH=os.pathsep.join([ROOT, str(tmp_path)]))
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-vv', '-p', 'no:cacheprovider', '-k', 'mine', __file__],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    tests = (
        'backbone',
        'vfm',
        'vfm_at_a_small_size',
        'attention_map',
        'method',
        'feedback',
        'dataset',
        'protocol',
        'suite',
    )
    for test in tests:
        assert f'test_{test}[mine] PASSED' in done.stdout, done.stdout[-3000:]
    assert 'test_vfm[mine_colours] PASSED' in done.stdout
    others = [os.path.join(ROOT, 'tests', f'test_{name}.py') for name in ('config', 'text')]
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *others],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    tool = os.path.join(ROOT, 'tools', 'test.py')
    command = [sys.executable, tool, 'voc20', '--mini', '--vfm', 'mine_colours', '--limit', '1', '--out', 'r.json']
    for arguments in (
        command,
        [sys.executable, tool, 'r.json', '--out', 'again.json', '--allow-modules', 'my_vfm'],
    ):  # as it was, in a new process
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads((tmp_path / name).read_text()) for name in ('r.json', 'again.json'))
    assert one['confusion'] == two['confusion'] and one['hash'] == two['hash']
    done = subprocess.run(
        [
            sys.executable,
            os.path.join(ROOT, 'tools', 'benchmark.py'),
            '--suite',
            'mine',
            '--work-dir',
            str(tmp_path / 'w'),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and '4 cells, 0 failed' in done.stdout, done.stdout + done.stderr
    assert '| toy | – | mine_residual + mine | 4×4 |' in done.stdout


def test_two_parts_of_one_name_are_an_error(tmp_path, monkeypatch):
    (tmp_path / 'methods').mkdir()
    (tmp_path / 'methods' / 'sclip.py').write_text('')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    with pytest.raises(UserError, match="two files are called 'sclip'"):
        load_component('method', 'clip')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path / 'gone'))
    with pytest.raises(UserError, match='gone, which is no folder'):
        load_component('method', 'clip')


def test_a_built_in_attention_map_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / 'attentions').mkdir()
    (tmp_path / 'attentions' / 'qq.py').write_text('')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    with pytest.raises(UserError, match="'qq' is the name of a built-in attention map; rename the file"):
        load_components('sclip', None, 'toy', 'toy')
    with pytest.raises(UserError, match="there is an attention map 'qq' already"):
        attention_map('qq')(None)


@pytest.mark.parametrize(
    'text, message',
    [('x = 1', "registers no attention map 'broken'"), ('x = 1 / 0', 'broken.py cannot be run: ZeroDivisionError')],
)
def test_an_attention_file_that_cannot_be_used(tmp_path, monkeypatch, text, message):
    (tmp_path / 'attentions').mkdir()
    (tmp_path / 'attentions' / 'broken.py').write_text(text)
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    with pytest.raises(UserError, match=message):
        find_attention('broken')
    with pytest.raises(UserError, match="unknown attention map 'borken' .did you mean 'broken'"):
        find_attention('borken')
