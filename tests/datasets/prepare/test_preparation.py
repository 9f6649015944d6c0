"""Every data set, prepared from small downloads in the publishers' formats, and every wrong form of the downloads."""

import errno
import io
import json
import os
import pickle
import shutil
import signal
import tarfile
import time
import zipfile

import numpy as np
import pytest
from mmseg.datasets import PascalContextDataset
from PIL import Image
from scipy.io import savemat

from fsa_seg.config.compose import compose
from fsa_seg.datasets.data_sets import list_images
from fsa_seg.datasets.prepare.coco import STUFF_IDS
from fsa_seg.datasets.prepare.context import DETAIL_CATEGORIES
from fsa_seg.datasets.prepare.plan import read_matlab
from fsa_seg.datasets.prepare.preparation import prepare
from fsa_seg.datasets.prepare.preparations import PREPARATIONS
from fsa_seg.errors import UserError
from fsa_seg.system import files

import sources
from conftest import ROOT
from new_process import start_python
from sources import EXPECTED, SIZE, SOURCES, png, rows

every_source = pytest.mark.parametrize('source', SOURCES)


def name_of(source):
    return 'context' if source == 'context_mat' else source


@pytest.fixture
def downloads(tmp_path):
    """Write a data set's downloads into a folder: returns its path."""

    def make(source):
        SOURCES[source](str(tmp_path / 'downloads'))
        return tmp_path / 'downloads'

    return make


def prepared(downloads, root, source, **options):
    """Prepare a data set, and return path below its folder -> label map."""
    prepare(name_of(source), [str(downloads)], str(root), **options)
    folder = root / PREPARATIONS[name_of(source)].folder
    return {
        str(path.relative_to(folder)): np.array(Image.open(path))
        for path in folder.rglob('*.png')
        if not path.name.endswith('leftImg8bit.png')
    }


def pack(folder, kind):
    """Move the files of a folder into an archive, and return its path."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())
    if kind == 'zip':
        with zipfile.ZipFile(folder / 'all.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(folder / name, name)
    else:
        with tarfile.open(folder / f'all.{kind}', dict(tar='w').get(kind, 'w:' + kind[4:])) as archive:
            for name in names:
                archive.add(folder / name, './' + name)
    for entry in list(folder.iterdir()):
        if not entry.name.startswith('all.'):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return folder / f'all.{kind}'


@every_source
@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar', 'tar.gz'])
def test_labels_are_those_worked_out_by_hand(downloads, tmp_path, source, kind):
    folder = downloads(source)
    if kind != 'folder':
        pack(folder, kind)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob('*') if path.is_file()}
    label_maps = prepared(folder, tmp_path / 'root', source)
    assert sorted(label_maps) == sorted(EXPECTED[source])
    for path, labels in EXPECTED[source].items():
        assert label_maps[path].tolist() == labels.tolist(), path
        assert label_maps[path].dtype == (np.uint16 if source in ('context459', 'ade20k847') else np.uint8)
    assert before == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob('*') if path.is_file()
    }
    for benchmark in PREPARATIONS[name_of(source)].benchmarks:  # the configs find the label images
        config = compose(benchmark, 'clip', None, 'toy', data_root=str(tmp_path / 'root'))
        entries = list_images(config.test_dataloader.dataset)
        assert len(entries) == len({path for path in EXPECTED[source] if not path.endswith('instanceTrainIds.png')})
        assert all(os.path.isfile(entry['img_path']) and os.path.isfile(entry['seg_map_path']) for entry in entries)


@every_source
def test_training_images(downloads, tmp_path, source):
    folder, root = downloads(source), tmp_path / 'root'
    if source == 'cityscapes':
        for path in list(folder.rglob('*')):
            if path.is_file() and 'munster' in path.name:
                target = str(path).replace('/val/', '/train/').replace('munster', 'aachen')
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copyfile(path, target)
    paths = set(prepared(folder, root, source, images='all')) - set(EXPECTED[source])
    assert len(paths) == (2 if source == 'coco' else 1) and all('val' not in path.split('/')[:-1] for path in paths)


def test_class_lists_from_the_downloads(downloads, tmp_path):
    for source, path, first, last, count in (
        ('context459', 'context459_classes.txt', 'thing 1', 'aeroplane', 459),
        ('ade20k847', 'classes.txt', 'thing 1; object 1', 'thing 857; object 857', 847),
        ('coco_stuff10k', 'classes.txt', 'stuff 1', 'stuff 182', 171),
    ):
        prepared(downloads(source), tmp_path / 'root', source)
        lines = (tmp_path / 'root' / PREPARATIONS[source].folder / path).read_text().splitlines()
        assert (lines[0], lines[-1], len(lines)) == (first, last, count)
        model = compose(source, 'clip', None, 'toy', data_root=str(tmp_path / 'root')).model
        assert model.words[0] == first.split('; ') and len(model.words) == count
        shutil.rmtree(tmp_path / 'downloads')


def test_tables_of_the_sources():
    assert len(DETAIL_CATEGORIES) == 59 == len(set(DETAIL_CATEGORIES)) and list(DETAIL_CATEGORIES) == sorted(
        DETAIL_CATEGORIES
    )
    assert [PascalContextDataset.METAINFO['classes'][i] for i in (1, 2, 59)] == ['aeroplane', 'bag', 'wood']
    assert sources.CONTEXT == list(PascalContextDataset.METAINFO['classes'][1:])
    assert len(STUFF_IDS) == 171 and STUFF_IDS[79] == 90 and STUFF_IDS[80] == 92  # 80 things, then stuff


def test_polygons_and_label_ids_of_cityscapes_agree(downloads, tmp_path):
    folder = downloads('cityscapes')
    from_polygons = prepared(folder, tmp_path / 'one', 'cityscapes')
    for path in folder.rglob('*_polygons.json'):
        path.unlink()
    from_ids = prepared(folder, tmp_path / 'two', 'cityscapes')
    assert from_polygons.keys() == from_ids.keys() and all(
        np.array_equal(from_polygons[path], from_ids[path]) for path in from_polygons
    )


def test_voc_keeps_its_palette(downloads, tmp_path):
    prepared(downloads('voc'), tmp_path / 'root', 'voc')
    path = 'VOCdevkit/VOC2012/SegmentationClass/2007_000033.png'
    assert (tmp_path / 'root' / path).read_bytes() == (tmp_path / 'downloads' / path).read_bytes()


@pytest.mark.parametrize('link', [True, False])
def test_images_are_linked_or_copied(downloads, tmp_path, link):
    folder = downloads('ade20k')
    prepared(folder, tmp_path / 'root', 'ade20k', link=link)
    (image,) = (tmp_path / 'root').rglob('*.jpg')
    assert image.is_symlink() == link
    assert image.read_bytes() == (folder / 'ADEChallengeData2016/images/validation/ADE_val_00000001.jpg').read_bytes()


def test_downloads_inside_the_data_root(downloads, tmp_path):
    folder = downloads('voc')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
    prepare('voc', [str(folder)], str(folder))
    assert before.items() == {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}.items()


def test_processes_give_the_same(downloads, tmp_path):
    folder = downloads('coco')
    serial, parallel = (prepared(folder, tmp_path / str(n), 'coco', workers=n) for n in (1, 3))
    assert serial.keys() == parallel.keys() and all(np.array_equal(serial[path], parallel[path]) for path in serial)


# Wrong downloads of every data set


def refused(downloads, tmp_path, source, message):
    """Check that preparing fails, leaves no half-written file and writes no wrong label map; return the error."""
    with pytest.raises(UserError, match=message) as error:
        prepare(name_of(source), [str(downloads)], str(tmp_path / 'root'))
    folder = tmp_path / 'root' / PREPARATIONS[name_of(source)].folder
    assert not [path for path in folder.rglob('*') if path.name.endswith('.part')]
    for path, labels in EXPECTED[source].items():
        if (folder / path).exists():
            assert np.array_equal(np.array(Image.open(folder / path)), labels)
    return str(error.value)


@every_source
@pytest.mark.parametrize('kind', ['zip', 'tar', 'tar.gz'])
def test_truncated_archive(downloads, tmp_path, source, kind):
    archive = pack(downloads(source), kind)
    size = archive.stat().st_size * 6 // 10
    if kind == 'tar':  # a small archive is half padding: cut it within or before a file
        with tarfile.open(archive) as f:
            size = f.getmembers()[-1].offset_data + 1 if source in ('voc', 'coco') else f.getmembers()[-1].offset
    archive.write_bytes(archive.read_bytes()[:size])
    printed = refused(archive, tmp_path, source, 'lacks')
    assert f'not used: {archive} is no whole archive' in printed and 'download it again' in printed


@every_source
@pytest.mark.parametrize('evil', ['../evil.txt', '/tmp/evil.txt', 'a/../../evil.txt'])
def test_archive_with_a_member_outside_of_itself(downloads, tmp_path, source, evil):
    for kind in ('zip', 'tar'):
        archive = pack(downloads(source), kind)
        if kind == 'zip':
            with zipfile.ZipFile(archive, 'a') as f:
                f.writestr(evil, 'x')
        else:
            with tarfile.open(archive, 'a') as f:
                f.addfile(tarfile.TarInfo(evil))
        printed = refused(archive, tmp_path, source, 'lacks')
        assert f'has a member outside of itself, {evil!r}' in printed
        archive.unlink()
    assert not list(tmp_path.rglob('evil.txt')) and not os.path.exists('/tmp/evil.txt')


@every_source
def test_missing_annotation_and_missing_image(downloads, tmp_path, source):
    folder = downloads(source)
    pattern = dict(
        voc='2007_000033.png',
        context='2008_000002.jpg',
        context_mat='2008_000002.mat',
        context459='2008_000002.mat',
        coco='000000000139.png',
        cityscapes='frankfurt*polygons.json',
        ade20k='ADE_val*.png',
        ade20k847='ADE_val*_seg.png',
        coco_stuff10k='*77.mat',
    )[source]
    for path in folder.rglob(pattern):
        path.unlink()
    refused(folder, tmp_path, source, 'lacks .*annotation' if source != 'context' else 'lacks 1 of 2 images')


@every_source
def test_annotation_of_another_size(downloads, tmp_path, source):
    folder = downloads(source)
    name = sorted(path for path in EXPECTED[source])[0].split('/')[-1]
    for suffix in ('_gtFine_labelTrainIds.png', '_labelTrainIds.png', '_instanceTrainIds.png', '.png'):
        name = name.removesuffix(suffix)
    (path,) = [
        path
        for path in folder.rglob(f'{name}*')
        if path.suffix in ('.jpg', '.png')
        and ('JPEGImages' in str(path) or path.suffix == '.jpg' or 'leftImg8bit' in path.name)
    ]
    sources.image(str(path), 1, (SIZE[0] + 1, SIZE[1]))
    printed = refused(folder, tmp_path, source, f'has {SIZE[0]}×{SIZE[1]} pixels, its image .*{SIZE[0] + 1}×{SIZE[1]}')
    assert '1 of' in printed and 'nothing was written' in printed
    written = list((tmp_path / 'root').rglob('*.png'))
    assert len(written) < len(EXPECTED[source]) + 2 and not any(
        name in path.name and path.suffix == '.png' and 'left' not in path.name for path in written
    )
    sources.image(str(path), 1)  # after mending, the same command goes on
    label_maps = prepared(folder, tmp_path / 'root', source)
    assert all(np.array_equal(label_maps[path], labels) for path, labels in EXPECTED[source].items())


# Wrong annotations


def wrong_labels(source, path, labels):
    """Return a function that replaces a label map in a folder of downloads."""

    def damage(folder):
        if path.endswith('.mat'):
            variable = (
                dict(S=labels, names=sources.stuff_names()) if source == 'coco_stuff10k' else dict(LabelMap=labels)
            )
            return sources.matlab(f'{folder}/{path}', **variable)
        png(f'{folder}/{path}', labels) if labels.ndim == 2 else Image.fromarray(labels.astype(np.uint8)).save(
            f'{folder}/{path}'
        )

    return damage


RGB = np.zeros((*SIZE, 3))
VOC, STUFF, ADE = (
    'VOCdevkit/VOC2012/SegmentationClass/2007_000033.png',
    'stuffthingmaps/val2017/000000000139.png',
    'ADEChallengeData2016/annotations/validation/ADE_val_00000001.png',
)
CITY = 'gtFine/val/munster/munster_000001_000019_gtFine_polygons.json'
MAT, TENK = 'trainval/2008_000002.mat', 'annotations/COCO_train2014_000000000077.mat'


def cut(path):

    def damage(folder):
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return damage


def edit_json(path, change):

    def damage(folder):
        content = json.loads((folder / path).read_text())
        change(content)
        (folder / path).write_text(json.dumps(content))

    return damage


def edit_text(path, change):

    def damage(folder):
        (folder / path).write_text(change((folder / path).read_text()))

    return damage


def set_category(content):
    content['annos_segmentation'][4]['category_id'] = 3


def set_image(content):
    content['annos_segmentation'][4]['image_id'] = 99


def set_mask_size(content):
    content['annos_segmentation'][4]['segmentation']['size'] = [4, 7]


def break_mask(content):
    content['annos_segmentation'][4]['segmentation'] = dict(size=list(SIZE), counts=[1, 2, 'x'])


def repeat_image(content):
    content['images'].append(content['images'][0])


def repeat_annotation(content):
    content['annos_segmentation'].append(content['annos_segmentation'][0])


def unknown_object(content):
    content['objects'][0]['label'] = 'unicorn'


def other_variable(folder):
    sources.matlab(f'{folder}/{MAT}', Labels=rows(1, 1, 1, 1))


def other_index(folder):
    path = folder / 'ADE20K_2021_17_01/index_ade20k.pkl'
    index = pickle.loads(path.read_bytes())
    index['objectPresence'][[1, 300, 857]] += index['objectPresence'][[0, 299, 856]]  # numbers from 0
    index['objectPresence'][[0, 299, 856]] = 0
    index['objectPresence'][899] = 1  # 847 of them
    path.write_bytes(pickle.dumps(index))


def fewer_objects(folder):
    path = folder / 'ADE20K_2021_17_01/index_ade20k.pkl'
    index = pickle.loads(path.read_bytes())
    index['objectPresence'][20:23] = 0
    path.write_bytes(pickle.dumps(index))


class Evil:
    def __reduce__(self):
        return os.system, ('touch /tmp/evil.txt',)


def evil_index(folder):
    (folder / 'ADE20K_2021_17_01/index_ade20k.pkl').write_bytes(pickle.dumps(dict(objectnames=Evil())))


def index_of(content):
    """Return a function that replaces ADE20K's index by a pickle's bytes."""
    return lambda folder: (folder / 'ADE20K_2021_17_01/index_ade20k.pkl').write_bytes(content)


HUGE_ARRAY = b'\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\x00\x00\x01\x00t\x85R.'  # of 2**78 numbers


def picture_bomb(folder):
    path = next(folder.rglob('ADE_val_00000001_seg.png'))
    Image.new('1', (14000, 14000)).save(path)


def polygon_mask(content):
    content['annos_segmentation'][4]['segmentation'] = [[1, 2, 3, 4]]


def no_height(content):
    content['images'][0]['height'] = None


def no_phase(content):
    for image in content['images']:
        image['phase'] = 'train'


def not_utf8(path):
    return lambda folder: (folder / path).write_bytes(b'2007_000033\xff\n')


def foreign_labels(folder):
    """Other data sets have a labels.txt too."""
    (folder / 'a').mkdir()
    (folder / 'a' / 'labels.txt').write_bytes(b'\xff')
    (folder / 'labels.txt').write_text('0: unlabeled\n1: person\n')


def remove(path):
    return lambda folder: (folder / path).unlink()


WRONG = [
    ('voc', wrong_labels('voc', VOC, RGB), '2007_000033.png has 3 channels; a palette'),
    (
        'voc',
        wrong_labels('voc', VOC, rows(0, 1, 21, 254)),
        r'2007_000033.png has the labels \[21, 254\]; the data set has 0 to 20',
    ),
    ('voc', cut(VOC), '2007_000033.png cannot be decoded'),
    (
        'voc',
        remove('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt'),
        'lacks the split VOC2012/ImageSets/Segmentation/val.txt',
    ),
    (
        'voc',
        edit_text('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt', lambda text: text + text),
        'names 2007_000033 more than once',
    ),
    ('voc', edit_text('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt', lambda text: ''), 'val.txt is empty'),
    ('voc', not_utf8('VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt'), 'val.txt is no UTF-8 text'),
    ('context_mat', foreign_labels, 'lacks labels.txt of PASCAL-Context'),
    ('ade20k', wrong_labels('ade20k', ADE, RGB), 'has 3 channels'),
    ('ade20k', wrong_labels('ade20k', ADE, rows(0, 151, 1, 1)), r'has the labels \[151\]; the data set has 0 to 150'),
    ('coco', wrong_labels('coco', STUFF, RGB), 'has 3 channels'),
    (
        'coco',
        wrong_labels('coco', STUFF, rows(0, 11, 182, 1)),
        r'139.png has the labels \[11, 182\], which its format does not have',
    ),
    ('cityscapes', cut(CITY), 'munster_000001_000019_gtFine_polygons.json is no annotation of Cityscapes'),
    ('cityscapes', edit_json(CITY, unknown_object), 'is no annotation of Cityscapes: .*unicorn'),
    ('context', cut('trainval_merged.json'), 'trainval_merged.json is no Detail file .*download it again'),
    (
        'context',
        edit_json('trainval_merged.json', set_category),
        'annotation 5 is of the category 3, which is none of the 59',
    ),
    (
        'context',
        edit_json('trainval_merged.json', set_image),
        'annotation 5 is of the image 99, which is not in the file',
    ),
    (
        'context',
        edit_json('trainval_merged.json', set_mask_size),
        r'annotation 5 of .*2008_000007.jpg is of \[4, 7\] pixels',
    ),
    ('context', edit_json('trainval_merged.json', break_mask), 'annotation 5 of .* is no run-length mask'),
    (
        'context',
        edit_json('trainval_merged.json', polygon_mask),
        r'annotation 5 has no run-length mask, dict.size, counts., but \[\[1, 2',
    ),
    ('context', edit_json('trainval_merged.json', no_height), 'is no Detail file of PASCAL-Context'),
    ('context', edit_json('trainval_merged.json', no_phase), "has no image of the phase 'val'"),
    ('context', edit_json('trainval_merged.json', repeat_image), r'has the image 11 \(2008_000007\) more than once'),
    ('context', edit_json('trainval_merged.json', repeat_annotation), 'has the annotation 1 more than once'),
    ('context_mat', cut(MAT), '2008_000002.mat is no MATLAB file with the variable LabelMap'),
    ('context_mat', other_variable, '2008_000002.mat is no MATLAB file with the variable LabelMap'),
    ('context_mat', wrong_labels('context_mat', MAT, rows(1, 460, 1, 1)), r'2008_000002.mat has the labels \[460\]'),
    ('context_mat', wrong_labels('context_mat', MAT, RGB), 'LabelMap in .* is no label map: .*4, 6, 3'),
    ('context_mat', remove('labels.txt'), 'lacks labels.txt of PASCAL-Context'),
    (
        'context_mat',
        remove('VOCdevkit/VOC2010/ImageSets/Main/val.txt'),
        'lacks the split VOC2010/ImageSets/Main/val.txt',
    ),
    (
        'context_mat',
        edit_text('labels.txt', lambda text: text.replace('bedclothes', 'duvet')),
        'lacks bedclothes of the 59',
    ),
    (
        'context_mat',
        edit_text('59_labels.txt', lambda text: text.replace('wood', 'wool')),
        r"names \['wool'\] and lacks \['wood'\]",
    ),
    (
        'context459',
        edit_text('labels.txt', lambda text: text.replace('459: ', '458: ')),
        'lacks labels.txt of PASCAL-Context',
    ),
    ('context459', wrong_labels('context459', MAT, rows(1, 460, 1, 1)), r'has the labels \[460\]'),
    ('ade20k847', other_index, 'the index lists others for it: they are of two releases'),
    ('ade20k847', fewer_objects, '844 objects of .* not 847; list the 847'),
    ('ade20k847', cut('ADE20K_2021_17_01/index_ade20k.pkl'), 'is no index of ADE20K'),
    ('ade20k847', evil_index, 'is no index of ADE20K: .*system has no place in an index'),
    *[
        ('ade20k847', index_of(f'c{module}\n{name}\n.'.encode()), f'{module}.{name} has no place in an index')
        for module, name in (
            ('numpy.f2py', 'dtype'),
            ('numpy.testing', '_reconstruct'),
            ('numpy.lib.npyio', 'scalar'),
            ('numpy', 'load'),
            ('numpy._core.multiarray', 'fromfile'),
            ('numpy', 'dtype.__class__'),
            ('builtins', 'eval'),
        )
    ],
    ('ade20k847', index_of(HUGE_ARRAY), 'is no index of ADE20K'),
    ('ade20k847', picture_bomb, 'ADE_val_00000001_seg.png has more than 178956970 pixels'),
    (
        'ade20k847',
        cut('ADE20K_2021_17_01/images/ADE/validation/home/attic/ADE_val_00000001_seg.png'),
        '_seg.png cannot be decoded',
    ),
    ('coco_stuff10k', wrong_labels('coco_stuff10k', TENK, rows(1, 12, 183, 1)), r'77.mat has the labels \[12, 183\]'),
    ('coco_stuff10k', cut(TENK), '77.mat is no MATLAB file'),
    ('coco_stuff10k', remove('imageLists/test.txt'), 'lacks the split imageLists/test.txt'),
]


@pytest.mark.parametrize('source, damage, message', WRONG)
def test_wrong_forms(downloads, tmp_path, source, damage, message):
    folder = downloads(source)
    damage(folder)
    refused(folder, tmp_path, source, message)
    assert not os.path.exists('/tmp/evil.txt')


def test_a_list_of_the_847(downloads, tmp_path):
    folder = downloads('ade20k847')
    fewer_objects(folder)
    (folder / 'ade20k847_labels.txt').write_text('1: thing 1\n300: thing 300\n')
    label_maps = prepared(folder, tmp_path / 'root', 'ade20k847')
    assert label_maps['annotations/validation/ADE_val_00000001.png'].tolist() == rows(0, 1, (2, 0), 0).tolist()


def test_label_images_of_another_recipe(downloads, tmp_path):
    """A changed list shifts the labels after the change; label images of both lists must not be mixed."""
    folder, root = downloads('ade20k847'), tmp_path / 'root'
    prepared(folder, root, 'ade20k847')
    (folder / 'ade20k847_labels.txt').write_text('1: thing 1\n300: thing 300\n')
    classes = root / 'ade/ADE20K_2021_17_01/classes.txt'
    before = classes.read_text()
    message = (
        'made from 847 objects .SHA-256 .*, and would now be made from 2 objects .*; remove annotations/validation and '
    )
    with pytest.raises(UserError, match=message + 'ade20k847_labels_made_from.txt'):
        prepare('ade20k847', [str(folder)], str(root))
    assert classes.read_text() == before
    shutil.rmtree(classes.parent / 'annotations')
    (classes.parent / 'ade20k847_labels_made_from.txt').unlink()
    assert prepared(folder, root, 'ade20k847')['annotations/validation/ADE_val_00000001.png'].max() == 2
    shutil.rmtree(folder)
    prepared(downloads('context_mat'), root, 'context_mat')
    with pytest.raises(
        UserError, match='made from the .mat files, and would now be made from trainval_merged.json; remove Segm'
    ):
        prepare('context', [str(downloads('context'))], str(root))


def test_an_archive_with_a_member_twice(downloads, tmp_path):
    archive = pack(downloads('ade20k'), 'tar')
    with tarfile.open(archive, 'a') as f:
        f.add(__file__, './ADEChallengeData2016/objectInfo150.txt')
    assert 'has the member' in refused(archive, tmp_path, 'ade20k', 'objectInfo150.txt. more than once')


def test_links_within_a_tar(downloads, tmp_path):
    folder = downloads('voc')
    os.link(folder / 'VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg', folder / 'first.jpg')
    (folder / 'VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg').unlink()
    os.link(folder / 'first.jpg', folder / 'VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg')
    archive = pack(folder, 'tar.xz')
    with tarfile.open(archive) as f:
        assert sum(info.islnk() for info in f.getmembers()) == 2
    label_maps = prepared(archive, tmp_path / 'root', 'voc')
    assert sorted(label_maps) == sorted(EXPECTED['voc'])
    first, second = sorted((tmp_path / 'root').rglob('*.jpg'))
    assert first.read_bytes() == second.read_bytes()


def test_files_that_differ_by_case_alone(downloads, tmp_path):
    folder = downloads('coco') / 'val2017'
    shutil.copytree(folder, folder.parent / 'other' / 'val2017')
    prepared(folder.parent, tmp_path / 'one', 'coco')  # two copies of a file count once
    with zipfile.ZipFile(folder.parent / 'images.zip', 'w') as archive:
        archive.writestr('leftImg8bit/val/a/a_000000_000000_leftImg8bit.png', b'1')
        archive.writestr('VOC2012/JPEGImages/a.jpg', b'1')
        archive.writestr('VOC2012/JPEGImages/A.jpg', b'1')
    sources.voc(str(folder.parent))
    refused(folder.parent, tmp_path, 'voc', 'A.jpg in .*images.zip differ only in upper and lower case')


def test_two_copies_of_a_download_and_one_is_cut(downloads, tmp_path):
    folder = downloads('ade20k')
    pack(folder, 'zip')
    sources.ade20k(str(folder))
    cut('ADEChallengeData2016/images/validation/ADE_val_00000001.jpg')(folder)
    refused(folder, tmp_path, 'ade20k', 'remove the incomplete file')


def test_a_damaged_member_of_an_archive(downloads, tmp_path):
    archive = pack(downloads('ade20k'), 'zip')
    with zipfile.ZipFile(archive) as f:
        offset = f.getinfo('ADEChallengeData2016/images/validation/ADE_val_00000001.jpg').header_offset
    content = bytearray(archive.read_bytes())
    content[offset + 150 : offset + 160] = bytes(10)
    archive.write_bytes(content)
    refused(archive, tmp_path, 'ade20k', 'ADE_val_00000001.jpg in .*all.zip cannot be read .*download it again')


def test_no_space_left(downloads, tmp_path, monkeypatch):
    folder = downloads('coco')
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 10, 0))
        refused(folder, tmp_path, 'coco', 'has 0.0 GB left, and .* are to be written; make room')
    assert not list((tmp_path / 'root').rglob('*.jpg'))
    written, replace = [], os.replace

    def full(source, target):
        if len(written) == 4:  # two images and the two label images of the first
            raise OSError(errno.ENOSPC, 'No space left on device', target)
        written.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', full)
        refused(folder, tmp_path, 'coco', 'cannot be written .No space left on device.; .*, and the same command')
    times = {path: os.stat(path).st_mtime_ns for path in written}
    prepared(folder, tmp_path / 'root', 'coco')
    assert times == {path: os.stat(path).st_mtime_ns for path in written}  # no file is written twice


def workers_of(process):
    with open(f'/proc/{process.pid}/task/{process.pid}/children') as f:
        return [int(pid) for pid in f.read().split()]


def is_alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().split()[2] != 'Z'
    except OSError:
        return False


@pytest.mark.parametrize(
    'end, status, message',
    [
        (lambda process: os.kill(process.pid, signal.SIGINT), 130, 'the same command goes on'),
        (lambda process: os.kill(process.pid, signal.SIGKILL), -signal.SIGKILL, ''),
        (lambda process: os.kill(process.pid, signal.SIGTERM), 75, 'the same command goes on'),
        (
            lambda process: os.kill(workers_of(process)[0], signal.SIGKILL),
            1,
            'a process that converts was ended from outside',
        ),
    ],
)
def test_an_ended_preparation_goes_on(downloads, tmp_path, end, status, message):
    """It ends while it converts. The next preparation removes half-written files and keeps the finished files."""
    folder = downloads('coco')
    for i in range(400):
        name = f'{1000 + i:012d}'
        sources.image(f'{folder}/val2017/{name}.jpg', i)
        png(f'{folder}/stuffthingmaps/val2017/{name}.png', rows(0, 1, 2, 3))
    target = tmp_path / 'root/coco_stuff164k/annotations/val2017'
    tool = os.path.join(ROOT, 'tools', 'prepare_dataset.py')
    arguments = ['coco', '--from', str(folder), '--to', str(tmp_path / 'root'), '--workers', '2']
    outputs = [tmp_path / 'out', tmp_path / 'err']
    process = start_python(tool, *arguments, cwd=tmp_path, outputs=outputs)
    while process.exitcode is None and len(list(target.glob('*.png'))) <= 20:  # finished files
        time.sleep(0.01)
    workers = workers_of(process)
    end(process)
    process.join(60)
    printed = outputs[1].read_text()
    assert process.exitcode == status and message in printed and 'Traceback' not in printed, printed
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)):  # workers end with their parent
        assert time.monotonic() < deadline
        time.sleep(0.01)
    times = {path: path.stat().st_mtime_ns for path in target.glob('*.png')}
    assert 20 < len(times) < 804
    (target / 'x.png.7.part').write_bytes(b'half')
    prepare('coco', [str(folder)], str(tmp_path / 'root'))
    assert len(list(target.iterdir())) == 804
    assert all(path.stat().st_mtime_ns == modified for path, modified in times.items())


def test_two_preparations_of_one_data_set_at_once(downloads, tmp_path):
    import fcntl

    folder = downloads('voc')
    target = tmp_path / 'root/VOCdevkit/VOC2012'
    target.mkdir(parents=True)
    lock = os.open(target, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(folder, tmp_path, 'voc', 'another process prepares voc in')
    os.close(lock)
    prepared(folder, tmp_path / 'root', 'voc')


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(name='vco'), "unknown data set to prepare 'vco' .did you mean 'voc'"),
        (dict(images='vla'), "unknown choice of --images 'vla' .did you mean 'val'"),
        (dict(workers=0), '--workers is 0'),
        (dict(paths=[__file__], download=True), 'test_preparation.py is a file; name a folder first'),
        (
            dict(name='cityscapes', download=True),
            'cityscapes cannot be downloaded without a login: .*gtFine_trainvaltest.zip',
        ),
        (dict(paths=['nowhere']), 'the download nowhere does not exist'),
        (dict(paths=[]), 'lacks images of VOC2012/JPEGImages'),
    ],
)
def test_bad_choices(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        prepare(**{**dict(name='voc', paths=[str(tmp_path)], root=str(tmp_path / 'root')), **arguments})


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_index_of_any_protocol_and_numpy(downloads, tmp_path, protocol):
    """Names of numpy 1's modules work too; nothing is imported for them."""
    folder = downloads('ade20k847')
    path = folder / 'ADE20K_2021_17_01/index_ade20k.pkl'
    index = pickle.loads(path.read_bytes())
    index['objectnames'] = np.array(index['objectnames'], object)
    index['objectIsPart'], index['release'] = np.asarray(index['objectIsPart']), np.float64(2)
    data = pickle.dumps(index, protocol)
    old = data.replace(b'numpy._core', b'numpy.core') if protocol < 4 else data
    path.write_bytes(old)
    label_maps = prepared(folder, tmp_path / 'root', 'ade20k847')
    for name, labels in EXPECTED['ade20k847'].items():
        assert np.array_equal(label_maps[name], labels)


def test_matlab_files_beyond_the_free_memory(monkeypatch):
    """The shape of a compressed variable is read before the variable."""
    out = io.BytesIO()
    savemat(out, dict(S=np.zeros((3000, 3000)), names=np.zeros(3)), do_compression=True)
    monkeypatch.setattr(files, 'free_memory', lambda: 8 * 3000 * 3000)
    assert read_matlab(out.getvalue(), 'a.mat', 'S').shape == (3000, 3000)
    monkeypatch.setattr(files, 'free_memory', lambda: 8 * 3000 * 3000 - 1)
    with pytest.raises(UserError, match=r'S in a.mat, of shape \(3000, 3000\), takes 0.1 GB of memory'):
        read_matlab(out.getvalue(), 'a.mat', 'S')
    assert read_matlab(out.getvalue(), 'a.mat', 'names').size == 3
