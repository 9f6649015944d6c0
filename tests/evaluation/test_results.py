import json
import os

import pytest

from fsa_seg.config.compose import compose
from fsa_seg.datasets.data_sets import folder_dataset
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import (
    TOY_DATA_NOTE,
    TOY_MODELS_NOTE,
    TOY_NOTE,
    cell_id,
    read_result,
    table,
    write_result,
)
from fsa_seg.methods import find_method

from conftest import MINI

TOY = dict(method='sclip', backbone='toy', vfm='toy', data_root='data/mini')


def result(dataset, method='sclip', feedback=None, miou=50.0, partial=False, toy=True, words='sclip', seed=None):
    cell = dict(
        dataset=dataset,
        method=method,
        title=find_method(method).title,
        feedback=feedback,
        backbone='toy',
        vfm=None,
        protocol='sclip',
        words=words,
        limit=3 if partial else None,
        changed=[],
        toy=toy,
        random_weights=seed,
    )
    return dict(cell=cell, metrics=dict(mIoU=miou), hash='0', partial=partial, schema=2, fingerprint=[])


def test_table():
    rows = [result('voc21', miou=41.26), result('ade20k', miou=8.0), result('voc21', feedback='fsa', miou=60.0)]
    text = table(rows, ['voc21', 'ade20k'])
    assert TOY_NOTE in text
    assert '| SCLIP | toy | – | sclip | 41.3 | 8.0 | 24.6 |' in text
    assert '| SCLIP + FSA | toy | – | sclip | 60.0 | – | – |' in text
    assert TOY_NOTE not in table([result('voc21', toy=False)], ['voc21'])


@pytest.mark.parametrize(
    'models, data, told',
    [(True, True, TOY_NOTE), (True, False, TOY_MODELS_NOTE), (False, True, TOY_DATA_NOTE), (False, False, None)],
)
def test_the_note_tells_toy_models_from_toy_data(models, data, told):
    cell = result('voc21', toy=models or data)
    cell['cell'].update(toy_models=models, toy_data=data)
    text = table([cell], ['voc21'])
    assert (told or 'mIoU in percent.') in text and ('toy' in text.split('mIoU in')[0]) == bool(told)
    assert (TOY_NOTE in text) == (models and data)
    both = table([cell, result('voc21', method='clip')], ['voc21'])
    assert TOY_NOTE in both and (told or '') in both  # an older result, which does not tell them apart


def test_a_cell_says_what_is_of_the_toy_world(tmp_path):
    def parts(*arguments, **options):
        cell = compose(*arguments, **options).cell
        return cell.toy, cell.toy_models, cell.toy_data

    images, labels = (os.path.join(MINI, 'VOCdevkit', 'VOC2012', name) for name in ('JPEGImages', 'SegmentationClass'))
    (tmp_path / 'classes.txt').write_text('cat\ndog')
    drawn, own = (
        folder_dataset(*folders, str(tmp_path / 'classes.txt')) for folders in ((images, labels), [tmp_path] * 2)
    )
    assert parts('voc21', **TOY) == (True, True, True)
    assert parts('voc21', 'sclip', backbone='toy', data_root=str(tmp_path)) == (True, True, False)
    assert parts('voc21', 'sclip', data_root=MINI) == (True, False, True)
    assert parts('voc21', 'sclip', data_root=str(tmp_path)) == (False, False, False)
    assert parts(own, 'sclip', backbone='toy') == (True, True, False) and parts(drawn, 'sclip') == (True, False, True)
    assert parts(own, 'sclip', data_root=MINI) == (False, False, False)  # own folders lie elsewhere
    assert parts('voc21', 'proxyclip', vfm='toy', data_root=str(tmp_path)) == (True, True, False)


def test_other_words_are_another_row():
    text = table([result('voc21', miou=1.0), result('voc21', miou=2.0, words='mine-123456')], ['voc21'])
    assert '| sclip | 1.0 |' in text and '| sclip, words mine-123456 | 2.0 |' in text


def test_partial_results_enter_no_table():
    text = table([result('voc21', miou=50.0), result('voc21', miou=70.0, partial=True)], ['voc21'])
    assert '| 50.0 |' in text and '70.0' not in text


def test_results_of_random_weights_enter_no_table():
    text = table([result('voc21', miou=50.0), result('voc21', miou=70.0, seed=0)], ['voc21'])
    assert '| 50.0 |' in text and '70.0' not in text


def test_settings_of_fsa_are_rows_of_their_own():
    settings = result('voc21', feedback='fsa p=1.0 terms=WA+W', miou=2.0)
    text = table([result('voc21', feedback='fsa', miou=1.0), settings], ['voc21'])
    assert '| SCLIP + FSA |' in text and '| SCLIP + FSA p=1.0 terms=WA+W |' in text
    assert cell_id(settings['cell'], '0123456789ab') == 'voc21_sclip+fsa-p=1.0-terms=WA+W_toy_sclip_0123456789'


def test_words_of_two_files_are_two_cells(tmp_path):
    """Also if the two files have the same name."""
    names = []
    for folder in 'ab':
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'mine.txt').write_text('\n'.join(f'{folder}{i}' for i in range(21)))
        names.append(compose('voc21', **TOY, words=str(tmp_path / folder / 'mine.txt')).cell.words)
    assert names[0] != names[1] and all(name.startswith('mine-') for name in names)


def test_a_half_written_result_never_appears(tmp_path):
    write_result(result('voc21'), tmp_path / 'r.json')
    before = (tmp_path / 'r.json').read_text()
    with pytest.raises(ValueError):
        write_result(dict(result('ade20k'), seconds=float('nan')), tmp_path / 'r.json')
    assert (tmp_path / 'r.json').read_text() == before
    (tmp_path / 'cut.json').write_text(before[:30])
    with pytest.raises(UserError, match='cut.json is not a result'):
        read_result(tmp_path / 'cut.json')
    (tmp_path / 'cut.json').write_text(json.dumps([]))
    with pytest.raises(UserError, match='cut.json is not a result'):
        read_result(tmp_path / 'cut.json')


def cells_of_one_name(*values):
    """Return results of one row and data set with these precisions."""
    return [
        dict(
            result('voc21', miou=10.0 * i),
            hash=str(i),
            fingerprint=[['model.precision', value, 'number'], ['dataset.type', 'x', 'number']],
        )
        for i, value in enumerate(values, 1)
    ]


def test_two_cells_never_share_a_row():
    """The rows name the settings that differ; without a fingerprint, the rows name the hash."""
    text = table(cells_of_one_name('fp16', 'fp32'), ['voc21'])
    assert '| sclip, model.precision=fp16 | 10.0 |' in text and '| sclip, model.precision=fp32 | 20.0 |' in text
    text = table([dict(cell, fingerprint=[]) for cell in cells_of_one_name('a', 'b')], ['voc21'])
    assert '| sclip, hash=1 | 10.0 |' in text and '| sclip, hash=2 | 20.0 |' in text
    text = table(cells_of_one_name('fp16') * 2, ['voc21'])
    assert text.count('| SCLIP |') == 1 and 'model.precision' not in text


def test_a_name_of_many_bytes_is_cut():
    """A Chinese character has three bytes; file systems allow 255."""
    cell = dict(result('图' * 70)['cell'], words='词' * 70)
    name = cell_id(cell, '0123456789ab')
    assert len(name.encode()) <= 180 and name.startswith('图图') and name.endswith('_0123456789')


def test_a_result_of_another_schema(tmp_path):
    write_result(dict(result('voc21'), schema=1), tmp_path / 'old.json')
    with pytest.raises(UserError, match='old.json is a result of schema 1, and this fsa_seg writes 2'):
        read_result(tmp_path / 'old.json')


def test_what_tells_one_data_sets_cells_apart_leaves_the_others():
    """Two kinds of labels of VOC have a row each; two results of one cell from different code have a row each."""
    vocs = [
        dict(result('voc21', miou=10.0 * i), hash=str(i), fingerprint=[['data.contents', i, 'number']]) for i in (1, 2)
    ]
    ade = dict(result('ade20k', miou=50.0), hash='3', fingerprint=[['data.contents', 3, 'number']])
    text = table([*vocs, ade], ['voc21', 'ade20k'])
    assert '| sclip | – | 50.0 |' in text and '| sclip, data.contents=1 | 10.0 | – |' in text
    codes = [dict(result('voc21', miou=10.0 * i), fingerprint=[['package', f'p{i}', 'source']]) for i in (1, 2)]
    text = table(codes, ['voc21'])
    assert '| sclip, package=p1 | 10.0 |' in text and '| sclip, package=p2 | 20.0 |' in text
