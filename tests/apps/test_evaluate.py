"""The Python API of a table: `fsa_seg.evaluate` and `fsa_seg.load_results`."""

import json
import os

import pytest

import fsa_seg
from fsa_seg.errors import UserError

from conftest import MINI


def golden(row, dataset):
    with open(os.path.join(MINI, 'golden.json'), encoding='utf-8') as f:
        return json.load(f)['cells'][row][dataset]


def test_one_cell_and_a_list_of_cells(tmp_path, capfd):
    """One cell is a row with settings as numbers; cells of lists share a pass; what is kept is read again."""
    work_dir = str(tmp_path / 'w')
    row = fsa_seg.evaluate('voc20', 'sclip', mini=True, work_dir=work_dir)
    assert row['mIoU'] == pytest.approx(golden('SCLIP + FSA | toy | – | sclip', 'voc20'), abs=0.1)
    expected = dict(row='SCLIP + FSA', dataset='voc20', protocol='sclip', window=224, stride=112, images=10, toy=True)
    assert {key: row[key] for key in expected} == expected
    assert row['feedback'] == 'fsa' and row['feedback.lam'] == 3 and row['feedback.p'] == 0.45
    assert row['backbone'] == 'toy' and row['vfm'] is None and not row['partial'] and 'data.split' not in row
    rows = fsa_seg.evaluate('voc20', ['sclip', 'clip'], [False, True], mini=True, protocol='sclip', work_dir=work_dir)
    assert [row['row'] for row in rows] == ['SCLIP', 'SCLIP + FSA', 'CLIP', 'CLIP + FSA']
    assert rows[1]['mIoU'] == row['mIoU'] and rows[1]['path'] == row['path']
    assert '4 cells: 1 are there, 3 run in 1 passes' in capfd.readouterr().err
    loaded = fsa_seg.load_results(work_dir)
    assert sorted(loaded, key=str) == sorted(rows, key=str)
    assert fsa_seg.load_results(os.path.join(work_dir, 'results')) == loaded


def test_a_misspelt_argument_names_the_nearest():
    with pytest.raises(UserError, match="unknown key 'methd' in evaluate .did you mean 'method'"):
        fsa_seg.evaluate('voc20', methd='sclip', mini=True)
    with pytest.raises(UserError, match="unknown method 'sclp' .did you mean 'sclip'"):
        fsa_seg.evaluate('voc20', ['sclip', 'sclp'], mini=True)
    with pytest.raises(UserError, match='method is an empty list'):
        fsa_seg.evaluate('voc20', [], mini=True)


def test_folders_without_results(tmp_path, capsys):
    with pytest.raises(UserError, match='has no result; give the work_dir of a run'):
        fsa_seg.load_results(tmp_path)
    (tmp_path / 'other.json').write_text('{}')
    with pytest.raises(UserError, match='has no result'):
        fsa_seg.load_results(str(tmp_path))
    assert 'other.json is not a result of this suite' in capsys.readouterr().err
