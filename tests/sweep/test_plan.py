import csv
import io
import json

import pytest

from fsa_seg.cli.suites import without_refused
from fsa_seg.config.compose import compose
from fsa_seg.config.suites import load_suite, suite_cells
from fsa_seg.errors import UserError
from fsa_seg.evaluation.results import table_csv
from fsa_seg.sweep import plan as plans
from fsa_seg.sweep.estimate import Work
from fsa_seg.sweep.plan import Task, make_plan, read_plan, selected, sharded, write_plan

from conftest import MINI

TOY = dict(data_root=MINI, backbone='toy', vfm='toy')
CELLS = [
    dict(dataset=dataset, method=method, feedback=feedback)
    for dataset in ('voc21', 'voc20', 'cityscapes')
    for method in ('sclip', 'proxyclip', 'clip')
    for feedback in (None, 'fsa')
]


@pytest.fixture(scope='module')
def plan():
    return make_plan('some', 'fsa-seg plan', CELLS, TOY)


def test_a_plan_holds_each_cell_once_and_the_costliest_pass_first(plan):
    assert sorted(i for task in plan.tasks for i in task.cells) == list(range(len(CELLS)))
    assert [task.flops for task in plan.tasks] == sorted((task.flops for task in plan.tasks), reverse=True)
    assert [task.name for task in plan.tasks] == [f'p{i:04d}' for i in range(len(plan.tasks))]
    for task in plan.tasks:
        assert {plan.cells[i]['dataset'] for i in task.cells} == {task.dataset}
    assert any({plan.cells[i]['feedback'] for i in task.cells} == {None, 'fsa'} for task in plan.tasks)  # they share
    assert plan.datasets() == ['voc21', 'voc20', 'cityscapes']


def test_cells_of_one_number_count_once_in_a_pass():
    """Three names of FSA's default p are one cell of two in a pass."""
    feedbacks = ['fsa', dict(p=0.45), dict(lam=3.0), None]
    cells = [dict(dataset='voc20', method='clip', feedback=feedback) for feedback in feedbacks]
    assert [task.cells for task in make_plan('some', '', cells, TOY, most=2).tasks] == [[0, 1, 2, 3]]
    assert sorted(task.cells for task in make_plan('some', '', cells, TOY, most=1).tasks) == [[0, 1, 2], [3]]


def test_a_plan_is_read_as_it_was_written_and_a_changed_one_is_refused(plan, tmp_path):
    path = str(tmp_path / 'plan.json')
    write_plan(plan, path)
    assert read_plan(path) == plan and read_plan(path).id == plan.id
    data = json.loads((tmp_path / 'plan.json').read_text())
    broken = {
        'was changed': dict(data, cells=data['cells'][::-1]),
        'of schema 0': dict(data, schema=0),
        'is no plan': dict(data, tasks=[dict(name='p0000')]),
        'fsa-seg plan makes one': [1],
    }
    for message, content in broken.items():
        (tmp_path / 'plan.json').write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            read_plan(path)
    (tmp_path / 'plan.json').write_text(json.dumps(data)[:-40])
    with pytest.raises(UserError, match='is no plan'):
        read_plan(path)
    with pytest.raises(UserError, match='cannot be read: No such file'):
        read_plan(str(tmp_path / 'none.json'))


def test_a_limit_bounds_the_images_and_makes_another_plan(plan):
    few = make_plan('some', '', CELLS[:1], dict(TOY, limit=2))
    assert [task.images for task in few.tasks] == [2] and few.id != make_plan('some', '', CELLS[:1], TOY).id
    assert plan._replace(suite='other', command='other').id == plan.id  # names compute nothing
    assert plan._replace(tasks=[task._replace(parts=2) for task in plan.tasks]).id != plan.id


def test_cells_are_selected_by_the_names_given_and_composed():
    configs = [compose(**cell, **TOY) for cell in CELLS]

    def chosen(text):
        return [tuple(CELLS[i].values()) for i in selected(text, CELLS, configs)]

    assert len(chosen(None)) == len(CELLS)
    assert chosen('method=sclip,dataset=voc*,feedback=none') == [('voc21', 'sclip', None), ('voc20', 'sclip', None)]
    assert {method for _, method, _ in chosen('method=*clip')} == {'sclip', 'proxyclip', 'clip'}
    assert {name for name, *_ in chosen('dataset=VOC20|city*')} == {'voc20', 'cityscapes'}
    assert {method for _, method, _ in chosen('protocol=clearclip')} == {'clip'}  # the protocol that own stands for
    for text, message in (
        ('methods=clip', "unknown kind in --select 'methods'.*did you mean 'method'"),
        ('method=gem', "no cell has the method 'gem'; there are clip, proxyclip, sclip"),
        ('method=clip,protocol=sclip', 'leaves no cell'),
    ):
        with pytest.raises(UserError, match=message):
            chosen(text)


def test_shards_are_shares_of_the_tasks():
    tasks = [Task(f'p{i}', 'voc21', [i], images, Work(1.0, 1.0, 1)) for i, images in enumerate([9, 5, 4, 3, 1])]
    shares = [sharded(tasks, f'{i}/2') for i in (1, 2)]
    assert sorted(task.name for share in shares for task in share) == [task.name for task in tasks]
    assert [sum(task.images for task in share) for share in shares] == [12, 10]
    assert sharded(tasks, None) == tasks
    for text in ('0/2', '3/2', '1', 'a/b', '1/0'):
        with pytest.raises(UserError, match='--shard is'):
            sharded(tasks, text)


def test_a_split_pass_waits_for_its_parts():
    task = Task('p0003', 'voc21', [0], 100, Work(1.0, 1.0, 1), parts=3)
    assert task.units() == [('p0003.1of3', (1, 3)), ('p0003.2of3', (2, 3)), ('p0003.3of3', (3, 3)), ('p0003', None)]
    assert task._replace(parts=1).units() == [('p0003', None)]


def test_many_gpus_split_long_passes():
    """The images of a data set that is not here are those that it must have."""
    cells = suite_cells(load_suite('paper'), backbone=['openclip_vit-h14'], dataset=['coco_stuff164k'])
    one, many = (make_plan('paper', '', cells, dict(data_root='none'), workers=workers) for workers in (1, 64))
    assert all(task.parts == 1 for task in one.tasks) and all(task.images == 5000 for task in one.tasks)
    assert all(task.parts > 3 for task in many.tasks) and one.id != many.id
    own = dict(name='mine', type='BaseSegDataset', data_root='x', data_prefix=dict(img_path='a', seg_map_path='b'))
    assert 'images' not in own
    with pytest.raises(UserError, match='is not there, and its config states no number of images'):
        plans._data(json.dumps(own), 'mine', 'null')


def test_what_a_plan_costs_is_said_with_its_source(run_tool, tmp_path):
    options = ('--mini', '--datasets', 'voc20', '--methods', 'clip')
    status, printed = run_tool('plan', *options)
    assert status == 0 and 'methods: 2 cells in 1 passes' in printed and 'No speed of a device is known' in printed
    assert read_plan(str(tmp_path / 'work_dirs' / 'plan_methods.json')).command.startswith('fsa-seg plan --mini')
    status, printed = run_tool('benchmark', *options, '--dry-run', '--rate', 'A100=60', '--gpus', 3)
    assert status == 0 and 'A100: 60 TFLOP/s (as given)' in printed and '| 3 | by images |' in printed
    assert not (tmp_path / 'work_dirs' / 'results').exists()
    for arguments, message in (
        (('plan', '--suite', 'architectures'), 'runs on one window'),
        (('plan', *options, '--limit', 0), '--limit is 0'),
        (('benchmark', '--plan', 'none.json'), 'fsa-seg plan makes a plan'),
        (('benchmark', '--plan', 'p.json', '--methods', 'clip'), '--plan says what runs: leave out --methods'),
        (('benchmark', *options, '--retry'), 'go with --plan'),
        (('status', 'empty'), 'holds no plan that has been started'),
    ):
        status, printed = run_tool(*arguments)
        assert status in (1, 2) and message in printed, printed


def test_the_table_as_csv_has_unrounded_numbers():
    def result(dataset, figure, toy=False):
        cell = dict(dataset=dataset, method='clip', title='CLIP, A', feedback=None, backbone='b', vfm=None, toy=toy)
        cell.update(protocol='own', words='own', changed=[])
        return dict(cell=cell, partial=False, metrics=dict(mIoU=figure), fingerprint=[], hash=dataset)

    text = table_csv([result('voc21', 12.345678901234), result('voc20', None)], ['voc21', 'voc20', 'ade20k'])
    assert list(csv.DictReader(io.StringIO(text))) == [
        dict(
            method='CLIP, A', backbone='b', VFM='–', protocol='own', toy='0', voc21='12.345678901234', voc20='',
            ade20k='', mean='',
        )
    ]  # fmt: skip


def test_thousands_of_cells_read_each_file_and_clean_each_word_once(monkeypatch):
    """That is what lets a plan of 5,000 cells take seconds."""
    from fsa_seg.models import text

    cells = suite_cells(load_suite('methods'), backbone=['clip_vit-b16'], dataset=['voc21', 'ade20k'])
    cells = without_refused([dict(cell, vfm='dino_vit-b8') for cell in cells])
    make_plan('some', '', cells, dict(data_root='none'))
    monkeypatch.setattr(text, 'get_clean_fn', lambda _: pytest.fail('words are cleaned again'))
    make_plan('some', '', cells, dict(data_root='none'))
