"""fsa-seg benchmark: what the worker of a plan is told, and the status in the end."""

from types import SimpleNamespace

import pytest

from fsa_seg.cli import benchmark
from fsa_seg.sweep.estimate import Work
from fsa_seg.sweep.plan import Plan, Task, write_plan
from fsa_seg.sweep.state import Progress


@pytest.fixture
def plan(tmp_path):
    """A plan of two passes, that no test runs."""
    work = Work(1.0, 1.0, 1)
    cells = [dict(dataset=name, method='sclip') for name in ('voc21', 'ade20k')]
    tasks = [Task(f'p000{i}', cell['dataset'], [i], 8, work, parts=1 + i) for i, cell in enumerate(cells)]
    write_plan(Plan('paper', 'fsa-seg plan', {}, cells, tasks), str(tmp_path / 'p.json'))


@pytest.fixture
def told(monkeypatch):
    """What the worker is told; `failures`, `found` and `results` are what it says, and `right` what figures are."""
    found = SimpleNamespace(failures={}, found={}, results=[], right=True, checked=0)

    class Worker:
        def __init__(self, *given):
            names = 'plan tasks work_dir data_root runtime keep_going retry force only'.split()
            vars(found).update(zip(names, given, strict=True))
            self.failures = found.failures

        def check_cells(self):
            found.checked += 1

        def complete(self):
            return Progress(2, 2 - len(found.found), found.found, [], 0, 0.0, None), found.results

    monkeypatch.setattr('fsa_seg.sweep.worker.Worker', Worker)
    monkeypatch.setattr(benchmark, 'finish_data', lambda *_: found.right)
    return found


def test_the_worker_of_a_plan_has_the_options(run_tool, plan, told):
    assert run_tool('benchmark', '--plan', 'p.json') == (0, '')
    assert [task.name for task in told.tasks] == ['p0000', 'p0001'] and told.checked == 0
    assert (told.data_root, told.keep_going, told.retry, told.force, told.only) == (None, False, False, False, None)
    options = '--shard 2/2 --task p0001.1of2 --retry --keep-going --work-dir w --data-root d --window-batch 4'
    assert run_tool('benchmark', '--plan', 'p.json', *options.split())[0] == 0
    assert [task.name for task in told.tasks] == ['p0001']
    assert (told.keep_going, told.retry, told.force, told.only) == (True, True, False, 'p0001.1of2')
    assert (told.work_dir, told.data_root) == ('w', 'd')
    assert 4 in told.runtime.values()


def test_a_plan_takes_no_option_that_it_holds(run_tool, plan, told):
    for options in (['--force'], ['--gpus', '2'], ['--limit', '2'], ['--mini']):
        status, printed = run_tool('benchmark', '--plan', 'p.json', *options)
        assert status == 2 and f'leave out {options[0]};' in printed


def test_without_a_plan_all_is_checked_before_the_first_cell(run_tool, told):
    status, printed = run_tool('benchmark', '--mini', '--datasets', 'voc20', '--methods', 'clip', '--force')
    assert status == 0 and told.checked == 1 and told.force, printed


@pytest.mark.parametrize(
    'said, status, line',
    [
        (dict(results=None), 0, 'no task is left that no worker has; 2 of the 2 cells of the plan are done'),
        (dict(results=None, found={1: 'NaN'}), 1, 'error: NaN'),  # another worker verifies
        (dict(found={1: 'NaN'}), 1, 'error: NaN\n    failed by it: ade20k sclip'),
        (dict(failures={'a': 'NaN', 'b': 'NaN'}, results=None), 1, 'NaN\n    failed by it: a; b'),
        (dict(right=False), 1, ''),
    ],
)
def test_the_status_of_a_plan(run_tool, plan, told, said, status, line):
    vars(told).update(said)
    ended, printed = run_tool('benchmark', '--plan', 'p.json')
    assert ended == status and line in printed, printed
