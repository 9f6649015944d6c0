"""The sweep under faults: finished cells stay, counts equal those of an undisturbed run, and failures have reasons."""

import errno
import json
import multiprocessing
import os
import shutil
import socket
import threading
import time
import types

import pytest

from fsa_seg.errors import Busy, StopError, UserError
from fsa_seg.evaluation import metric, passes
from fsa_seg.evaluation.loop import Watch
from fsa_seg.methods import base
from fsa_seg.methods.clearclip import ClearCLIP
from fsa_seg.sweep import plan as plans
from fsa_seg.sweep import state
from fsa_seg.sweep import worker as sweep
from fsa_seg.sweep.estimate import Work
from fsa_seg.sweep.plan import Plan, Task, make_plan, read_plan, write_plan
from fsa_seg.sweep.worker import Worker
from fsa_seg.system import leases

from conftest import MINI
from kills import PROTOCOL

IMAGES = ['2007_000033', '2007_000130', '2007_000227']
METHODS = ['clip', 'maskclip', 'clearclip']  # they share a pass
VOC = [dict(dataset='voc21', method=method, feedback=None) for method in METHODS]
CITY = [dict(dataset='cityscapes', method='maskclip', feedback=None)]


@pytest.fixture(scope='session')
def toy_data(tmp_path_factory):
    """A data root with three images of VOC2012 and one of Cityscapes, to be copied."""
    root = tmp_path_factory.mktemp('toy') / 'data'
    voc, mini = root / 'VOCdevkit' / 'VOC2012', os.path.join(MINI, 'VOCdevkit', 'VOC2012')
    for folder, ending in (('JPEGImages', 'jpg'), ('SegmentationClass', 'png')):
        (voc / folder).mkdir(parents=True)
        for name in IMAGES:
            shutil.copy(os.path.join(mini, folder, f'{name}.{ending}'), voc / folder)
    (voc / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    (voc / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('\n'.join(IMAGES))
    for folder, ending in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelTrainIds')):
        path = os.path.join(folder, 'val', 'frankfurt')
        (root / 'cityscapes' / path).mkdir(parents=True)
        name = f'frankfurt_000000_000019_{ending}.png'
        shutil.copy(os.path.join(MINI, 'cityscapes', path, name), root / 'cityscapes' / path)
    (root / 'TOY_WORLD').touch()
    (root.parent / 'quick.py').write_text(PROTOCOL)
    return root


@pytest.fixture
def data(toy_data, tmp_path):
    """A data root that a test may damage."""
    shutil.copytree(toy_data, tmp_path / 'data')
    shutil.copy(toy_data.parent / 'quick.py', tmp_path)
    passes._checked_images.cache_clear()
    return tmp_path / 'data'


def toy_plan(root, cells=VOC, parts=1, **options):
    protocol = os.path.join(os.path.dirname(root), 'quick.py')
    protocol = protocol if os.path.exists(protocol) else 'own'
    given = dict(backbone='toy', data_root=str(root), limit=9, protocol=protocol)
    plan = make_plan('toy', 'fsa-seg plan', cells, dict(given, **options))
    return plan._replace(tasks=[task._replace(parts=parts) for task in plan.tasks])


def worker(plan, work_dir, workers=0, **options):
    return Worker(plan, plan.tasks, str(work_dir), runtime=dict(workers=workers), **options)


def counts(results):
    """Return what has to be equal, bit for bit, by method."""
    return {result['cell']['method']: (result['confusion'], result['images'], result['metrics']) for result in results}


@pytest.fixture(scope='session')
def right(toy_data, tmp_path_factory):
    """The counts of an undisturbed run of VOC."""
    _, results = worker(toy_plan(toy_data), tmp_path_factory.mktemp('undisturbed')).complete()
    return counts(results)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """No cell is computed: `quick.ran` has the (data set, part) of each unit that a worker has run; a hook may act."""
    found = types.SimpleNamespace(ran=[], hook=lambda watch: None)

    def run_apart(cells, part, watch, wait):
        assert not wait  # for another run of a cell: other units come first
        found.ran.append((cells[0].config.cell.dataset, part))
        watch.images(1)
        found.hook(watch)
        watch.check()
        return {} if part else {cell.hash: dict(cell=dict(cell.config.cell)) for cell in cells}, {}

    def named_result(cell, result):
        os.makedirs(os.path.dirname(passes.result_path(cell)), exist_ok=True)
        with open(passes.result_path(cell), 'w') as f:
            json.dump(result, f)

    def prepare(config):
        hash = json.dumps([config.cell.dataset, config.cell.method]).encode().hex()[::-1]
        return types.SimpleNamespace(hash=hash, config=config)

    def kept_results(cells):
        paths = map(passes.result_path, cells)
        return {path: state.read_json(path) for path in paths if os.path.exists(path)}

    for name, value in dict(
        run_apart=run_apart, named_result=named_result, prepare=prepare, kept_results=kept_results, POLL=0.05
    ).items():
        monkeypatch.setattr(sweep, name, value)
    return found


def outcomes(work_dir):
    return {path.name: path.stat().st_ino for path in work_dir.glob('sweep/*/p[0-9]*.json')}


ALL = VOC[:1] + CITY + [dict(VOC[0], dataset=name) for name in ('context60', 'coco_object')]


def test_workers_side_by_side_take_every_unit_once(quick, tmp_path):
    plan, found = toy_plan(MINI, ALL, parts=3), []
    quick.hook = lambda watch: time.sleep(0.02)

    def work():
        found.append(worker(plan, tmp_path).complete()[1])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    units = [(task.dataset, part) for task in plan.tasks for _, part in task.units()]
    assert sorted(quick.ran, key=str) == sorted(units, key=str)
    assert [results and len(results) for results in found].count(4) >= 1  # who comes last prints the table
    assert not list(tmp_path.glob('sweep/*/*.claim')) and not list(tmp_path.glob('sweep/*/workers/*'))


def test_a_lost_lease_ends_the_pass_and_is_no_failure(quick, tmp_path, monkeypatch, capsys):
    """Another host has taken the unit over while this process stood still."""
    monkeypatch.setattr(leases, 'DURATION', 0.3)

    def lose(watch):
        if len(quick.ran) == 1:
            (claim,) = tmp_path.glob('sweep/*/*.claim')
            claim.unlink()
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                watch.check()
                time.sleep(0.02)

    quick.hook = lose
    found, results = worker(toy_plan(MINI, VOC), tmp_path).complete()
    assert 'another worker has taken over p0000' in capsys.readouterr().err
    assert len(quick.ran) == 2 and len(results) == 3 and not found.failures


def test_a_cell_that_another_run_holds_is_left_for_later(quick, tmp_path, monkeypatch):
    """The worker takes other units first, and does not spin."""
    plan = toy_plan(MINI, ALL)
    first = plan.tasks[0].dataset

    def hook(watch):
        if quick.ran.count((first, None)) == 1 and quick.ran[-1][0] == first:
            raise Busy('another run')

    quick.hook = hook
    monkeypatch.setattr(sweep, 'BUSY', 0.5)
    assert worker(plan, tmp_path).run().finished
    names = [task.dataset for task in plan.tasks]
    assert [name for name, _ in quick.ran] == [*names, first]


def rewrite(work_dir, unit, **changes):
    """Change the outcome of a unit, and seal it anew."""
    (path,) = work_dir.glob(f'sweep/*/{unit}.json')
    state.write_outcome({**state.read_outcome(str(path)), **changes}, str(path))


def test_an_outcome_counts_with_its_results_and_its_code(quick, tmp_path):
    plan = toy_plan(MINI, ALL)
    worker(plan, tmp_path).complete()
    assert worker(plan, tmp_path).open_units() == []
    (outcome,) = [json.loads(path.read_text()) for path in tmp_path.glob('sweep/*/p0001.json')]
    assert (outcome['images'], outcome['flops']) == (1, plan.tasks[1].work.flops)  # of what ran, not of the task
    rewrite(tmp_path, 'p0001', sources='of other code')
    assert worker(plan, tmp_path).open_units() == ['p0001']
    rewrite(tmp_path, 'p0001', sources=outcome['sources'])
    (result,) = outcome['results'].values()
    (tmp_path / result).unlink()
    assert worker(plan, tmp_path).open_units() == ['p0001']


def test_results_that_are_there_are_taken_but_by_force(quick, tmp_path):
    """Also by a plan in which the outcomes of the first say nothing."""
    plans = [toy_plan(MINI, VOC[:1] + CITY, parts) for parts in (1, 2)]
    assert plans[0].id != plans[1].id
    worker(plans[0], tmp_path).complete()
    ran = sorted(quick.ran)
    for plan in plans:
        found, results = worker(plan, tmp_path).complete()
        assert sorted(quick.ran) == ran and len(results) == 2 and found.finished
    worker(plans[0], tmp_path, force=True).complete()
    assert sorted(quick.ran) == sorted(2 * ran)


def test_a_unit_that_another_worker_has_finished_meanwhile_is_not_run(quick, tmp_path, monkeypatch):
    """Its claim is free, and its outcome is new."""
    plan, taken = toy_plan(MINI, VOC), sweep._taken
    first, other = worker(plan, tmp_path), worker(plan, tmp_path)
    done = dict(failures={}, results={})
    monkeypatch.setattr(sweep, '_taken', lambda held: other._write('p0000', plan.tasks[0], dict(done)) or taken(held))
    assert first._next() is None and not list(tmp_path.glob('sweep/*/*.claim'))


def test_a_result_that_is_lost_meanwhile_is_made_again(quick, tmp_path):
    """Whoever has made it: the results are verified in the end."""
    plan, lost = toy_plan(MINI, VOC[:1] + CITY), []

    def lose(watch):
        for path in [] if lost else tmp_path.glob('results/*.json'):
            path.unlink()
            lost.append(path)

    quick.hook = lose
    found, results = worker(plan, tmp_path).complete()
    assert lost and len(results) == 2 and found.finished and len(quick.ran) == 3


def test_a_failure_ends_the_run_but_where_it_goes_on_and_runs_again_by_retry(quick, tmp_path):
    """A cell that fails in one part runs in no other part, and its reason stays with the pass."""
    plan = toy_plan(MINI, ALL, parts=2)
    first = plan.tasks[0]

    def fail(watch):
        if quick.ran[-1] == (first.dataset, (1, 2)):
            raise UserError('damaged')

    quick.hook = fail
    one = worker(plan, tmp_path)
    found, results = one.complete()
    assert results is None and len(quick.ran) == 1 and list(one.failures.values()) == ['damaged']
    for _ in range(2):  # the second time nothing runs
        found, results = worker(plan, tmp_path, keep_going=True).complete()
        assert found.failures == {first.cells[0]: 'damaged'} and len(results) == len(ALL) - 1
        assert [name for name, _ in quick.ran].count(first.dataset) == 1 and len(quick.ran) == 1 + 3 * 3
    (path,) = tmp_path.glob(f'sweep/*/{first.name}.json')
    assert json.loads(path.read_text())['failures'] == {str(first.cells[0]): 'damaged'}
    quick.hook = lambda watch: None
    again = worker(plan, tmp_path, retry=True)
    assert again.open_units() == [name for name, part in first.units() if part]
    found, results = again.complete()
    assert not found.failures and len(results) == len(ALL) and len(quick.ran) == 10 + 3


def test_the_costliest_units_are_open_first(tmp_path):
    tasks = [
        Task(f'p000{i}', name, [i], images, Work(1.0, 1.0, 1), parts)
        for i, (name, images, parts) in enumerate([('voc21', 24, 2), ('voc20', 20, 1), ('context60', 10, 1)])
    ]
    plan = Plan('some', '', {}, [dict(dataset=task.dataset) for task in tasks], tasks)
    assert worker(plan, tmp_path).open_units() == ['p0001', 'p0000.1of2', 'p0000.2of2', 'p0002']
    assert worker(plan, tmp_path, only='p0000.2of2').open_units() == ['p0000.2of2']


def test_the_first_workers_machine_decides_the_precision(tmp_path, monkeypatch):
    plan, found = toy_plan(MINI), []
    for precision in ('bf16', 'fp32'):
        monkeypatch.setattr(sweep, 'resolve_precision', lambda _, precision=precision: precision)
        found.append(worker(plan, tmp_path))
        assert found[-1]._configs(plan.tasks[0])[0].model.precision == 'bf16'
    with pytest.raises(StopError, match='in bf16, by the machine of the first worker; here they would run in fp32'):
        found[-1].run()
    planned = worker(toy_plan(MINI, precision='bf16'), tmp_path)
    assert planned._configs(planned.plan.tasks[0])[0].model.precision == 'bf16'
    planned._check_device()  # a precision that the plan names is right everywhere


def test_a_full_disk_stops_the_run_and_fails_no_cell(data, right, tmp_path, monkeypatch):
    """The disk is full at a journal's line, at a result and at an outcome; then there is room."""
    plan, work_dir = toy_plan(data), tmp_path / 'work'

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name, value in (
        (metric, 'open', full),
        (passes, 'write_result', full_at('results')),
        (state, 'write_result', full_at('sweep')),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value, raising=False)
            with pytest.raises(StopError, match='No space left on device'):
                worker(plan, work_dir, keep_going=True).complete()
        assert not outcomes(work_dir) and not list(work_dir.glob('sweep/*/*.claim'))
    found, results = worker(plan, work_dir).complete()
    assert counts(results) == right and not found.failures


def full_at(folder):
    """Return a `write_result` on a disk that is full for the files of one folder."""
    from fsa_seg.evaluation.results import write_result

    def write(value, path):
        if f'{os.sep}{folder}{os.sep}' in str(path) and 'workers' not in str(path):
            raise StopError(f'{path} cannot be written (No space left on device)')
        write_result(value, path)

    return write


class Ends(Watch):
    """Calls a function after the first image."""

    def __init__(self, function):
        self.function, self.seen = function, 0

    def images(self, count):
        self.seen += count
        if self.seen == 1:
            self.function()


def test_a_data_root_that_vanishes_stops_the_run(data, right, tmp_path, monkeypatch):
    """In the middle of a pass, and between two passes."""
    plan, moved = toy_plan(data, VOC + CITY), tmp_path / 'moved'
    monkeypatch.setattr(Worker, 'images', lambda self, count: data.exists() and data.rename(moved))
    for _ in range(2):
        with pytest.raises(StopError, match='has vanished: mount or restore it'):
            worker(plan, tmp_path / 'work', keep_going=True).complete()
        assert not outcomes(tmp_path / 'work')
        passes._checked_images.cache_clear()  # the second time no data set is there from the start
    monkeypatch.undo()
    moved.rename(data)
    found, results = worker(plan, tmp_path / 'work').complete()
    assert not found.failures and counts(results[:3]) == right


@pytest.mark.parametrize('workers', [0, 1])
def test_a_truncated_image_fails_the_cells_of_its_data_set(data, right, tmp_path, capsys, workers):
    """The image is damaged after the check of the data."""
    plan, work_dir = toy_plan(data, VOC[:1] if workers else VOC + CITY), tmp_path / 'work'
    image = data / 'VOCdevkit' / 'VOC2012' / 'JPEGImages' / f'{IMAGES[1]}.jpg'
    whole = image.read_bytes()
    one = worker(plan, work_dir, workers, keep_going=True)
    one.check_cells()
    image.write_bytes(whole[:2000])
    found, results = one.complete()
    (reason,) = set(found.failures.values())
    assert IMAGES[1] in reason and 'cannot be decoded' in reason and 'Traceback' not in reason, reason
    if workers:
        assert not multiprocessing.active_children()  # of the loader
        return
    assert set(found.failures) == {0, 1, 2} and [row['cell']['dataset'] for row in results] == ['cityscapes']
    image.write_bytes(whole)
    passes._checked_images.cache_clear()
    before = outcomes(work_dir)
    found, results = worker(plan, work_dir, keep_going=True).complete()
    assert set(found.failures) == {0, 1, 2} and outcomes(work_dir) == before  # without `retry` nothing runs
    found, results = worker(plan, work_dir, retry=True).complete()
    assert not found.failures and counts(results[:3]) == right
    assert len(outcomes(work_dir).items() & before.items()) == 1  # Cityscapes ran once


@pytest.mark.parametrize('parts', [1, 2])
def test_a_nan_fails_its_cell_alone(data, right, tmp_path, monkeypatch, parts):
    cosines, calls = base.WindowCosines.cosines, []

    def spoiled(self, attention):
        values = cosines(self, attention)
        if isinstance(self.method, ClearCLIP):
            calls.append(1)
            values = values * (float('nan') if len(calls) == 2 else 1)
        return values

    monkeypatch.setattr(base.WindowCosines, 'cosines', spoiled)
    plan, work_dir = toy_plan(data, parts=parts), tmp_path / 'work'
    found, results = worker(plan, work_dir, keep_going=True).complete()
    assert (
        list(found.failures) == [2] and 'the last block (attention, FSA, readout) under ClearCLIP' in found.failures[2]
    )
    assert '2007_' in found.failures[2]
    assert counts(results) == {name: right[name] for name in ('clip', 'maskclip')}
    found, results = worker(plan, work_dir, retry=True).complete()
    assert not found.failures and counts(results) == right


def test_a_garbled_result_and_a_foreign_journal(data, right, tmp_path, capsys):
    """The result is made again; of a journal only the lines of the cell itself count."""
    plan, work_dir = toy_plan(data), tmp_path / 'work'
    with pytest.raises(KeyboardInterrupt):
        run_until(plan, work_dir, 2)
    journals = sorted(work_dir.glob('logs/*/journal*/*.jsonl'))
    assert len(journals) == 3
    first, second, third = (path.read_text() for path in journals)
    journals[0].write_text(second)  # of another cell
    journals[1].write_text(second[:-30])  # torn
    journals[2].write_text(third.replace('1', '2') + 'x\0\n[]\nnull\n')
    _, results = worker(plan, work_dir).complete()
    assert counts(results) == right
    (path,) = work_dir.glob('results/voc21_maskclip*')
    path.write_text(path.read_text()[:1000])
    _, results = worker(plan, work_dir).complete()
    assert counts(results) == right and 'is not a result of this suite' in capsys.readouterr().err


def run_until(plan, work_dir, images):
    """Run a plan by a worker that is interrupted after some images."""
    one, seen = worker(plan, work_dir), []

    def check():
        seen.append(1)
        if len(seen) == images:
            raise KeyboardInterrupt

    one.check = check
    one.run()


def test_halves_isolate_a_cell_whose_last_block_raises(data, right, tmp_path, monkeypatch, capsys):
    attention = ClearCLIP.attention

    def boom(self, block):
        raise RuntimeError('boom')

    monkeypatch.setattr(ClearCLIP, 'attention', boom)
    plan, work_dir = toy_plan(data), tmp_path / 'work'
    found, results = worker(plan, work_dir, keep_going=True).complete()
    assert found.failures == {2: 'RuntimeError: boom'}
    assert counts(results) == {name: right[name] for name in ('clip', 'maskclip')}
    assert 'Traceback' in capsys.readouterr().err  # a bug is shown where it is
    monkeypatch.setattr(ClearCLIP, 'attention', attention)
    assert counts(worker(plan, work_dir, retry=True).complete()[1]) == right


@pytest.mark.parametrize('jump', [-86400, 86400])
def test_a_clock_that_jumps_takes_nothing_from_a_live_worker(quick, tmp_path, monkeypatch, jump):
    """Neither the host's time of day nor the times of the claims end a lease."""
    plan, now, now_ns, found = toy_plan(MINI, VOC), time.time, time.time_ns, []
    other = worker(plan, tmp_path)

    def hook(watch):
        monkeypatch.setattr(time, 'time', lambda: now() + jump)
        monkeypatch.setattr(time, 'time_ns', lambda: now_ns() + jump * 10**9)
        (claim,) = tmp_path.glob('sweep/*/*.claim')
        for moment in (now() + jump, now() - jump, 0):
            os.utime(claim, (moment, moment))
            time.sleep(2 * sweep.POLL)  # a claim is looked at so often
            found.append(other._next())

    quick.hook = hook
    _, results = worker(plan, tmp_path).complete()
    assert found == [sweep.WAIT] * 3 and len(quick.ran) == 1 and len(results) == 3


GARBLED = {
    'torn': lambda text: text[: len(text) // 2],
    'empty': lambda text: '',
    'binary': lambda text: '\0' * len(text),
    'a list': lambda text: '[1, 2]',
    'an empty dict': lambda text: '{}',
    'deep': lambda text: '[' * 100000,
    'no state': lambda text: changed(text, state=None),
    'another state': lambda text: changed(text, state='lost'),
    'results in a list': lambda text: changed(text, results=[1]),
    'results that are numbers': lambda text: changed(text, results={'0': 3}),
    'cells that are words': lambda text: changed(text, results={'first': 'results/x.json'}),
    'failures in a list': lambda text: changed(text, state='failed', failures=[1]),
    'cells of another plan': lambda text: changed(text, state='failed', failures={'77': 'a reason'}),
    'seconds that are a word': lambda text: changed(text, seconds='a', flops=[1], images=None),
    'by hand': lambda text: changed(text, images=100),
}


def changed(text, **values):
    return json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize('garble', GARBLED.values(), ids=GARBLED)
def test_what_is_no_outcome_runs_again(quick, tmp_path, garble):
    plan = toy_plan(MINI, VOC)
    worker(plan, tmp_path).complete()
    folder = state.sweep_folder(str(tmp_path), plan)
    path = os.path.join(folder, 'p0000.json')
    with open(path) as f:
        text = f.read()
    with open(path, 'w') as f:
        f.write(garble(text))
    assert '0 of 3 cells done' in state.status_text(plan, folder, state.progress(plan, folder))
    plans.estimate(plan, [], str(tmp_path))
    found, results = worker(plan, tmp_path).complete()
    assert len(results) == 3 and found.done == 3 and not found.failures and found.finished
    assert len(quick.ran) == 1  # the results are there: the pass itself does not run


def test_an_outcome_of_another_unit_runs_again(quick, tmp_path):
    plan = toy_plan(MINI, VOC + CITY)
    worker(plan, tmp_path).complete()
    folder = state.sweep_folder(str(tmp_path), plan)
    shutil.copy(os.path.join(folder, 'p0000.json'), os.path.join(folder, 'p0001.json'))
    before = outcomes(tmp_path)
    assert len(worker(plan, tmp_path).complete()[1]) == 4 and len(outcomes(tmp_path).items() - before.items()) == 1


def test_an_outcome_of_other_sources_runs_again(quick, tmp_path, monkeypatch):
    plan = toy_plan(MINI, VOC)
    worker(plan, tmp_path).complete()
    monkeypatch.setattr(sweep, 'sources_digest', lambda: 'of other sources')
    monkeypatch.setattr(sweep, 'kept_results', lambda cells: {})
    assert worker(plan, tmp_path).run().finished and len(quick.ran) == 2


def test_results_that_were_removed_are_made_again(quick, tmp_path):
    plan = toy_plan(MINI, VOC + CITY, parts=2)
    worker(plan, tmp_path).complete()
    ran = len(quick.ran)
    (removed,) = tmp_path.glob('results/cityscapes*')
    removed.unlink()
    found, results = worker(plan, tmp_path).complete()
    assert len(results) == 4 and found.done == 4 and removed.exists()
    assert {name for name, _ in quick.ran[ran:]} == {'cityscapes'}


REPORTS = [
    'null',
    '{',
    '[]',
    '{"unit": "p0000"}',
    '{"unit": "p0000", "title": "x", "host": "h", "pid": 1, "images": "1", "of": null, "seconds": [], "flops": {}}',
    '{"unit": "../p0000", "title": "x", "host": "h", "pid": 1, "images": 1, "of": 2, "seconds": 0, "flops": 0}',
]


@pytest.mark.parametrize('report', REPORTS)
def test_garbled_reports_of_workers(tmp_path, report):
    plan = toy_plan(MINI, VOC)
    folder = state.sweep_folder(str(tmp_path), plan)
    os.makedirs(os.path.join(folder, 'workers'))
    for name in ('p0000.claim', os.path.join('workers', 'x.json')):
        with open(os.path.join(folder, name), 'w') as f:
            f.write(report)
    assert '0 of 3 cells done' in state.status_text(plan, folder, state.progress(plan, folder))


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda text: text[:-20], 'is no plan .*fsa-seg plan makes one'),
        (lambda text: '[]', 'is no plan'),
        (lambda text: '[' * 100000, 'is no plan'),
        (lambda text: changed(text, schema=99), 'schema 99, and this fsa_seg reads'),
        (lambda text: text.replace('maskclip', 'sclip'), 'was changed after it was made'),
        (lambda text: text.replace('"parts": 1', '"parts": 2'), 'was changed after it was made'),
        (lambda text: text.replace('"limit": 9', '"limit": 8'), 'was changed after it was made'),
        (lambda text: changed(text, tasks=[{}]), 'is no plan'),
        (lambda text: changed(text, cells=3), 'is no plan|was changed'),
    ],
)
def test_a_plan_that_was_changed(tmp_path, change, message):
    path = tmp_path / 'plan.json'
    write_plan(toy_plan(MINI, VOC), path)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(UserError, match=message):
        read_plan(path)


def test_a_garbled_copy_of_a_plan(quick, tmp_path, run_tool):
    """A worker writes the copy anew; the status of other plans is shown without it."""
    plan, other = toy_plan(MINI, VOC), toy_plan(MINI, CITY)
    for each in (plan, other):
        worker(each, tmp_path).run()
    copy = os.path.join(state.sweep_folder(str(tmp_path), plan), 'plan.json')
    with open(copy, 'w') as f:
        f.write('{')
    status, printed = run_tool('status', tmp_path)
    assert status == 0 and '1 of 1 cells done' in printed and 'warning: left out: ' in printed
    worker(plan, tmp_path).run()
    assert read_plan(copy).id == plan.id


def foreign(path):
    """Write a claim of another host that is as good as the text of a claim of this one."""
    held = leases.lease(path)
    held.acquire()
    with open(path) as f:
        text = f.read()
    held.release()
    with open(path, 'w') as f:
        f.write(text.replace(socket.gethostname(), 'another-host'))


@pytest.mark.parametrize('only', [None, 'p0000'])
def test_a_unit_of_a_lost_host_is_taken_over(quick, tmp_path, monkeypatch, only):
    """A requeued job on another host comes before the lease of the first one has ended."""
    monkeypatch.setattr(leases, 'DURATION', 0.5)
    plan = toy_plan(MINI, VOC)
    one = worker(plan, tmp_path, only=only)
    foreign(os.path.join(one.folder, 'p0000.claim'))
    start = time.monotonic()
    assert one.run().finished and len(quick.ran) == 1 and time.monotonic() - start >= 0.5


def test_a_unit_of_a_live_host_is_left_to_it(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, 'DURATION', 0.5)
    monkeypatch.setattr(sweep, 'GRACE', 1.5 - sweep.DURATION)
    one = worker(toy_plan(MINI, VOC), tmp_path, only='p0000')
    path = os.path.join(one.folder, 'p0000.claim')
    foreign(path)
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert not one.run().finished and not quick.ran
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize('text', ['', '\0' * 100, 'filelock/2\npid='])
def test_a_claim_without_its_text_is_taken_over(quick, tmp_path, monkeypatch, text):
    """As a machine leaves it that lost its power between the making and the writing of the file."""
    monkeypatch.setattr(leases, 'DURATION', 0.3)
    one = worker(toy_plan(MINI, VOC), tmp_path)
    with open(os.path.join(one.folder, 'p0000.claim'), 'w') as f:
        f.write(text)
    found = []
    thread = threading.Thread(target=lambda: found.append(one.run()), daemon=True)
    thread.start()
    thread.join(6)
    assert found and found[0].finished


def test_what_joins_does_not_forget_what_is_under_way(quick, tmp_path, monkeypatch):
    """Another `benchmark` of the same cells begins while the parts of a pass run."""
    plan = toy_plan(MINI, VOC, parts=2)

    def join(watch):
        if len(quick.ran) == 2:
            other = worker(plan, tmp_path)
            other._forget_absent(plan.tasks, sum(map(prepared, plan.tasks), []), {})
            assert list(outcomes(tmp_path)) == ['p0000.1of2.json']

    def prepared(task):
        return [sweep.prepare(config) for config in plan.configs(task, {}, dict(work_dir=str(tmp_path)))]

    quick.hook = join
    worker(plan, tmp_path).complete()
    assert [part for _, part in quick.ran] == [(1, 2), (2, 2), None]


@pytest.fixture
def broken(quick, monkeypatch):
    """VOC21 fails while `broken` says so."""
    run, told = sweep.run_apart, types.SimpleNamespace(now=True)

    def failing(cells, part, watch, wait):
        results, errors = run(cells, part, watch, wait)
        if told.now and cells[0].config.cell.dataset == 'voc21':
            return {}, {cell.hash: UserError('no such street') for cell in cells}
        return results, errors

    monkeypatch.setattr(sweep, 'run_apart', failing)
    return told


def benchmark(run_tool, path, work_dir, *options):
    return run_tool('benchmark', '--plan', path, '--work-dir', work_dir, *options)


def test_options_of_a_worker_and_the_status(quick, broken, tmp_path, run_tool, monkeypatch):
    monkeypatch.setattr('fsa_seg.cli.benchmark.finish_data', lambda *_: True)
    plan, path, work_dir = toy_plan(MINI, CITY + VOC), tmp_path / 'plan.json', tmp_path / 'work'
    write_plan(plan, path)
    assert [task.dataset for task in plan.tasks] == ['voc21', 'cityscapes']
    status, printed = run_tool('status', work_dir)
    assert status == 1 and 'holds no plan that has been started' in printed

    status, printed = benchmark(run_tool, path, work_dir)
    assert status == 1 and 'error: no such street' in printed and 'voc21 clip; voc21 maskclip' in printed
    assert quick.ran == [('voc21', None)]
    status, printed = benchmark(run_tool, path, work_dir, '--keep-going')
    assert status == 1 and quick.ran[1:] == [('cityscapes', None)]
    status, printed = run_tool('status', work_dir)
    assert status == 1 and '1 of 4 cells done, failed 3' in printed, printed
    assert 'no such street\n      failed by it: voc21 clip; voc21 maskclip; voc21 clearclip\n' in printed
    assert '--retry   runs them again' in printed
    status, printed = benchmark(run_tool, path, work_dir)
    assert status == 1 and 'no such street' in printed and len(quick.ran) == 2  # nothing runs, and it is said again
    broken.now = False
    status, printed = benchmark(run_tool, path, work_dir, '--retry')
    assert status == 0 and quick.ran[2:] == [('voc21', None)]
    status, printed = run_tool('status', work_dir)
    assert (status, printed.splitlines()[0]) == (0, 'toy: 4 of 4 cells done')


def test_the_last_worker_tells_of_failures_of_others(quick, broken, tmp_path, run_tool, monkeypatch):
    """The status of a worker is 1 if anything of the finished plan has failed, whoever prints the table."""
    plan, path, work_dir = toy_plan(MINI, VOC), tmp_path / 'plan.json', tmp_path / 'work'
    write_plan(plan, path)
    worker(plan, work_dir, keep_going=True).run()
    with leases.leased(os.path.join(state.sweep_folder(str(work_dir), plan), 'table.claim'), 'prints'):
        status, printed = benchmark(run_tool, path, work_dir)
    assert status == 1 and 'no such street' in printed


def test_shards_have_all_tasks_once(quick, tmp_path):
    plan, names = toy_plan(MINI, ALL), []
    for i in (1, 2, 3):
        share = plans.sharded(plan.tasks, f'{i}/3')
        Worker(plan, share, str(tmp_path / str(i)), runtime=dict(workers=0)).complete()
        names += [task.name for task in share]
    assert sorted(names) == sorted(task.name for task in plan.tasks) and len(quick.ran) == len(names)
    for text in ('0/3', '4/3', '1', 'a/b', '1/0', '-1/2', '1/2/3'):
        with pytest.raises(UserError, match='give i/n with i from 1 to n'):
            plans.sharded(plan.tasks, text)


def test_the_status_of_workers(quick, tmp_path):
    """One runs, one is silent."""
    plan, texts = toy_plan(MINI, VOC + CITY), []
    folder = state.sweep_folder(str(tmp_path), plan)

    def hook(watch):
        watch._report(0)
        (claim,) = tmp_path.glob('sweep/*/*.claim')
        texts.append(state.status_text(plan, folder, state.progress(plan, folder)))
        past = time.time() - 1000
        os.utime(claim, (past, past))
        texts.append(state.status_text(plan, folder, state.progress(plan, folder)))

    quick.hook = hook
    worker(plan, tmp_path).run()
    first, task = texts[0].splitlines(), plan.tasks[0]
    assert first[0].startswith('toy: 0 of 4 cells done, workers 1, ') and ' images/s, ' in first[0]
    assert first[1].startswith(f'  p0000 ({task.dataset}, {len(task.cells)} cells): 1 of {task.images} images in ')
    assert first[1].endswith(f' on {socket.gethostname()}, process {os.getpid()}')
    silent = texts[1].splitlines()
    assert 'no sign of life for 16.7 min' in silent[1] and 'images/s' not in silent[0], silent
    assert 'workers 0' not in texts[1] and 'lost 1' in silent[0]
