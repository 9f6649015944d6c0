"""A result is data: no code runs from its config, whatever the config says."""

import copy
import json
import os

import pytest

from fsa_seg.config.components import load_file
from fsa_seg.config.compose import compose, is_complete
from fsa_seg.config.saved import from_json, to_json
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import read_result

from conftest import MINI

COMMAND = 'touch ran'


@pytest.fixture(scope='module')
def saved():
    return to_json(
        compose('voc21', 'proxyclip', backbone='toy', vfm='toy', data_root=MINI, limit=1, runtime=dict(workers=0))
    )


def changed(saved, path, value):
    data = copy.deepcopy(saved)
    node = data
    *steps, last = path.split('.')
    for step in steps:
        node = node.setdefault(step, {}) if isinstance(node, dict) else node[int(step)]
    node[int(last) if isinstance(node, list) else last] = value
    return data


def test_a_config_goes_through_json_as_it_was(saved):
    config = compose('voc21', 'proxyclip', backbone='toy', vfm='toy', data_root=MINI, limit=1, runtime=dict(workers=0))
    again = from_json(json.loads(json.dumps(saved)), 'r.json')
    assert is_complete(again) and to_json(again) == to_json(config)
    assert isinstance(again.test_dataloader.dataset.pipeline[1].scale, tuple)


@pytest.mark.parametrize(
    'path, value, message',
    [
        (
            'default_hooks.evil',
            dict(type='os.system', command=COMMAND),
            "asks for 'os.system', which is no class of this suite",
        ),
        ('custom_hooks', [dict(type='subprocess.run', args=COMMAND)], "asks for 'subprocess.run'"),
        ('model.type', 'os.system', "asks for 'os.system'"),
        ('model.backbone.type', 'builtins.eval', "asks for 'builtins.eval'"),
        ('test_dataloader.collate_fn', dict(type='os.system'), "asks for 'os.system'"),
        ('test_dataloader.dataset.pipeline.0', dict(type='os.system'), "asks for 'os.system'"),
        ('model.type', ['os', 'system'], 'asks for'),
        ('train_cfg', dict(type='TrainLoop'), "unknown key in the config of r.json 'train_cfg'"),
        ('_base_', '../evil.py', "unknown key in the config of r.json '_base_'"),
        ('model._base_', '../evil.py', "the key '_base_' has no place"),
        ('model._scope_', 'evil', "the key '_scope_' has no place"),
        ('load_from', 'evil.pth', "unknown key in the config of r.json 'load_from'"),
        ('custom_imports', dict(imports=['evil']), 'add --allow-modules evil'),
        ('custom_imports', dict(imports='evil'), 'custom_imports has to be'),
        ('model.vfm.type', 'HTCMaskHead', 'asks for'),
        ('test_evaluator.type', 'DumpResults', "asks for 'DumpResults'"),
    ],
)
def test_what_would_be_run_is_refused(saved, tmp_path, monkeypatch, path, value, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ('evil.py', '../evil.py'):
        (tmp_path / name).write_text(f'import os\nos.system({COMMAND!r})')
    with pytest.raises(UserError, match=message):
        from_json(changed(saved, path, value), 'r.json')
    assert not os.path.exists('ran')


@pytest.mark.parametrize('config', ['import os; os.system("touch ran")', None, 5, [], {}, dict(model=1)])
def test_what_is_no_composed_config(run_tool, tmp_path, config):
    """Earlier versions ran text."""
    (tmp_path / 'r.json').write_text(json.dumps(dict(config=config)))
    status, printed = run_tool('test', 'r.json')
    assert status == 1 and 'Traceback' not in printed and 'r.json' in printed and not (tmp_path / 'ran').exists(), (
        printed
    )


@pytest.mark.parametrize(
    'text', ['', '[', '[]', 'null', '{"config": ', '[' * 100_000, '{"cell": {}, "metrics": {}, "hash": 1}', '\0']
)
def test_a_file_that_is_no_result(tmp_path, text):
    path = tmp_path / 'r.json'
    path.write_text(text)
    for read in (read_result, load_file):
        with pytest.raises(UserError, match='r.json'):
            read(str(path))


def test_a_module_of_a_users_own_is_imported_where_it_is_allowed(saved, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'own_saved.py').write_text(
        'from mmseg.registry import MODELS\nfrom fsa_seg.models.segmentor import TrainingFreeSegmentor\n\n\n'
        "@MODELS.register_module()\nclass OwnSaved(TrainingFreeSegmentor):\n    own_method = 'clip'\n"
    )
    data = changed(changed(saved, 'model.type', 'OwnSaved'), 'custom_imports', dict(imports=['own_saved']))
    with pytest.raises(UserError, match='modules of your own, own_saved, whose code would be run'):
        from_json(copy.deepcopy(data), 'r.json')
    assert from_json(copy.deepcopy(data), 'r.json', ['own_saved']).model.type == 'OwnSaved'
    data['custom_imports'] = dict(imports=['own_gone'])
    with pytest.raises(UserError, match='own_gone.*PYTHONPATH'):
        from_json(data, 'r.json', ['own_gone'])


def test_what_mmsegs_tools_need_is_left_out(tmp_path):
    """A visualizer writes files; a saved config of an exported config has one, and it is not used."""
    data = to_json(compose('voc21', 'sclip', backbone='toy', data_root=MINI))
    data['test_evaluator'].update(output_dir='labels', keep_results=True)
    extra = dict(visualizer=dict(type='Visualizer'), test_pipeline=[dict(type='x')], exported=dict(a='b'))
    data['default_hooks']['visualization'] = dict(type='SegVisualizationHook', draw=True)
    config = from_json(dict(data, **extra), 'r.json')
    assert not {*extra} & {*config} and 'visualization' not in config.default_hooks
    assert config.test_evaluator.to_dict() == dict(type='ExactIoUMetric')
