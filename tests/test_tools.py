"""The real tools on the mini splits, end to end."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fsa_seg.errors import UserError

from conftest import MINI, ROOT
from damage import DAMAGE

IMAGE = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000033.jpg')


def results(folder):
    return [json.loads(path.read_text()) for path in sorted((folder / 'work_dirs' / 'results').glob('*.json'))]


def test_one_cell(run_tool, tmp_path):
    status, printed = run_tool(
        'test', 'voc21', '--mini', '--method', 'sclip', '--limit', 3, '--show-dir', 'shown', '--out', 'result.json'
    )
    assert status == 0, printed
    assert 'SCLIP + FSA on voc21 (sclip): mIoU' in printed and 'partial: 3 images' in printed
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result['partial'] and result['cell']['toy'] and len(result['images']) == 3
    total = np.zeros((21, 21), int)
    confusion = result['confusion']
    total[confusion['truth'], confusion['predicted']] = confusion['pixels']
    for i, entry in enumerate(result['classes']):
        union = total[i].sum() + total[:, i].sum() - total[i, i]
        assert entry['IoU'] == (pytest.approx(100 * total[i, i] / union) if union else None)
        intersections = [
            image['intersection'][image['classes'].index(i)] for image in result['images'] if i in image['classes']
        ]
        assert sum(intersections) == total[i, i]
    pictures = sorted((tmp_path / 'shown').rglob('*.png'))
    assert [str(picture.relative_to(tmp_path / 'shown')) for picture in pictures] == [
        os.path.splitext(image['name'])[0] + '.png' for image in result['images']
    ]
    assert Image.open(pictures[0]).width > 3 * 200


def test_a_saved_result_runs_again_as_it_was(run_tool, tmp_path):
    """Also in batches of images with different sizes."""
    run_tool('test', 'context59', '--mini', '--method', 'maskclip', '--no-fsa', '--limit', 5, '--out', 'first.json')
    status, printed = run_tool('test', 'first.json', '--out', 'second.json', '--batch-size', 3, '--workers', 1)
    assert status == 0, printed
    first, second = (json.loads((tmp_path / name).read_text()) for name in ('first.json', 'second.json'))
    assert first['hash'] == second['hash'] and first['confusion'] == second['confusion']
    status, printed = run_tool('test', 'first.json', '--method', 'sclip', '--limit', 1)
    assert status == 1
    assert 'is a complete config, which says by itself what runs: leave out what sets limit, method' in printed


def test_one_process_and_two_give_the_same_counts(run_tool, tmp_path):
    """Of five images, the first process evaluates three images, and the second process two images."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', PORT='29611')
    arguments = ['--mini', '--limit', '5', '--method', 'sclip', '--work-dir', str(tmp_path), '--save-labels', '--out']
    status, printed = run_tool('test', 'voc20', *arguments, 'single')
    assert status == 0, printed
    command = ['bash', os.path.join(ROOT, 'tools', 'dist_test.sh'), 'voc20', '2', *arguments, 'double']
    process = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    single, double = (json.loads((tmp_path / name).read_text()) for name in ('single', 'double'))
    assert len(single['images']) == 5
    for key in ('images', 'confusion', 'hash'):
        assert single[key] == double[key]
    labels = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*.png')}
        for folder in (tmp_path / 'labels' / name for name in ('single', 'double'))
    ]
    assert labels[0] == labels[1] and len(labels[0]) == 5


def test_processes_leave_their_group_before_python_ends():
    """A thread of gloo that frees a tensor after Python's end aborts the process."""
    code = (
        'import atexit, sys; sys.path.insert(0, sys.argv[1]); import torch.distributed as d; '
        'atexit.register(lambda: print(d.is_initialized())); from fsa_seg.evaluation import ranks; '
        'ranks.start_processes("pytorch"); print(d.is_initialized())'
    )
    environment = dict(
        os.environ, RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT='29612'
    )
    process = subprocess.run([sys.executable, '-c', code, ROOT], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.split()[-2:] == ['True', 'False'], process.stdout + process.stderr


def test_an_interrupted_run_goes_on_where_it_was(run_tool, tmp_path, monkeypatch):
    from fsa_seg.models import segmentor

    label_tiles, calls = segmentor.label_tiles, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return label_tiles(*arguments)

    command = ('test', 'ade20k', '--mini', '--method', 'clip', '--no-fsa', '--limit', 4)
    monkeypatch.setattr(segmentor, 'label_tiles', interrupt)
    status, printed = run_tool(*command)
    assert status == 130 and 'goes on' in printed
    assert not results(tmp_path)
    calls.extend([1] * 10)
    before = len(calls)
    status, printed = run_tool(*command, '--data-root', MINI)  # another path of the same data
    assert status == 0, printed
    assert len(calls) - before == 2  # the last two images
    assert not list(tmp_path.glob('work_dirs/logs/*/journal*'))
    (resumed,) = results(tmp_path)
    assert resumed['images_resumed'] == 2
    shutil.rmtree(tmp_path / 'work_dirs')
    run_tool(*command)
    (uninterrupted,) = results(tmp_path)
    for key in ('images', 'confusion', 'hash', 'partial'):
        assert uninterrupted[key] == resumed[key]
    assert 'journal' not in json.dumps(resumed['config'])


def test_benchmark_skips_what_is_there_but_by_force(run_tool, small, tmp_path):
    data = ('--mini', '--data-root', small, '--datasets', 'voc20')
    command = ('benchmark', *data, '--methods', 'clip', 'maskclip', '--no-fsa')
    status, printed = run_tool(*command, '--picture', 'rows.png')
    assert status == 0, printed
    assert 'never comparable' in printed and '| CLIP | toy | – | clearclip |' in printed
    assert Image.open(tmp_path / 'rows.png').width > 4 * 200
    assert (tmp_path / 'work_dirs' / 'table.md').read_text().strip() in printed
    paths = sorted((tmp_path / 'work_dirs' / 'results').iterdir())
    times = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    assert run_tool(*command)[0] == 0
    assert paths[0].stat().st_mtime_ns == times[0] and paths[1].exists()
    assert (tmp_path / 'work_dirs' / 'table.md').read_text().strip() in printed
    times = [path.stat().st_mtime_ns for path in paths]
    assert run_tool(*command, '--force')[0] == 0
    assert all(path.stat().st_mtime_ns > time for path, time in zip(paths, times))


def test_segment(run_tool, tmp_path):
    status, printed = run_tool('segment', IMAGE, 'cat; kitten', 'grass', '--mini', '--out', 'cat.png')
    assert status == 0, printed
    assert '%  cat; kitten' in printed
    assert '\nThese are toy models, which know the toy world alone: ' in printed
    assert Image.open(tmp_path / 'cat.png').width > 2 * 300


@pytest.mark.parametrize('method, pixel', [('sclip', (150, 120)), ('proxyclip', (319, 239))])
def test_segment_draws_a_patchs_attention(run_tool, tmp_path, method, pixel):
    status, printed = run_tool(
        'segment',
        IMAGE,
        'cat; kitten',
        'grass',
        '--mini',
        '--method',
        method,
        '--attention',
        '{},{}'.format(*pixel),
        '--out',
        'rows.png',
    )
    assert status == 0, printed
    picture = Image.open(tmp_path / 'rows.png')
    assert picture.width > 4 * 320 and picture.height > 2 * 240


def test_segmenter_gives_a_patchs_attention_as_arrays():
    from fsa_seg import Segmenter

    segmenter = Segmenter(backbone='toy', vfm='toy', method='sclip', device='cpu')
    words = ['cat; kitten', 'grass', 'wall']
    attention = segmenter.attention(IMAGE, words, 150, 120)
    rows, (left, top, right, bottom) = attention.rows, attention.window
    assert left <= 150 < right and top <= 120 < bottom
    assert {row.shape for row in rows} == {(14, 14)} and all(0 <= index < 14 for index in attention.patch)
    assert rows.similarity[attention.patch] == pytest.approx(1, abs=1e-4)  # a patch is like itself
    assert np.isneginf(rows.pruned).any() and rows.adapted.sum() == pytest.approx(1, abs=1e-4)
    assert (rows.adapted[np.isneginf(rows.pruned)] == 0).all()
    assert 1.5 < rows.attention.sum() <= 2.001  # SCLIP's rows sum to two, CLS included
    assert np.array_equal(attention.labels, segmenter.segment(IMAGE, words).labels)
    bare = Segmenter(backbone='toy', vfm='toy', method='sclip', feedback=False, device='cpu')
    assert np.array_equal(attention.without, bare.segment(IMAGE, words).labels)
    assert not np.array_equal(attention.without, attention.labels)
    with pytest.raises(UserError, match='was made without FSA'):
        bare.attention(IMAGE, words, 1, 1)
    with pytest.raises(UserError, match='the pixel 320,0 lies outside the image, which has 320×240'):
        segmenter.attention(IMAGE, words, 320, 0)


def test_the_patch_looked_at_is_the_one_at_the_pixel(tmp_path):
    """With identity attention a patch attends itself alone, so that A's row marks the patch of any pixel."""
    from fsa_seg import Segmenter

    segmenter = Segmenter(backbone='toy', vfm='toy', method='maskclip', device='cpu')
    image = np.zeros((150, 300, 3), np.uint8)
    for x, y in ((0, 0), (299, 149), (150, 10), (37, 140)):
        attention = segmenter.attention(image, ['a', 'b'], x, y)
        rows, columns = attention.rows.attention.shape
        left, top, right, bottom = attention.window
        row, column = np.argwhere(attention.rows.attention == 1)[0]
        assert (row, column) == attention.patch
        # the window is padded evenly to whole patches of 16 pixels of the resized image (448 pixels high)
        assert abs((column + 0.5) / columns - (x + 0.5 - left) / (right - left)) < 0.6 / columns
        assert abs((row + 0.5) / rows - (y + 0.5 - top) / (bottom - top)) < 0.6 / rows


def test_random_weights_are_marked(run_tool, small, tmp_path):
    data, options = ('--mini', '--data-root', small), ('--no-fsa', '--random-weights', 5)
    command = ('test', 'voc20', *data, '--method', 'clip', *options)
    status, printed = run_tool(*command)
    assert status == 0 and 'random weights of seed 5: it enters no table' in printed, printed
    (first,) = results(tmp_path)
    assert first['cell']['random_weights'] == 5 and first['metrics']['mIoU'] < 20
    run_tool(*command)
    (second,) = results(tmp_path)
    assert second['confusion'] == first['confusion']
    status, printed = run_tool('benchmark', *data, '--datasets', 'voc20', '--methods', 'clip', *options)
    assert status == 0 and '1 results of random weights' in printed and '| CLIP |' not in printed, printed


def test_benchmark_runs_a_users_suite_with_words(run_tool, tmp_path):
    """The suite spells out a map, settings of FSA, and a file of words."""
    from mmseg.datasets import CityscapesDataset

    (tmp_path / 'words.txt').write_text(
        '\n'.join(f'{name}; a {name}' for name in CityscapesDataset.METAINFO['classes'])
    )
    (tmp_path / 'mine.py').write_text(
        "suite = dict(name='mine', groups=[dict(method=[dict(attention='vv', name='VV')], protocol=['proxyclip'], "
        "feedback=[None, dict(p=1.0)], words=['words.txt'], dataset=['cityscapes'])])"
    )
    status, printed = run_tool('benchmark', '--suite', 'mine.py', '--mini')
    assert status == 0, printed
    assert '| VV | toy | – | proxyclip, words words-' in printed and '| VV + FSA p=1.0 | toy |' in printed
    assert (tmp_path / 'work_dirs' / 'table_mine.md').exists()
    bare, adapted = sorted(results(tmp_path), key=lambda result: result['cell']['feedback'] or '')
    assert bare['metrics'] != adapted['metrics']
    status, printed = run_tool('benchmark', '--suite', 'mine.py', '--mini', '--fsa')
    assert status == 0 and '| VV | toy |' not in printed and '| VV + FSA p=1.0 |' in printed


def test_a_suites_groups_without_feedback_take_the_options(run_tool, small, tmp_path):
    (tmp_path / 'mine.py').write_text("suite = dict(name='mine', groups=[dict(method=['clip'])])")
    data = ('--mini', '--data-root', small, '--datasets', 'voc20')
    status, printed = run_tool('benchmark', '--suite', 'mine.py', *data, '--no-fsa')
    assert status == 0 and '| CLIP |' in printed and '| CLIP + FSA |' not in printed, printed


def test_a_feedback_by_its_name(run_tool, tmp_path):
    """SFR with the settings of ResCLIP's protocol, alone and before FSA; and the suite's feedbacks replaced."""
    command = ('test', 'voc21', '--mini', '--method', 'resclip', '--limit', 2, '--feedback')
    status, printed = run_tool(*command, 'sfr')
    assert status == 0 and 'ResCLIP + SFR on voc21 (resclip)' in printed, printed
    status, printed = run_tool(*command, 'sfr+fsa', '--out', 'both.json')
    assert status == 0 and 'ResCLIP + SFR+FSA on voc21 (resclip)' in printed, printed
    both = json.loads((tmp_path / 'both.json').read_text())
    entries = {key: value for key, value, level in both['fingerprint']}
    assert entries['model.feedback.sfr_tau'] == 2.2 and entries['model.feedback.p'] == 0.45
    assert both['cell']['feedback'] == 'sfr+fsa' and entries['method.tau'] == 2
    status, printed = run_tool(*command, 'sfr', '--no-fsa')
    assert status == 2 and 'not allowed with argument' in printed
    status, printed = run_tool(*command[:4], 'maskclip', '--feedback', 'sfr')
    assert status == 1 and 'MaskCLIP: SFR adapts the logits of a softmax' in printed
    feedbacks = ('--feedback', 'none', 'sfr')
    status, printed = run_tool('benchmark', '--mini', '--methods', 'gem', '--datasets', 'voc20', *feedbacks)
    assert status == 0 and '| GEM |' in printed and '| GEM + SFR |' in printed and 'FSA' not in printed, printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['--suite', 'architectures', '--mini', '--datasets', 'voc21', '--protocol', 'fsa'],
            'the suite architectures runs on one window, without data: leave out --datasets, --protocol',
        ),
        (['--suite', 'pape', '--mini'], "unknown suite 'pape' (did you mean 'paper'?)"),
    ],
)
def test_options_that_a_suite_cannot_have(run_tool, arguments, message):
    status, printed = run_tool('benchmark', *arguments)
    assert status == 1 and message in printed


def test_what_cannot_be_looked_at(run_tool, capsys):
    command = ('segment', IMAGE, 'cat', '--mini', '--attention')
    status, printed = run_tool(*command, '150')
    assert status == 2 and "'150' is no pixel; give X,Y, such as 150,120" in printed
    status, printed = run_tool(*command, '1,2', '--no-fsa')
    assert status == 1 and 'leave out --no-fsa' in printed
    status, printed = run_tool(*command, '1,2', '--method', 'sclip', '--feedback', 'sfr')
    assert status == 1 and 'SFR has no S and W to look at; use --feedback fsa or sfr+fsa' in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--fsa-options', 'lamda=2'], "unknown key 'lamda' in --fsa-options (did you mean 'lam'?)"),
        (['--fsa-options', 'type=SFR'], "unknown key 'type' in --fsa-options"),
        (['--fsa-options', 'lam=90'], 'FSA: lam is 90; it has to be from 0 to 80'),
        (['--fsa-options', 'terms=[]'], 'FSA: terms is []; it has to be a choice of WA, AW, W'),
        (['--fsa-options', 'lam=2', '--no-fsa'], 'leave out --no-fsa, or --feedback other than fsa'),
        (['--fsa-options', 'lam=2', '--feedback', 'sfr'], 'leave out --no-fsa, or --feedback other than fsa'),
        (['--fsa-options', 'lam'], "'lam' is not KEY=VALUE, such as lam=2.5"),
        (['--attention', '1,2', '--scores', 'x.npz'], '--attention keeps no scores'),
        (['--random-weights', '-1'], 'random_weights is -1; it has to be a whole number, 0 or more'),
    ],
)
def test_options_that_a_picture_cannot_have(run_tool, monkeypatch, arguments, message):
    """They are found before a model is loaded."""
    monkeypatch.setattr('fsa_seg.models.segmentor.load_clip', lambda **_: pytest.fail('a model was loaded'))
    status, printed = run_tool('segment', IMAGE, 'cat', '--mini', *arguments)
    assert status and message in printed and 'Traceback' not in printed, printed


def test_architectures_under_the_old_name_of_their_suite(run_tool, tmp_path):
    status, printed = run_tool('benchmark', '--suite', 'smoke', '--mini')
    assert status == 0, printed
    assert '29 cells, 0 failed; 7 agree with the dense evaluation' in printed
    assert '| toy | toy | ProxyCLIP + FSA | 42×42 |' in printed
    assert (tmp_path / 'work_dirs' / 'table_architectures.md').exists()


def test_segmenter_takes_paths_pictures_and_arrays():
    from fsa_seg import Segmenter

    segmenter = Segmenter(backbone='toy', vfm='toy', method='sclip', feedback=dict(p=0.5), device='cpu')
    assert segmenter.model.feedback.p == 0.5
    picture = Image.open(IMAGE)
    words = ['cat; kitten', 'grass', 'wall']
    of_path, of_picture, of_array = (segmenter.segment(image, words) for image in (IMAGE, picture, np.array(picture)))
    labels = of_path.labels
    assert np.array_equal(labels, of_picture.labels) and np.array_equal(labels, of_array.labels)
    assert labels.shape == picture.size[::-1] and of_path.scores is None and not segmenter.model.keep_scores
    scored = segmenter.segment(picture, words, scores=True)
    assert scored.scores.shape == (3, *picture.size[::-1]) and np.array_equal(scored.scores.argmax(0), labels)
    assert len(segmenter.segment(picture, ['road', 'sea'], scores=True).scores) == 2  # other words, same model


def test_mmsegs_own_metric_loading_and_visualization_hook(tmp_path):
    """The segmentors work with the metric, the label loading and the hook of mmseg."""
    from mmengine.runner import Runner

    from fsa_seg.config.compose import compose
    from fsa_seg.evaluation.passes import prepare, run_cell

    config = compose(
        'voc21', 'sclip', None, 'toy', data_root=MINI, limit=1, runtime=dict(workers=0, work_dir=str(tmp_path))
    )
    config.default_hooks.visualization = dict(type='SegVisualizationHook', draw=True)
    config.visualizer = dict(
        type='SegLocalVisualizer',
        name='of_this_test',  # mmengine keeps one visualizer of a name in a process
        save_dir=str(tmp_path / 'drawn'),
        vis_backends=[dict(type='LocalVisBackend')],
    )
    result = run_cell(prepare(config), str(tmp_path / 'r.json'))
    assert list((tmp_path / 'drawn').rglob('*.png'))
    config.test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
    config.test_dataloader.dataset.pipeline[2] = dict(type='mmseg.LoadAnnotations')
    config.experiment_name = 'mmsegs'
    assert Runner.from_cfg(config).test()['mIoU'] == pytest.approx(result['metrics']['mIoU'], abs=0.0051)


@pytest.fixture
def data(tmp_path):
    """A copy of the mini data's VOC2012 that a test may damage."""
    shutil.copytree(os.path.join(MINI, 'VOCdevkit', 'VOC2012'), tmp_path / 'mini' / 'VOCdevkit' / 'VOC2012')
    (tmp_path / 'mini' / 'TOY_WORLD').touch()
    return tmp_path / 'mini' / 'VOCdevkit' / 'VOC2012'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['voc12', '--mini'], "unknown dataset 'voc12' (did you mean 'voc21'?)"),
        (['voc21', '--mini', '--method', 'maskclp'], "did you mean 'maskclip'"),
        (['voc21', '--mini', '--backbone', 'tpy'], "did you mean 'toy'"),
        (['voc21', '--mini', '--vfm', 'dino_vitb8'], "did you mean 'dino_vit-b8'"),
        (['voc21', '--mini', '--cfg-options', 'model.windw=3'], "did you mean 'window'"),
        (
            ['voc21', '--mini', '--cfg-options', 'model.window=0'],
            'window is 0, the whole image, which the method proxyclip cannot',
        ),
        (['voc21', '--mini', '--cfg-options', 'model.window=-1'], 'window is -1; it has to be a whole number'),
        (['voc21', '--mini', '--cfg-options', 'model.feedback.p=2'], 'p is 2'),
        (['voc21', '--mini', '--cfg-options', 'model.feedback.rounds=0'], 'rounds is 0; it has to be a whole number'),
        (['voc21', '--mini', '--cfg-options', 'model.feedback.terms=[WA,AX]'], 'terms is'),
        (['voc21', '--mini', '--cfg-options', 'model.feedback.similarity=js'], "unknown similarity of FSA 'js'"),
        (
            ['voc21', '--mini', '--cfg-options', 'model.window=8', 'model.stride=8'],
            'window is 8 pixels, smaller than a patch',
        ),
        (['voc21', '--mini', '--method', 'naclip', '--cfg-options', 'model.method.sigme=3'], "did you mean 'sigma'"),
        (['voc21', '--mini', '--method', 'naclip', '--cfg-options', 'model.method.sigma=0'], 'sigma is 0'),
        (['voc21', '--mini', '--cfg-options', 'model.refinement=PMAR'], "did you mean 'PAMR'"),
        (['voc21', '--mini', '--cfg-options', 'model.refinement=PAMR', 'model.refinement.steps=-1'], 'steps is -1'),
        (
            ['voc21', '--mini', '--vfm', 'proxy=toy,graph=toy'],
            "unknown key 'graph' in the VFMs of the method proxyclip",
        ),
        (['voc21', '--mini', '--cfg-options', 'model.backbone.random_weights=1'], 'use --random-weights SEED'),
        (['voc21', '--mini', '--cfg-options', 'model.backbone.checkpoint=x.pt'], 'leave out pretrained and checkpoint'),
        (['voc21', '--mini', '--data-root', 'nowhere'], 'lacks the folder nowhere'),
        (['voc21', '--mini', '--words', 'words.txt'], 'words for 2 classes, but the data set has 21'),
        (['voc21', '--mini', '--cfg-options', 'model.backbone.model=local-dir:gone'], "'gone' does not exist"),
        (['voc21', '--mini', '--cfg-options', 'model.vfm.proxy.model_args.depth=5'], 'do not fit'),
        (['voc21', '--mini', '--cfg-options', 'model.vfm.proxy.model_args.depht=5'], 'cannot be built'),
        (['voc21', '--data-root', os.path.join(MINI)], 'could not be loaded'),
        (['voc21', '--mini', '--launcher', 'slurm'], '--launcher slurm: SLURM_PROCID'),
        (['voc21', '--mini', '--workers', '-1'], 'workers is -1; it has to be a whole number, 0 to 1024'),
        (['voc21', '--mini', '--cfg-options', 'model.words=3'], 'it holds a list'),
        (['voc21', '--mini', '--cfg-options', 'env_cfg.cudnn_benchmrk=True'], "did you mean 'cudnn_benchmark'"),
        (['voc21', '--mini', '--work-dir', 'words.txt/x'], 'cannot be made'),
        (['voc21', '--mini', '--out', 'words.txt/x.json'], 'cannot be made'),
    ],
)
def test_bad_input_is_one_message_and_status_1(run_tool, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    (tmp_path / 'words.txt').write_text('a\nb\n')
    status, printed = run_tool('test', *arguments)
    assert status == 1
    error = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(error) == 1 and message in error[0]
    assert 'Traceback' not in printed
    assert not list(tmp_path.rglob('results/*.json'))


def cut_image(data):
    path = data / 'JPEGImages' / '2007_000033.jpg'
    path.write_bytes(path.read_bytes()[:700])  # the head is intact: decoding fails during the run


@pytest.mark.parametrize('damage, message', [*DAMAGE, (cut_image, '2007_000033.jpg cannot be decoded')])
def test_damaged_data_is_one_message_and_status_1(run_tool, data, tmp_path, damage, message):
    """Also if a data loader's process raises the error."""
    damage(data)
    status, printed = run_tool(
        'test', 'voc21', '--mini', '--data-root', tmp_path / 'mini', '--method', 'clip', '--workers', 1
    )
    assert status == 1
    error = [line for line in printed.splitlines() if line.startswith('error: ')]
    assert len(error) == 1 and re.search(message, error[0])
    assert 'Traceback' not in printed
    assert not list(tmp_path.rglob('results/*.json'))


def test_the_process_ends_with_status_1_and_no_traceback(tmp_path):
    process = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'tools', 'test.py'), 'voc12'], cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "error: unknown dataset 'voc12'" in process.stderr and 'Traceback' not in process.stderr


def test_a_feedback_that_a_method_refuses_is_left_out(run_tool):
    command = (
        'benchmark',
        '--mini',
        '--datasets',
        'voc20',
        '--protocol',
        'proxyclip',
        '--feedback',
        'sfr',
        '--methods',
    )
    status, printed = run_tool(*command, 'maskclip', 'clearclip')
    assert status == 0 and '| ClearCLIP + SFR |' in printed and '| MaskCLIP' not in printed, printed
    assert 'left out, since the method refuses the feedback: maskclip + sfr' in printed
    status, printed = run_tool(*command, 'maskclip')
    assert status == 1 and 'MaskCLIP: SFR adapts the logits' in printed
