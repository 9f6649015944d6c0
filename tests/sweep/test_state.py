"""What the files of a plan tell of it: progress, failures, time left, and who is at work."""

import json
import os

import pytest

from fsa_seg.sweep.estimate import Work
from fsa_seg.sweep.plan import Plan, Task, write_plan
from fsa_seg.sweep.state import Running, plans_in, progress, read_json, running_in, status_text, write_outcome
from fsa_seg.system.paths import sources_digest

FLOPS = 10.0  # of an image
RUNNING = Running('p0001.1of2', 'voc20, 1 cells', 'host, process 7', 2, 4, 4.0, 2 * FLOPS, 0.0)


@pytest.fixture
def folder(tmp_path):
    """A folder of a plan's state, in which nothing has run."""
    (tmp_path / 'workers').mkdir()
    return tmp_path


def made_plan():
    """A pass of two cells, and a pass of one cell in two parts, of eight images each."""
    work = Work(FLOPS, 1.0, 1)
    tasks = [Task('p0000', 'voc21', [0, 1], 8, work), Task('p0001', 'voc20', [2], 8, work, parts=2)]
    cells = [dict(dataset=name, method=method) for name, method in (('voc21', 'a'), ('voc21', 'b'), ('voc20', 'a'))]
    return Plan('paper', 'fsa-seg plan', {}, cells, tasks)


def keep(folder, unit, state='done', **outcome):
    write_outcome(dict(state=state, sources=sources_digest(), **outcome), str(folder / f'{unit}.json'))


def claim(folder, unit, seconds_ago=0.0, report=RUNNING):
    """Claim a unit whose worker gave its last sign of life some seconds ago, and has just reported."""
    (folder / f'{unit}.claim').touch()
    moment = os.stat(folder / f'{unit}.claim').st_mtime - seconds_ago
    os.utime(folder / f'{unit}.claim', (moment, moment))
    (folder / 'workers' / f'{unit}.json').write_text(json.dumps(report._replace(unit=unit)._asdict()))


def test_cells_are_done_or_failed(folder):
    plan, read = made_plan(), {}
    assert progress(plan, str(folder), read)[:3] == (3, 0, {})
    keep(folder, 'p0000', 'failed', results={'0': 'r.json'}, failures={'1': 'NaN'})
    keep(folder, 'p0001.1of2', 'failed', results={}, failures={'2': 'damaged'})
    (folder / 'p0001.2of2.json').write_text('{"state": "do')  # torn
    found = progress(plan, str(folder), read)
    assert found[:3] == (3, 1, {1: 'NaN', 2: 'damaged'}) and found.finished and sorted(read) == ['p0000', 'p0001.1of2']
    assert found.failures_by_name(plan) == {'voc21 b': 'NaN', 'voc20 a': 'damaged'} and found.line() == 'failed 2'
    for name in ('p0000', 'p0001.1of2'):
        (folder / f'{name}.json').unlink()  # to be run again
    found = progress(plan, str(folder), read)
    assert found[:3] == (3, 0, {}) and not found.finished


def test_time_left_is_that_of_the_work_left_at_the_present_rate(folder):
    """Of 16 images two parts of four are left, and of one of these two images."""
    plan = made_plan()
    keep(folder, 'p0000', results={'0': 'r.json', '1': 's.json'}, failures={})
    assert progress(plan, str(folder)).seconds is None  # nobody works
    claim(folder, 'p0001.1of2')
    found = progress(plan, str(folder))
    assert (found.workers, found.rate, found.seconds) == (1, 0.5, 12.0)
    claim(folder, 'p0001.2of2')
    assert progress(plan, str(folder), own=RUNNING)[4:] == (2, 1.0, 4.0)  # the other is taken to be as fast
    keep(folder, 'p0001.1of2', results={}, failures={})
    (folder / 'p0001.1of2.claim').unlink()
    assert progress(plan, str(folder))[4:] == (1, 0.5, 4.0)


def test_a_silent_worker_is_lost(folder):
    """A claim is touched all the time, and a report is written now and then."""
    plan = made_plan()
    claim(folder, 'p0000', 200)
    claim(folder, 'p0001.1of2', 50)
    (folder / 'workers' / 'gone.json').write_text(json.dumps(RUNNING._replace(unit='p0001.2of2')._asdict()))
    (folder / 'workers' / 'torn.json').write_text('{"unit": ')
    lost, alive = running_in(str(folder))
    assert lost.unit == 'p0000' and 199 < lost.silent < 230 and 49 < alive.silent < 80
    assert sorted(os.listdir(folder / 'workers')) == ['gone.json', 'p0000.json', 'p0001.1of2.json', 'torn.json']
    found = progress(plan, str(folder))
    assert found.rate == 0.5 and found.workers == 2
    keep(folder, 'p0001.2of2', 'failed', results={}, failures={'2': 'damaged'})
    lines = status_text(plan, str(folder), progress(plan, str(folder))).splitlines()
    assert lines[0].startswith('paper: 0 of 3 cells done, workers 1, lost 1, failed 1, 0.50 images/s, ')
    assert [('no sign of life for 3.' in line) for line in lines[1:3]] == [True, False], lines
    assert lines[3:6] == ['  failed:', '  damaged', '      failed by it: voc20 a'] and '--retry' in lines[6]


def test_plans_of_a_work_dir(tmp_path):
    plan = made_plan()
    for i, name in enumerate('ab'):
        (tmp_path / 'sweep' / name).mkdir(parents=True)
        write_plan(plan._replace(suite=name), str(tmp_path / 'sweep' / name / 'plan.json'))
        os.utime(tmp_path / 'sweep' / name / 'plan.json', (i, i))
    assert [found.suite for found in plans_in(str(tmp_path)).values()] == ['b', 'a']
    assert read_json(str(tmp_path / 'none.json')) is None
