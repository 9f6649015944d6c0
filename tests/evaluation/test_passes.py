import functools
import json

import pytest

from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.evaluation import passes
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


@pytest.mark.parametrize('names', [['fsa', dict(p=0.45)], [dict(p=0.45), dict(lam=3.0), 'fsa']])
def test_cells_of_one_hash_run_once_in_any_number_of_calls(names, tmp_path, monkeypatch):
    """`fsa` and its defaults spelt out: in one call, and in calls one after the other; then each has its own file."""
    run, runs = passes.run_pass, []
    monkeypatch.setattr(passes, 'run_pass', lambda cells: runs.extend(cells) or run(cells))
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
    monkeypatch.setattr(passes, 'run_pass', lambda cells: runs.extend(cells) or run(cells))
    folder, path = tmp_path / 'results', passes.result_path(first)
    second = config(tmp_path, feedback=dict(p=0.45), **options)
    other = [('package', 'x', 'source') if entry.key == 'package' else entry for entry in first.fingerprint]
    for change in (dict(hash=first.hash[:10] + '0' * 54), dict(fingerprint=other), dict(partial=False), None):
        (folder / path).write_text('{' if change is None else json.dumps({**result, **change}))
        kept = passes._kept_results([prepare(second)])
        assert not kept, change
    (folder / path).write_text(json.dumps(result))
    stale_own = {**result, 'fingerprint': other}
    (folder / passes.result_path(prepare(second))).write_text(json.dumps(stale_own))
    assert run_cells([second], list)[0]['cell']['feedback'] == 'fsa p=0.45' and not runs
    assert run_cells([second], list, force=True) and len(runs) == 1


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
