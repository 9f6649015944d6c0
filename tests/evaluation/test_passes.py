import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine import ConfigDict

from fsa_seg.config.compose import compose
from fsa_seg.errors import Busy, StopError, UserError
from fsa_seg.evaluation import passes
from fsa_seg.evaluation.loop import StepError, TaskLost
from fsa_seg.evaluation.metric import Journal
from fsa_seg.evaluation.passes import prepare, run_cell, run_cells

from conftest import MINI


def config(tmp_path, **options):
    options = dict(
        dict(
            dataset='cityscapes',
            method='maskclip',
            feedback=None,
            backbone='toy',
            vfm='toy',
            data_root=MINI,
            runtime=dict(workers=0, work_dir=str(tmp_path)),
        ),
        **options,
    )
    return compose(**options)


def test_a_limit_is_a_seeded_subset_and_partial(tmp_path):
    chosen = []
    for _ in range(2):
        limited = prepare(config(tmp_path, limit=3))
        chosen.append(limited.config.test_dataloader.dataset.indices)
    assert chosen == [[2, 3, 4]] * 2  # the choice is the same on every machine
    assert limited.hash != prepare(config(tmp_path)).hash
    result = run_cell(limited, str(tmp_path / 'r.json'))
    assert result['partial'] and len(result['images']) == 3
    full = config(tmp_path, limit=500)  # more images than the split has
    assert prepare(full).hash == prepare(config(tmp_path)).hash


def test_a_second_process_reads_no_image_for_its_check(tmp_path, monkeypatch):
    hashes = {prepare(config(tmp_path)).hash}
    passes._checked_images.cache_clear()
    monkeypatch.setattr('fsa_seg.datasets.data_sets._scan', lambda *_: pytest.fail('an image was read'))
    assert {prepare(config(tmp_path)).hash} == hashes
    prepare(config(tmp_path, limit=3))  # of the same files


@pytest.mark.parametrize('names', [['fsa', dict(p=0.45)], [dict(p=0.45), dict(lam=3.0), 'fsa']])
def test_cells_of_one_hash_run_once_in_any_number_of_calls(names, tmp_path, monkeypatch):
    """`fsa` and its defaults spelt out: in one call, and in calls one after the other; then each has its own file."""
    run, runs = passes.run_pass, []
    monkeypatch.setattr(passes, 'run_pass', lambda cells, *rest: runs.extend(cells) or run(cells, *rest))
    for folder, calls in (('together', [names]), ('apart', [[name] for name in names])):
        runs.clear()
        results = []
        for call in calls:
            runtime = dict(workers=0, work_dir=str(tmp_path / folder))
            options = dict(dataset='voc20', method='sclip', limit=2, runtime=runtime)
            configs = [config(tmp_path, feedback=name, **options) for name in call]
            results += run_cells(configs, list)
        assert len(runs) == 1 and len({result['hash'] for result in results}) == 1
        assert len({result['cell']['feedback'] for result in results}) == len(names)
        assert all(result['confusion'] == results[0]['confusion'] for result in results)
        assert len(list((tmp_path / folder / 'results').iterdir())) == len(names)


def test_a_result_of_other_names_is_used_where_it_can_be(tmp_path, monkeypatch):
    """Not with another hash, from other code, of other images or unreadable, though its name ends alike."""
    options = dict(dataset='voc20', method='sclip', limit=2)
    first = prepare(config(tmp_path, feedback='fsa', **options))
    result = run_cell(first)
    run, runs = passes.run_pass, []
    monkeypatch.setattr(passes, 'run_pass', lambda cells, *rest: runs.extend(cells) or run(cells, *rest))
    folder, path = tmp_path / 'results', passes.result_path(first)
    second = config(tmp_path, feedback=dict(p=0.45), **options)
    other = [('package', 'x', 'source') if entry.key == 'package' else entry for entry in first.fingerprint]
    for change in (dict(hash=first.hash[:10] + '0' * 54), dict(fingerprint=other), dict(partial=False), None):
        (folder / path).write_text('{' if change is None else json.dumps({**result, **change}))
        kept = passes.kept_results([prepare(second)])
        assert not kept, change
    (folder / path).write_text(json.dumps(result))
    stale_own = {**result, 'fingerprint': other}
    (folder / passes.result_path(prepare(second))).write_text(json.dumps(stale_own))
    assert run_cells([second], list)[0]['cell']['feedback'] == 'fsa p=0.45' and not runs
    assert run_cells([second], list, force=True) and len(runs) == 1


@pytest.fixture
def four(tmp_path, monkeypatch):
    """Four cells that no test computes, and the groups that run in a pass; a hook may raise an error."""
    root = tmp_path / 'data'
    root.mkdir()
    options = ConfigDict(test_dataloader=dict(dataset=dict(data_root=str(root))))
    found = SimpleNamespace(cells=[SimpleNamespace(hash=name, config=options) for name in 'abcd'], ran=[], root=root)

    def run_pass(cells, paths, part, failures, watch, wait):
        found.ran.append(''.join(cell.hash for cell in cells))
        found.hook(cells, failures)
        return [None if cell.hash in failures else cell.hash.upper() for cell in cells]

    monkeypatch.setattr(passes, 'run_pass', run_pass)
    return found


def test_halves_of_a_pass_run_until_the_failed_cell_is_alone(four):
    def hook(cells, failures):
        if any(cell.hash == 'c' for cell in cells):
            raise StepError('x.jpg: RuntimeError: boom') from RuntimeError('boom')

    four.hook = hook
    results, failures = passes.run_apart(four.cells)
    assert four.ran == ['abcd', 'ab', 'cd', 'c', 'd'] and results == dict(a='A', b='B', d='D')
    assert list(failures) == ['c'] and repr(failures['c']) == "RuntimeError('boom')"  # the bug itself


def test_an_error_of_the_data_fails_all_cells_but_not_without_the_data(four):
    def hook(cells, failures):
        raise UserError('x.jpg is damaged')

    four.hook = hook
    results, failures = passes.run_apart(four.cells)
    assert four.ran == ['abcd'] and results == {} and set(failures) == set('abcd')
    four.root.rmdir()
    with pytest.raises(StopError, match='has vanished'):
        passes.run_apart(four.cells)
    for kind in (Busy, StopError, TaskLost):
        four.hook = lambda cells, failures, kind=kind: (_ for _ in ()).throw(kind('not here'))
        with pytest.raises(kind, match='not here'):
            passes.run_apart(four.cells)


def test_a_cell_that_fails_by_itself_keeps_the_others(four):
    four.hook = lambda cells, failures: failures.update(b=UserError('NaN'))
    results, failures = passes.run_apart(four.cells)
    assert four.ran == ['abcd'] and list(results) == ['a', 'c', 'd'] and list(failures) == ['b']


def test_a_root_is_there_while_one_of_the_folders_is(tmp_path):
    passes.check_roots([str(tmp_path / 'gone'), str(tmp_path)])
    with pytest.raises(StopError, match='gone, has vanished'):
        passes.check_roots([str(tmp_path / 'gone')])


@pytest.mark.parametrize(
    'part, left', [(None, ['c.jpg', 'd.jpg', 'e.jpg']), ((1, 2), ['c.jpg']), ((2, 2), ['d.jpg']), ((1, 5), [])]
)
def test_images_that_every_cell_has_counted_are_left_out(tmp_path, part, left):
    """The last image runs again, but in a part."""
    names = [f'{name}.jpg' for name in 'abcde']
    journals = [Journal(str(tmp_path / cell), cell, dict.fromkeys(names, 'content')) for cell in 'xy']
    for journal, counted in zip(journals, ('abde', 'abce')):
        for name in counted:
            journal.keep(f'{name}.jpg', np.zeros((3, 0), np.int64))
    dataset = dict(data_root=str(tmp_path), indices=[10, 20, 30, 40, 50])
    run = ConfigDict(test_dataloader=dict(dataset=dataset), default_hooks={})
    counts = passes._skip_counted(run, journals, [None, None], names, part)
    assert [names[i // 10 - 1] for i in run.test_dataloader.dataset.indices] == left
    taken = ['a.jpg', 'b.jpg', 'e.jpg'] if part else ['a.jpg', 'b.jpg']
    assert [sorted(each) for each in counts] == [taken, taken]


def test_parts_are_a_split_of_the_images(tmp_path):
    names, found = list('abcdefg'), []
    for i in (1, 2, 3):
        run = ConfigDict(test_dataloader=dict(dataset=dict(data_root=str(tmp_path))), default_hooks={})
        passes._skip_counted(run, [Journal(str(tmp_path / 'x'), 'x', {})], [None], names, (i, 3))
        found.append(run.test_dataloader.dataset.indices)
    assert found == [[0, 3, 6], [1, 4], [2, 5]]


def test_missing_weights_are_found_before_the_first_cell(tmp_path):
    part = tmp_path / 'gone.py'
    part.write_text("vfm = dict(name='gone', type='TimmViT', model='vit_base_patch8_224.dino', checkpoint='gone.pth')")
    cells = [config(tmp_path), config(tmp_path, method='proxyclip', vfm=str(part))]
    with pytest.raises(UserError, match='gone.pth.* does not exist'):
        run_cells(cells, lambda prepared: pytest.fail('a cell was run'))


def test_a_choice_of_a_data_sets_classes(tmp_path):
    """The label images keep all 19 classes; the classes outside the choice become void."""
    part = tmp_path / 'chosen.py'
    part.write_text(
        "dataset = dict(name='chosen', type='CityscapesDataset', data_root='cityscapes', "
        "data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'), "
        "metainfo=dict(classes=('car', 'road')))"
    )
    chosen = config(tmp_path, dataset=str(part), limit=2)
    result = run_cell(prepare(chosen), str(tmp_path / 'r.json'))
    assert [entry['name'] for entry in result['classes']] == ['car', 'road']
    assert set(result['confusion']['truth']) == {0, 1}


def test_long_lists_of_a_config_are_in_no_log(tmp_path, monkeypatch):
    """The runner works with the full config, and logs and writes a config of a few hundred lines for any classes."""

    class Recorder:
        @functools.wraps(passes.Runner.__init__)
        def __init__(self, **options):
            self.options = options

    names = [f'thing {i}' for i in range(1000)]
    data = dict(
        name='own',
        type='ImageFolderDataset',
        data_root='.',
        data_prefix=dict(img_path='a', seg_map_path='b'),
        metainfo=dict(classes=names, palette=[[0, 0, 0]] * 1000),
    )
    monkeypatch.setattr(passes, 'LoggedRunner', Recorder)
    for classes, cut in ((1000, True), (21, False)):
        data['metainfo'] = {key: values[:classes] for key, values in data['metainfo'].items()}
        full = config(tmp_path, dataset=data)
        options = passes._runner(full).options
        assert options['model'].words == [[name] for name in names[:classes]]
        assert options['test_dataloader'].dataset.metainfo.classes == names[:classes]
        assert {'test_cfg', 'test_evaluator', 'default_hooks', 'default_scope', 'log_level', 'launcher'} <= set(options)
        text = options['cfg'].pretty_text
        assert ('thing 20' in text) != cut and ('1000 in all, see the result file' in text) == cut
        assert len(text.splitlines()) < 300
        assert 'thing 20' in full.pretty_text and (cut or text == full.pretty_text)
