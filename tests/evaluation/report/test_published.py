import csv
import os
import re

import pytest

from fsa_seg.config.components import component_names
from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.evaluation.report import published as module
from fsa_seg.evaluation.report.published import (
    COLUMNS,
    DATASETS,
    FILE,
    TOLERANCE,
    Figure,
    code_rows,
    published,
    read_rows,
    verdict,
)
from fsa_seg.methods import find_method

ROWS = read_rows(FILE)
# rows whose printed average is not the mean of the printed figures: by how much, and why
PRINTED_ERRORS = {
    ('proxyclip', 'clip_vit-l14', ''): (0.0625, 'printed 43.0 of 42.94'),
    ('maskclip', 'openclip_vit-h14', ''): (-0.0625, 'printed 19.3 of 19.36'),
    ('trident', 'metaclip_vit-b16', 'refined by SAM'): (0.075, 'printed 47.4 of 47.325'),
    ('cliptrase', 'clip_vit-b16', '224 pixels'): (-4.7475, 'two tables print 32.7 of 37.45'),
}
# what a row must not be mistaken for: all figures that are `code`
CODE = {
    'sclip none clip_vit-b16': '59.63 31.74 33.52 81.54 34.46 22.77 32.34 16.45 39.1',
    'clearclip none clip_vit-b16': '51.8 32.6 33.0 80.9 35.9 23.9 30.0 16.7 38.1',
    'proxyclip none clip_vit-b16': '61.3 35.3 37.5 80.3 39.1 26.5 38.1 20.2 42.3',
    'proxyclip fsa clip_vit-b16': '63.7 36.1 38.0 82.3 39.9 27.0 38.8 20.5 43.3',
    'proxyclip none clip_vit-l14': '60.6 34.5 39.2 83.2 37.7 25.6 40.1 22.6 43.0',
    'proxyclip none openclip_vit-h14': '65.0 35.4 38.6 83.3 39.6 26.8 42.0 24.2 44.4',
    'naclip none clip_vit-b16': '64.07 34.99 36.19 83.03 38.35 25.69 38.27 19.05 42.46',
    'corrclip sam2-32 none metaclip_vit-b16': '74.8 44.2 43.7 88.8 48.8 31.6 49.4 26.9 51.0',
}


def cell(dataset='voc21', method='clearclip', feedback=None, backbone='clip_vit-b16', vfm='dino_vit-b8', **options):
    return dict(compose(dataset, method, feedback, backbone, vfm, **options).cell)


def values(*arguments, **options):
    return [figure.value for figure in published(cell(*arguments, **options))]


@pytest.mark.parametrize('row', ROWS, ids=lambda row: ' '.join(row[key] for key in COLUMNS[:3]))
def test_a_rows_figures_average_to_the_printed_average(row):
    """Exceptions are printed errors, each known; a row without a printed average has none."""
    figures = [row[dataset] for dataset in DATASETS]
    if None in figures or row['avg'] is None:
        assert (row['method'], row['backbone'], row['variant']) not in PRINTED_ERRORS
        return
    error = row['avg'] - sum(figures) / 8
    known = PRINTED_ERRORS.get((row['method'], row['backbone'], row['variant']))
    assert error == pytest.approx(known[0]) if known else abs(error) < 0.06


def test_the_displaced_row_averages_to_another_number():
    """Of FSA on ClearCLIP three figures are known without their order; its printed average is 38.8."""
    (row,) = (row for row in ROWS if row['method'] == 'clearclip' and row['feedback'] == 'fsa')
    three = [36.6, 32.2, 33.8]
    assert all(str(value) in row['source'] for value in three) and row['avg'] == 38.8
    assert (sum(three) + sum(row[dataset] or 0 for dataset in DATASETS)) / 8 == pytest.approx(38.675)


def test_averages_that_nobody_printed_are_absent():
    """Complete rows without an average, and averages of incomplete rows."""
    complete = [row for row in ROWS if None not in [row[dataset] for dataset in DATASETS]]
    assert {(row['method'], row['variant'].split(' ')[0]) for row in complete if row['avg'] is None} == {
        ('resclip host=clearclip', 'host'),
        ('resclip host=sclip', 'host'),
        ('corrclip_v2', 'EntitySeg'),
        ('corrclip_v2', 'bank'),
    }
    assert [(row['method'], row['feedback']) for row in ROWS if row['avg'] and row not in complete] == [
        ('clearclip', 'fsa')
    ]


def test_the_rows_of_released_code():
    rows = code_rows()
    shown = {' '.join(row[key] for key in COLUMNS[:3]): [row[key] for key in (*DATASETS, 'avg')] for row in rows}
    assert shown == {name: [float(text) for text in figures.split()] for name, figures in CODE.items()}
    assert len(rows) == len(CODE) and all(list(row) == list(COLUMNS) for row in rows)


def test_names_are_those_of_the_suite():
    """Of methods that the suite lacks, the protocol has the method's name. GEM's protocol is not released."""
    methods, protocols = component_names('method'), component_names('protocol')
    vfms = {name for row in ROWS for name in row['vfm'].split(',') if name}
    assert {row['backbone'] for row in ROWS} <= set(component_names('backbone'))
    assert vfms - set(component_names('vfm')) <= {'cradiov3-l'}
    assert {row['feedback'] for row in ROWS} == {'none', 'fsa', 'sfr'}
    assert set(DATASETS) <= set(component_names('dataset'))
    for row in ROWS:
        file = row['method'].split(' ')[0]
        assert row['protocol'] in (protocols if file in methods and file != 'gem' else [file]), row
        own = find_method(file) if file in methods else None
        if file == 'trident':  # its figures have the refinement, which its own protocol lacks
            assert row['protocol'] == 'trident_sam' and row['variant'] == 'refined by SAM'
        elif own and file not in ('naclip', 'gem'):
            assert row['protocol'] == (row['feedback'] == 'fsa' and own.fsa_protocol or own.protocol)


def test_no_two_rows_are_the_same():
    assert len({tuple(row[column] for column in COLUMNS) for row in ROWS}) == len(ROWS)


def test_each_row_of_the_suite_is_found_by_its_cell():
    """Every figure of a method that the suite has, by a composed cell; no cell has GEM's protocol."""
    for row in ROWS:
        file, *settings = row['method'].split(' ')
        if file not in component_names('method') or file == 'gem':
            continue
        if file == 'corrclip':  # named after its regions
            method = dict(type=file, name=row['method'], regions=dict(type='sam2'))
        else:
            method = dict(dict(setting.split('=') for setting in settings), type=file) if settings else file
        vfms = row['vfm'] or None
        if file == 'trident':
            vfms = dict(zip(find_method(file).roles, row['vfm'].split(',')))
        names = [method, None if row['feedback'] == 'none' else row['feedback'], row['backbone'], vfms]
        for dataset in DATASETS:
            figure = Figure(row[dataset], row['comparable'], row['source'], row['variant'])
            figures = published(cell(dataset, *names, protocol=row['protocol']))
            assert (figure in figures) == (row[dataset] is not None), (row, dataset)


def test_the_best_figure_comes_first():
    assert values('voc21', 'sclip') == [59.63, 59.1]
    assert values('voc21', 'maskclip') == [38.8, 43.4]
    sclip = published(cell('voc21', 'sclip'))
    assert [figure.comparable for figure in sclip] == ['code', 'paper'] and 'README' in sclip[0].source
    assert values('voc21', 'naclip') == [64.07] and values('voc21', 'naclip', protocol='naclip_plain') == [58.9]
    assert published(cell('voc21', 'naclip'))[0].variant == 'PAMR'


def test_one_data_set_or_the_average():
    proxyclip = cell('voc21', 'proxyclip', 'fsa')
    assert [figure.value for figure in published(proxyclip, 'avg')] == [43.3]
    assert [figure.value for figure in published(proxyclip, 'ade20k')] == [20.5]
    assert published(cell('context59', 'clearclip', 'fsa')) == []  # the row has no such figure
    assert published(proxyclip, 'context459') == [] == published(proxyclip, 'source')


@pytest.mark.parametrize(
    'options',
    [
        dict(protocol='proxyclip'),
        dict(backbone='clip_vit-l14', feedback='fsa'),
        dict(backbone='dfn_vit-b16'),
        dict(feedback=dict(p=0.45)),
        dict(feedback=dict(lam=2.0)),
        dict(method=dict(attention='qq', residual=False, mlp=False), protocol='clearclip'),
        dict(method='proxyclip', vfm='dino_vit-b16'),
        dict(method='proxyclip', protocol='fsa'),
        dict(method='proxyclip', feedback='fsa', protocol='proxyclip'),
        dict(random_weights=0),
        dict(limit=5),
        dict(backbone='toy'),
        dict(data_root='data/mini'),
        dict(dataset='context459'),
    ],
    ids=str,
)
def test_other_cells_have_no_published_figure(options):
    if options.get('dataset') == 'context459':  # its classes are a file
        assert published(dict(cell(), dataset='context459')) == []
    else:
        assert values() == [51.8] and values(**options) == []


def test_other_words_and_other_settings_have_no_published_figure():
    assert published(dict(cell(), words='mine-123456')) == []
    assert published(dict(cell(), changed=['model.stride=56'])) == []
    assert published(dict(cell(), words='clearclip', changed=[]))


def test_vfms_by_role_are_found_by_their_order():
    """The names count, in the order of the roles."""
    trident = dict(cell(), method='trident', protocol='trident_sam', words='trident_sam')
    for vfm, found in (
        ('proxy=dino_vit-b16,affinity=sam_vit-b16', True),
        ('dino_vit-b16', False),
        ('proxy=sam_vit-b16,affinity=dino_vit-b16', False),
        (None, False),
    ):
        assert bool(published(dict(trident, vfm=vfm))) == found


@pytest.mark.parametrize(
    'value, reference, said',
    [
        (38.1, 38.1, 'reproduced'),
        (38.1 + 0.7, 38.1, 'reproduced'),
        (38.1 - 0.7, 38.1, 'reproduced'),
        (38.8, 38.1, 'reproduced'),
        (37.4, 38.1, 'reproduced'),
        (38.8001, 38.1, 'above'),
        (37.3999, 38.1, 'below'),
        (90.0, 38.1, 'above'),
        (0.0, 38.1, 'below'),
    ],
)
def test_verdict(value, reference, said):
    assert verdict(value, reference, 0.7) == said == verdict(value, reference)
    assert TOLERANCE == 0.7


def test_a_difference_of_the_tolerance_is_reproduced_for_every_figure():
    """Whatever floating point makes of the sum."""
    for row in ROWS:
        for figure in filter(None, (row[dataset] for dataset in DATASETS)):
            for sign in (1, -1):
                assert verdict(figure + sign * 0.7, figure, 0.7) == 'reproduced'
                assert verdict(round(figure + sign * 0.71, 2), figure, 0.7) == ('above' if sign > 0 else 'below')


@pytest.mark.parametrize('numbers', [(float('nan'), 1.0, 0.7), (1.0, float('inf'), 0.7), (1.0, 1.0, -0.1)])
def test_no_verdict_on_what_is_no_number(numbers):
    with pytest.raises(ValueError, match='no verdict on'):
        verdict(*numbers)


def broken(tmp_path, **changes):
    """Return a copy of the file whose second row has other values; a value of None takes its column from all rows."""
    with open(FILE, encoding='utf-8', newline='') as f:
        rows = list(csv.DictReader(f))
    rows[1].update({key: value for key, value in changes.items() if value is not None})
    columns = [column for column in COLUMNS if changes.get(column, '') is not None]
    with open(tmp_path / 'rows.csv', 'w', encoding='utf-8', newline='') as f:
        writer = csv.DictWriter(f, columns, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / 'rows.csv'


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(comparable='yes'), "line 3: comparable is 'yes'; choose from code, paper, unknown"),
        (dict(comparable=''), 'line 3: comparable'),
        (dict(voc21='high'), "line 3: voc21 is 'high'"),
        (dict(ade20k='nan'), "line 3: ade20k is 'nan'"),
        (dict(avg='-1'), "line 3: avg is '-1'"),
        (dict(avg='100.1'), 'line 3: avg'),
        (dict(voc20='inf'), 'line 3: voc20'),
        (dict(source=' '), 'line 3: source is empty'),
        (dict(method=''), 'line 3: method is empty'),
        (dict.fromkeys(DATASETS, ''), 'line 3: the row has no figure'),
        (dict(variant=None), 'line 1: the columns are'),
    ],
)
def test_wrong_rows(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_rows(broken(tmp_path, **changes))
    assert 'rows.csv' in str(caught.value)


def test_files_that_are_no_table(tmp_path):
    path = broken(tmp_path)
    text = path.read_text()
    assert len(read_rows(path)) == len(ROWS)
    for bad, message in (
        (text.replace('unknown', 'unknown,more', 1), 'line 2: the row has not'),
        (text.split('\n', 2)[0] + '\nmaskclip,none\n', 'line 2: the row has not'),
        ('', 'line 1: the columns are'),
        (text.replace('poster', '"poster', 1), 'line 9: .* expected after'),
        (text + '"', f'line {len(ROWS) + 2}: unexpected end of data'),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            read_rows(path)
    path.write_bytes(b'\xff\xfe\x00')
    for wrong in (path, tmp_path / 'absent.csv'):
        with pytest.raises(UserError, match='cannot be read'):
            read_rows(wrong)


def test_the_file_lies_in_the_package():
    assert os.path.dirname(FILE) == os.path.dirname(os.path.abspath(module.__file__))
