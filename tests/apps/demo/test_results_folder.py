"""A folder of results as the page shows it: what can be picked, each image's gain, saved and computed labels."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mmengine.device import get_device
from PIL import Image

import fsa_seg
from fsa_seg.apps.demo import results as folder_module
from fsa_seg.apps.demo.results import COMPUTED, SAVED, VOID, ResultsFolder
from fsa_seg.errors import UserError
from fsa_seg.evaluation.report.examples import find_scene
from fsa_seg.models import segmentor
from fsa_seg.ops.device import device_name

from made_results import make_results


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """The work_dir of a pair on two images, with its saved labels; in VOC20's label files 0 is void."""
    folder = tmp_path_factory.mktemp('ran')
    options = dict(mini=True, limit=2, protocol='sclip', work_dir=str(folder), save_labels=True)
    fsa_seg.evaluate('voc20', 'sclip', [False, True], **options)
    return folder


@pytest.fixture
def copied(ran, tmp_path):
    """A copy of the pair's results and labels."""
    for name in ('results', 'labels'):
        shutil.copytree(ran / name, tmp_path / name)
    return tmp_path


def edit(path, change):
    """Change the JSON of a result file."""
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def results_of(folder):
    """Return the result files of a work_dir, the baseline's first."""
    return sorted((folder / 'results').iterdir(), key=lambda path: '+' in path.name)


def test_titles_say_what_a_cell_is(tmp_path):
    """Pairs and single rows, in the order of the tables; what is partial, random or of the toy world says so."""
    one = dict(images=2, dataset=['voc21'], method=['sclip'], protocol=['own'])
    make_results(tmp_path, backbones=['clip_vit-b16'], settings=[dict(lam=1.0)], **one)
    make_results(tmp_path, toy=True, **one)
    make_results(tmp_path, backbones=['clip_vit-b16'], partial=True, most=1, **one)
    make_results(tmp_path, backbones=['clip_vit-b16'], random_weights=0, most=1, **dict(one, method=['clearclip']))
    (tmp_path / 'damaged.json').write_text('{')
    folder = ResultsFolder([str(tmp_path)])
    titles = [cell.title.split(':')[0] for cell in folder.cells]
    assert titles[:3] == [
        'SCLIP, without and with FSA, on voc21 (sclip, clip_vit-b16)',
        'SCLIP, without and with FSA lam=1.0, on voc21 (sclip, clip_vit-b16)',
        'SCLIP, without and with FSA, on voc21 (sclip, toy)',
    ]
    assert folder.cells[3].title.startswith('SCLIP on voc21 (sclip, clip_vit-b16, a part of the data set: 2 images): ')
    assert titles[4:] == ['ClearCLIP on voc21 (clearclip, clip_vit-b16, random weights)']
    values = [f'{row["metrics"]["mIoU"]:.1f}' for row in folder.cells[0].rows]
    assert folder.cells[0].title.endswith(f': {values[0]} → {values[1]}')
    assert [len(cell.rows) for cell in folder.cells] == [2, 2, 2, 1, 1]
    assert [' '.join(cell.notes)[:45] for cell in folder.cells] == [
        '',
        '',
        'These are the numbers of toy models on the to',
        'These are numbers of a part of a data set.',
        'These are numbers of random weights.',
    ]
    assert len(folder.left_out) == 1 and 'damaged.json is not a result' in folder.left_out[0]


def test_rows_of_other_images_are_no_pair(tmp_path):
    one = dict(backbones=['clip_vit-b16'], dataset=['voc21'], method=['sclip'], protocol=['own'], partial=True)
    make_results(tmp_path, images=2, most=1, **one)
    os.remove(make_results(tmp_path, images=3, **one)[0])
    folder = ResultsFolder([str(tmp_path)])
    assert [cell.title.split(' on ')[0] for cell in folder.cells] == ['SCLIP', 'SCLIP + FSA']
    assert [len(folder.images(cell)) for cell in folder.cells] == [2, 3]


def test_images_are_sorted_by_gain(tmp_path):
    """An image without a counted pixel has no gain, and is the last."""
    made = dict(images=6, backbones=['clip_vit-b16'], dataset=['voc21'], method=['sclip'], protocol=['own'])
    paths = make_results(tmp_path, **made)
    empty = dict(name='a.jpg', classes=[], intersection=[], union=[], label=[])
    for path in map(tmp_path.joinpath, paths):
        edit(path, lambda result: result['images'].insert(0, empty))
    (cell,) = ResultsFolder([str(tmp_path)]).cells
    images = ResultsFolder([str(tmp_path)]).images(cell)
    gains = [image.gain for image in images]
    assert images[-1].name == 'a.jpg' and np.isnan(gains[-1]) and gains[:-1] == sorted(gains[:-1], reverse=True)
    for result, key in zip(cell.rows, ('before', 'after')):
        counts = {image['name']: image for image in json.loads(open(result['path']).read())['images']}
        for image in images[:-1]:
            one = counts[image.name]
            assert getattr(image, key) == pytest.approx(100 * np.mean(np.divide(one['intersection'], one['union'])))
    os.remove(paths[1])
    folder = ResultsFolder([str(tmp_path)])
    images = folder.images(folder.cells[0])
    values = [image.after for image in images]
    assert values[:-1] == sorted(values[:-1], reverse=True) and images[-1].name == 'a.jpg'
    assert all(np.isnan([image.before, image.gain]).all() for image in images)


def check_counts(result, shown, row):
    """Check labels and IoU of a shown row against the counts in the result file."""
    counts = next(image for image in json.loads(open(result['path']).read())['images'] if image['name'] == shown.name)
    valid = shown.truth != VOID
    for label, right, union in zip(*(counts[key] for key in ('classes', 'intersection', 'union'))):
        truth, labels = shown.truth == label, (row.labels == label) & valid
        assert ((truth & labels).sum(), (truth | labels).sum()) == (right, union)
        assert row.iou[label] == pytest.approx(100 * right / union)
    assert len(row.iou) == len(counts['classes']) and row.miou == pytest.approx(np.mean(list(row.iou.values())))


def test_computed_labels_equal_saved_labels(copied, monkeypatch):
    """Bit for bit, from all threads; the models are loaded once, and only when they are needed."""
    loads, load = [], segmentor.load_clip
    monkeypatch.setattr(segmentor, 'load_clip', lambda **options: loads.append(options) or load(**options))
    folder = ResultsFolder([str(copied)])
    (cell,) = folder.cells
    names = [image.name for image in folder.images(cell)]
    saved = {name: folder.show(cell, name) for name in names}
    assert not loads
    shutil.rmtree(copied / 'labels')
    with ThreadPoolExecutor(4) as pool:
        computed = list(pool.map(lambda name: folder.show(cell, name), names * 2))
    assert len(loads) == 1
    for now in computed:
        before = saved[now.name]
        assert (now.rgb == before.rgb).all() and (now.truth == before.truth).all()
        assert now.classes == before.classes and len(now.palette) == len(now.classes) == 20
        assert now.rgb.shape == (*now.truth.shape, 3) and now.rgb.dtype == np.uint8 and (now.truth == VOID).any()
        for result, row, other in zip(cell.rows, now.rows, before.rows):
            assert (row.origin, other.origin) == (COMPUTED, SAVED) and other.notes == ()
            assert (row.labels == other.labels).all() and row.labels.dtype == np.uint16
            (note,) = row.notes
            assert f'the saved labels of {now.name} cannot be read' in note
            check_counts(result, now, row)
    assert [row.title for row in computed[0].rows] == ['SCLIP', 'SCLIP + FSA']


def test_saved_labels_that_were_not_counted_are_computed(copied):
    """Of the damaged row alone."""
    path = next((copied / 'labels').glob('*+fsa*/**/*.png'))
    labels = np.array(Image.open(path))
    folder = ResultsFolder([str(copied)])
    (cell,) = folder.cells
    name = next(image.name for image in folder.images(cell) if path.stem in image.name)
    valid = np.argwhere(folder.show(cell, name).truth != VOID)
    for i, j in valid[:3]:
        labels[i, j] = 1 + labels[i, j] % 20
    Image.fromarray(labels).save(path)
    shown = folder.show(cell, name)
    rows = shown.rows
    assert [row.origin for row in rows] == [SAVED, COMPUTED]
    assert rows[1].notes == (f'the saved labels of {name} are not what the result counted',)
    check_counts(cell.rows[1], shown, rows[1])


def test_labels_that_differ_from_the_counts_say_so(copied):
    """Such as those of other code, or of another device; a run without --save-labels is no note."""

    def other(result):
        result.pop('labels')
        result['config']['model']['prob_thd'] = 0.5
        for entry in result['fingerprint']:
            entry[1] = 'another' if entry[0] in ('package', 'device') else entry[1]

    saved = ResultsFolder([str(copied)])
    name = saved.images(saved.cells[0])[0].name
    before = saved.show(saved.cells[0], name)
    edit(results_of(copied)[1], other)
    folder = ResultsFolder([str(copied)])
    shown = folder.show(folder.cells[0], name)
    row, (note,) = shown.rows[1], shown.rows[1].notes
    valid = shown.truth != VOID
    differing = int((row.labels != before.rows[1].labels)[valid].sum())
    count, total = (int(number) for number in note.split('at least ')[1].split(' counted')[0].split(' of '))
    assert 0 < count <= differing and total == valid.sum()
    assert (
        f'device (was another, is {device_name(get_device())})' in note
        and 'the code of the suite' in note
        and 'weights' not in note
    )


def change_truth(copied):
    def swap(result):
        image = result['images'][0]
        for key in ('classes', 'intersection', 'union', 'label'):
            image[key], result['images'][1][key] = result['images'][1][key], image[key]

    for path in results_of(copied):
        edit(path, swap)


def other_model(**settings):
    def change(copied):
        shutil.rmtree(copied / 'labels')
        edit(results_of(copied)[0], lambda result: result['config']['model']['backbone'].update(settings))

    return change


@pytest.mark.parametrize(
    'change, data_root, message',
    [
        (lambda copied: None, 'nowhere', 'the data root lacks the folder .*nowhere.*--data-root'),
        (change_truth, None, 'the truth of .* is not what the result counted: the data in .* has changed'),
        (other_model(model='local-dir:nowhere'), None, "'nowhere' does not exist"),
        (other_model(_base_='evil.py'), None, "the key '_base_' has no place in a saved config"),
        (other_model(image_size='x'), None, 'image_size'),
    ],
)
def test_what_is_missing_is_one_message(copied, change, data_root, message):
    change(copied)
    folder = ResultsFolder([str(copied)], data_root)
    (cell,) = folder.cells
    with pytest.raises(UserError, match=message):
        folder.show(cell, folder.images(cell)[0].name)


def test_files_that_change_while_the_page_is_open(copied):
    folder = ResultsFolder([str(copied)])
    (cell,) = folder.cells
    with pytest.raises(UserError, match='other.jpg is not in .*VOC2012; name the folder'):
        folder.show(cell, 'other.jpg')
    path = results_of(copied)[1]
    path.write_text(path.read_text() + ' ')
    for call in (lambda: folder.images(cell), lambda: folder.show(cell, 'x')):
        with pytest.raises(UserError, match='has changed or vanished since it was read; start fsa-seg demo again'):
            call()
        path.unlink(missing_ok=True)


def test_a_truth_that_has_changed_is_refused(ran, monkeypatch):
    def found(*args):
        scene = find_scene(*args)
        return scene._replace(truth=np.zeros_like(scene.truth))

    folder = ResultsFolder([str(ran)])
    name = folder.images(folder.cells[0])[0].name
    monkeypatch.setattr(folder_module, 'find_scene', found)
    with pytest.raises(UserError, match='the truth of .* is not what the result counted'):
        folder.show(folder.cells[0], name)
