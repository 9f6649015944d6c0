"""What can change a number is another cell, another source, or said: nothing of it passes in silence."""

import importlib
import json
import os
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


def test_the_hash_is_blind_to_what_cannot(tmp_path):
    """Paths, workers, batches; a default that is spelt out."""
    os.symlink(os.path.join(MINI, 'models'), tmp_path / 'models')
    same = [
        digest(data_root=str(tmp_path)),
        digest(runtime=dict(workers=2, batch_size=3, work_dir='x', compile=True)),
        digest({'model.backbone.model': f'local-dir:{tmp_path}/models/toy_clip'}),
        digest(runtime=dict(launcher='pytorch')),
        digest({'model.text_cache': 'x'}),
        digest({'model.feedback.block': 64}),
        digest(feedback=dict(p=0.45)),
        digest(feedback=dict(lam=3, scale=20.0, terms=('W', 'AW', 'WA'), similarity='kl', rounds=1, isolation=True)),
    ]
    assert set(same) == {digest()}


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


def test_the_hash_is_the_one_of_the_readme():
    """It is the same on every machine and every stack."""
    cell = prepare(compose('voc21', **TOY))
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as f:
        assert f'voc21_sclip+fsa_toy_sclip_{cell.hash[:10]}.json' in f.read()


def test_numbers_are_canonical():
    assert canonical(dict(b=(3.0, True), a=[None, 0.5])) == {'a': [None, 0.5], 'b': [3, True]}


def test_cells_of_one_pass():
    """They may differ in the last block, its words and thresholds; not in windows, precision or batches."""
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
    others = [
        shared_key(entries(options))
        for options in (
            {'model.stride': 56},
            {'model.precision': 'bf16'},
            {'model.window_batch': 2},
            {'work_dir': 'x'},
            {'test_dataloader.dataset.ann_file': 'x'},
        )
    ]
    assert len({*keys, *others}) == 6


OWN = """
from mmseg.registry import MODELS
from fsa_seg.models.segmentor import TrainingFreeSegmentor

@MODELS.register_module(force=True)
class OwnSegmentor(TrainingFreeSegmentor):
    method_name = 'maskclip'
    constant = 1
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A segmentor of a user's own in a module of a folder of PYTHONPATH."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'own_segmentor', raising=False)  # that of another test
    (tmp_path / 'own_segmentor.py').write_text(OWN)
    return dict(
        dataset='voc21',
        method='own',
        feedback=None,
        backbone='toy',
        data_root=MINI,
        limit=1,
        runtime=dict(workers=0, work_dir=str(tmp_path / 'work'), log_level='ERROR'),
    )


def composed(own):
    """Return a composed config; under the method 'own' of the user's segmentor, as a config of theirs would say."""
    if own['method'] != 'own':
        return compose(**own)
    config = compose(**{**own, 'method': 'maskclip'})
    config.custom_imports.imports.append('own_segmentor')
    importlib.import_module('own_segmentor')
    config.model.type = 'OwnSegmentor'
    return config


def test_a_result_by_other_code_of_a_users_own_is_not_used(own, tmp_path, capsys):
    def run():
        passes = []
        (result,) = run_cells([composed(own)], lambda cells: passes.extend(cells) or cells)
        return len(passes), result

    assert run()[0] == 1 and run()[0] == 0
    (tmp_path / 'own_segmentor.py').write_text(OWN.replace('constant = 1', 'constant = 2'))
    passes, result = run()
    assert passes == 1 and 'stale and run again' in ''.join(capsys.readouterr())
    assert run()[0] == 0
    assert any(key == 'class OwnSegmentor' and level == 'source' for key, _, level in result['fingerprint'])


def test_a_stale_result_says_what_differs(own, capsys, monkeypatch):
    own['method'] = 'maskclip'
    cell = prepare(composed(own))
    (first,) = run_cells([cell.config], list)
    path = result_path(cell)
    for key, value, said in (
        ('package', 'other', 'package (was "other"'),
        ('model.window', 7, 'model.window (was 7, is 448)'),
    ):
        changed = json.loads(open(path).read())
        changed['fingerprint'] = [[k, value if k == key else v, level] for k, v, level in changed['fingerprint']]
        changed['metrics']['mIoU'] = 99.0
        open(path, 'w').write(json.dumps(changed))
        (again,) = run_cells([composed(own)], list)
        assert again['metrics'] == first['metrics'] and said in ''.join(capsys.readouterr())
    changed = json.loads(open(path).read())
    changed['fingerprint'] = [
        [k, '1.0' if k == 'version of torch' else v, level] for k, v, level in changed['fingerprint']
    ]
    open(path, 'w').write(json.dumps(changed))
    run_cells([composed(own)], lambda cells: cells or [])
    assert 'may differ in their last digits' in ''.join(capsys.readouterr())


@pytest.fixture
def four(tmp_path):
    """Four images and label images of the toy world under a user's own name."""
    folder = tmp_path / 'four'
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


def test_counts_of_images_that_were_mended_are_not_taken_over(run_tool, four, tmp_path):
    """Three images are of one colour and the fourth is cut: the run fails at it. After all are mended it is the right number."""
    right = tmp_path / 'right'
    shutil.copytree(four / 'images', right)
    for i in range(3):
        size = Image.open(four / 'images' / f's{i}.jpg').size
        Image.new('RGB', size, (90, 200, 30)).save(four / 'images' / f's{i}.jpg')
    cut = four / 'images' / 's3.jpg'
    cut.write_bytes(cut.read_bytes()[:2000])
    status, printed = run_tool(*command(four))
    assert status == 1 and 's3.jpg cannot be decoded' in printed
    assert list((tmp_path / 'work_dirs').rglob('*.jsonl'))
    kept = (four / 'images' / 's1.jpg').read_bytes()
    shutil.rmtree(four / 'images')
    shutil.copytree(right, four / 'images')
    assert run_tool(*command(four), '--out', 'mended.json')[0] == 0
    shutil.rmtree(tmp_path / 'work_dirs')
    assert run_tool(*command(four), '--out', 'fresh.json')[0] == 0
    mended, fresh = (json.loads((tmp_path / name).read_text()) for name in ('mended.json', 'fresh.json'))
    assert mended['images_resumed'] == 0 and mended['images'] == fresh['images'] and mended['hash'] == fresh['hash']
    assert fresh['metrics']['mIoU'] > 20
    (four / 'images' / 's1.jpg').write_bytes(kept)  # another image of the same name is another cell
    status, printed = run_tool(*command(four), '--out', 'fresh.json')
    assert status == 1 and 'fresh.json holds the result of another cell, which differs in data.contents' in printed


def test_counts_of_images_that_stay_are_kept(run_tool, four, tmp_path):
    """One cut image is mended: the others, counted before, are not run again."""
    image = four / 'images' / 's2.jpg'
    whole = image.read_bytes()
    image.write_bytes(whole[:2000])
    assert run_tool(*command(four))[0] == 1
    image.write_bytes(whole)
    assert run_tool(*command(four), '--out', 'one.json')[0] == 0
    assert json.loads((tmp_path / 'one.json').read_text())['images_resumed'] == 2


def test_other_labels_of_a_named_data_set_are_another_cell(tmp_path):
    """Also under the same names: a label image that is replaced changes the hash, and the result beside it stays."""
    root = tmp_path / 'mini'
    shutil.copytree(os.path.join(MINI, 'VOCdevkit', 'VOC2012'), root / 'VOCdevkit' / 'VOC2012')
    (root / 'TOY_WORLD').touch()
    hashes = [prepare(compose('voc21', **{**TOY, 'data_root': str(root)})).hash]
    assert hashes[0] == prepare(compose('voc21', **TOY)).hash  # wherever the data lies
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
    assert differences(before, now, 'source') == [
        ('c', 1, 2),
        ('module m', None, 4),
    ]  # a file that was not there is none


def test_counts_by_other_code_of_a_users_own_are_not_taken_over(own, tmp_path, monkeypatch):
    """A run is cut after one image, the class is changed, and the same command counts that image anew."""
    from fsa_seg.evaluation.metric import Journal

    keep = Journal.keep

    def cut(self, *given):
        keep(self, *given)
        raise KeyboardInterrupt

    own['limit'] = 2
    for text, resumed in ((OWN, 1), (OWN.replace('constant = 1', 'constant = 2'), 0)):
        (tmp_path / 'own_segmentor.py').write_text(OWN)
        monkeypatch.setattr(Journal, 'keep', cut)
        with pytest.raises(KeyboardInterrupt):
            run_cells([composed(own)], list)
        monkeypatch.setattr(Journal, 'keep', keep)
        (tmp_path / 'own_segmentor.py').write_text(text)
        (result,) = run_cells([composed(own)], list)
        assert result['images_resumed'] == resumed
        shutil.rmtree(tmp_path / 'work')


def test_a_class_that_no_registry_knows():
    config = compose('voc21', **TOY)
    config.test_dataloader.dataset.pipeline[1].type = 'Resise'
    with pytest.raises(UserError, match="unknown class 'Resise'"):
        fingerprint(config)


def test_a_segmentor_of_a_users_own_shares_no_pass(own, tmp_path):
    """A pass does not call what the class overrides; alone it does."""
    text = OWN.replace(
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
    configs = [composed(own), composed({**own, 'method': 'maskclip'}), composed({**own, 'feedback': 'fsa'})]
    results = run_cells(configs, lambda cells: passes.extend(cells) or cells)
    assert [len(cells) for cells in passes] == [1, 1, 1]
    assert {*results[0]['confusion']['predicted']} == {0} and len({*results[1]['confusion']['predicted']}) > 1


def test_precision_and_normalisation_are_resolved():
    """'auto' is what it stands for here, and a tag's own normalisation may be spelt out."""
    entries_of = {entry.key: entry.value for entry in entries({'model.precision': 'auto'})}
    config = compose('voc21', **TOY)
    config.model.precision = 'auto'  # of a config of a user's own
    assert cell_hash(fingerprint(config, DATA)) == digest()
    assert entries_of['model.precision'] == 'fp32' and digest({'model.precision': 'auto'}) == digest()
    import open_clip

    tag = {'model.backbone.model': 'ViT-B-16-quickgelu', 'model.backbone.pretrained': 'openai'}
    spelt = {**tag, 'model.backbone.mean': list(open_clip.OPENAI_DATASET_MEAN)}
    assert digest(tag) == digest(spelt) != digest({**tag, 'model.backbone.mean': [0.5, 0.5, 0.5]})


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
def test_a_config_that_lacks_something(key, options):
    config = compose('voc21', **TOY)
    *path, last = key.split('.')
    node = config._cfg_dict
    for step in path:
        node = node[step]
    del node[last]
    with pytest.raises(UserError, match=f'lacks .*{last}'):
        merge_options(config, options)
