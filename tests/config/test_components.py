"""The contract of every component: tests run over all names of a kind, so a new file has its tests at once."""

import json
import os

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
    parameters,
    protocol_settings,
    weights_of,
    with_classes,
)
from fsa_seg.config.compose import compose
from fsa_seg.config.own_classes import register_own_classes
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.errors import UserError
from fsa_seg.models.clip import check_tower, load_clip
from fsa_seg.models.text import class_words
from fsa_seg.models.vfm import TimmModel, TimmViT, build_vfm, run_vfm, vfm_grid, window_multiple
from fsa_seg.models.weights import path_of
from fsa_seg.models.window import resolve_feedback
from fsa_seg.profiling.architectures import DEFAULTS

from conftest import ROOT
from new_process import run_python

SMALL = dict(embed_dim=48, depth=2, num_heads=2)  # sizes that make a VFM fast


def every(kind):
    """Return the mark that runs a test for every component of a kind."""
    return pytest.mark.parametrize('name', component_names(kind))


@pytest.mark.parametrize('kind, name', [(kind, name) for kind in KINDS for name in component_names(kind)])
def test_a_component_has_the_name_of_its_file(kind, name):
    assert load_component(kind, name).name == name


@every('backbone')
def test_backbone(name):
    """Each backbone at its real size: the meta device computes shapes alone, without memory or time."""
    component = load_component('backbone', name)
    with torch.device('meta'):
        visual = load_clip(**component_config(component, random_weights=0))[0].visual
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
    tag = open_clip.get_pretrained_cfg(component.model, component.get('pretrained') or '')
    if tag:
        quick = isinstance(visual.transformer.resblocks[-1].mlp.gelu, QuickGELU)
        assert quick == tag.get('quick_gelu', False)
        assert tuple(visual.preprocess_cfg['mean']) == tuple(tag['mean'])
        assert tuple(visual.preprocess_cfg['std']) == tuple(tag['std'])


@every('vfm')
def test_vfm(name):
    with torch.device('meta'):
        vfm = build_vfm(component_config(load_component('vfm', name), random_weights=0))
        for rows, columns in ((24, 16), (12, 30)):
            height, width = (
                -(-side * 14 // multiple) * multiple for side, multiple in zip((rows, columns), window_multiple(vfm))
            )
            assert tuple(run_vfm(vfm, torch.zeros(2, 3, height, width)).shape[2:]) == vfm_grid(vfm, height, width)


@every('vfm')
def test_vfm_at_a_small_size(name):
    """A small net of the same kind: batches, windows that are not square, and timm's public calls."""
    component = load_component('vfm', name)
    if not issubclass(MODELS.get(component.type), TimmModel) or component.get('toy'):
        pytest.skip('no timm model whose size can change')
    config = dict(
        component_config(component, random_weights=0), model_args={**component.get('model_args', {}), **SMALL}
    )
    vfm = MODELS.build(config)
    torch.manual_seed(0)
    for parameter in vfm.parameters():  # no parameter may keep its (neutral) initial value
        parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.rand(2, 3, 16 * vfm.multiple[0], 10 * vfm.multiple[1])
    features = vfm(images)
    assert tuple(features.shape[2:]) == tuple(vfm.grid(*images.shape[2:])) and features.isfinite().all()
    torch.testing.assert_close(features[1:], vfm(images[1:]), atol=1e-5, rtol=1e-4)
    if not isinstance(vfm, TimmViT):
        return
    timm_model = MODELS.build(dict(config, pos_embed='timm'))
    timm_model.load_state_dict(vfm.state_dict())
    expected = timm_model.vit.forward_features(normalize(images, vfm.mean, vfm.std))[:, vfm.vit.num_prefix_tokens :]
    torch.testing.assert_close(timm_model(images).flatten(2).transpose(1, 2), expected)
    side = [count * patch for count, patch in zip(vfm.vit.patch_embed.grid_size, vfm.multiple)]
    trained = torch.rand(1, 3, *side)  # at the trained size no rule resizes
    torch.testing.assert_close(vfm(trained), timm_model(trained), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', [*component_names('vfm'), 'augreg'])
def test_vfms_normalise_as_timm_says(name, tmp_path):
    """Mean and std are those of the weights' tag; of a checkpoint, the component gives them."""
    augreg = tmp_path / 'augreg.py'  # its weights need other values than ImageNet's
    augreg.write_text("vfm = dict(name='augreg', type='TimmViT', model='vit_base_patch16_224.augreg_in21k')")
    component = load_component('vfm', str(augreg) if name == 'augreg' else name)
    if not issubclass(MODELS.get(component.type), TimmModel):
        pytest.skip('no timm model')
    pixels = (
        component
        if {'checkpoint', 'mean', 'std'} <= set(component)
        else timm.get_pretrained_cfg(component.model).to_dict()
    )
    vfm = MODELS.build(
        dict(component_config(component, random_weights=0), model_args={**component.get('model_args', {}), **SMALL})
    )
    images = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(vfm.normalised(images), normalize(images, pixels['mean'], pixels['std']))


@pytest.mark.parametrize('kind, name', [(kind, name) for kind in ('backbone', 'vfm') for name in component_names(kind)])
def test_weights_have_a_source(kind, name):
    weights = weights_of(kind, name)
    assert weights.licence not in ('', '–')
    assert parameters(kind, name) > 0
    component = load_component(kind, name)
    if kind == 'backbone' or issubclass(MODELS.get(component.type), TimmModel):
        assert weights.files or path_of(weights) or '://' in weights.source


@every('feedback')
def test_feedback(name, tiny):
    visual, text = tiny
    feedback = resolve_feedback(feedback_of(load_components('sclip', name, 'toy', 'toy')))
    images = torch.randn(1, 3, 64, 64)
    bare, _ = patch_logits(visual, images, text, method='sclip')
    logits, _ = patch_logits(visual, images, text, method='sclip', feedback=feedback)
    assert logits.isfinite().all() and not torch.allclose(logits, bare)


@every('dataset')
def test_dataset(name, tmp_path):
    component = load_component('dataset', name)
    if 'classes' in component:  # names a file of the data set's folder
        (tmp_path / component.data_root).mkdir(parents=True)
        (tmp_path / component.data_root / component.classes).write_text('cat; kitten\ngrass\n')
        component = with_classes(component, str(tmp_path))
    classes = class_names(component)
    assert len(set(classes)) == len(classes)
    palette = component.get('metainfo', {}).get('palette') or DATASETS.get(component.type).METAINFO.get('palette')
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
        assert (settings['window'] == 0 or 0 < settings['stride'] <= settings['window']) and 0 <= settings[
            'prob_thd'
        ] < 1
        component = load_component('dataset', dataset)
        if 'classes' not in component:
            assert all(class_words(class_names(component), **settings['words']))


@every('suite')
def test_suite(name):
    suite = load_suite(name)
    cells = suite_cells(suite)
    for cell in cells:
        components = {key: value for key, value in cell.items() if key != 'check'}
        if 'window' in suite:
            load_components(*({**DEFAULTS, **components}[kind] for kind in ('method', 'feedback', 'backbone', 'vfm')))
        elif 'dataset' in components:
            compose(**components)
    toys = suite_cells(suite, backbone=['toy'], vfm=['toy'])
    assert len(toys) <= len(cells)


NEW = dict(
    backbones="backbone = dict(name='custom', model='ViT-B-32', pretrained='laion2b_s34b_b79k', licence='MIT')",
    vfms="vfm = dict(name='custom', type='TimmViT', model='vit_small_patch16_224.augreg_in21k')",
    vfms_="custom_imports = dict(imports=['my_vfm'])\n"
    "vfm = dict(name='custom_colours', type='Colours', licence='MIT', cell=16)",
    module='''
import torch
from mmseg.registry import MODELS

@MODELS.register_module()
class Colours(torch.nn.Module):
    """A user's VFM: mean colours of cells."""

    def __init__(self, cell, random_weights=None):
        super().__init__()
        self.multiple, self.scale = (cell, cell), torch.nn.Parameter(torch.ones(1))

    def grid(self, height, width):
        return height // self.multiple[0], width // self.multiple[1]

    def forward(self, images):
        return torch.nn.functional.avg_pool2d(images, self.multiple) * self.scale
''',
    methods='''
import torch
from fsa_seg.methods.base import Method
from fsa_seg.ops.attention import AttentionMap


class Custom(Method):
    """Each patch attends the patches of its own row of the grid; CLS attends itself."""

    title = 'Custom'
    protocol = 'custom'
    mlp = True

    def attention(self, block):
        h, w = block.grid
        rows = torch.arange(h * w) // w
        matrix = torch.block_diag(torch.ones(1, 1), (rows[:, None] == rows[None]).float() / w)
        return AttentionMap(lambda values: matrix.to(values) @ values, 1.0, True)
''',
    feedback="feedback = dict(name='custom', type='FSA', rounds=2, similarity='jeffreys')",
    protocols="protocol = dict(name='custom', default=dict(logit_scale=30, short=224, window=224, stride=112, "
    'prob_thd=0.1, area_thd=None), datasets=dict())',
    datasets="dataset = dict(name='custom', type='BaseSegDataset', data_root='custom', "
    "metainfo=dict(classes=['a', 'b'], palette=[[0, 0, 0], [255, 0, 0]]), "
    "data_prefix=dict(img_path='i', seg_map_path='l'))",
    suites="suite = dict(name='custom', window=64, queries=5, groups=[dict(backbone=['toy'], method=['custom', "
    "dict(type='naclip', sigma=2.0)], feedback=[None, 'custom'])])",
)


@pytest.fixture
def run_beside(tmp_path):
    """Return a function that runs Python beside the files of NEW, and returns what the program prints."""
    files = dict(vfms_='vfms/custom_colours.py', module='my_vfm.py')
    for kind, text in NEW.items():
        path = tmp_path / files.get(kind, f'{kind}/custom.py')
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    environment = dict(os.environ, FSA_SEG_CONFIGS=str(tmp_path), PYTHONPATH=os.pathsep.join([ROOT, str(tmp_path)]))

    def run(*arguments, folder=ROOT):
        process = run_python(*arguments, cwd=folder, env=environment)
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
        return process.stdout

    return run


def test_a_new_file_of_any_kind_passes_these_tests(run_beside):
    """The tests above cover a new file without any other change."""
    printed = run_beside('-m', 'pytest', '-vv', '-p', 'no:cacheprovider', '-k', 'custom', __file__)
    for test in ('backbone', 'vfm', 'vfm_at_a_small_size', 'feedback', 'dataset', 'protocol', 'suite'):
        assert f'test_{test}[custom] PASSED' in printed, printed[-3000:]
    assert 'test_vfm[custom_colours] PASSED' in printed
    files = [os.path.join(ROOT, 'tests', *name) for name in (('config', 'test_compose.py'), ('models', 'test_text.py'))]
    run_beside('-m', 'pytest', '-p', 'no:cacheprovider', *files)


def test_a_result_with_a_new_vfm_runs_again(run_beside, tmp_path):
    """A new process gives the same result."""
    tool = os.path.join(ROOT, 'tools', 'test.py')
    options = ('--mini', '--vfm', 'custom_colours', '--limit', '1', '--out', 'r.json')
    run_beside(tool, 'voc20', *options, folder=tmp_path)
    run_beside(tool, 'r.json', '--out', 'again.json', '--allow-modules', 'my_vfm', folder=tmp_path)
    first, second = (json.loads((tmp_path / name).read_text()) for name in ('r.json', 'again.json'))
    assert first['confusion'] == second['confusion'] and first['hash'] == second['hash']


def test_a_new_suite_of_new_components_runs(run_beside, tmp_path):
    tool = os.path.join(ROOT, 'tools', 'benchmark.py')
    printed = run_beside(tool, '--suite', 'custom', '--work-dir', str(tmp_path / 'w'))
    assert '4 cells, 0 failed' in printed, printed
    assert '| toy | – | NACLIP sigma=2.0 + custom | 4×4 |' in printed


def test_two_components_of_one_name_are_an_error(tmp_path, monkeypatch):
    (tmp_path / 'protocols').mkdir()
    (tmp_path / 'protocols' / 'sclip.py').write_text('')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    with pytest.raises(UserError, match="two files are called 'sclip'"):
        load_component('protocol', 'clearclip')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path / 'gone'))
    with pytest.raises(UserError, match='gone, which is no folder'):
        load_component('protocol', 'clearclip')


ONE_FILE = dict(
    vfms=('vfm', MODELS, NEW['module'] + "\n\nvfm = dict(name='own', type='Own', licence='MIT', cell=8)\n"),
    datasets=(
        'dataset',
        DATASETS,
        'from mmseg.datasets import BaseSegDataset\nfrom mmseg.registry import DATASETS\n\n\n'
        '@DATASETS.register_module()\nclass Colours(BaseSegDataset):\n    METAINFO = dict(classes=("a", "b"))\n\n\n'
        "dataset = dict(name='own', type='Own', data_root='own', data_prefix=dict(img_path='i', seg_map_path='l'))\n",
    ),
    feedback=(
        'feedback',
        MODELS,
        'from fsa_seg.ops.feedback import FSA\nfrom mmseg.registry import MODELS\n\n\n@MODELS.register_module()\n'
        "class Colours(FSA):\n    pass\n\n\nfeedback = dict(name='own', type='Own', p=0.5)\n",
    ),
)


@pytest.mark.parametrize('folder', ONE_FILE)
def test_a_component_and_its_class_are_one_file(folder, tmp_path, monkeypatch, capsys):
    """The file may change; another file that cannot be run is a warning."""
    kind, registry, text = ONE_FILE[folder]
    path = tmp_path / folder / 'own.py'
    path.parent.mkdir()
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    classes = []
    for title in ('OwnFirst', 'OwnFirst', 'OwnSecond'):
        path.write_text(text.replace('Colours', f'{title}{kind}').replace("'Own'", f"'{title}{kind}'"))
        os.utime(path, (len(classes), len(classes)))
        component = load_component(kind, 'own')
        assert component.type == f'{title}{kind}' and 'random_weights' not in component
        classes.append(registry.get(component.type))
    assert len(set(classes)) == 3 and f'OwnFirst{kind}' not in registry.module_dict
    del registry.module_dict[f'OwnSecond{kind}']
    (path.parent / 'broken.py').write_text(f'class Broken: pass\n\n\nx = "{folder}" / 0\n')
    os.utime(path, (9, 9))
    register_own_classes()
    assert registry.get(f'OwnSecond{kind}') is not None
    assert 'broken.py, line 4: TypeError' in capsys.readouterr().err
    with pytest.raises(UserError, match='broken.py, line 4: TypeError'):
        load_component(kind, str(path.parent / 'broken.py'))


def test_a_name_that_another_file_ships_under(tmp_path):
    """As from a _base_ whose name is not replaced: its rows would pass for the published ones."""
    shipped = os.path.join(ROOT, 'configs', 'protocols', 'sclip.py')
    (tmp_path / 'dense.py').write_text(f'_base_ = {shipped!r}\nprotocol = dict(default=dict(stride=56))\n')
    with pytest.raises(
        UserError, match="its name is 'sclip', which is the name of a protocol that ships: give name='dense'"
    ):
        load_component('protocol', str(tmp_path / 'dense.py'))


def test_a_base_that_ships_is_named_by_its_path(tmp_path):
    (tmp_path / 'protocols').mkdir()
    (tmp_path / 'protocols' / 'dense.py').write_text("_base_ = 'sclip.py'\n")
    with pytest.raises(UserError, match="the file that ships is _base_ = '/.*/configs/protocols/sclip.py'"):
        load_component('protocol', str(tmp_path / 'protocols' / 'dense.py'))


def test_a_class_that_its_file_does_not_register(tmp_path):
    (tmp_path / 'edges.py').write_text("class Edges:\n    pass\n\n\nvfm = dict(name='edges', type='Edges')\n")
    with pytest.raises(UserError, match='defines Edges, and does not register it: put @MODELS.register_module'):
        load_component('vfm', str(tmp_path / 'edges.py'))


def test_an_unknown_name_says_where_own_components_lie(monkeypatch, tmp_path):
    monkeypatch.delenv('FSA_SEG_CONFIGS', raising=False)
    with pytest.raises(UserError, match="unknown vfm 'mine'.*FSA_SEG_CONFIGS names, which is not set"):
        load_component('vfm', 'mine')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path))
    with pytest.raises(UserError, match=f"unknown method 'mine'.*now {tmp_path}"):
        load_component('method', 'mine')
