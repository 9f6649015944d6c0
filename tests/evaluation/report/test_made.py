import os

import pytest

from fsa_seg.config.components import class_names
from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import cell_hash, fingerprint
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.evaluation.report.published import DATASETS, TOLERANCE, published, verdict
from fsa_seg.evaluation.results import cell_id, load_results, read_result, row_name

from conftest import ROOT
from made_results import MADE, NASTY, check_made, confusions_near, make_results, make_world
from new_process import run_python

ONE = dict(backbones=['clip_vit-b16'], dataset=['voc21'], method=['clearclip'], protocol=['own'])


def made(folder, *arguments, **options):
    return [read_result(path) for path in make_results(folder, *arguments, **options)]


def entry(result, key):
    return next(entry.value for entry in result['fingerprint'] if entry.key == key)


@pytest.fixture(scope='module')
def paper(tmp_path_factory):
    """Return the results of the paper's suite with ViT-B/16."""
    return made(tmp_path_factory.mktemp('made'), images=12, backbones=['clip_vit-b16'])


def test_every_figure_follows_from_the_images(paper):
    for result in paper:
        check_made(result)
        assert len(result['images']) == 12 and result['device'] == MADE
        assert result['hash'] == cell_hash(result['fingerprint'])
        assert not result['partial'] and not result['cell']['toy']


def test_all_verdicts_occur(paper):
    cells = len(suite_cells(load_suite('paper'), backbone=['clip_vit-b16']))
    verdicts = {'not run'} if 0.8 * cells < len(paper) < cells else set()
    for result in paper:
        figures = published(result['cell'])
        if figures and figures[0].comparable == 'code':
            verdicts.add(verdict(result['metrics']['mIoU'], figures[0].value, TOLERANCE))
    assert verdicts == {'reproduced', 'above', 'below', 'not run'}


def test_numbers_lie_near_the_published_ones_and_fsa_gains(paper):
    miou = {}
    for result in paper:
        figures = published(result['cell'])
        assert not figures or abs(result['metrics']['mIoU'] - figures[0].value) < 2.5
        cell = result['cell']
        miou[cell['dataset'], row_name(cell), cell['protocol']] = result['metrics']['mIoU']
    gains = [
        value - miou[dataset, row.removesuffix(' + FSA'), protocol]
        for (dataset, row, protocol), value in miou.items()
        if row.endswith(' + FSA') and (dataset, row.removesuffix(' + FSA'), protocol) in miou
    ]
    assert len(gains) > 20 and 0.2 < sum(gains) / len(gains) < 5


def test_cells_of_a_data_set_share_their_images(paper):
    splits, contents, names = {}, {}, {}
    for result in paper:
        dataset = result['cell']['dataset']
        splits.setdefault(dataset, set()).add(entry(result, 'data.split'))
        contents.setdefault(dataset, set()).add(entry(result, 'data.contents'))
        names.setdefault(dataset, set()).add(tuple(image['name'] for image in result['images']))
    assert list(map(len, [*splits.values(), *contents.values(), *names.values()])) == [1] * 24
    assert set(splits) == set(DATASETS) and splits['voc21'] == splits['voc20'] != splits['context60']
    hashes = {}
    for result in paper:
        hashes.setdefault(result['hash'], []).append(result)
    shared = [group for group in hashes.values() if len(group) > 1]  # protocols that agree on a data set
    assert shared and all(a['confusion'] == b['confusion'] and a['cell'] != b['cell'] for a, b in shared)


def test_rows_share_what_is_hard(tmp_path):
    """The images' IoU differ much among images, and little between a method and the method with FSA."""

    def image_ious(result):
        return [sum(i / u for i, u in zip(x['intersection'], x['union'])) / len(x['union']) for x in result['images']]

    plain, fsa = map(image_ious, made(tmp_path, images=60, **ONE))
    differences = [b - a for a, b in zip(plain, fsa)]
    assert 0.1 < max(plain) - min(plain) and 0.001 < spread(differences) < spread(plain) / 2


def spread(values):
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5


@pytest.mark.parametrize('target', [2.0, 40.0, 97.0])
@pytest.mark.parametrize('dataset, classes', [('voc21', 21), ('voc20', 20), ('ade20k', 150), ('mine', 2)])
def test_a_target_is_met(dataset, classes, target):
    world = make_world(dataset, classes, 30)
    counts = confusions_near(world, target, 0 * world.ease)
    assert len(counts) == 30 and sum(c[2].sum() for c in counts) == world.pixels.sum()
    assert all((c[:2] < classes).all() and (c >= 0).all() and c.shape[1] for c in counts)
    right = sum((c[2] * (c[0] == c[1])).sum() for c in counts)
    assert 0 < right <= world.pixels.sum()


def test_targets_of_the_caller(tmp_path):
    targets = dict(voc21=30.0, ade20k=None)
    options = dict(
        backbones=['clip_vit-b16'], dataset=['voc21', 'ade20k'], method=['sclip'], protocol=['own'], images=30
    )
    results = made(tmp_path, targets=lambda cell: targets[cell['dataset']], **options)
    assert {result['cell']['dataset'] for result in results} == {'voc21'}
    assert all(result['metrics']['mIoU'] == pytest.approx(30, abs=0.3) for result in results)


def test_other_settings_are_the_cells_that_compose_makes(tmp_path):
    settings = dict(lam=2.0, p=0.3, rounds=2)
    (plain, fsa, other) = made(tmp_path, images=3, settings=[settings], **ONE)
    assert plain['cell']['feedback'] is None and fsa['cell']['feedback'] == 'fsa'
    config = compose('voc21', 'clearclip', settings, 'clip_vit-b16', vfm=None)
    assert other['cell'] == dict(config.cell) and other['cell']['feedback'] == 'fsa lam=2.0 p=0.3 rounds=2'
    assert other['config']['model']['feedback'] == dict(config.model.feedback)
    own = [e for e in other['fingerprint'] if not e.key.startswith('data.') and e.key != 'device']
    assert own == [e for e in fingerprint(config) if e.key != 'device']
    assert len({plain['hash'], fsa['hash'], other['hash']}) == 3 and other['hash'] == cell_hash(other['fingerprint'])


def test_what_else_can_be_asked_for(tmp_path):
    options = dict(ONE, images=3)
    results = made(tmp_path / 'partial', partial=True, **options)
    assert all(r['partial'] and r['cell']['limit'] == 3 for r in results)
    results = made(tmp_path / 'random', random_weights=0, **options)
    assert all(r['cell']['random_weights'] == 0 for r in results)
    toys = made(tmp_path / 'toy', toy=True, **{**options, 'backbones': None})
    assert all(r['cell']['toy'] and r['cell']['backbone'] == 'toy' for r in toys)
    results = made(tmp_path / 'words', words=['mine'], **options)
    names = [r['cell']['words'] for r in results]
    assert len(names) == 4 and sum(name.startswith('mine-') for name in names) == 2
    assert not published(results[1]['cell']) and published(results[0]['cell'])
    assert len(made(tmp_path / 'most', most=3, settings=[dict(lam=1.0)], backbones=['clip_vit-b16'], images=2)) == 3


def test_nasty_names_of_classes(tmp_path):
    result = made(tmp_path, images=3, class_names=NASTY, **ONE)[0]
    names = [entry['name'] for entry in result['classes']]
    assert tuple(names[: len(NASTY)]) == NASTY and len(names) == 21 == len(set(names))
    assert entry(result, 'dataset.classes') == names


def test_names_and_files_are_those_of_real_results(paper, tmp_path):
    results = make_results(tmp_path, images=2, **ONE)
    for path in results:
        result = read_result(path)
        assert os.path.basename(path) == cell_id(result['cell'], result['hash']) + '.json'
    assert [row['row'] for row in load_results(tmp_path)] == ['ClearCLIP + FSA', 'ClearCLIP']
    config = compose('voc21', 'clearclip', None, 'clip_vit-b16', vfm=None)
    first = next(r for r in paper if r['cell'] == dict(config.cell))
    assert [c['name'] for c in first['classes']] == list(class_names(config.test_dataloader.dataset))


def test_the_command(tmp_path):
    """Equal seeds give equal results."""
    command = [os.path.join(ROOT, 'tests', 'made_results.py'), str(tmp_path / 'a')]
    environment = dict(os.environ, PYTHONPATH=ROOT)
    command += ['--images', '2', '--cells', '20']
    done = run_python(*command, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith('20 made-up results in ')
    settings = [dict(lam=1.0, p=0.2, rounds=1)]
    again = make_results(tmp_path / 'b', images=2, settings=settings, most=3)
    for path in again[:2]:
        with open(path) as mine, open(tmp_path / 'a' / os.path.basename(path)) as theirs:
            assert mine.read() == theirs.read()
