"""The check of a data root: on the mini splits, on damaged copies, and on prepared data sets."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from fsa_seg.apps.data_check import check_data, dataset_names, report_table
from fsa_seg.config.compose import compose
from fsa_seg.datasets.data_sets import check_images, list_images
from fsa_seg.errors import UserError
from fsa_seg.system.paths import CONFIGS

import sources
from conftest import MINI
from damage import DAMAGE

VOC = os.path.join('VOCdevkit', 'VOC2012')


@pytest.fixture
def root(tmp_path):
    """A data root with VOC's mini split, without the mark of the toy world."""
    shutil.copytree(os.path.join(MINI, VOC), tmp_path / 'root' / VOC)
    return tmp_path / 'root'


def test_the_mini_splits_are_right(tmp_path):
    reports = check_data(MINI, dataset_names(MINI, []), str(tmp_path))
    assert [report['dataset'] for report in reports] == [
        'ade20k',
        'cityscapes',
        'coco_object',
        'coco_stuff164k',
        'context59',
        'context60',
        'voc20',
        'voc21',
    ]
    for report in reports:
        assert not report['problems'] and report['classes_seen'] == report['classes'] and 0 <= report['void'] < 0.75
        assert len(report['pictures']) == 4 and all(Image.open(path).width > 2 * 200 for path in report['pictures'])
    assert report_table(reports).count('| right |') == 8


def test_pixels_of_each_class(root):
    """Counted against the label images themselves; voc20 leaves background out."""
    labels = [np.array(Image.open(path)) for path in (root / VOC / 'SegmentationClass').iterdir()]
    with_background, without = check_data(str(root), ['voc21', 'voc20'])
    total = sum(image.size for image in labels)
    for i, (name, pixels) in enumerate(with_background['pixels'].items()):
        assert pixels == sum((image == i).sum() for image in labels)
        if i:
            assert without['pixels'][name] == pixels
    assert list(with_background['pixels'])[0] == 'background' and len(without['pixels']) == 20
    assert with_background['void'] == pytest.approx(sum((image == 255).sum() for image in labels) / total)
    assert without['void'] == pytest.approx(sum(((image == 255) | (image == 0)).sum() for image in labels) / total)
    assert with_background['values'] == [0, 20] and with_background['modes'] == {'P': 10}


def test_a_known_number_of_images(root):
    (report,) = check_data(str(root), ['voc21'])
    assert report['problems'] == [
        'the split has 10 images, the data set voc21 1449: prepare it again (data/README.md); or take a '
        'part of it by --limit N, which marks the result as partial; or give the part '
        'another `name`, '
        'in a config of its own'
    ]
    assert 'fsa-seg prepare voc --from' in report['mend'] and '| WRONG |' in report_table([report])
    (root / 'TOY_WORLD').touch()
    assert not check_data(str(root), ['voc21'])[0]['problems']


@pytest.mark.parametrize('damage, message', DAMAGE)
def test_damage(root, damage, message):
    (root / 'TOY_WORLD').touch()
    damage(root / VOC)
    (report,) = check_data(str(root), ['voc21'])
    assert len(report['problems']) == 1 and re.search(message, report['problems'][0])


def test_every_problem_is_listed(root):
    """Damaged images whose head is intact are listed too; a run meets them only when it loads them."""
    (root / 'TOY_WORLD').touch()
    names = sorted(os.listdir(root / VOC / 'JPEGImages'))
    for name in names[:3]:
        path = root / VOC / 'JPEGImages' / name
        path.write_bytes(path.read_bytes()[:700])
    (root / VOC / 'SegmentationClass' / names[4].replace('jpg', 'png')).unlink()
    (report,) = check_data(str(root), ['voc21'], str(root / 'pictures'))
    assert [sum(name in problem for problem in report['problems']) for name in names[:3]] == [1, 1, 1]
    assert len(report['problems']) == 4 and '1 of 20 files are missing' in report['problems'][0]
    assert report['images'] == 10 and sum(report['modes'].values()) == 6
    assert all(os.path.splitext(os.path.basename(path))[0] + '.jpg' not in names[:3] for path in report['pictures'])


def test_labels_without_a_class(root):
    (root / 'TOY_WORLD').touch()
    for path in (root / VOC / 'SegmentationClass').iterdir():
        Image.fromarray(np.full_like(np.array(Image.open(path)), 255)).save(path)
    (report,) = check_data(str(root), ['voc21'])
    assert (
        report['problems']
        == [
            'no pixel of the label images is of any class: labels are 0 to 20, and they hold [255] (void is '
            '255); --label-map renumbers them (in a config, label_map)'
        ]
        and report['void'] == 1
    )
    assert report['notes'][0].startswith('21 classes are in no label image: background, aeroplane')
    config = compose('voc21', 'clip', None, 'toy', data_root=str(root)).test_dataloader.dataset
    with pytest.raises(UserError, match='no pixel of the label images is of any class: labels are 0 to 20'):
        check_images(list_images(config), 21)


def test_labels_of_another_data_set(root, tmp_path):
    """Labels in range but of few classes, in a complete split: of another data set, or not converted."""
    config = tmp_path / 'mine.py'
    config.write_text(
        open(os.path.join(CONFIGS, 'datasets', 'voc21.py')).read().replace('1449', '10').replace("'voc21'", "'mine'")
    )
    assert not check_data(str(root), [str(config)])[0]['problems']
    for path in (root / VOC / 'SegmentationClass').iterdir():
        Image.fromarray(np.array(Image.open(path)) % 10).save(path)
    (report,) = check_data(str(root), [str(config)])
    assert report['problems'] == [
        'more than half of the classes are in no label image: the labels [0, 9] are none of mine'
    ]


def test_a_config_that_chooses_some_of_the_classes(root, tmp_path):
    """The label files hold all classes, and the report counts all classes."""
    (root / 'TOY_WORLD').touch()
    (tmp_path / 'mine.py').write_text(
        open(os.path.join(CONFIGS, 'datasets', 'voc21.py'))
        .read()
        .replace('images=1449', "metainfo=dict(classes=['cat', 'dog'])")
    )
    two_classes, all_classes = check_data(str(root), [str(tmp_path / 'mine.py'), 'voc21'], str(tmp_path / 'pictures'))
    assert (
        not two_classes['problems'] and two_classes['pixels'] == all_classes['pixels'] and two_classes['classes'] == 21
    )


@pytest.mark.parametrize(
    'damage',
    [lambda data: data[: len(data) // 2] + bytes(len(data) // 2), lambda data: data[:40] + b'????' + data[44:]],
)
def test_damaged_png_images(tmp_path, damage):
    """Pillow raises other errors for PNG than for JPEG."""
    shutil.copytree(os.path.join(MINI, 'cityscapes'), tmp_path / 'cityscapes')
    (tmp_path / 'TOY_WORLD').touch()
    path = sorted((tmp_path / 'cityscapes' / 'leftImg8bit').rglob('*.png'))[0]
    path.write_bytes(damage(path.read_bytes()))
    (report,) = check_data(str(tmp_path), ['cityscapes'])
    assert len(report['problems']) == 1 and f'{path.name} cannot be decoded' in report['problems'][0]


def test_sixteen_bits(tmp_path):
    """Label 255 of Context's 459 is a class, and 0 is void."""
    from fsa_seg.datasets.prepare.preparation import prepare

    sources.context_mat(str(tmp_path / 'downloads'))
    prepare('context459', [str(tmp_path / 'downloads')], str(tmp_path / 'root'))
    (tmp_path / 'root' / 'TOY_WORLD').touch()
    (report,) = check_data(
        str(tmp_path / 'root'), dataset_names(str(tmp_path / 'root'), []), str(tmp_path / 'pictures')
    )
    assert report['dataset'] == 'context459' and not report['problems'] and report['modes'] == {'I;16': 2}
    assert report['values'] == [0, 459] and report['pixels']['thing 255'] == 6 and report['void'] == 6 / 48
    assert len(report['pictures']) == 2


def test_names(tmp_path):
    assert dataset_names(MINI, ['coco', 'voc21']) == ['coco_object', 'coco_stuff164k', 'voc21']
    assert dataset_names(MINI, ['cityscapes', 'ade20k']) == ['cityscapes', 'ade20k']
    for root, names, message in (
        (MINI, ['vocc'], "unknown data set 'vocc' .did you mean 'voc'"),
        (str(tmp_path), [], 'has the folder of no data set'),
        ('nowhere', [], 'the data root nowhere does not exist'),
    ):
        with pytest.raises(UserError, match=message):
            dataset_names(root, names)


def test_the_tool(run_tool, root, tmp_path):
    status, printed = run_tool('prepare', '--check', MINI, 'voc', 'ade20k')
    assert status == 0 and '| voc21 | 10 | – | 0 to 20 | P | 21 of 21 |' in printed, printed
    reports = json.loads((tmp_path / 'work_dirs/data_check/report.json').read_text())
    assert [report['dataset'] for report in reports] == ['voc21', 'voc20', 'ade20k']
    assert os.path.exists(reports[0]['pictures'][0])
    status, printed = run_tool('prepare', '--check', root, '--out', 'out')
    assert status == 1 and 'WRONG' in printed
    status, printed = run_tool('prepare', 'voc', '--check', root, '--to', root)
    assert status == 2 and '--check takes data sets and --out alone' in printed
    assert run_tool('prepare', '--check', root, '--link')[0] == 2
    status, printed = run_tool('prepare', 'voc', '--from', root)
    assert status == 2 and 'give NAME --from DOWNLOADS --to DATA_ROOT, or --check DATA_ROOT' in printed


def test_the_tool_prepares_and_checks(run_tool, tmp_path):
    sources.voc(str(tmp_path / 'downloads'))
    command = ('prepare', 'voc', '--from', 'downloads', '--to', 'root', '--workers', 1)
    status, printed = run_tool(*command)
    assert status == 1 and 'the split has 2 images, the data set voc21 1449' in printed  # a small VOC is not VOC
    (tmp_path / 'root' / 'TOY_WORLD').touch()
    status, printed = run_tool(*command)
    assert status == 0 and '| voc20 | 2 | – | 0 to 15 | P | 3 of 20 |' in printed, printed
    status, printed = run_tool('prepare', 'cityscapes', '--from', 'downloads', '--to', 'root', '--download')
    assert status == 1 and 'cityscapes cannot be downloaded without a login: log in at' in printed
    (tmp_path / 'file').touch()
    status, printed = run_tool('prepare', 'ade20k', '--from', 'downloads', '--to', 'root2', '--out', 'file')
    assert status == 1 and 'the folder file cannot be made' in printed and not (tmp_path / 'root2').exists()
    status, printed = run_tool('prepare', 'cityscapes', '--from', 'downloads', '--to', 'root')
    assert (
        status == 1 and 'lacks images of leftImg8bit/val' in printed and 'fetch leftImg8bit_trainvaltest.zip' in printed
    )


def test_a_run_fails_before_a_model_is_loaded(run_tool, root):
    command = ('test', 'voc21', '--data-root', root, '--method', 'clip', '--no-fsa')
    status, printed = run_tool(*command)  # the real CLIP, whose weights are absent
    assert status == 1 and 'the split has 10 images, the data set voc21 1449' in printed
    status, printed = run_tool(*command, '--backbone', 'toy')
    assert status == 1 and 'the split has 10 images' in printed
