"""--save-labels: the predicted labels of every image, as the data set's label files have them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from fsa_seg.config.compose import check_config, compose
from fsa_seg.config.saved import from_json
from fsa_seg.datasets.data_sets import list_images
from fsa_seg.datasets.label_images import read_labels
from fsa_seg.errors import UserError
from fsa_seg.evaluation.label_files import claim_folder, label_path, missing_labels, write_labels
from fsa_seg.evaluation.passes import prepare, result_path, run_cell, run_cells, run_pass
from fsa_seg.evaluation.results import read_result
from fsa_seg.models import shared_pass

from conftest import MINI


def config(tmp_path, dataset='voc20', method='sclip', feedback=None, limit=3, save_labels=True):
    runtime = dict(workers=0, work_dir=str(tmp_path), save_labels=save_labels)
    return compose(dataset, method, feedback, 'toy', 'toy', data_root=MINI, limit=limit, runtime=runtime)


def folder_of(cell):
    """Return the folder of a cell's labels, by its result."""
    path = result_path(cell)
    return os.path.join(os.path.dirname(path), read_result(path)['labels'])


def files(folder):
    """Return path below the folder -> bytes and time of change of each PNG."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob('*.png')
    }


@pytest.mark.parametrize('dataset', ['voc20', 'ade20k', 'voc21'])
def test_labels_agree_with_the_results_counts(dataset, tmp_path):
    """Of each image, and in all; where 0 is void in the files (VOC20, ADE20K), the first class is 1."""
    cell = prepare(config(tmp_path, dataset, 'sclip', 'fsa', limit=2))
    result = run_cell(cell)
    name = os.path.splitext(os.path.basename(result_path(cell)))[0]
    assert result['labels'] == f'../labels/{name}' and missing_labels(result, result_path(cell)) is None
    reduced = dataset != 'voc21'
    classes, total = len(result['classes']), 0
    truths = {entry['name']: entry['seg_map_path'] for entry in list_images(cell.config.test_dataloader.dataset)}
    for image in result['images']:
        path = label_path(str(tmp_path / 'labels' / name), image['name'])
        assert path.endswith(os.path.splitext(image['name'])[0] + '.png')
        predicted, truth = read_labels(path), read_labels(truths[image['name']])
        assert reduced <= predicted.min() and predicted.max() < classes + reduced
        valid = (truth != 255) & (truth >= reduced)
        pairs = (truth[valid] - reduced) * classes + predicted[valid] - reduced
        counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        right = dict(zip(image['classes'], image['intersection']))
        assert all(counts[i, i] == right.get(i, 0) for i in range(classes))
        total = total + counts
    confusion = result['confusion']
    assert [values.tolist() for values in total.nonzero()] == [confusion['truth'], confusion['predicted']]
    assert total[total.nonzero()].tolist() == confusion['pixels']


def test_eight_bits_have_the_data_sets_palette(tmp_path):
    """The index is the label, so that the colours shift where 0 is void; more labels take 16 bits, without colours."""
    labels, colors = np.array([[0, 2]]), [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    for reduced in (False, True):
        path = str(tmp_path / f'{reduced}.png')
        write_labels(path, labels, dict(classes='abc', palette=colors), reduced)
        with Image.open(path) as image:
            assert image.mode == 'P' and np.array(image).tolist() == (labels + reduced).tolist()
            assert np.array(image.convert('RGB')).tolist() == [[colors[0], colors[2]]]
            assert not reduced or image.getpalette()[:3] == [0, 0, 0]
    for count, reduced, kind in (
        (255, True, 'uint8'),
        (256, False, 'uint8'),
        (256, True, 'uint16'),
        (847, 0, 'uint16'),
    ):
        path, highest = str(tmp_path / f'{count}.png'), count - 1
        meta = dict(classes=list(range(count)), palette=[[1, 2, 3]] * count)
        write_labels(path, np.array([[0, highest]]), meta, bool(reduced))
        written = np.array(Image.open(path))
        assert written.dtype == kind and written.tolist() == [[reduced, highest + reduced]]
        assert read_labels(path).tolist() == written.tolist()
    write_labels(path, labels, dict(classes='abc'))  # a data set without colours
    assert Image.open(path).mode == 'L' and np.array(Image.open(path)).tolist() == labels.tolist()
    assert not list(tmp_path.glob('*.part'))


def test_cells_of_a_pass_have_folders_of_their_own(tmp_path):
    """The labels are those of single runs; the option is in no hash and in no saved config."""
    cells = [config(tmp_path / 'shared', method=method) for method in ('sclip', 'clip', 'maskclip')]
    results = run_cells(cells, list)
    assert len({result['labels'] for result in results}) == 3 and {r['cells_in_pass'] for r in results} >= {2}
    for shared in map(prepare, cells):
        single = prepare(config(tmp_path / 'single', method=shared.config.cell.method))
        assert (
            single.hash
            == shared.hash
            == prepare(config(tmp_path, method=shared.config.cell.method, save_labels=False)).hash
        )
        saved = run_cell(single)['config']
        assert 'save_labels' not in saved and 'output_dir' not in saved['test_evaluator']
        name = os.path.basename(folder_of(single))
        ours, theirs = (files(tmp_path / part / 'labels' / name) for part in ('shared', 'single'))
        assert len(ours) == 3 and {k: v[0] for k, v in ours.items()} == {k: v[0] for k, v in theirs.items()}


def test_an_interrupted_pass_writes_the_missing_labels(tmp_path, monkeypatch):
    """Images that are counted run again if their file is missing, changed, or was never written."""
    cells = [prepare(config(tmp_path, method=method, limit=6)) for method in ('clip', 'maskclip')]
    without = [prepare(config(tmp_path, method='clip', limit=6, save_labels=False))]
    expected = run_pass(cells)
    folders = [tmp_path / 'labels' / os.path.basename(folder_of(cell)) for cell in cells]
    complete = [files(folder) for folder in folders]
    predict, seen = shared_pass.SharedPass.predict, []

    def interrupted(self, *arguments):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(1)
        return predict(self, *arguments)

    def interrupt(cells):
        seen.clear()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shared_pass.SharedPass, 'predict', interrupted)
            run_pass(cells)

    interrupt(cells)
    names = cells[0].data.names
    os.remove(label_path(str(folders[0]), names[0]))
    with open(label_path(str(folders[1]), names[1]), 'ab') as f:
        f.write(b'x')
    results = run_pass(cells)
    assert [result['images_resumed'] for result in results] == [2, 2]
    assert [{k: v[0] for k, v in files(folder).items()} for folder in folders] == [
        {k: v[0] for k, v in found.items()} for found in complete
    ]
    assert [result['images'] for result in results] == [result['images'] for result in expected]
    interrupt_single(without, monkeypatch)
    before = files(folders[0])
    assert run_pass(cells[:1])[0]['images_resumed'] == 0  # the interrupted run wrote no labels: those are older
    assert all(before[name][1] < time for name, (_, time) in files(folders[0]).items())
    interrupt_single(without, monkeypatch)
    assert 'labels' not in (result := run_pass(without)[0]) and result['images_resumed'] == 2


def interrupt_single(cells, monkeypatch):
    """Interrupt the run of one cell after two images."""
    from fsa_seg.models import segmentor

    label_tiles, calls = segmentor.label_tiles, []

    def interrupted(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return label_tiles(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(segmentor, 'label_tiles', interrupted)
        run_pass(cells)


def test_a_kept_result_without_its_labels_runs_again(tmp_path, capsys):
    """The reason is said; a run without the option takes any result."""
    found = []

    def run(wanted):
        return run_cells([config(tmp_path, save_labels=wanted)], lambda passes: found.extend(passes) or passes)

    assert 'labels' not in run(False)[0] and len(found) == 1 and not (tmp_path / 'labels').exists()
    assert 'labels' in run(True)[0] and len(found) == 2
    assert 'its predicted labels were not written' in capsys.readouterr().err
    assert run(True) and run(False) and len(found) == 2
    next((tmp_path / 'labels').rglob('*.png')).unlink()
    assert run(False) and len(found) == 2
    assert run(True) and len(found) == 3 and '1 of 3 files of predicted labels are missing' in capsys.readouterr().err


def test_a_result_of_other_names_has_the_labels_of_its_run(tmp_path):
    for settings in ('fsa', dict(p=0.45)):
        result = run_cells([config(tmp_path, feedback=settings)], list)[0]
    assert result['cell']['feedback'] == 'fsa p=0.45'
    (folder,) = (tmp_path / 'labels').iterdir()
    assert result['labels'] == f'../labels/{folder.name}' and len(files(folder)) == 3


def test_a_saved_config_writes_no_labels_of_its_own_will(tmp_path):
    """Neither into a folder that the file names, nor because the file says so."""
    saved = run_cell(prepare(config(tmp_path)))['config']
    saved.update(save_labels=True)
    saved['test_evaluator'].update(output_dir=str(tmp_path / 'elsewhere'))
    again = from_json(json.loads(json.dumps(saved)), 'r.json')
    assert not again.get('save_labels') and 'output_dir' not in again.test_evaluator
    result = run_cell(prepare(again), str(tmp_path / 'again.json'))
    assert 'labels' not in result and not (tmp_path / 'elsewhere').exists()


def test_a_folder_belongs_to_one_result(tmp_path):
    folder, path = str(tmp_path / 'labels' / 'r'), str(tmp_path / 'a' / 'r.json')
    for _ in range(2):
        claim_folder(folder, path, ['x/a.jpg', 'y/a.jpg'])
    with pytest.raises(UserError, match=r'holds the labels of .*/a/r.json; name another --work-dir, give --out a name'):
        claim_folder(folder, str(tmp_path / 'b' / 'r.json'), ['x/a.jpg'])
    with pytest.raises(UserError, match=r'x/a.png would hold the labels of two images, ../x/a.jpg and x/a.tif'):
        claim_folder(folder, path, ['../x/a.jpg', 'x/b.jpg', 'x/a.tif'])


def test_two_places_for_the_labels_are_refused(tmp_path):
    both = config(tmp_path)
    both.test_evaluator.output_dir = 'o'
    with pytest.raises(UserError, match="save_labels .* and output_dir='o' of test_evaluator"):
        check_config(both)


def test_the_tools(run_tool, tmp_path):
    """A result runs again with its labels; a suite on one window refuses the option."""
    command = ('test', 'voc21', '--mini', '--method', 'clip', '--no-fsa', '--limit', 2)
    status, printed = run_tool(*command, '--out', 'mine/first.json', '--save-labels')
    assert status == 0 and 'labels: work_dirs/labels/first' in printed, printed
    assert json.loads((tmp_path / 'mine' / 'first.json').read_text())['labels'] == '../work_dirs/labels/first'
    status, printed = run_tool('test', 'mine/first.json', '--out', 'second.json', '--save-labels')
    assert status == 0, printed
    first, second = (files(tmp_path / 'work_dirs' / 'labels' / name) for name in ('first', 'second'))
    assert len(first) == 2 and {k: v[0] for k, v in first.items()} == {k: v[0] for k, v in second.items()}
    status, printed = run_tool('test', 'voc20', *command[2:], '--out', 'other/first.json', '--save-labels')
    assert status == 1 and 'holds the labels of' in printed and not (tmp_path / 'other' / 'first.json').exists()
    status, printed = run_tool('benchmark', '--suite', 'architectures', '--save-labels')
    assert status == 1 and 'leave out --save-labels' in printed, printed


def test_labels_that_were_changed_are_not_the_results(run_tool, small, tmp_path):
    """The result has the digest of its files: a benchmark then runs the cell again."""
    data = ('--mini', '--data-root', small, '--datasets', 'voc20')
    command = ('benchmark', *data, '--methods', 'sclip', '--no-fsa', '--save-labels')
    assert run_tool(*command)[0] == 0
    assert '1 are there, 0 run' in run_tool(*command)[1]
    path = next((tmp_path / 'work_dirs' / 'labels').rglob('*.png'))
    with Image.open(path) as file:
        labels = file.copy()
    before = path.read_bytes()
    labels.putpixel((0, 0), 1 + labels.getpixel((0, 0)) % 20)
    labels.save(path)
    status, printed = run_tool(*command)
    assert status == 0 and 'have changed' in printed and '0 are there, 1 run' in printed
    assert path.read_bytes() == before
