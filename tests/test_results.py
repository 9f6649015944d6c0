import json
import os

import pytest

from conftest import MINI
from fsa_seg.config import compose, merge_options
from fsa_seg.errors import UserError
from fsa_seg.results import TOY_NOTE, cell_id, identity_hash, read_result, table, write_result

TOY = dict(method='sclip', backbone='toy', vfm='toy', data_root='data/mini')
NAMES = ['a.jpg', 'b.jpg']


def digest(options=None, names=NAMES, **arguments):
    config = compose('voc21', **{**TOY, **arguments})
    merge_options(config, options)
    return identity_hash(config, names)


def test_the_hash_changes_with_what_can_change_a_number(tmp_path):
    words = tmp_path / 'words.txt'
    words.write_text('\n'.join(f'w{i}' for i in range(21)))
    hashes = [digest(), digest(method='clip'), digest(feedback=None), digest(protocol='clearclip'),
              digest(words=str(words)), digest(names=NAMES[:1]), digest(precision='bf16'),
              digest({'model.stride': 56}), digest({'model.feedback.p': 0.5}),
              digest({'model.backbone.model': 'ViT-B-16'}), digest(random_weights=0), digest(random_weights=1),
              digest(feedback=dict(rounds=2)), digest(method=dict(attention='qq+kk')), digest(method='proxyclip'),
              digest({'test_cfg.fp16': True}), digest({'test_dataloader.dataset.seg_map_suffix': '_other.png'}),
              digest({'test_dataloader.dataset.pipeline.1.scale': (2048, 448)})]  # yapf: disable
    assert len(set(hashes)) == len(hashes)


def test_the_hash_is_blind_to_paths_and_workers(tmp_path):
    os.symlink(os.path.join(MINI, 'models'), tmp_path / 'models')
    same = [digest(data_root=str(tmp_path)), digest(runtime=dict(workers=2, batch_size=3, work_dir='x')),
            digest({'model.backbone.model': f'local-dir:{tmp_path}/models/toy_clip'}), digest({'launcher': 'pytorch'}),
            digest({'model.text_cache': 'x'}), digest({'model.feedback.block': 64})]  # yapf: disable
    assert set(same) == {digest()}


def result(dataset, method='sclip', feedback=None, miou=50.0, partial=False, toy=True, words='sclip', seed=None):
    cell = dict(dataset=dataset, method=method, feedback=feedback, backbone='toy', vfm=None, protocol='sclip',
                words=words, limit=3 if partial else None, changed=[], toy=toy, random_weights=seed)
    return dict(cell=cell, metrics=dict(mIoU=miou), hash='0', partial=partial)


def test_table():
    rows = [result('voc21', miou=41.26), result('ade20k', miou=8.0), result('voc21', feedback='fsa', miou=60.0)]
    text = table(rows, ['voc21', 'ade20k'])
    assert TOY_NOTE in text
    assert '| SCLIP | toy | – | sclip | 41.3 | 8.0 | 24.6 |' in text
    assert '| SCLIP + FSA | toy | – | sclip | 60.0 | – | – |' in text
    assert TOY_NOTE not in table([result('voc21', toy=False)], ['voc21'])


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
    """Also when the files have one name."""
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
