import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fsa_seg.config.components import component_names, load_component, protocol_settings
from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import cell_hash, fingerprint
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.errors import UserError
from fsa_seg.evaluation.passes import prepare, run_cells
from fsa_seg.methods import make_method

from conftest import MINI


def rows(name, *kinds):
    """Return the cells of a suite on its first data set, as tuples of their components of these kinds."""
    cells = suite_cells(load_suite(name))
    first = cells[0].get('dataset')
    return [
        tuple(json.dumps(cell.get(kind)) if isinstance(cell.get(kind), dict) else cell.get(kind) for kind in kinds)
        for cell in cells
        if cell.get('dataset') == first
    ]


def test_attention33():
    """Eleven maps on three backbones, each with and without FSA."""
    cells = rows('attention33', 'backbone', 'method', 'vfm', 'feedback')
    assert len(cells) == len(set(cells)) == 66
    assert len({row[:3] for row in cells}) == 33 and len({row[1:3] for row in cells}) == 11
    assert {cell['protocol'] for cell in suite_cells(load_suite('attention33'))} == {'proxyclip'}


def test_all_stands_for_every_component_but_the_toys():
    suite = dict(name='custom', groups=[dict(backbone=['all'], vfm=['all'])])
    for kind in ('backbone', 'vfm'):
        assert {cell[kind] for cell in suite_cells(suite)} == {*component_names(kind)} - {'toy'}


def test_paper():
    """Each gain compares two rows under one protocol."""
    cells = rows('paper', 'backbone', 'method', 'feedback', 'protocol')
    assert len(cells) == len(set(cells)) == 27
    for backbone in ('clip_vit-b16', 'clip_vit-l14', 'openclip_vit-h14'):
        for method in ('maskclip', 'sclip', 'clearclip'):
            assert {(backbone, method, feedback, 'own') for feedback in (None, 'fsa')} <= set(cells)
        assert {
            (backbone, 'proxyclip', None, 'proxyclip'),
            (backbone, 'proxyclip', None, 'fsa'),
            (backbone, 'proxyclip', 'fsa', 'fsa'),
        } <= set(cells)
    assert len({cell['dataset'] for cell in suite_cells(load_suite('paper'))}) == 8


@pytest.mark.parametrize(
    'backbone, vfm, lam',
    [
        ('clip_vit-b16', 'dino_vit-b8', None),
        ('clip_vit-l14', 'dino_vit-b8', None),
        ('openclip_vit-h14', 'dino_vit-b8', 2.3),
        ('openclip_vit-h14', 'mae_vit-b16', 4.5),
        ('clip_vit-b16', 'mae_vit-b16', 4.5),
    ],
)
def test_lambda(backbone, vfm, lam):
    assert compose('voc21', backbone=backbone, vfm=vfm).model.feedback.get('lam') == lam  # None: the default, 3.0


def test_ablation_changes_one_setting_at_a_time():
    feedbacks = [cell['feedback'] for cell in suite_cells(load_suite('ablation'))]
    assert feedbacks[:2] == [None, 'fsa'] and all(len(settings) == 1 for settings in feedbacks[2:])
    assert {key for settings in feedbacks[2:] for key in settings} == {
        'isolation',
        'scale',
        'uniform_scale',
        'p',
        'lam',
        'terms',
        'similarity',
        'rounds',
    }


def test_words():
    """Twelve cells, of which two pairs have the same words; FSA's words are ProxyCLIP's on every data set."""
    cells = suite_cells(load_suite('words'))
    assert len(cells) == 12 and {cell['protocol'] for cell in cells} == {'fsa'}
    toys = [compose(**cell, backbone='toy', vfm='toy', data_root=MINI) for cell in cells]
    hashes = {}
    for config in toys:
        hashes.setdefault(cell_hash(fingerprint(config)), []).append((config.cell.dataset, config.cell.words))
    assert sorted(names for names in hashes.values() if len(names) > 1) == [
        [('coco_object', 'clearclip'), ('coco_object', 'names')],
        [('voc20', 'fsa'), ('voc20', 'clearclip')],
    ]
    fsa, proxyclip = (load_component('protocol', name) for name in ('fsa', 'proxyclip'))
    for dataset in component_names('dataset'):
        assert protocol_settings(fsa, dataset)['words'] == protocol_settings(proxyclip, dataset)['words']


def test_the_table_of_words(run_tool, small, tmp_path):
    """Words stand in the rows; cells of the same words have one number."""
    data = ('--mini', '--data-root', small, '--datasets', 'voc20')
    status, printed = run_tool('benchmark', '--suite', 'words', *data)
    assert status == 0 and '4 cells: 0 are there, 3 run in 1 passes' in printed, printed
    assert 'voc20: ProxyCLIP + FSA (toy), ProxyCLIP + FSA (toy) words sclip, ' in printed
    rows = dict(re.findall(r'^\| ProxyCLIP \+ FSA \| toy \| toy \| (.+?) \| +([\d.]+) \|', printed, re.M))
    assert list(rows) == ['fsa', 'fsa, words sclip', 'fsa, words clearclip', 'fsa, words names']
    assert rows['fsa'] == rows['fsa, words clearclip'] != rows['fsa, words names']
    paths = sorted(path.name for path in (tmp_path / 'work_dirs' / 'results').iterdir())
    assert len(paths) == 4 and any(name.startswith('voc20_proxyclip+fsa_toy_toy_fsa_names_') for name in paths)


def test_options_stand_in_place_of_the_suites_lists(tmp_path):
    suite = tmp_path / 'custom.py'
    suite.write_text(
        "suite = dict(name='custom', groups=[dict(method=['clip', 'sclip'], feedback=[None, dict(p=1.0)], "
        "dataset=['voc21']), dict(method=['clip'], feedback=[None], dataset=['voc21'])])"
    )
    assert len(suite_cells(load_suite(str(suite)))) == 4  # the second group repeats a cell
    cells = suite_cells(load_suite(str(suite)), method=['maskclip'], dataset=['voc20', 'ade20k'])
    assert len(cells) == 4 and {cell['method'] for cell in cells} == {'maskclip'}


@pytest.mark.parametrize(
    'text, message',
    [
        ("groups=[dict(methods=['clip'])]", "unknown key 'methods' .*did you mean 'method'"),
        ("groups=[dict(method='clip')]", "method is 'clip'; give a list"),
        ('groups=[dict(method=[])]', 'one of its lists is empty'),
        ('groups=[]', 'has no cell'),
        ('groups=[dict(check=True)]', "unknown key 'check'"),
        ('window=0, groups=[]', 'window is 0'),
        ("window=64, groups=[dict(dataset=['voc21'])]", "unknown key 'dataset'"),
        ("window=64, queries='x', groups=[]", "queries is 'x'"),
        ("groups=[dict(words=['all'])]", 'name files of words'),
    ],
)
def test_suites_that_cannot_be_used(tmp_path, text, message):
    suite = tmp_path / 'custom.py'
    suite.write_text(f"suite = dict(name='custom', {text})")
    with pytest.raises(UserError, match=message):
        suite_cells(load_suite(str(suite)))


def test_two_data_sets_of_equal_names_are_two_runs(tmp_path):
    """Names of images and classes agree; the labels differ."""
    configs = []
    for i, folder in enumerate('ab'):
        shutil.copytree(os.path.join(MINI, 'cityscapes'), tmp_path / folder)
        if i:
            for path in (tmp_path / folder).rglob('*_gtFine_labelTrainIds.png'):
                Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
        component = tmp_path / f'{folder}.py'
        component.write_text(
            f"dataset = dict(name='{folder}', type='CityscapesDataset', data_root='{folder}', "
            "data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'))"
        )
        configs.append(
            compose(
                str(component),
                'maskclip',
                None,
                'toy',
                data_root=str(tmp_path),
                limit=2,
                runtime=dict(workers=0, work_dir=str(tmp_path / 'w')),
            )
        )
    results = run_cells(configs, list)
    assert results[0]['metrics'] != results[1]['metrics']


def test_a_window_that_is_too_small_is_found_before_the_first_cell(tmp_path):
    protocol = tmp_path / 'custom.py'
    protocol.write_text(
        "protocol = dict(name='custom', default=dict(logit_scale=30, short=224, window=12, stride=8, "
        'prob_thd=0.1, area_thd=None), datasets=dict())'
    )
    configs = [
        compose(
            'cityscapes',
            'maskclip',
            None,
            'toy',
            protocol=name,
            data_root=MINI,
            runtime=dict(workers=0, work_dir=str(tmp_path)),
        )
        for name in ('proxyclip', str(protocol))
    ]
    with pytest.raises(UserError, match='window is 12 pixels, smaller than a patch of the backbone, 16×16'):
        run_cells(configs, lambda cells: pytest.fail('a cell was run'))


def test_cells_that_differ_in_name_alone_run_once(tmp_path, monkeypatch):
    """VOC21's settings are alike under `proxyclip` and `fsa`: two rows, one run."""
    configs = [
        compose(
            'voc21',
            'maskclip',
            None,
            'toy',
            protocol=protocol,
            data_root=MINI,
            runtime=dict(workers=0, work_dir=str(tmp_path)),
        )
        for protocol in ('proxyclip', 'fsa')
    ]
    assert prepare(configs[0]).hash == prepare(configs[1]).hash
    from fsa_seg.evaluation import passes

    run, runs = passes.run_pass, []
    monkeypatch.setattr(passes, 'run_pass', lambda cells, *rest: runs.extend(cells) or run(cells, *rest))
    results = run_cells(configs, list)
    assert len(runs) == 1
    assert [result['cell']['protocol'] for result in results] == ['proxyclip', 'fsa']
    assert results[0]['confusion'] == results[1]['confusion']
    assert len(list((tmp_path / 'results').iterdir())) == 2
    assert run_cells(configs, list) == results and len(runs) == 1


def test_a_chosen_method_stays_in_the_groups_that_name_it():
    """And a method that the suite does not name joins all groups."""
    suite = load_suite('field')

    def rows(*methods):
        cells = suite_cells(suite, method=list(methods), dataset=['voc20'], protocol=['proxyclip'])
        return [(cell['method'], cell['feedback']) for cell in cells]

    assert rows('scclip') == [('scclip', None), ('scclip', 'fsa')]
    assert rows('resclip') == [('resclip', feedback) for feedback in (None, 'fsa', 'sfr', 'sfr+fsa')]
    assert set(rows('mine.py')) == {('mine.py', feedback) for feedback in (None, 'fsa', 'sfr', 'sfr+fsa')}
    assert len(rows('scclip', 'resclip')) == 6


def test_the_field_has_all_methods_and_feedback_all_that_sfr_adapts():
    field, feedback = (suite_cells(load_suite(name)) for name in ('field', 'feedback'))
    names = {cell['method'] for cell in field if isinstance(cell['method'], str)}
    assert names == {*component_names('method'), 'proxyclip+lposs', 'clearclip+trident'}
    hosts = {name for name in component_names('method') if make_method(name).has_logits}
    hosts -= {'trident', 'corrclip'}  # whose map is another host's, and which is of regions
    assert {cell['method'] for cell in feedback if isinstance(cell['method'], str)} == hosts
    assert {cell['protocol'] for cell in feedback} == {'proxyclip'}
    assert {cell['feedback'] for cell in feedback} == {None, 'fsa', 'sfr', 'sfr+fsa'}
