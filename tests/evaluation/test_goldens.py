"""The numbers of the toy table: the documents print them, the tool compares them, `Segmenter` gives the same labels."""

import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fsa_seg import Segmenter
from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.evaluation.goldens import compare, read_goldens, write_goldens
from fsa_seg.evaluation.metric import ExactIoUMetric
from fsa_seg.evaluation.results import read_result
from fsa_seg.methods import find_method, method_names
from fsa_seg.models.segmentor import ImageListPreprocessor

from conftest import MINI, ROOT
from made_results import make_results

FILE = os.path.join(MINI, 'golden.json')
ROW = 'SCLIP | toy | – | sclip'


def result(dataset, miou, method='sclip', **change):
    cell = dict(
        dataset=dataset,
        method=method,
        title=find_method(method).title,
        feedback=None,
        backbone='toy',
        vfm=None,
        protocol='sclip',
        words='sclip',
        changed=[],
        random_weights=None,
    )
    return dict(
        dict(cell=cell, partial=False, metrics=dict(mIoU=miou), device='cpu', hash='0', fingerprint=[]), **change
    )


@pytest.mark.parametrize(
    'mious, right, report',
    [
        ([50.0, 60.0], True, '2 of 2 as expected, largest difference 0.00'),
        ([50.09, 60.0], True, '2 of 2 as expected, largest difference 0.09'),
        ([49.89, 60.0], False, f'{ROW}, a: expected 50.00, found 49.89\n1 of 2 as expected, largest difference 0.11'),
        ([50.0, 61.0], False, f'{ROW}, b: expected 60.00, found 61.00\n1 of 2 as expected, largest difference 1.00'),
        ([50.0], False, f'{ROW}, b: expected 60.00, found none\n1 of 2 as expected, largest difference 0.00'),
        (
            [],
            False,
            f'{ROW}, a: expected 50.00, found none\n{ROW}, b: expected 60.00, found none\n'
            '0 of 2 as expected, largest difference –',
        ),
        ([50.0, None], False, f'{ROW}, b: expected 60.00, found nan\n1 of 2 as expected, largest difference 0.00'),
        ([50.0, 60.0, 70.0], True, '1 more cells have no expected number\n2 of 2 as expected, largest difference 0.00'),
    ],
)
def test_comparison(mious, right, report):
    expected = {(ROW, 'a'): 50.0, (ROW, 'b'): 60.0}
    assert compare([result(*cell) for cell in zip('abc', mious)], expected, 0.1) == (right, report)


def test_results_that_enter_no_table_are_missing():
    results = [result('a', 50.0, partial=True), result('a', 50.0, method='clip')]
    right, report = compare(results, {(ROW, 'a'): 50.0})
    assert not right and report.startswith(f'{ROW}, a: expected 50.00, found none\n1 more')


def test_file_of_expected_numbers(tmp_path):
    path = str(tmp_path / 'g.json')
    write_goldens([result('a', 1 / 3), result('b', 2.0), result('c', 3.0, partial=True)], 'a command', path)
    assert read_goldens(path) == ({(ROW, 'a'): 1 / 3, (ROW, 'b'): 2.0}, 0.1)
    assert read_goldens(path, ['b']) == ({(ROW, 'b'): 2.0}, 0.1)
    with pytest.raises(UserError, match='has no expected number of c'):
        read_goldens(path, ['c'])
    with pytest.raises(UserError, match='no result enters a table'):
        write_goldens([result('c', 3.0, partial=True)], 'a command', path)
    for text in ('', '[]', '{"tolerance": 0.1}', '{"tolerance": 0.1, "cells": {"a": {"b": "x"}}}'):
        (tmp_path / 'g.json').write_text(text)
        with pytest.raises(UserError, match='g.json holds no expected numbers'):
            read_goldens(path)


def table_lines(document):
    """Return the cells of each line of a document's tables."""
    with open(os.path.join(ROOT, document), encoding='utf-8') as f:
        return [line.strip('| \n').split(' | ') for line in f if line.startswith('| ')]


def test_the_readme_of_the_toy_world_prints_the_expected_numbers():
    with open(FILE, encoding='utf-8') as f:
        cells = json.load(f)['cells']
    lines = table_lines('data/mini/README.md')
    head = next(line for line in lines if line[0] == 'method' and 'voc21' in line)
    start = lines.index(head) + 1
    printed = {' | '.join(line[:4]): dict(zip(head[4:], line[4:])) for line in lines[start : start + len(cells)]}
    for row, values in cells.items():
        mean = dict(mean=sum(values.values()) / len(values))
        assert printed[row] == {dataset: f'{value:.1f}' for dataset, value in {**values, **mean}.items()}
    assert sum(map(len, cells.values())) == 96


def test_the_readme_prints_the_means_of_the_expected_numbers():
    """A row of the README is a method, and its last columns are the means without FSA and with FSA."""
    with open(FILE, encoding='utf-8') as f:
        cells = json.load(f)['cells']
    means = {row.split(' | ')[0]: f'{sum(values.values()) / len(values):.1f}' for row, values in cells.items()}
    lines = table_lines('README.md')
    printed = {line[0].strip('`'): line[-2:] for line in lines if line[0].strip('`') in method_names()}
    titles = {name: find_method(name).title for name in printed}
    assert printed == {name: [means[title], means[f'{title} + FSA']] for name, title in titles.items()}
    assert len(printed) == len(cells) / 2 == 6


def test_twelve_rows_on_a_data_set(run_tool, tmp_path):
    """The tool finds the expected numbers, and names each number that is wrong."""
    command = ('benchmark', '--mini', '--datasets', 'voc21')
    status, printed = run_tool(*command, '--golden', FILE)
    print('\n'.join(line for line in printed.splitlines() if 'expected' in line))
    assert status == 0 and re.search(r'^12 of 12 as expected, largest difference 0\.\d\d$', printed, re.M)
    content = json.loads(open(FILE, encoding='utf-8').read())
    content['cells']['CLIP | toy | – | clearclip']['voc21'] += 0.2
    content['cells']['Other | toy | – | clearclip'] = dict(voc21=1.0)
    (tmp_path / 'other.json').write_text(json.dumps(content))
    status, printed = run_tool(*command, '--golden', 'other.json', '--write-golden', 'new.json')
    assert status == 1
    assert re.search(r'^CLIP \| toy \| – \| clearclip, voc21: expected 17\.9\d, found 17\.7\d$', printed, re.M)
    assert 'Other | toy | – | clearclip, voc21: expected 1.00, found none' in printed
    assert re.search(r'^11 of 13 as expected, largest difference 0\.20$', printed, re.M)
    new = json.loads((tmp_path / 'new.json').read_text())
    assert new['command'] == 'fsa-seg benchmark --mini --datasets voc21 --golden other.json --write-golden new.json'
    assert len(new['cells']) == 12 and all(set(values) == {'voc21'} for values in new['cells'].values())


def test_two_rows_on_two_more_data_sets(run_tool, tmp_path):
    """Without a background, and from a folder of another year; tools/quickstart.sh compares all rows."""
    content = json.loads(open(FILE, encoding='utf-8').read())
    content['cells'] = {row: values for row, values in content['cells'].items() if row.startswith('SCLIP ')}
    (tmp_path / 'two.json').write_text(json.dumps(content))
    command = ('benchmark', '--mini', '--datasets', 'context59', 'voc20', '--methods', 'sclip')
    status, printed = run_tool(*command, '--golden', 'two.json')
    assert status == 0 and '4 of 4 as expected, largest difference 0.0' in printed, printed


@pytest.mark.parametrize(
    'titles, count',
    [
        (('PEARL', 'ResCLIP', 'SCCLIP', 'SFP', 'GEM'), 12),  # ResCLIP also with SFR and both in turn
        (('CorrCLIP', 'ProxyCLIP+LPOSS'), 4),
    ],
    ids=['windows', 'whole_images'],
)
def test_rows_of_the_field(run_tool, tmp_path, titles, count):
    """With and without feedback, under one protocol."""
    content = json.loads(open(os.path.join(MINI, 'golden_field.json'), encoding='utf-8').read())
    content['cells'] = {
        row: values
        for row, values in content['cells'].items()
        if row.split(' ')[0] in titles and row.endswith('| proxyclip')
    }
    assert len(content['cells']) == count
    (tmp_path / 'field.json').write_text(json.dumps(content))
    command = ('benchmark', '--mini', '--suite', 'field', '--datasets', 'voc20', '--protocol', 'proxyclip')
    methods = ('--methods', *(title.lower() for title in titles))
    status, printed = run_tool(*command, *methods, '--golden', 'field.json')
    assert status == 0 and f'{count} of {count} as expected, largest difference 0.0' in printed, printed


@pytest.fixture
def recorded(monkeypatch):
    """Return what goes through the tool and `Segmenter`: the metric's labels of each image, and the inputs' shapes."""
    labels, sizes = {}, []
    process, prepare = ExactIoUMetric.process, ImageListPreprocessor.forward

    def recording_process(self, batch, samples):
        labels.update({sample['img_path']: sample['pred_sem_seg']['data'][0].clone() for sample in samples})
        process(self, batch, samples)

    def recording_forward(self, data, training=False):
        sizes.extend(tuple(image.shape) for image in data['inputs'])
        return prepare(self, data, training)

    monkeypatch.setattr(ExactIoUMetric, 'process', recording_process)
    monkeypatch.setattr(ImageListPreprocessor, 'forward', recording_forward)
    return labels, sizes


@pytest.mark.parametrize(
    'dataset, method, protocol, limit', [('voc21', 'sclip', 'clearclip', 2), ('voc20', 'proxyclip', 'own', 1)]
)
def test_segmenter_gives_what_the_tool_gives(run_tool, recorded, dataset, method, protocol, limit):
    """Every pixel has the same label, on the same image, under the same words and threshold."""
    status, printed = run_tool('test', dataset, '--mini', '--method', method, '--protocol', protocol, '--limit', limit)
    assert status == 0, printed
    labels, _ = recorded
    model = compose(dataset, method, 'fsa', 'toy', 'toy', protocol, data_root=MINI).model
    words = ['; '.join(group) for group in model.words]
    segmenter = Segmenter(backbone='toy', vfm='toy', method=method, protocol=protocol)
    assert len(labels) == limit
    for path, expected in list(labels.items()):
        segmented = segmenter.segment(path, words, prob_thd=model.prob_thd).labels
        assert np.array_equal(segmented, expected) and len(np.unique(segmented)) > 3
        if model.prob_thd:
            assert not np.array_equal(segmenter.segment(path, words).labels, expected)


@pytest.mark.parametrize('size, resized', [((100, 900), (228, 2048)), ((150, 70), (720, 336))])
def test_images_are_resized_by_their_shorter_side_up_to_a_longest(run_tool, tmp_path, recorded, size, resized):
    """A panorama gets at most 2048 pixels, and keeps its shape; the tool and `Segmenter` resize alike."""
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 20, generator=generator), size, mode='bilinear')[0]
    for folder in ('images', 'labels'):
        (tmp_path / folder).mkdir()
    Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(tmp_path / 'images' / 'wide.png')
    Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / 'labels' / 'wide.png')
    (tmp_path / 'classes.txt').write_text('cat; kitten\nwood\nriver\ncloud\n')
    data = ('--images', 'images', '--labels', 'labels', '--classes', 'classes.txt', '--workers', 0)
    status, printed = run_tool(
        'test', *data, '--backbone', 'toy', '--method', 'maskclip', '--protocol', 'proxyclip', '--no-fsa'
    )
    assert status == 0, printed
    ((_, expected),) = recorded[0].items()
    segmenter = Segmenter(backbone='toy', method='maskclip', protocol='proxyclip', feedback=False)
    labels = segmenter.segment(str(tmp_path / 'images' / 'wide.png'), ['cat; kitten', 'wood', 'river', 'cloud']).labels
    assert np.array_equal(labels, expected) and len(np.unique(labels)) > 1
    assert recorded[1] == [(3, *resized)] * 2


def test_results_of_two_codes_are_both_compared(tmp_path):
    """A table tells them apart in their rows' names; an expected number is that of the cell."""
    lists = dict(dataset=['voc21'], method=['clearclip'], feedback=[None], protocol=['own'])
    (path,) = make_results(tmp_path, images=3, backbones=['clip_vit-b16'], **lists)
    first = read_result(path)
    entries = [entry._replace(value='other') if entry.key == 'package' else entry for entry in first['fingerprint']]
    value = first['metrics']['mIoU']
    second = dict(first, fingerprint=entries, metrics=dict(first['metrics'], mIoU=value + 1))
    expected = {('ClearCLIP | clip_vit-b16 | – | clearclip', 'voc21'): value}
    same = dict(second, metrics=first['metrics'])
    assert compare([first, same], expected) == (True, '1 of 1 as expected, largest difference 0.00')
    right, report = compare([first, second], expected)
    assert not right and f'expected {value:.2f}, found {value + 1:.2f}' in report
