"""A user's own runtime.py, and the trackers that its `visualizer` names."""

import json
import os
import sys

import pytest

from fsa_seg.config import runtime
from fsa_seg.config.components import load_file
from fsa_seg.config.compose import compose
from fsa_seg.config.export import export_config, mark_changes
from fsa_seg.config.fingerprint import cell_hash, fingerprint
from fsa_seg.config.runtime import check_visualizer, default_runtime
from fsa_seg.config.saved import from_json
from fsa_seg.errors import UserError
from fsa_seg.evaluation.passes import prepare, run_cells, run_pass
from fsa_seg.evaluation.results import read_result

from conftest import MINI

LOCAL = "visualizer = dict(vis_backends=[dict(type='LocalVisBackend')])\n"
TRACKER = '''
import json

from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend

@VISBACKENDS.register_module(force=True)
class FakeBackend(BaseVisBackend):
    """Writes what it is told into one file; `fail` names the call that fails."""

    def __init__(self, file, fail='', save_dir=None):
        self.file, self.fail = file, fail

    experiment = property(lambda self: self)

    def _init_env(self): ...

    def note(self, what, **values):
        if what == self.fail:
            raise ConnectionError('no network')
        with open(self.file, 'a') as f:
            f.write(json.dumps(dict(what=what, **values)) + '\\n')

    def add_config(self, config, **kwargs):
        self.note('config')

    def add_scalars(self, scalar_dict, *args, **kwargs):
        self.note('scalars', scalars=scalar_dict)

    def add_graph(self, *args, **kwargs): ...
    def add_image(self, *args, **kwargs): ...
    def add_scalar(self, *args, **kwargs): ...
    def close(self):
        self.note('close')
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function that writes a user's runtime.py, into a folder that FSA_SEG_CONFIGS names."""
    (tmp_path / 'mine').mkdir()
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path / 'mine'))
    monkeypatch.setenv('TRACKER_FILE', str(tmp_path / 'tracked'))

    def write(text):
        path = tmp_path / 'mine' / 'runtime.py'
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """A module of a user's that registers a backend."""
    (tmp_path / 'my_tracker.py').write_text(TRACKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / 'tracked'
    sys.modules.pop('my_tracker', None)


def config(tmp_path, method='sclip', **runtime):
    runtime = dict(workers=0, work_dir=str(tmp_path / 'w'), **runtime)
    return compose('voc20', method, None, 'toy', 'toy', data_root=MINI, limit=2, runtime=runtime)


def test_a_users_entries_replace_those_that_ship(own, tmp_path, run_tool):
    """Options replace the user's; no entry changes the hash."""
    before = compose('voc21', 'sclip', backbone='toy', data_root=MINI)
    own(f"work_dir = 'elsewhere'\nworkers = 0\nbatch_size = 3\n{LOCAL}")
    after = compose('voc21', 'sclip', backbone='toy', data_root=MINI, runtime=dict(batch_size=2))
    assert (after.work_dir, after.workers, after.batch_size, after.window_batch) == ('elsewhere', 0, 2, 'auto')
    assert after.test_dataloader.batch_size == 2 and after.visualizer.vis_backends[0].type == 'LocalVisBackend'
    assert cell_hash(fingerprint(before)) == cell_hash(fingerprint(after))
    assert default_runtime()['log_interval'] == load_file(runtime.RUNTIME).log_interval
    own("work_dir = 'elsewhere'")
    status, printed = run_tool('test', 'voc20', '--mini', '--method', 'clip', '--no-fsa', '--limit', 1)
    assert status == 0 and 'result: elsewhere/results/' in printed, printed
    suite = tmp_path / 'suite.py'
    suite.write_text(
        "suite = dict(name='one', window=32, groups=[dict(backbone=['toy'], method=['clip'], feedback=[None])])"
    )
    status, printed = run_tool('benchmark', '--suite', suite)
    assert status == 0 and 'results: elsewhere/one' in printed, printed


@pytest.mark.parametrize(
    'text, message',
    [
        ('worker = 2', "unknown key 'worker' in .*runtime.py .did you mean 'workers'"),
        ("workers = 'many'", "runtime.py: workers is 'many'"),
        ('workers = (', 'runtime.py cannot be read'),
        ('class Tracker:\n    pass', 'runtime.py defines Tracker: put the class into a module'),
        (
            "custom_imports = dict(imports=['gone_tracker'], allow_failed_imports=False)",
            'runtime.py cannot be read: .*gone_t',
        ),
        ("visualizer = 'wandb'", "visualizer is 'wandb'; it has to be"),
        ('visualizer = dict(vis_backends=5)', 'vis_backends holds 5; give a list of'),
        ("visualizer = dict(vis_backends=['WandbVisBackend'])", "vis_backends holds 'WandbVisBackend'; give a list of"),
        (
            "visualizer = dict(vis_backends=[dict(type='WandVisBackend')])",
            "unknown class in vis_backends 'WandVisBackend' .did you mean 'WandbVisBackend'",
        ),
        ("visualizer = dict(type='Visualiser')", "unknown class in visualizer .* 'Visualizer'"),
        ('visualizer = dict(backends=[])', "unknown key 'backends' in visualizer .did you mean 'vis_backends'"),
        (
            "visualizer = dict(vis_backends=dict(type='WandbVisBackend', init_kwarg={}))",
            "unknown key 'init_kwarg' in vis_backends .did you mean 'init_kwargs'",
        ),
    ],
)
def test_mistakes_in_a_users_runtime(own, text, message):
    own(text)
    with pytest.raises(UserError, match=message):
        compose('voc21', 'sclip', backbone='toy', data_root=MINI)


def test_two_runtimes_are_an_error(own, tmp_path, monkeypatch):
    own('workers = 0')
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more' / 'runtime.py').write_text('workers = 1')
    monkeypatch.setenv('FSA_SEG_CONFIGS', os.pathsep.join(str(tmp_path / name) for name in ('mine', 'more')))
    with pytest.raises(UserError, match='two files say how runs are carried out'):
        default_runtime()


@pytest.mark.parametrize('name', runtime.PACKAGES)
def test_a_backends_package_is_missed_before_the_run(name, monkeypatch, tmp_path):
    """mmengine has the backend; a folder that the tracker has written is no package."""
    package = runtime.PACKAGES[name]
    visualizer = dict(vis_backends=[dict(type=name)])
    monkeypatch.setattr(runtime.importlib.util, 'find_spec', lambda package: None)
    with pytest.raises(UserError, match=f'{name} needs the package {package}, .*: pip install {package}, or'):
        check_visualizer(visualizer)
    monkeypatch.undo()
    (tmp_path / 'a_folder').mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not runtime._installed('a_folder') and runtime._installed('json')
    monkeypatch.setattr(runtime, '_installed', lambda package: True)
    check_visualizer(visualizer)


def test_each_cell_of_a_pass_is_tracked_by_its_name(own, tmp_path):
    """mmengine's own backend writes a file for each pass; results hold no visualizer, and run again without one."""
    own(LOCAL)
    cells = [config(tmp_path, method) for method in ('sclip', 'clip', 'maskclip')]
    results = run_cells(cells, list)
    assert len({result['cells_in_pass'] for result in results} | {0}) > 1
    tracked = {}
    for path in (tmp_path / 'w' / 'logs').rglob('scalars.json'):
        for line in path.read_text().splitlines():
            tracked.update(json.loads(line))
    tracked.pop('step')
    assert len(tracked) == 9
    for path in (tmp_path / 'w' / 'results').iterdir():
        result = read_result(path)
        assert {key: tracked[f'{path.stem}/{key}'] for key in result['metrics']} == result['metrics']
        assert 'visualizer' not in result['config'] and 'LocalVisBackend' not in path.read_text()
    again = from_json(dict(result['config'], visualizer=dict(vis_backends=[dict(type='WandbVisBackend')])), 'r.json')
    assert 'visualizer' not in again


def test_a_run_without_a_visualizer_writes_no_metrics_of_its_own(tmp_path):
    run_cells([config(tmp_path)], list)
    assert not list(tmp_path.rglob('scalars.json'))


def test_a_backend_of_a_users_own(own, tracker, tmp_path, capsys):
    """A module registers it; no result names the module. Its failure ends no run, and is a message before one."""
    text = "custom_imports = dict(imports=['my_tracker'])\nvisualizer = dict(name='mine', vis_backends=[dict("
    own(f'{text}type="FakeBackend", file={str(tracker)!r})])')
    cells = [config(tmp_path, method) for method in ('sclip', 'proxyclip')]
    plain = [cell_hash(fingerprint(cell)) for cell in cells]
    for cell in cells:  # two passes: each has a visualizer of its own
        (result,) = run_pass([prepare(cell)])
        assert 'my_tracker' not in json.dumps(result)
    lines = [json.loads(line) for line in tracker.read_text().splitlines()]
    assert [line['what'] for line in lines] == ['config', 'scalars', 'close'] * 2
    names = [list(line['scalars'])[0] for line in lines if line['what'] == 'scalars']
    assert [name.split('_')[1] for name in names] == ['sclip', 'proxyclip'] and all('/mIoU' in name for name in names)
    own(f'{text}type="FakeBackend", file={str(tracker)!r}, fail="scalars")])')
    assert run_pass([prepare(config(tmp_path))])[0]['hash'] == prepare(cells[0]).hash
    assert 'the metrics of voc20_sclip' in (printed := capsys.readouterr().err) and 'no network' in printed
    own(f'{text}type="FakeBackend", file={str(tracker)!r}, fail="close")])')
    assert run_pass([prepare(config(tmp_path))])[0]['hash'] == prepare(cells[0]).hash
    assert 'could not be closed: ConnectionError: no network' in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob('*.log') if 'FakeBackend' in path.read_text()]  # it may have a key
    own(f'{text}type="FakeBackend", file={str(tracker)!r}, fail="config")])')
    with pytest.raises(UserError, match='the run of this config cannot be built: .*no network'):
        run_pass([prepare(config(tmp_path))])
    own('')
    assert [cell_hash(fingerprint(config(tmp_path, method))) for method in ('sclip', 'proxyclip')] == plain


def test_names_are_those_that_every_tracker_takes():
    from fsa_seg.evaluation.passes import CellMetrics

    assert CellMetrics(['voc21_sclip+fsa-p=0.5_ü_0a']).names == ['voc21_sclip-fsa-p-0.5_-_0a']


def test_a_complete_config_has_a_visualizer_of_its_own(tmp_path):
    """Also one that starts from an exported config, which has mmsegmentation's."""
    export_config(compose('voc21', 'sclip', backbone='toy', data_root=MINI), str(tmp_path / 'exported.py'), 'row')
    (tmp_path / 'mine.py').write_text(f"_base_ = ['exported.py']\n{LOCAL}visualizer['save_dir'] = 'shown'\n")
    for name, kept in (('exported', False), ('mine', True)):
        complete = load_file(str(tmp_path / f'{name}.py'))
        mark_changes(complete)
        assert ('visualizer' in complete) == kept and not complete.cell.changed
