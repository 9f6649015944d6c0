"""A change that can move a number makes another cell or a stale result, or the run prints it."""

import glob
import importlib
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from fsa_seg.config.compose import compose, merge_options
from fsa_seg.config.fingerprint import Data, canonical, cell_hash, differences, fingerprint, shared_key
from fsa_seg.errors import UserError
from fsa_seg.evaluation.passes import prepare, result_path, run_cells

from conftest import MINI, ROOT

TOY = dict(method='sclip', backbone='toy', vfm='toy', data_root='data/mini')
DATA = Data(['a.jpg', 'b.jpg'], {'a.jpg': '1', 'b.jpg': '2'})


def entries(options=None, data=DATA, dataset='voc21', **arguments):
    config = compose(dataset, **{**TOY, **arguments})
    merge_options(config, options)
    return fingerprint(config, data)


def digest(*arguments, **options):
    return cell_hash(entries(*arguments, **options))


def test_the_hash_changes_with_what_can_change_a_number(tmp_path):
    words = tmp_path / 'words.txt'
    words.write_text('\n'.join(f'w{i}' for i in range(21)))
    hashes = [
        digest(),
        digest(method='clip'),
        digest(method='naclip', protocol='sclip'),
        digest(method=dict(type='naclip', sigma=3.0), protocol='sclip'),
        digest(method=dict(attention='qq'), protocol='sclip'),
        digest(method=dict(attention='qq', residual=True), protocol='sclip'),
        digest({'model.refinement': 'PAMR'}),
        digest({'model.refinement': 'PAMR', 'model.refinement.steps': 5}),
        digest({'model.window': 0}),
        digest(feedback=None),
        digest(protocol='clearclip'),
        digest(words=str(words)),
        digest(data=Data(DATA.names[:1], DATA.contents)),
        digest(data=Data(DATA.names, {'a.jpg': '1', 'b.jpg': '3'})),
        digest(precision='bf16'),
        digest({'model.stride': 56}),
        digest({'model.feedback.p': 0.5}),
        digest({'model.backbone.model': 'ViT-B-16', 'model.backbone.pretrained': 'openai'}),
        digest({'model.backbone.model': 'ViT-B-16', 'model.backbone.pretrained': 'laion2b_s34b_b88k'}),
        digest(random_weights=0),
        digest(random_weights=1),
        digest(feedback=dict(rounds=2)),
        digest(feedback=dict(terms=['W'])),
        digest(method='proxyclip'),
        digest(method='proxyclip', vfm='dino_vit-b8'),
        digest(method='proxyclip', vfm='dino_vit-b16'),
        digest({'test_cfg.fp16': True}),
        digest({'test_dataloader.dataset.seg_map_suffix': '_other.png'}),
        digest({'test_dataloader.dataset.ann_file': 'other.txt'}),
        digest({'test_dataloader.dataset.data_prefix.seg_map_path': 'OtherLabels'}),
        digest({'test_dataloader.dataset.pipeline.1.scale': (2048, 448)}),
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_ignores_what_changes_no_number(tmp_path):
    """Paths, workers and batches; a default that is spelt out."""
    os.symlink(os.path.join(MINI, 'models'), tmp_path / 'models')
    hashes = [
        digest(data_root=str(tmp_path)),
        digest(runtime=dict(workers=2, batch_size=3, work_dir='x', compile=True)),
        digest({'model.backbone.model': f'local-dir:{tmp_path}/models/toy_clip'}),
        digest(runtime=dict(launcher='pytorch')),
        digest({'model.text_cache': 'x'}),
        digest({'model.feedback.block': 64}),
        digest(feedback=dict(p=0.45)),
        digest(feedback=dict(lam=3, scale=20.0, terms=('W', 'AW', 'WA'), similarity='kl', rounds=1, isolation=True)),
    ]
    assert set(hashes) == {digest()}


def test_two_text_towers_that_differ_in_pooling_are_two_cells(tmp_path):
    """Their weights are the same to the last byte."""
    folder = tmp_path / 'clip'
    shutil.copytree(os.path.join(MINI, 'models', 'toy_clip'), folder)
    option = {'model.backbone.model': f'local-dir:{folder}'}
    assert digest(option) == digest()
    config = json.loads((folder / 'open_clip_config.json').read_text())
    config['model_cfg']['text_cfg']['pool_type'] = 'last'
    (folder / 'open_clip_config.json').write_text(json.dumps(config))
    assert digest(option) != digest()


def test_the_documents_show_the_hashes():
    """A hash is the same on every machine and every stack."""
    names = []
    for options, arguments in (
        ({}, {}),
        ({}, dict(feedback=None)),
        ({}, dict(method='clearclip')),
        ({}, dict(method='clearclip', feedback=None)),
        ({'model.stride': 56}, {}),
        ({'model.stride': 224, 'model.feedback.p': 0.6}, {}),
    ):
        config = compose('voc21', **{**TOY, **arguments})
        merge_options(config, options)
        names.append(os.path.basename(result_path(prepare(config))))
    shown = {}
    for path in ('README.md', *glob.glob('docs/*.md', root_dir=ROOT)):
        with open(os.path.join(ROOT, path), encoding='utf-8') as f:
            shown[path] = re.findall(r'[\w+]+_[0-9a-f]{10}\.json', f.read())
    assert names[0] in shown['README.md']
    assert {name for found in shown.values() for name in found} == set(names)


def test_numbers_are_canonical():
    assert canonical(dict(b=(3.0, True), a=[None, 0.5])) == {'a': [None, 0.5], 'b': [3, True]}


def test_cells_of_one_pass():
    """Cells of a pass may differ in the last block, words and thresholds; not in windows, precision or batches."""
    keys = [
        shared_key(entries(**arguments))
        for arguments in (
            {},
            dict(method='maskclip', protocol='sclip'),
            dict(feedback=None),
            dict(method='proxyclip', protocol='sclip'),
        )
    ]
    assert len(set(keys)) == 1
    other_keys = [
        shared_key(entries(options))
        for options in (
            {'model.stride': 56},
            {'model.precision': 'bf16'},
            {'model.window_batch': 2},
            {'work_dir': 'x'},
            {'test_dataloader.dataset.ann_file': 'x'},
        )
    ]
    assert len({*keys, *other_keys}) == 6


SEGMENTOR = """
from mmseg.registry import MODELS
from fsa_seg.models.segmentor import TrainingFreeSegmentor

@MODELS.register_module(force=True)
class OwnSegmentor(TrainingFreeSegmentor):
    method_name = 'maskclip'
    constant = 1
"""


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Return arguments of `composed`: a user's segmentor, whose module lies in a folder of PYTHONPATH."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'own_segmentor', raising=False)  # the module of another test
    (tmp_path / 'own_segmentor.py').write_text(SEGMENTOR)
    return dict(
        dataset='voc21',
        method='own',
        feedback=None,
        backbone='toy',
        data_root=MINI,
        limit=1,
        runtime=dict(workers=0, work_dir=str(tmp_path / 'work'), log_level='ERROR'),
    )


def composed(arguments):
    """Return a composed config; under the method 'own', of the user's segmentor, as the user's config would name it."""
    if arguments['method'] != 'own':
        return compose(**arguments)
    config = compose(**{**arguments, 'method': 'maskclip'})
    config.custom_imports.imports.append('own_segmentor')
    importlib.import_module('own_segmentor')
    config.model.type = 'OwnSegmentor'
    return config


def test_a_result_by_other_code_of_a_users_own_is_not_used(arguments, tmp_path, capsys):
    def run():
        """Return the number of cells that ran, and the result."""
        passes = []
        (result,) = run_cells([composed(arguments)], lambda cells: passes.extend(cells) or cells)
        return len(passes), result

    assert run()[0] == 1 and run()[0] == 0
    (tmp_path / 'own_segmentor.py').write_text(SEGMENTOR.replace('constant = 1', 'constant = 2'))
    passes, result = run()
    assert passes == 1 and 'stale and run again' in ''.join(capsys.readouterr())
    assert run()[0] == 0
    assert any(key == 'class OwnSegmentor' and level == 'source' for key, _, level in result['fingerprint'])


def test_a_stale_result_says_what_differs(arguments, capsys):
    arguments['method'] = 'maskclip'
    cell = prepare(composed(arguments))
    (first,) = run_cells([cell.config], list)
    path = result_path(cell)
    for key, value, message in (
        ('package', 'other', 'package (was "other"'),
        ('model.window', 7, 'model.window (was 7, is 448)'),
    ):
        changed = json.loads(open(path).read())
        changed['fingerprint'] = [[k, value if k == key else v, level] for k, v, level in changed['fingerprint']]
        changed['metrics']['mIoU'] = 99.0
        open(path, 'w').write(json.dumps(changed))
        (again,) = run_cells([composed(arguments)], list)
        assert again['metrics'] == first['metrics'] and message in ''.join(capsys.readouterr())
    changed = json.loads(open(path).read())
    changed['fingerprint'] = [
        [k, '1.0' if k == 'version of torch' else v, level] for k, v, level in changed['fingerprint']
    ]
    open(path, 'w').write(json.dumps(changed))
    run_cells([composed(arguments)], lambda cells: cells or [])
    assert 'may differ in their last digits' in ''.join(capsys.readouterr())


@pytest.fixture
def folder(tmp_path):
    """Return a folder of a user's data: four images and label images of the toy world."""
    folder = tmp_path / 'data'
    voc = os.path.join(MINI, 'VOCdevkit', 'VOC2012')
    names = open(os.path.join(voc, 'ImageSets', 'Segmentation', 'val.txt')).read().split()[:4]
    for i, name in enumerate(names):
        for sub, source in (('images', f'JPEGImages/{name}.jpg'), ('labels', f'SegmentationClass/{name}.png')):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(os.path.join(voc, source), folder / sub / f's{i}{source[-4:]}')
    from mmseg.datasets import PascalVOCDataset

    (folder / 'classes.txt').write_text('\n'.join(PascalVOCDataset.METAINFO['classes']))
    return folder


def command(folder):
    return (
        'test',
        '--images',
        folder / 'images',
        '--labels',
        folder / 'labels',
        '--classes',
        folder / 'classes.txt',
        '--backbone',
        'toy',
        '--vfm',
        'toy',
        '--method',
        'sclip',
        '--no-fsa',
        '--workers',
        0,
    )


def test_counts_of_images_that_were_mended_are_not_taken_over(run_tool, folder, tmp_path):
    """The run fails at a broken image; others have a wrong colour. Once all are mended, the number is right."""
    originals = tmp_path / 'originals'
    shutil.copytree(folder / 'images', originals)
    for i in range(3):
        size = Image.open(folder / 'images' / f's{i}.jpg').size
        Image.new('RGB', size, (90, 200, 30)).save(folder / 'images' / f's{i}.jpg')
    broken = folder / 'images' / 's3.jpg'
    broken.write_bytes(broken.read_bytes()[:2000])
    status, printed = run_tool(*command(folder))
    assert status == 1 and 's3.jpg cannot be decoded' in printed
    assert list((tmp_path / 'work_dirs').rglob('*.jsonl'))
    wrong_image = (folder / 'images' / 's1.jpg').read_bytes()
    shutil.rmtree(folder / 'images')
    shutil.copytree(originals, folder / 'images')
    assert run_tool(*command(folder), '--out', 'mended.json')[0] == 0
    shutil.rmtree(tmp_path / 'work_dirs')
    assert run_tool(*command(folder), '--out', 'fresh.json')[0] == 0
    mended, fresh = (json.loads((tmp_path / name).read_text()) for name in ('mended.json', 'fresh.json'))
    assert mended['images_resumed'] == 0 and mended['images'] == fresh['images'] and mended['hash'] == fresh['hash']
    assert fresh['metrics']['mIoU'] > 20
    (folder / 'images' / 's1.jpg').write_bytes(wrong_image)  # another image of the same name is another cell
    status, printed = run_tool(*command(folder), '--out', 'fresh.json')
    assert status == 1 and 'fresh.json holds the result of another cell, which differs in data.contents' in printed


def test_counts_of_images_that_stay_are_kept(run_tool, folder, tmp_path):
    """A broken image is mended; the run does not count the earlier images again."""
    image = folder / 'images' / 's2.jpg'
    contents = image.read_bytes()
    image.write_bytes(contents[:2000])
    assert run_tool(*command(folder))[0] == 1
    image.write_bytes(contents)
    assert run_tool(*command(folder), '--out', 'mended.json')[0] == 0
    assert json.loads((tmp_path / 'mended.json').read_text())['images_resumed'] == 2


def test_other_labels_of_a_named_data_set_are_another_cell(tmp_path):
    """A changed label image changes the hash, though its name stays."""
    root = tmp_path / 'mini'
    shutil.copytree(os.path.join(MINI, 'VOCdevkit', 'VOC2012'), root / 'VOCdevkit' / 'VOC2012')
    (root / 'TOY_WORLD').touch()
    hashes = [prepare(compose('voc21', **{**TOY, 'data_root': str(root)})).hash]
    assert hashes[0] == prepare(compose('voc21', **TOY)).hash  # the folder does not matter
    path = next((root / 'VOCdevkit' / 'VOC2012' / 'SegmentationClass').iterdir())
    labels = np.array(Image.open(path))
    labels[0, 0] = 5 if labels[0, 0] != 5 else 6
    Image.fromarray(labels).save(path)
    from fsa_seg.evaluation import passes

    passes._checked_images.cache_clear()
    assert prepare(compose('voc21', **{**TOY, 'data_root': str(root)})).hash not in hashes


def test_differences():
    before, now = (
        [('a', 1, 'number'), ('vfm.file', None, 'source'), ('c', 1, 'source')],
        [
            ('a', 2, 'number'),
            ('vfm.file', 5, 'source'),
            ('c', 2, 'source'),
            ('d', 3, 'number'),
            ('module m', 4, 'source'),
        ],
    )
    assert differences(before, now, 'number') == [('a', 1, 2), ('d', None, 3)]
    assert differences(before, now, 'source') == [('c', 1, 2), ('module m', None, 4)]  # a missing file is no difference


def test_counts_by_other_code_of_a_users_own_are_not_taken_over(arguments, tmp_path, monkeypatch):
    """A run stops after an image, the class changes, and the same command counts the image anew."""
    from fsa_seg.evaluation.metric import Journal

    keep = Journal.keep

    def keep_and_stop(self, *counts):
        keep(self, *counts)
        raise KeyboardInterrupt

    arguments['limit'] = 2
    for text, resumed in ((SEGMENTOR, 1), (SEGMENTOR.replace('constant = 1', 'constant = 2'), 0)):
        (tmp_path / 'own_segmentor.py').write_text(SEGMENTOR)
        monkeypatch.setattr(Journal, 'keep', keep_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run_cells([composed(arguments)], list)
        monkeypatch.setattr(Journal, 'keep', keep)
        (tmp_path / 'own_segmentor.py').write_text(text)
        (result,) = run_cells([composed(arguments)], list)
        assert result['images_resumed'] == resumed
        shutil.rmtree(tmp_path / 'work')


def test_a_class_that_no_registry_knows():
    config = compose('voc21', **TOY)
    config.test_dataloader.dataset.pipeline[1].type = 'Resise'
    with pytest.raises(UserError, match="unknown class 'Resise'"):
        fingerprint(config)


def test_a_segmentor_of_a_users_own_shares_no_pass(arguments, tmp_path):
    """A pass of several cells does not call the methods that the class overrides."""
    text = SEGMENTOR.replace(
        '    constant = 1\n',
        """
    def predict(self, inputs, data_samples=None):
        samples = super().predict(inputs, data_samples)
        for sample in samples:
            sample.pred_sem_seg.data.zero_()
        return samples
""",
    )
    (tmp_path / 'own_segmentor.py').write_text(text)
    passes = []
    configs = [
        composed(arguments),
        composed({**arguments, 'method': 'maskclip'}),
        composed({**arguments, 'feedback': 'fsa'}),
    ]
    results = run_cells(configs, lambda cells: passes.extend(cells) or cells)
    assert [len(cells) for cells in passes] == [1, 1, 1]
    assert {*results[0]['confusion']['predicted']} == {0} and len({*results[1]['confusion']['predicted']}) > 1


def test_precision_and_normalisation_are_resolved():
    """The precision 'auto' becomes the machine's, and a config may spell out the normalisation of its tag."""
    entries_of = {entry.key: entry.value for entry in entries({'model.precision': 'auto'})}
    config = compose('voc21', **TOY)
    config.model.precision = 'auto'  # as a user's config may have it
    assert cell_hash(fingerprint(config, DATA)) == digest()
    assert entries_of['model.precision'] == 'fp32' and digest({'model.precision': 'auto'}) == digest()
    import open_clip

    tag = {'model.backbone.model': 'ViT-B-16-quickgelu', 'model.backbone.pretrained': 'openai'}
    with_mean = {**tag, 'model.backbone.mean': list(open_clip.OPENAI_DATASET_MEAN)}
    assert digest(tag) == digest(with_mean) != digest({**tag, 'model.backbone.mean': [0.5, 0.5, 0.5]})


def test_void_is_one_label_everywhere():
    with pytest.raises(
        UserError, match='void is 20 for the data set, 255 where labels are loaded and 255 for the metric'
    ):
        entries({'test_dataloader.dataset.ignore_index': 20})


@pytest.mark.parametrize(
    'key',
    [
        'cell',
        'cell.limit',
        'cell.changed',
        'model',
        'model.words',
        'model.stride',
        'model.backbone.model',
        'test_dataloader.dataset',
        'test_dataloader.dataset.data_root',
        'test_dataloader.dataset.type',
        'test_dataloader.dataset.pipeline',
        'test_evaluator.type',
        'default_hooks',
        'workers',
    ],
)
@pytest.mark.parametrize('options', [None, {'model.stride': 56}])
def test_a_config_that_lacks_a_key(key, options):
    config = compose('voc21', **TOY)
    *path, last = key.split('.')
    node = config._cfg_dict
    for step in path:
        node = node[step]
    del node[last]
    with pytest.raises(UserError, match=f'lacks .*{last}'):
        merge_options(config, options)
