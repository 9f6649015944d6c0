"""fsa-seg report and fsa-seg compare as a user calls them."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from made_results import make_results

MINI = ('voc20', '--mini', '--method', 'sclip', '--save-labels', '--limit', '3')  # voc20 has reduce_zero_label


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    make_results(folder, images=6, backbones=['clip_vit-b16'], dataset=['voc21', 'voc20'], method=['sclip', 'maskclip'])
    return folder


def find(folder, start):
    return next(path for path in sorted(folder.iterdir()) if path.name.startswith(start))


def test_a_report_of_a_folder(made, run_tool, tmp_path):
    status, printed = run_tool('report', made, '--out', tmp_path / 'out', '--title', 'Of <May>', '--details', 1)
    assert status == 0, printed
    assert re.search(r'\d of \d figures of released code reproduced \(within 0\.7\)', printed)
    assert sorted(os.listdir(tmp_path / 'out')) == ['report.html', 'table.csv', 'table.md', 'table.tex']
    assert '<title>Of &lt;May&gt;</title>' in (tmp_path / 'out' / 'report.html').read_text()


def test_the_report_lies_in_the_work_dir(made, run_tool, tmp_path):
    shutil.copytree(made, tmp_path / 'w' / 'results')
    assert run_tool('report', tmp_path / 'w', '--details', 0)[0] == 0
    assert run_tool('report', tmp_path / 'w' / 'results' / find(made, 'voc21').name, '--details', 0)[0] == 0
    assert os.path.isfile(tmp_path / 'w' / 'report' / 'report.html')
    assert os.listdir(tmp_path / 'w' / 'results') == os.listdir(tmp_path / 'w' / 'results')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nowhere'], 'nowhere does not exist'),
        (['MADE', '--draws', '5'], '--draws is 5; it has to be at least 100'),
        (['MADE', '--details', '-1'], '--details is -1'),
        (['MADE', '--golden', 'nothing.json'], 'nothing.json holds no expected numbers'),
        (['MADE', '--out', 'file'], 'the folder file cannot be made'),
    ],
)
def test_wrong_options_are_one_message(made, run_tool, tmp_path, arguments, message):
    (tmp_path / 'file').write_text('')
    status, printed = run_tool('report', *(str(made) if text == 'MADE' else text for text in arguments))
    assert status == 1 and message in printed and 'Traceback' not in printed


def test_expected_numbers_take_the_place_of_published_ones(made, run_tool, tmp_path):
    result = json.loads(find(made, 'voc21_sclip_clip_vit-b16_sclip').read_text())
    value = result['metrics']['mIoU']
    row = 'SCLIP | clip_vit-b16 | – | sclip'
    golden = dict(tolerance=0.1, cells={row: dict(voc21=value + 0.05, voc20=99.0, ade20k=1.0)})
    (tmp_path / 'golden.json').write_text(json.dumps(golden))
    status, printed = run_tool('report', made, '--out', 'out', '--golden', 'golden.json', '--details', 0)
    assert status == 1 and '1 of 2 expected numbers reproduced (within 0.1), 1 below, 1 not run' in printed, printed
    assert f'{row}, voc20: expected 99.00' in printed and '1 of 3 as expected' in printed
    golden['cells'][row] = dict(voc21=value + 0.05)
    (tmp_path / 'golden.json').write_text(json.dumps(golden))
    assert run_tool('report', made, '--out', 'out', '--golden', 'golden.json', '--details', 0)[0] == 0


def test_pictures_are_drawn_from_saved_labels(run_tool, tmp_path):
    """Image, truth and the labels of both rows; labels that the results did not count are refused, with the reason."""
    for option in ('--fsa', '--no-fsa'):
        assert run_tool('test', *MINI, option, '--work-dir', 'w')[0] == 0
    results = sorted((tmp_path / 'w' / 'results').iterdir())
    for path in results:  # --limit marks them partial: of three images, a whole data set for this test
        result = json.loads(path.read_text())
        path.write_text(json.dumps(dict(result, partial=False)))
    status, printed = run_tool('report', 'w')
    page = (tmp_path / 'w' / 'report' / 'report.html').read_text()
    assert status == 0 and 'src="data:image/webp;base64,' in page and 'No picture' not in page, printed
    for path in (tmp_path / 'w' / 'labels').rglob('*.png'):
        labels = Image.open(path)
        changed = Image.fromarray(np.roll(np.array(labels), 1) % 20)
        changed.save(path)
    run_tool('report', 'w')
    page = (tmp_path / 'w' / 'report' / 'report.html').read_text()
    assert 'data:image/webp' not in page and 'are not what the result counted: run both rows with --save-labels' in page
    shutil.rmtree(tmp_path / 'w' / 'labels')
    run_tool('report', 'w')
    assert 'cannot be read' in (tmp_path / 'w' / 'report' / 'report.html').read_text()
    run_tool('report', 'w', '--data-root', tmp_path)
    assert 'the data root lacks the folder' in (tmp_path / 'w' / 'report' / 'report.html').read_text()


def test_a_report_runs_no_program_that_a_result_names(run_tool, tmp_path):
    """The name of a result's data set may be a path: that file is not loaded, and the page says why."""
    for option in ('--fsa', '--no-fsa'):
        assert run_tool('test', *MINI, option, '--work-dir', 'w')[0] == 0
    program = tmp_path / 'evil.py'
    program.write_text(f'open({str(tmp_path / "ran")!r}, "w")\ndataset = dict(data_root="x")\n')
    for path in (tmp_path / 'w' / 'results').iterdir():
        result = json.loads(path.read_text())
        result['partial'] = False
        result['config']['cell']['dataset'] = str(program)
        path.write_text(json.dumps(result))
    assert run_tool('report', 'w', '--data-root', tmp_path)[0] == 0
    assert not (tmp_path / 'ran').exists()
    assert 'No picture: unknown data set' in (tmp_path / 'w' / 'report' / 'report.html').read_text()


def test_a_users_runtime_changes_no_report(made, run_tool, tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'runtime.py').write_text("visualizer = dict(vis_backends=[dict(type='NeptuneVisBackend')])\n")
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path / 'mine'))
    status, printed = run_tool('report', made, '--out', 'out', '--details', 0)
    assert status == 0 and 'figures of released code reproduced' in printed, printed
    (tmp_path / 'mine' / 'runtime.py').write_text('workdir = 3\n')  # whatever a user's runtime.py holds
    assert 'figures of released code reproduced' in run_tool('report', made, '--out', 'out', '--details', 0)[1]
    assert 'does not ship' not in (tmp_path / 'out' / 'table.csv').read_text()


def test_a_report_that_fails_leaves_no_folder(run_tool, tmp_path):
    assert run_tool('report', 'nowhere')[0] == 1 and os.listdir(tmp_path) == []


def test_compare_prints_all_that_differs(made, run_tool):
    paths = find(made, 'voc21_sclip_clip_vit-b16_sclip'), find(made, 'voc21_sclip+fsa_clip_vit-b16_sclip')
    status, printed = run_tool('compare', *paths)
    assert status == 0 and 'A: SCLIP on voc21 (clip_vit-b16, sclip)' in printed
    before, after = (json.loads(path.read_text()) for path in paths)
    difference = after['metrics']['mIoU'] - before['metrics']['mIoU']
    assert f'{difference:+.2f}'.replace('-', '−') in printed and '95 % interval of B − A in mIoU' in printed
    keys = [key for key, *_ in after['fingerprint'] if key.startswith('model.feedback')]
    assert len(keys) > 5 and all(re.search(rf'^  (number|rounding) +{re.escape(key)} ', printed, re.M) for key in keys)
    assert f'{len(keys)} of {len(after["fingerprint"])}' in printed or 'entries of the fingerprints differ' in printed


def test_compare_of_a_result_with_itself(made, run_tool):
    path = find(made, 'voc21_sclip_clip_vit-b16_sclip')
    status, printed = run_tool('compare', path, path, '--within', 0)
    assert status == 0 and 'the fingerprints are equal' in printed and 'no class moved' in printed
    assert 'within 0: mIoU differs by 0.0000' in printed


@pytest.mark.parametrize('slack, status', [(1e-6, 0), (-1e-6, 1), (5, 0)])
def test_compare_within(made, run_tool, slack, status):
    paths = find(made, 'voc21_sclip_clip_vit-b16_sclip'), find(made, 'voc21_sclip+fsa_clip_vit-b16_sclip')
    before, after = (json.loads(path.read_text())['metrics']['mIoU'] for path in paths)
    within = abs(after - before) + slack
    found, printed = run_tool('compare', *paths, '--within', within)
    assert found == status
    assert f'{"not " if status else ""}within {within:g}: mIoU differs by {abs(after - before):.4f}' in printed


def test_compare_refuses_what_has_no_common_images(made, run_tool, tmp_path):
    path = find(made, 'voc21_sclip_clip_vit-b16_sclip')
    status, printed = run_tool('compare', path, find(made, 'voc20_sclip_clip_vit-b16_sclip'), '--within', 90)
    assert (
        status == 1 and 'no interval: the data sets differ: voc21 and voc20' in printed and 'not within 90' in printed
    )
    result = json.loads(path.read_text())
    result['images'][0]['name'] = 'other.jpg'
    (tmp_path / 'b.json').write_text(json.dumps(result))
    status, printed = run_tool('compare', path, 'b.json', '--within', 90)
    assert status == 1 and 'no interval: the images differ' in printed
    (tmp_path / 'c.json').write_text('{')
    status, printed = run_tool('compare', path, 'c.json')
    assert status == 1 and 'c.json is not a result of this suite' in printed and 'Traceback' not in printed
    assert run_tool('compare', path, path, '--within', -1)[0] == 1
