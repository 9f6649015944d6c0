"""`--export`: mmsegmentation's own tools run the written config, and a config of a user may start from it."""

import json
import os
import re

import mmseg
import numpy as np
import pytest
from mmengine import Config
from PIL import Image

from fsa_seg.config.compose import compose
from fsa_seg.config.export import export_config, mark_changes
from fsa_seg.config.fingerprint import cell_hash, fingerprint
from fsa_seg.errors import UserError
from fsa_seg.evaluation.passes import prepare

from conftest import MINI
from new_process import run_python

MMSEG_TEST = os.path.join(os.path.dirname(mmseg.__file__), '.mim', 'tools', 'test.py')
IMAGE = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000227.jpg')


def composed(dataset='voc21', method='sclip', data_root=MINI, **options):
    runtime = dict(workers=0, work_dir='w')
    return compose(dataset, method, 'fsa', 'toy', 'toy', data_root=str(data_root), runtime=runtime, **options)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """An exported config of SCLIP + FSA on VOC21, and its checkpoint."""
    path = str(tmp_path_factory.mktemp('exported') / 'voc21.py')
    return path, export_config(composed(), path, 'SCLIP + FSA')


@pytest.fixture(scope='module')
def labels():
    """The labels of IMAGE by the suite's own Segmenter, under the words and settings of voc21."""
    from mmseg.registry import DATASETS, MODELS

    config = composed()
    model = MODELS.build(config.model)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    data = dataset[paths.index(IMAGE)]
    sample = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
    return sample.pred_sem_seg.data[0].numpy()


@pytest.mark.parametrize('dataset, method', [('voc21', 'sclip'), ('ade20k', 'proxyclip'), ('coco_object', 'naclip')])
def test_an_exported_config_is_the_same_cell(tmp_path, monkeypatch, dataset, method):
    """From another folder too, since its paths are absolute."""
    config = composed(dataset, method)
    export_config(config, str(tmp_path / 'x.py'), 'row')
    monkeypatch.chdir(tmp_path)
    read = Config.fromfile('x.py')
    assert os.path.isabs(read.test_dataloader.dataset.data_root)
    mark_changes(read)
    assert cell_hash(fingerprint(read)) == cell_hash(fingerprint(config)) and read.cell.changed == []
    assert read.model.to_dict()['words'] == config.model.to_dict()['words']


def test_mmsegs_own_test_tool_runs_it(exported, tmp_path):
    path, checkpoint = exported
    options = ('--out', 'labels', '--show-dir', 'shown', '--work-dir', 'w')
    done = run_python(MMSEG_TEST, path, checkpoint, *options, cwd=tmp_path)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    with open(os.path.join(MINI, 'golden.json'), encoding='utf-8') as f:
        golden = json.load(f)['cells']['SCLIP + FSA | toy | – | sclip']['voc21']
    assert f'mIoU: {golden:.4f}' in printed, printed[-2000:]
    assert len(os.listdir(tmp_path / 'labels')) == len(list(tmp_path.glob('shown/**/*.png'))) == 10


def test_its_labels_are_written_as_the_files_have_them(tmp_path):
    """With `reduce_zero_label` the first class is 1; more than 254 classes take 16 bits."""
    import torch

    from fsa_seg.evaluation.metric import ExactIoUMetric

    for classes, reduce_zero in ((150, True), (300, False)):
        metric = ExactIoUMetric(output_dir=str(tmp_path / 'o'), keep_results=True)
        metric.dataset_meta = dict(classes=[str(i) for i in range(classes)])
        data = dict(data=torch.tensor([[[0, classes - 1]]]))
        sample = dict(pred_sem_seg=data, gt_sem_seg=data, img_path='a/b.jpg', seg_map_path='a/b.png')
        metric.process(None, [dict(sample, reduce_zero_label=reduce_zero)])
        written = np.array(Image.open(tmp_path / 'o' / 'b.png'))
        assert written.tolist() == [[reduce_zero, classes - 1 + reduce_zero]]


@pytest.mark.parametrize('as_array', [False, True])
def test_mmsegs_init_model_and_inference_model(exported, labels, as_array, monkeypatch, tmp_path):
    import cv2
    from mmseg.apis import inference_model, init_model

    monkeypatch.chdir(tmp_path)
    model = init_model(*exported, device='cpu')
    assert model.dataset_meta['classes'][8] == 'cat' and len(model.dataset_meta['palette']) == 21
    image = cv2.imread(IMAGE) if as_array else IMAGE
    found = inference_model(model, image)
    assert np.array_equal(found.pred_sem_seg.data[0].numpy(), labels)
    assert len(inference_model(model, [image, image])) == 2


@pytest.mark.parametrize('as_array', [False, True])
def test_mmsegs_inferencer(exported, labels, as_array, tmp_path):
    import cv2
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(*exported, device='cpu', show_progress=False)
    found = inferencer(cv2.imread(IMAGE) if as_array else IMAGE, out_dir=str(tmp_path))
    assert np.array_equal(found['predictions'], labels)
    assert os.listdir(tmp_path / 'vis') and os.listdir(tmp_path / 'pred')


def test_mmsegs_pretrained_is_refused():
    from mmseg.registry import MODELS

    with pytest.raises(UserError, match='pretrained and train_cfg have to be None'):
        MODELS.build(dict(composed().model, pretrained='x.pth'))


def test_a_users_config_on_an_exported_one(run_tool, small, tmp_path):
    """What it changes stands in the printed row and in the result; what it does not is the same cell."""
    export_config(composed(data_root=small), str(tmp_path / 'exported.py'), 'SCLIP + FSA')
    (tmp_path / 'same.py').write_text("_base_ = ['exported.py']\n")
    (tmp_path / 'mine.py').write_text("_base_ = ['exported.py']\nmodel = dict(stride=224, feedback=dict(p=0.6))\n")
    status, printed = run_tool('test', 'same.py', '--out', 'same.json')
    assert status == 0 and 'SCLIP + FSA on voc21 (sclip): mIoU' in printed, printed
    assert len(printed.splitlines()) < 6  # the log is for mmseg's tools
    assert json.loads((tmp_path / 'same.json').read_text())['hash'][:10] == prepare(composed(data_root=small)).hash[:10]
    status, printed = run_tool('test', 'mine.py', '--out', 'mine.json')
    assert status == 0, printed
    assert 'SCLIP + FSA on voc21 (sclip, model.feedback.p=0.6, model.stride=224): mIoU' in printed
    same, mine = (json.loads((tmp_path / name).read_text()) for name in ('same.json', 'mine.json'))
    assert same['cell']['changed'] == [] and same['hash'] != mine['hash']
    assert mine['cell']['changed'] == ['model.feedback.p=0.6', 'model.stride=224']
    status, printed = run_tool('test', 'mine.json', '--out', 'again.json')  # and its result runs again
    assert status == 0, printed
    assert json.loads((tmp_path / 'again.json').read_text())['confusion'] == mine['confusion']


def test_an_edited_export_says_what_was_edited(exported, tmp_path):
    """Also what was taken away."""
    with open(exported[0], encoding='utf-8') as f:
        text = f.read()
    (tmp_path / 'edited.py').write_text(text.replace("'prob_thd': 0.1", "'prob_thd': 0.2"))
    config = Config.fromfile(str(tmp_path / 'edited.py'))
    config.model.feedback = None
    mark_changes(config)
    changed = config.cell.changed
    assert changed == ['model.feedback=null', 'model.prob_thd=0.2'] and config.cell.feedback is None


def test_what_an_export_refuses(run_tool):
    command = ('test', 'voc21', '--mini', '--method', 'sclip', '--export')
    status, printed = run_tool(*command, 'x.json')
    assert status == 1 and '--export x.json: the name has to end in .py' in printed
    status, printed = run_tool(*command, 'x.py', '--limit', 3)
    assert status == 1 and 'leave out --limit' in printed


def test_a_cycle_of_bases(run_tool, tmp_path):
    (tmp_path / 'a.py').write_text("_base_ = ['b.py']\n")
    (tmp_path / 'b.py').write_text("_base_ = ['a.py']\n")
    status, printed = run_tool('test', 'a.py')
    assert status == 1 and 'its _base_ files name each other in a cycle' in printed, printed


def test_an_exported_config_without_the_package(exported, tmp_path):
    """mmengine names the module that is missing."""
    code = 'import sys; sys.modules["fsa_seg"] = None\nfrom mmengine import Config\nConfig.fromfile(sys.argv[1])'
    done = run_python('-c', code, exported[0], cwd=tmp_path)
    assert done.returncode == 1 and 'fsa_seg.register' in done.stderr


def test_an_export_with_a_method_of_ones_own_names_its_folder(tmp_path, monkeypatch):
    """The folder is absolute, and with it the config runs from another folder."""
    (tmp_path / 'mine' / 'methods').mkdir(parents=True)
    (tmp_path / 'mine' / 'methods' / 'exportedown.py').write_text(
        'from fsa_seg.methods.base import Method\nfrom fsa_seg.ops.attention import named_map\n'
        'class Own(Method):\n    """vv."""\n    title = "ExportedOwn"\n    protocol = "clearclip"\n'
        '    def attention(self, block):\n        return named_map("vv", block)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('FSA_SEG_CONFIGS', 'mine')
    config = composed('voc20', 'exportedown')
    export_config(config, 'x.py', 'row')
    text = (tmp_path / 'x.py').read_text()
    assert '# Methods and classes of your own: FSA_SEG_CONFIGS=' in text and f'{tmp_path}/mine' in text
    read = Config.fromfile('x.py')
    mark_changes(read)
    assert cell_hash(fingerprint(read)) == cell_hash(fingerprint(config))


def test_a_name_is_no_program(tmp_path):
    """A saved result's texts stand in a comment of the exported file."""
    config = composed()
    export_config(config, str(tmp_path / 'x.py'), 'a)\nopen("PWNED", "w")\n#(')
    assert 'open(' not in {line.split('=')[0][:5] for line in (tmp_path / 'x.py').read_text().splitlines()}
    assert (tmp_path / 'x.py').read_text().splitlines()[0].startswith('# a) open("PWNED", "w") #(')


def test_what_an_export_leaves_alone(tmp_path):
    """A file with other content, and a checkpoint of the same stem."""
    export_config(composed(), str(tmp_path / 'x.py'), 'row')
    export_config(composed(), str(tmp_path / 'x.py'), 'row')  # the same
    with pytest.raises(UserError, match='x.py exists, and holds something else'):
        export_config(composed(method='clip'), str(tmp_path / 'x.py'), 'row')
    (tmp_path / 'y.pth').write_bytes(b'weights')
    with pytest.raises(UserError, match='y.pth, which goes beside .*y.py, exists and is another checkpoint'):
        export_config(composed(), str(tmp_path / 'y.py'), 'row')


def test_a_method_given_by_its_path_is_not_exported(tmp_path):
    path = tmp_path / 'bypath.py'
    path.write_text(
        'from fsa_seg.methods.base import Method\nfrom fsa_seg.ops.attention import named_map\n'
        'class Own(Method):\n    """vv."""\n    title = "ByPath"\n    protocol = "clearclip"\n'
        '    def attention(self, block):\n        return named_map("vv", block)\n'
    )
    with pytest.raises(UserError, match='no config finds the class of .*bypath.py, which was given by its path'):
        export_config(composed(method=str(path)), str(tmp_path / 'x.py'), 'row')


@pytest.mark.parametrize(
    'text, message',
    [
        ("model = dict(type='SCLP')", "unknown class in model 'SCLP'.*FSA_SEG_CONFIGS"),
        ("model = dict(feedback=dict(type='FSAA'))", "unknown feedback 'FSAA'"),
        ("test_evaluator = dict(type='Nonsense')", "unknown class in test_evaluator 'Nonsense'"),
        ('default_hooks = dict(_delete_=True, timer=None)', 'default_hooks lacks logger'),
        ("load_from = 'w.pth'", "load_from.* is 'w.pth'|load_from='w.pth', which would replace weights"),
    ],
)
def test_mistakes_in_a_config_on_an_exported_one(exported, run_tool, tmp_path, text, message):
    (tmp_path / 'mine.py').write_text(f'_base_ = [{exported[0]!r}]\n{text}\n')
    status, printed = run_tool('test', 'mine.py')
    assert status == 1 and re.search(message, printed) and 'Traceback' not in printed, printed


def test_names_and_marks_follow_what_is_changed(exported, tmp_path):
    """Another method is another row; random weights and drawn scenes are marked, whoever named them."""
    (tmp_path / 'mine.py').write_text(
        f"_base_ = [{exported[0]!r}]\nmodel = dict(type='ClearCLIP', feedback=None, backbone=dict(random_weights=3))\n"
        "default_hooks = dict(mine=dict(type='CheckInvalidLossHook'))\ncell = dict(toy=False, toy_data=False)\n"
    )
    config = Config.fromfile(str(tmp_path / 'mine.py'))
    mark_changes(config)
    assert (config.cell.title, config.cell.method, config.cell.feedback) == ('ClearCLIP', 'clearclip', None)
    assert any(text.startswith('hooks=') for text in config.cell.changed)
    assert not any(text.endswith('=none') for text in config.cell.changed)
    config.work_dir = str(tmp_path)  # the checks of the data are kept there
    cell = prepare(config).config.cell
    assert cell.random_weights == 3 and cell.toy and cell.toy_data


@pytest.mark.parametrize('text', ['', 'exported = None\n'])
def test_an_export_that_has_lost_its_digests(exported, tmp_path, text, capsys):
    """Every setting counts as changed, and the cell is the same as the suite's own."""
    with open(exported[0], encoding='utf-8') as f:
        content = f.read()
    (tmp_path / 'x.py').write_text(content[: content.index('\nexported = ')] + f'\n{text}')
    config = Config.fromfile(str(tmp_path / 'x.py'))
    mark_changes(config)
    assert 'model.stride=112' in config.cell.changed
    assert cell_hash(fingerprint(config)) == cell_hash(fingerprint(composed()))
