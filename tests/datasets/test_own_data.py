"""A user's own data: a folder of images, a folder of label images and a list of classes, by options or by a config."""

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from mmseg.datasets import PascalVOCDataset
from mmseg.registry import DATASETS
from PIL import Image

from fsa_seg.config.compose import compose
from fsa_seg.datasets.data_sets import folder_dataset, list_images
from fsa_seg.errors import UserError
from fsa_seg.visualization.pictures import picture_path

from conftest import MINI

VOC = os.path.join(MINI, 'VOCdevkit', 'VOC2012')
NAMES = list(PascalVOCDataset.METAINFO['classes'])
TOY = ('--backbone', 'toy', '--vfm', 'toy', '--method', 'sclip', '--workers', 0)


@pytest.fixture
def user_data(tmp_path):
    """Two images of the toy world in other formats, with VOC's labels and classes; the second lies in a subfolder."""
    folder = tmp_path / 'mine'
    (folder / 'images' / 'more').mkdir(parents=True)
    (folder / 'labels' / 'more').mkdir(parents=True)
    for name, target, suffix in (('2007_000033', 'a', '.PNG'), ('2007_000130', 'more/b.x', '.jpeg')):
        Image.open(os.path.join(VOC, 'JPEGImages', name + '.jpg')).save(
            folder / 'images' / (target + suffix), quality=95
        )
        shutil.copyfile(os.path.join(VOC, 'SegmentationClass', name + '.png'), folder / 'labels' / (target + '.png'))
    (folder / 'images' / 'notes.txt').write_text('no image')
    (folder / 'classes.txt').write_text('\n'.join('cat; kitten' if name == 'cat' else name for name in NAMES) + '\n')
    return folder


def options(folder):
    return '--images', folder / 'images', '--labels', folder / 'labels', '--classes', folder / 'classes.txt'


def test_options_in_place_of_a_config(run_tool, user_data, tmp_path):
    status, printed = run_tool('test', *options(user_data), *TOY, '--out', 'one.json', '--show-dir', 'shown')
    assert status == 0 and 'SCLIP + FSA on own_mine (sclip): mIoU' in printed, printed
    assert 'toy models, which know the toy world alone: on other data they mean nothing' in printed
    assert 'that the repository ships' not in printed
    result = json.loads((tmp_path / 'one.json').read_text())
    assert [image['name'] for image in result['images']] == ['images/a.PNG', 'images/more/b.x.jpeg'] and not result[
        'partial'
    ]
    assert [entry['name'] for entry in result['classes']] == [
        'cat; kitten' if name == 'cat' else name for name in NAMES
    ]
    assert Image.open(tmp_path / 'shown' / 'images' / 'a.png').width > 2 * 300
    status, printed = run_tool('test', 'one.json', '--out', 'two.json', '--workers', 0)
    repeated = json.loads((tmp_path / 'two.json').read_text())
    assert repeated['confusion'] == result['confusion'] and repeated['hash'] == result['hash']
    status, printed = run_tool('test', 'voc21', *options(user_data), *TOY)
    assert status == 2 and 'give CONFIG, or --images, --labels and --classes' in printed
    assert run_tool('test', *options(user_data)[:4], *TOY)[0] == 2


def test_run_equals_voc_with_the_same_words(run_tool, user_data, tmp_path):
    """The same pixels under the same settings and words give the same counts, whatever the data set is called."""
    shutil.rmtree(user_data / 'images')
    shutil.rmtree(user_data / 'labels')
    shutil.copytree(os.path.join(VOC, 'JPEGImages'), user_data / 'images')
    shutil.copytree(os.path.join(VOC, 'SegmentationClass'), user_data / 'labels')
    (user_data / 'classes.txt').write_text('\n'.join(NAMES))
    run_tool('test', *options(user_data), *TOY, '--protocol', 'clearclip', '--limit', 2, '--out', 'own.json')
    words = ('--words', user_data / 'classes.txt', '--cfg-options', 'model.prob_thd=0.0')
    run_tool(
        'test', 'voc21', *TOY, '--data-root', MINI, '--protocol', 'clearclip', *words, '--limit', 2, '--out', 'voc.json'
    )
    result, voc = (json.loads((tmp_path / name).read_text()) for name in ('own.json', 'voc.json'))
    assert result['confusion'] == voc['confusion'] and result['metrics']['mIoU'] > 10


def test_a_config_of_ten_lines(run_tool, user_data, tmp_path):
    (user_data / 'split.txt').write_text('more/b.x\n')
    (tmp_path / 'mine.py').write_text("""dataset = dict(
    name='mine',
    type='ImageFolderDataset',
    data_root='mine',
    ann_file='split.txt',
    data_prefix=dict(img_path='images', seg_map_path='labels'),
    classes='classes.txt')
""")
    status, printed = run_tool('test', 'mine.py', *TOY, '--data-root', tmp_path, '--out', 'one.json')
    assert status == 0, printed
    result = json.loads((tmp_path / 'one.json').read_text())
    assert [image['name'] for image in result['images']] == ['images/more/b.x.jpeg']
    words = compose(str(tmp_path / 'mine.py'), 'sclip', backbone='toy', data_root=str(tmp_path)).model.words
    assert words[NAMES.index('cat')] == ['cat', 'kitten'] and words[0] == ['background']
    status, printed = run_tool('prepare', '--check', tmp_path, 'mine.py')
    assert status == 0 and '| mine | 1 | – | 0 to' in printed, printed
    (user_data / 'classes.txt').unlink()
    status, printed = run_tool('test', 'mine.py', *TOY, '--data-root', tmp_path)
    assert status == 1 and "classes.txt does not exist, from which the data set 'mine' has its classes" in printed


@pytest.mark.parametrize('void, reduce_zero_label', [(65535, False), (0, True)])
def test_more_than_255_labels(run_tool, user_data, tmp_path, void, reduce_zero_label):
    """Label 255 is a class; 65535 (or 0) is void."""
    first = int(reduce_zero_label)
    names = [f'thing {i}' for i in range(300)]
    for name, label in (('cat', 255), ('wall', 256), ('grass', 299)):
        names[label] = name
    shutil.rmtree(user_data / 'images' / 'more')
    labels = np.full(Image.open(user_data / 'labels' / 'a.png').size[::-1], void, np.uint16)
    labels[:60], labels[60:120], labels[120:180] = (label + first for label in (255, 256, 299))
    Image.fromarray(labels).save(user_data / 'labels' / 'a.png')
    (user_data / 'classes.txt').write_text('\n'.join(names))
    options_of_zero = ['--reduce-zero-label'] if reduce_zero_label else []
    status, printed = run_tool(
        'test', *options(user_data), *options_of_zero, *TOY, '--no-fsa', '--out', 'wide.json', '--show-dir', 'shown'
    )
    assert status == 0, printed
    result = json.loads((tmp_path / 'wide.json').read_text())
    width = labels.shape[1]
    truth = np.bincount(result['confusion']['truth'], result['confusion']['pixels'], 300)
    assert {i: n for i, n in enumerate(truth) if n} == {255: 60 * width, 256: 60 * width, 299: 60 * width}
    assert (tmp_path / 'shown' / 'images' / 'a.png').exists()


def test_other_labels_of_the_same_images(run_tool, user_data, tmp_path):
    """Other labels give another result, under another name, and do not continue the first run."""
    command = ('test', *options(user_data), *TOY, '--no-fsa')
    assert run_tool(*command)[0] == 0
    path = user_data / 'labels' / 'a.png'
    Image.fromarray((np.array(Image.open(path)) == 0).astype(np.uint8)).save(path)
    assert run_tool(*command)[0] == 0
    assert len(list((tmp_path / 'work_dirs' / 'results').iterdir())) == 2
    shutil.copytree(user_data, tmp_path / 'elsewhere' / 'mine')  # the place of the data does not matter
    assert run_tool('test', *options(tmp_path / 'elsewhere' / 'mine'), *TOY, '--no-fsa')[0] == 0
    assert len(list((tmp_path / 'work_dirs' / 'results').iterdir())) == 2


def test_labels_below_the_images(run_tool, user_data):
    shutil.move(user_data / 'labels', user_data / 'images' / 'labels')
    folders = (
        '--images',
        user_data / 'images',
        '--labels',
        user_data / 'images' / 'labels',
        '--classes',
        user_data / 'classes.txt',
    )
    status, printed = run_tool('test', *folders, *TOY, '--no-fsa', '--limit', 1)
    assert status == 0 and 'own_images' in printed, printed


def test_a_part_without_a_labelled_pixel(run_tool, user_data, tmp_path):
    """The labels of one image are all void: a run on that image alone has no mIoU."""
    for path, value in ((user_data / 'labels' / 'a.png', 255), (user_data / 'labels' / 'more' / 'b.x.png', 0)):
        Image.fromarray(np.full_like(np.array(Image.open(path)), value)).save(path)
    statuses = []
    for limit in (1, 2):
        status, printed = run_tool(
            'test', *options(user_data), *TOY, '--no-fsa', '--limit', limit, '--out', f'{limit}.json'
        )
        statuses.append(status)
    assert statuses == [0, 0], printed
    results = {limit: json.loads((tmp_path / f'{limit}.json').read_text()) for limit in (1, 2)}
    assert results[2]['metrics']['mIoU'] is not None
    void = results[1]['images'][0]['name'] == 'images/a.PNG'
    assert (results[1]['metrics']['aAcc'] is None) == void


@pytest.mark.parametrize(
    'damage, message',
    [
        (
            lambda folder: [
                Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
                for path in (folder / 'labels').rglob('*.png')
            ],
            'no pixel of the label images is of any class: labels are 0 to 20',
        ),
        (
            lambda folder: (shutil.rmtree(folder / 'labels'), os.symlink(folder / 'images', folder / 'labels')),
            'images and labels are both in',
        ),
        (
            lambda folder: (folder / 'labels' / 'a.png').unlink(),
            "1 of 2 names have no label image in .*labels; the first is 'a'",
        ),
        (
            lambda folder: shutil.copyfile(folder / 'images' / 'a.PNG', folder / 'images' / 'a.bmp'),
            "two files are called 'a'",
        ),
        (
            lambda folder: (folder / 'classes.txt').write_text('\n'.join(NAMES[:5])),
            r'labels \[\d+.*\]; the data set has 0 to 4, and 255 for void',
        ),
        (lambda folder: (folder / 'classes.txt').write_text('cat\n\ndog\n\n'), 'line 2 of .*classes.txt is empty'),
        (
            lambda folder: (folder / 'classes.txt').write_text('cat\ndog;\ndog'),
            "line 3 of .*classes.txt is 'dog', as line 2",
        ),
        (lambda folder: (folder / 'classes.txt').write_text(''), 'classes.txt is empty'),
        (
            lambda folder: (folder / 'classes.txt').write_bytes(b'\xff\xfe\xff'),
            'classes.txt.* cannot be read as UTF-8 text',
        ),
        (lambda folder: (folder / 'classes.txt').unlink(), 'the file .*classes.txt does not exist'),
        (lambda folder: shutil.rmtree(folder / 'labels'), 'the folder .*labels does not exist'),
        (lambda folder: [path.unlink() for path in (folder / 'images').rglob('*') if path.is_file()], 'no image found'),
    ],
)
def test_bad_data_is_one_message_with_status_1(run_tool, user_data, damage, message):
    damage(user_data)
    status, printed = run_tool('test', *options(user_data), *TOY)
    assert status == 1 and 'Traceback' not in printed
    assert re.search('error: .*' + message, printed), printed


def test_names_without_an_image_or_named_twice(user_data):
    (user_data / 'split.txt').write_text('a\nc\n')
    part = dict(
        folder_dataset(str(user_data / 'images'), str(user_data / 'labels'), str(user_data / 'classes.txt')),
        ann_file='split.txt',
    )
    with pytest.raises(UserError, match="1 of 2 names have no image in .*images; the first is 'c'"):
        list_images({key: value for key, value in part.items() if key not in ('name', 'classes')})
    (user_data / 'split.txt').write_text('a\na\n')
    with pytest.raises(UserError, match='split.txt names 1 images more than once, the first is .*a.PNG'):
        list_images({key: value for key, value in part.items() if key not in ('name', 'classes')})


def test_void_of_a_config(user_data):
    """255, or 65535 if 255 is a label, or the config's `ignore_index`."""
    part = folder_dataset(str(user_data / 'images'), str(user_data / 'labels'), str(user_data / 'classes.txt'))
    for classes, keys, void in (
        (255, {}, 255),
        (256, {}, 65535),
        (255, dict(reduce_zero_label=True), 65535),
        (254, dict(reduce_zero_label=True), 255),
        (3, dict(ignore_index=254), 254),
    ):
        (user_data / 'classes.txt').write_text('\n'.join(f'thing {i}' for i in range(classes)))
        config = compose({**part, **keys}, 'clip', None, 'toy')
        assert config.test_evaluator.get('ignore_index', 255) == void
        assert DATASETS.build(config.test_dataloader.dataset).ignore_index == void
        assert config.test_dataloader.dataset.pipeline[2].get('void', 255) == void


def voc_pair(folder, name, number, image=lambda picture, path: picture.save(path + '.png'), labels=lambda array: array):
    """Write image and label image `number` of the toy world's VOC under a name."""
    source = sorted(os.listdir(os.path.join(VOC, 'JPEGImages')))[number].removesuffix('.jpg')
    for sub in ('images', 'labels'):
        (folder / sub / name).parent.mkdir(parents=True, exist_ok=True)
    image(Image.open(os.path.join(VOC, 'JPEGImages', source + '.jpg')).convert('RGB'), str(folder / 'images' / name))
    truth = labels(np.array(Image.open(os.path.join(VOC, 'SegmentationClass', source + '.png'))))
    Image.fromarray(truth.astype(np.uint8)).save(folder / 'labels' / f'{name}.png')
    (folder / 'classes.txt').write_text('\n'.join(NAMES))


def run(run_tool, folder, *arguments, out='result.json'):
    """Run SCLIP without FSA on a folder; return status, output, and the confusion of the result."""
    (folder.parent / out).unlink(missing_ok=True)  # results of another cell are not overwritten
    status, printed = run_tool('test', *options(folder), *TOY, '--no-fsa', '--out', out, *arguments)
    return status, printed, json.loads((folder.parent / out).read_text())['confusion'] if status == 0 else None


def sixteen_bits(factor):
    return lambda picture, path: cv2.imwrite(path + '.png', np.array(picture)[..., ::-1].astype(np.uint16) * factor)


def on_its_side(picture, path):
    picture.transpose(Image.Transpose.ROTATE_90).save(path + '.tif', tiffinfo={274: 6})


def test_the_same_pixels_in_other_files(run_tool, tmp_path):
    """A turned TIFF, 16 bits, and 12 bits in 16 with the value of white: each gives the numbers of the plain files."""
    voc_pair(tmp_path / 'plain', 's0', 0)
    _, _, expected = run(run_tool, tmp_path / 'plain')
    for name, write, arguments in (
        ('tif6', on_its_side, ()),
        ('sixteen', sixteen_bits(257), ()),
        ('bits12', sixteen_bits(16), ('--image-max', 4095)),
    ):
        voc_pair(tmp_path / name, 's0', 0, write)
        status, printed, confusion = run(run_tool, tmp_path / name, *arguments, '--show-dir', tmp_path / 'shown' / name)
        assert status == 0 and confusion == expected, printed
    pictures = [
        np.array(Image.open(tmp_path / 'shown' / name / 'images' / 's0.png')) for name in ('tif6', 'sixteen', 'bits12')
    ]
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])
    status, printed, _ = run(run_tool, tmp_path / 'bits12')
    assert status == 1 and re.search(
        r'error: the image .*s0.png has 16 bits, and no value above \d+.*--image-max 4095', printed
    )
    status, printed, dark = run(run_tool, tmp_path / 'bits12', '--image-max', 65535)
    assert status == 0 and dark != expected
    (tmp_path / 'mine.py').write_text(
        "dataset = dict(name='mine', type='ImageFolderDataset', data_root='bits12', classes='classes.txt', "
        "image_max=4095, data_prefix=dict(img_path='images', seg_map_path='labels'))"
    )
    assert run_tool('prepare', '--check', tmp_path, 'mine.py')[0] == 0
    status, printed = run_tool('test', 'mine.py', *TOY, '--no-fsa', '--data-root', tmp_path, '--out', 'config.json')
    assert json.loads((tmp_path / 'config.json').read_text())['confusion'] == expected, printed
    (tmp_path / 'mine.py').write_text((tmp_path / 'mine.py').read_text().replace('4095', '"white"'))
    status, printed = run_tool('test', 'mine.py', *TOY, '--no-fsa', '--data-root', tmp_path)
    assert status == 1 and "image_max is 'white'; it has to be a whole number" in printed


def test_masks_of_0_and_255(run_tool, tmp_path):
    """Such masks are an error. A label map makes masks of 0 and 1, and a user can declare 255 to be void."""
    for white in (1, 255):
        voc_pair(tmp_path / f'mask{white}', 's0', 0, labels=lambda array: np.where(array == 0, 0, white))
        (tmp_path / f'mask{white}' / 'classes.txt').write_text(
            'background\nthing; cat; dog; car; bird; person; tree; water\n'
        )
    _, _, expected = run(run_tool, tmp_path / 'mask1')
    mask = tmp_path / 'mask255'
    status, printed, _ = run(run_tool, mask)
    assert status == 1 and 'error: the label images hold 0 and 255 alone' in printed and '--label-map 255:1' in printed
    (tmp_path / 'map.txt').write_text('255 1\n')
    for arguments in (('--label-map', '255:1', '--ignore-index', 254), ('--label-map', tmp_path / 'map.txt')):
        status, printed, confusion = run(run_tool, mask, *arguments)
        assert status == 0 and confusion == expected, printed
    assert run(run_tool, mask, '--ignore-index', 255)[0] == 0
    config = (
        "dataset = dict(name='m', type='ImageFolderDataset', data_root='mask255', classes='classes.txt', %s"
        "data_prefix=dict(img_path='images', seg_map_path='labels'))"
    )
    for key, status in (('', 1), ("label_map='../map.txt', ", 0), ('label_map={255: 1}, ignore_index=254, ', 0)):
        (tmp_path / 'm.py').write_text(config % key)
        check_status, printed = run_tool('prepare', '--check', tmp_path, 'm.py')
        assert check_status == status and ('--label-map 255:1' in printed) == bool(status), printed
    status, printed = run_tool('test', 'm.py', *TOY, '--no-fsa', '--data-root', tmp_path, '--out', 'config.json')
    assert json.loads((tmp_path / 'config.json').read_text())['confusion'] == expected, printed
    status, printed = run_tool('test', 'config.json', '--out', 'again.json')
    assert json.loads((tmp_path / 'again.json').read_text())['confusion'] == expected, printed
    status, printed = run_tool('test', 'm.py', '--label-map', '255:1')
    assert (
        status == 2
        and '--label-map goes with --images, --labels and --classes; a config of a data set has the key label_map'
        in printed
    )


def test_another_void(run_tool, tmp_path):
    """CamVid's void is 11, after its classes: the counts equal those of the same labels with 255."""
    for name, void in (('a', 255), ('b', 21)):
        voc_pair(tmp_path / name, 's0', 0, labels=lambda array: np.where(array == 255, void, array))
    _, _, expected = run(run_tool, tmp_path / 'a')
    status, printed, confusion = run(run_tool, tmp_path / 'b', '--ignore-index', 21)
    assert status == 0 and confusion == expected, printed
    status, printed, _ = run(run_tool, tmp_path / 'b')
    assert status == 1 and 'has the labels [21]' in printed and '--ignore-index says another' in printed
    for arguments, message in (
        (('--ignore-index', -1), 'ignore_index is -1'),
        (('--label-map', '21:22'), 'gives 21 the label 22'),
        (('--image-max', 7), 'image_max is 7'),
    ):
        status, printed, _ = run(run_tool, tmp_path / 'b', *arguments)
        assert status == 1 and message in printed and 'Traceback' not in printed, printed


def test_unused_files_are_listed(run_tool, tmp_path):
    folder = tmp_path / 'mixed'
    for parent in (folder, tmp_path / 'plain'):
        voc_pair(parent, 's0', 0)
    _, _, expected = run(run_tool, tmp_path / 'plain')
    for number in (1, 2):
        voc_pair(folder, f's{number}', number, lambda picture, path: picture.save(path + '.gif'))
    os.symlink('gone.png', folder / 'images' / 's3.png')
    os.mkfifo(folder / 'images' / 's4.png')
    os.mkfifo(folder / 'labels' / 's4.png')
    (folder / 'images' / 's5.png').mkdir()
    (folder / 'images' / '.hidden.png').write_text('')
    status, printed, confusion = run(run_tool, folder)
    assert status == 0 and confusion == expected
    warnings = [
        line.removeprefix('warning: not used: ').split(' (the first is ')
        for line in printed.splitlines()
        if line.startswith('warning: not used: ')
    ]
    assert [kind for kind, _ in warnings] == [
        '2 files of other suffixes',
        '1 broken links',
        '1 FIFOs, sockets or devices',
        '1 folders with the name of an image',
        '1 FIFOs, sockets or devices',
        '2 label images without an image',
    ]
    assert warnings[0][1].endswith('images/s1.gif)') and warnings[5][1].endswith('labels/s1.png)')
    config = (
        "dataset = dict(name='mixed', type='ImageFolderDataset', data_root='mixed', classes='classes.txt', %s"
        "data_prefix=dict(img_path='images', seg_map_path='labels'))"
    )
    command = ('prepare', '--check', tmp_path, 'mixed.py')
    (tmp_path / 'mixed.py').write_text(config % '')
    status, printed = run_tool(*command)
    assert status == 0 and '- not used: 2 files of other suffixes' in printed
    (folder / 'split.txt').write_text('s0')
    (tmp_path / 'mixed.py').write_text(config % "ann_file='split.txt', ")
    assert 'not used' not in run_tool(*command)[1]  # a split leaves files out on purpose


def test_pictures_keep_the_folders_of_their_images(run_tool, tmp_path):
    for name, number in (('a/s0', 0), ('b/s0', 1)):
        voc_pair(tmp_path / 'stems', name, number)
    assert run(run_tool, tmp_path / 'stems', '--show-dir', 'shown')[0] == 0
    pictures = [tmp_path / 'shown' / 'images' / folder / 's0.png' for folder in 'ab']
    assert sorted((tmp_path / 'shown').rglob('*.png')) == pictures
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    (tmp_path / 'stems.py').write_text(
        "dataset = dict(name='stems', type='ImageFolderDataset', data_root='stems', classes='classes.txt',"
        "data_prefix=dict(img_path='images', seg_map_path='labels'))"
    )
    run_tool('prepare', '--check', tmp_path, 'stems.py', '--out', 'checked')
    assert len(list((tmp_path / 'checked').rglob('*.png'))) == 2
    assert picture_path('out', '/data/a/../../x.jpg', '/data/b') == os.path.join('out', 'x.png')


def test_a_part_under_a_known_name(run_tool, tmp_path):
    """One image is not VOC, whatever the config says. The run needs --limit or another name; its result runs again."""
    voc_pair(tmp_path / 'part', 's0', 0)
    config = (
        "dataset = dict(name='voc21', type='ImageFolderDataset', data_root='part', classes='classes.txt', %s"
        "data_prefix=dict(img_path='images', seg_map_path='labels'))"
    )
    model = ('--backbone', 'toy', '--method', 'clip', '--no-fsa', '--workers', 0)
    command = ('test', 'part.py', *model, '--data-root', tmp_path)
    for stated in ('images=1, ', 'images=1449, ', ''):
        (tmp_path / 'part.py').write_text(config % stated)
        status, printed = run_tool(*command)
        assert status == 1 and 'the split has 1 images, the data set voc21 1449' in printed
        assert '--limit N, which marks the result as partial' in printed and 'another `name`' in printed
    assert run_tool('prepare', '--check', tmp_path, 'part.py')[0] == 1
    status, printed = run_tool(*command, '--limit', 9, '--out', 'one.json')
    result = json.loads((tmp_path / 'one.json').read_text())
    assert status == 0 and result['partial'] and len(result['images']) == 1 and 'partial: 1 images' in printed
    assert run_tool('test', 'one.json', '--out', 'two.json')[0] == 0
    repeated = json.loads((tmp_path / 'two.json').read_text())
    assert repeated['partial'] and repeated['confusion'] == result['confusion'] and repeated['hash'] == result['hash']
    (tmp_path / 'part.py').write_text(config.replace('voc21', 'mine') % 'images=1, ')
    status, printed = run_tool(*command, '--limit', 9, '--out', 'mine.json')
    assert status == 0 and 'on mine' in printed and not json.loads((tmp_path / 'mine.json').read_text())['partial']


@pytest.mark.parametrize('known', [3, 9])
def test_a_limited_result_of_a_known_number_runs_again(run_tool, tmp_path, known):
    """The same image is used, which is not the first."""
    for number in range(3):
        voc_pair(tmp_path / 'three', f's{number}', number)
    (tmp_path / 'three.py').write_text(
        "dataset = dict(name='three', type='ImageFolderDataset', data_root='three', images=%d, "  # noqa: UP031
        "classes='classes.txt', data_prefix=dict(img_path='images', "
        "seg_map_path='labels'))" % known
    )
    assert (
        run_tool('test', 'three.py', *TOY, '--no-fsa', '--data-root', tmp_path, '--limit', 1, '--out', 'one.json')[0]
        == 0
    )
    status, printed = run_tool('test', 'one.json', '--out', 'two.json')
    assert status == 0, printed
    result, repeated = (json.loads((tmp_path / name).read_text()) for name in ('one.json', 'two.json'))
    assert (
        repeated['confusion'] == result['confusion']
        and repeated['images'] == result['images']
        and repeated['hash'] == result['hash']
    )
    assert len(result['images']) == 1 and result['images'][0]['name'] != 'images/s0.png'


def test_names_with_the_same_text_for_clip(run_tool, user_data, tmp_path):
    (user_data / 'classes.txt').write_text('\n'.join('Cat ' if name == 'dog' else name for name in NAMES))
    status, printed, _ = run(run_tool, user_data)
    assert status == 1 and "'cat' of class 8 (cat) and 'Cat' of class 12 (Cat) are one text to CLIP" in printed
    (user_data / 'classes.txt').write_text('\n'.join(NAMES))
    (tmp_path / 'words.txt').write_text('\n'.join('dog; a  CAT' if name == 'dog' else f'a {name}' for name in NAMES))
    status, printed, _ = run(run_tool, user_data, '--words', 'words.txt')
    assert status == 1 and "words.txt: 'a cat' of class 8 (cat) and 'a  CAT' of class 12 (dog) are one text" in printed
