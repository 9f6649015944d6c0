"""Data of a user's own: a folder of images, one of label images and a list of classes, by options or by a config."""
import json
import os
import shutil

import numpy as np
import pytest
from mmseg.datasets import PascalVOCDataset
from mmseg.registry import DATASETS
from PIL import Image

from conftest import MINI
from fsa_seg.config import compose
from fsa_seg.datasets import folder_dataset, list_images
from fsa_seg.errors import UserError

VOC = os.path.join(MINI, 'VOCdevkit', 'VOC2012')
NAMES = list(PascalVOCDataset.METAINFO['classes'])
TOY = ('--backbone', 'toy', '--vfm', 'toy', '--method', 'sclip', '--workers', 0)


@pytest.fixture
def own(tmp_path):
    """Two of the toy world's images in other formats, one in a folder below, with VOC's labels and classes."""
    folder = tmp_path / 'mine'
    (folder / 'images' / 'more').mkdir(parents=True)
    (folder / 'labels' / 'more').mkdir(parents=True)
    for name, target, suffix in (('2007_000033', 'a', '.PNG'), ('2007_000130', 'more/b.x', '.jpeg')):
        Image.open(os.path.join(VOC, 'JPEGImages', name + '.jpg')).save(folder / 'images' / (target + suffix), quality=95)
        shutil.copyfile(os.path.join(VOC, 'SegmentationClass', name + '.png'), folder / 'labels' / (target + '.png'))
    (folder / 'images' / 'notes.txt').write_text('no image')
    (folder / 'classes.txt').write_text('\n'.join('cat; kitten' if name == 'cat' else name for name in NAMES) + '\n')
    return folder


def options(folder):
    return '--images', folder / 'images', '--labels', folder / 'labels', '--classes', folder / 'classes.txt'


def test_options_in_place_of_a_config(run_tool, own, tmp_path):
    status, printed = run_tool('test', *options(own), *TOY, '--out', 'one.json', '--show-dir', 'shown')
    assert status == 0 and 'SCLIP + FSA on own_mine (sclip): mIoU' in printed, printed
    result = json.loads((tmp_path / 'one.json').read_text())
    assert [image['name'] for image in result['images']] == ['images/a.PNG', 'images/more/b.x.jpeg'] and not result['partial']
    assert [entry['name'] for entry in result['classes']] == ['cat; kitten' if name == 'cat' else name for name in NAMES]
    assert Image.open(tmp_path / 'shown' / 'a.png').width > 2 * 300
    status, printed = run_tool('test', 'one.json', '--out', 'two.json', '--workers', 0)
    two = json.loads((tmp_path / 'two.json').read_text())
    assert two['confusion'] == result['confusion'] and two['hash'] == result['hash']
    status, printed = run_tool('test', 'voc21', *options(own), *TOY)
    assert status == 2 and 'give CONFIG, or --images, --labels and --classes' in printed
    assert run_tool('test', *options(own)[:4], *TOY)[0] == 2


def test_it_is_the_run_of_voc_with_its_words(run_tool, own, tmp_path):
    """The same pixels under the same settings and words give the same counts, whatever the data set is called."""
    shutil.rmtree(own / 'images')
    shutil.rmtree(own / 'labels')
    shutil.copytree(os.path.join(VOC, 'JPEGImages'), own / 'images')
    shutil.copytree(os.path.join(VOC, 'SegmentationClass'), own / 'labels')
    (own / 'classes.txt').write_text('\n'.join(NAMES))
    run_tool('test', *options(own), *TOY, '--protocol', 'clearclip', '--limit', 2, '--out', 'own.json')
    words = ('--words', own / 'classes.txt', '--cfg-options', 'model.prob_thd=0.0')
    run_tool('test', 'voc21', *TOY, '--data-root', MINI, '--protocol', 'clearclip', *words, '--limit', 2, '--out', 'voc.json')
    own, voc = (json.loads((tmp_path / name).read_text()) for name in ('own.json', 'voc.json'))
    assert own['confusion'] == voc['confusion'] and own['metrics']['mIoU'] > 10


def test_a_config_of_ten_lines(run_tool, own, tmp_path):
    (own / 'split.txt').write_text('more/b.x\n')
    (tmp_path / 'mine.py').write_text('''dataset = dict(
    name='mine',
    type='ImageFolderDataset',
    data_root='mine',
    ann_file='split.txt',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    classes='classes.txt')
''')
    status, printed = run_tool('test', 'mine.py', *TOY, '--data-root', tmp_path, '--out', 'one.json')
    assert status == 0, printed
    result = json.loads((tmp_path / 'one.json').read_text())
    assert [image['name'] for image in result['images']] == ['images/more/b.x.jpeg']
    words = compose(str(tmp_path / 'mine.py'), 'sclip', backbone='toy', data_root=str(tmp_path)).model.words
    assert words[NAMES.index('cat')] == ['cat', 'kitten'] and words[0] == ['background']
    status, printed = run_tool('prepare_dataset', '--check', tmp_path, 'mine.py')
    assert status == 0 and '| mine | 1 | – | 0 to' in printed, printed
    (own / 'classes.txt').unlink()
    status, printed = run_tool('test', 'mine.py', *TOY, '--data-root', tmp_path)
    assert status == 1 and "classes.txt does not exist, from which the data set 'mine' has its classes" in printed


@pytest.mark.parametrize('void, reduce_zero_label', [(65535, False), (0, True)])
def test_more_than_255_labels(run_tool, own, tmp_path, void, reduce_zero_label):
    """Label 255 is a class; 65535 (or 0) is void."""
    first = int(reduce_zero_label)
    names = [f'thing {i}' for i in range(300)]
    for name, label in (('cat', 255), ('wall', 256), ('grass', 299)):
        names[label] = name
    shutil.rmtree(own / 'images' / 'more')
    labels = np.full(Image.open(own / 'labels' / 'a.png').size[::-1], void, np.uint16)
    labels[:60], labels[60:120], labels[120:180] = (label + first for label in (255, 256, 299))
    Image.fromarray(labels).save(own / 'labels' / 'a.png')
    (own / 'classes.txt').write_text('\n'.join(names))
    given = ['--reduce-zero-label'] if reduce_zero_label else []
    status, printed = run_tool('test', *options(own), *given, *TOY, '--no-fsa', '--out', 'wide.json', '--show-dir', 'shown')
    assert status == 0, printed
    result = json.loads((tmp_path / 'wide.json').read_text())
    width = labels.shape[1]
    truth = np.bincount(result['confusion']['truth'], result['confusion']['pixels'], 300)
    assert {i: n for i, n in enumerate(truth) if n} == {255: 60 * width, 256: 60 * width, 299: 60 * width}
    assert (tmp_path / 'shown' / 'a.png').exists()


def test_other_labels_of_the_same_images(run_tool, own, tmp_path):
    """Two results, not one under the name of the other; and an interrupted run of the one is not gone on with by the other."""
    command = ('test', *options(own), *TOY, '--no-fsa')
    assert run_tool(*command)[0] == 0
    path = own / 'labels' / 'a.png'
    Image.fromarray((np.array(Image.open(path)) == 0).astype(np.uint8)).save(path)
    assert run_tool(*command)[0] == 0
    assert len(list((tmp_path / 'work_dirs' / 'results').iterdir())) == 2
    shutil.copytree(own, tmp_path / 'elsewhere' / 'mine')  # where it lies does not matter
    assert run_tool('test', *options(tmp_path / 'elsewhere' / 'mine'), *TOY, '--no-fsa')[0] == 0
    assert len(list((tmp_path / 'work_dirs' / 'results').iterdir())) == 2


def test_labels_below_the_images(run_tool, own):
    shutil.move(own / 'labels', own / 'images' / 'labels')
    given = ('--images', own / 'images', '--labels', own / 'images' / 'labels', '--classes', own / 'classes.txt')
    status, printed = run_tool('test', *given, *TOY, '--no-fsa', '--limit', 1)
    assert status == 0 and 'own_images' in printed, printed


def test_a_part_without_a_labelled_pixel(run_tool, own, tmp_path):
    """The labels of one image are all void: a subset of that image has no mIoU, and says so."""
    for path, value in ((own / 'labels' / 'a.png', 255), (own / 'labels' / 'more' / 'b.x.png', 0)):
        Image.fromarray(np.full_like(np.array(Image.open(path)), value)).save(path)
    statuses = []
    for limit in (1, 2):
        status, printed = run_tool('test', *options(own), *TOY, '--no-fsa', '--limit', limit, '--out', f'{limit}.json')
        statuses.append(status)
    assert statuses == [0, 0], printed
    found = {limit: json.loads((tmp_path / f'{limit}.json').read_text()) for limit in (1, 2)}
    assert found[2]['metrics']['mIoU'] is not None
    void = found[1]['images'][0]['name'] == 'images/a.PNG'
    assert (found[1]['metrics']['aAcc'] is None) == void


@pytest.mark.parametrize('damage, message', [
    (lambda own: [Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path) for path in (own / 'labels').rglob('*.png')],
     'no pixel of the label images is of any class: labels are 0 to 20'),
    (lambda own: (shutil.rmtree(own / 'labels'), os.symlink(own / 'images', own / 'labels')), 'images and labels are both in'),
    (lambda own: (own / 'labels' / 'a.png').unlink(), "1 of 2 names have no label image in .*labels; the first is 'a'"),
    (lambda own: shutil.copyfile(own / 'images' / 'a.PNG', own / 'images' / 'a.bmp'), "two files are called 'a'"),
    (lambda own: (own / 'classes.txt').write_text('\n'.join(NAMES[:5])), r'labels \[\d+.*\]; the data set has 0 to 4, and 255 for void'),
    (lambda own: (own / 'classes.txt').write_text('cat\n\ndog\n\n'), 'line 2 of .*classes.txt is empty'),
    (lambda own: (own / 'classes.txt').write_text('cat\ndog;\ndog'), "line 3 of .*classes.txt is 'dog', as line 2"),
    (lambda own: (own / 'classes.txt').write_text(''), 'classes.txt is empty'),
    (lambda own: (own / 'classes.txt').write_bytes(b'\xff\xfe\xff'), 'classes.txt.* cannot be read as UTF-8 text'),
    (lambda own: (own / 'classes.txt').unlink(), 'the file .*classes.txt does not exist'),
    (lambda own: shutil.rmtree(own / 'labels'), 'the folder .*labels does not exist'),
    (lambda own: [path.unlink() for path in (own / 'images').rglob('*') if path.is_file()], 'no image found'),
])  # yapf: disable
def test_bad_data_is_one_message_and_status_1(run_tool, own, damage, message):
    import re
    damage(own)
    status, printed = run_tool('test', *options(own), *TOY)
    assert status == 1 and 'Traceback' not in printed
    assert re.search('error: .*' + message, printed), printed


def test_names_that_a_split_lacks(own):
    (own / 'split.txt').write_text('a\nc\n')
    part = dict(folder_dataset(str(own / 'images'), str(own / 'labels'), str(own / 'classes.txt')), ann_file='split.txt')
    with pytest.raises(UserError, match="1 of 2 names have no image in .*images; the first is 'c'"):
        list_images({key: value for key, value in part.items() if key not in ('name', 'classes')})
    (own / 'split.txt').write_text('a\na\n')
    with pytest.raises(UserError, match='split.txt names 1 images more than once, the first is .*a.PNG'):
        list_images({key: value for key, value in part.items() if key not in ('name', 'classes')})


def test_void_of_a_config(own):
    """255, or 65535 where 255 is a label; or what the config says."""
    part = folder_dataset(str(own / 'images'), str(own / 'labels'), str(own / 'classes.txt'))
    for classes, more, void in ((255, {}, 255), (256, {}, 65535), (255, dict(reduce_zero_label=True), 65535),
                                (254, dict(reduce_zero_label=True), 255), (3, dict(ignore_index=254), 254)):
        (own / 'classes.txt').write_text('\n'.join(f'thing {i}' for i in range(classes)))
        config = compose({**part, **more}, 'clip', None, 'toy')
        assert config.test_evaluator.get('ignore_index', 255) == void
        assert DATASETS.build(config.test_dataloader.dataset).ignore_index == void
        assert config.test_dataloader.dataset.pipeline[2].get('void', 255) == void
