"""fsa-seg submit: tasks of a job array by submitit, here and on a stand-in for SLURM."""

import glob
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from fsa_seg.cli import submit
from fsa_seg.cli.submit import ArrayTask
from fsa_seg.errors import Busy
from fsa_seg.sweep import worker
from fsa_seg.sweep.estimate import Work
from fsa_seg.sweep.plan import Plan, Task, read_plan, write_plan
from fsa_seg.sweep.state import read_json
from fsa_seg.system.leases import lease

from conftest import ROOT

submitit = pytest.importorskip('submitit')

# srun starts RANKS copies of its command, and writes their logs and process ids
SRUN = """#!/bin/bash
while :; do case $1 in --output) log=$2; shift 2;; -*) shift;; *) break;; esac; done
export SLURM_NTASKS=$RANKS SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
for rank in $(seq 0 $((RANKS - 1))); do
  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" > "$SLURM/log_$rank" 2>&1 &
  echo $! > "$SLURM/pid_$rank.part"; mv "$SLURM/pid_$rank.part" "$SLURM/pid_$rank"; pids="$pids $!"
done
for pid in $pids; do wait $pid || status=$?; done
exit ${status:-0}
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with sbatch, which keeps the script; srun; and scontrol, which keeps its arguments."""
    folder = tmp_path / 'slurm'
    folder.mkdir()
    stands = {'sbatch': '#!/bin/sh\ncp "$1" "$SLURM/script"\necho Submitted batch job 4242\n', 'srun': SRUN}
    stands['scontrol'] = '#!/bin/sh\necho "$*" >> "$SLURM/scontrol_calls"\n'
    for name, text in stands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('SLURM', str(folder))
    return folder


def start(slurm, command, ranks=1, task=0, **variables):
    """Start a command as slurmd starts an element of the array 4242, and return its `subprocess.Popen`."""
    for path in slurm.glob('pid_*'):
        path.unlink()
    job = dict(SLURM_JOB_ID=str(4243 + task), SLURM_ARRAY_JOB_ID='4242', SLURM_ARRAY_TASK_ID=str(task))
    return subprocess.Popen(command, env={**os.environ, **job, 'RANKS': str(ranks), **variables})


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def toy_plan(run_tool, path, *options, parts=1):
    """Write the plan of methods on voc21's mini split."""
    status, text = run_tool('plan', '--mini', '--datasets', 'voc21', '--no-fsa', '--out', path, *options)
    assert status == 0, text
    plan = read_plan(path)
    write_plan(plan._replace(tasks=[task._replace(parts=parts) for task in plan.tasks]), path)
    return read_plan(path)


def results_in(work_dir):
    """Return name of a file -> what a result counts."""
    keys = ('metrics', 'classes', 'confusion', 'images')
    return {
        path.name: {key: json.loads(path.read_text())[key] for key in keys}
        for path in (work_dir / 'results').glob('*.json')
    }


def test_local_tasks_give_the_results_of_a_plain_run(run_tool, tmp_path, monkeypatch):
    """Two parts of one pass run at the same time; one of them also makes the results."""
    plan = toy_plan(run_tool, 'p.json', '--methods', 'sclip', '--limit', '2', parts=2)
    status, text = run_tool('submit', 'p.json', '--executor', 'local', '--array-parallelism', '2', '--work-dir', 'w')
    assert status == 0 and '2 tasks have ended' in text, text
    folder = tmp_path / 'w' / 'sweep' / plan.id
    logs = ''.join(path.read_text() for path in (folder / 'slurm').glob('*.out'))
    outcomes = {name: read_json(folder / f'{name}.json')['state'] for name, _ in plan.tasks[0].units()}
    assert outcomes == dict.fromkeys(['p0000.1of2', 'p0000.2of2', 'p0000'], 'done'), logs
    assert len(logs) < 4000 and len(list((folder / 'slurm').glob('*.pkl'))) == 4
    status, text = run_tool('benchmark', '--plan', 'p.json', '--work-dir', 'plain')
    assert status == 0, text
    assert results_in(tmp_path / 'w') == results_in(tmp_path / 'plain') != {}
    status, text = run_tool('submit', 'p.json', '--executor', 'local', '--work-dir', 'w')
    assert status == 0 and 'every task of p.json has an outcome' in text, text


def two_passes(path):
    """Write a plan of two passes, of which the second is split, that no test runs."""
    work = Work(*[1.0] * len(Work._fields))
    cells = [dict(dataset=name, method='sclip') for name in ('voc21', 'ade20k')]
    tasks = [Task(f'p000{i}', cell['dataset'], [i], 8, work, parts=1 + i) for i, cell in enumerate(cells)]
    write_plan(Plan('paper', 'fsa-seg plan', {}, cells, tasks), str(path))


def test_the_script_has_the_options(run_tool, slurm, tmp_path, monkeypatch):
    two_passes(tmp_path / 'p.json')
    options = '--partition gpu --account us --qos high --constraint a100 --gpus 2 --cpus 6 --memory 64 --hours 1.5'
    options += ' --array-parallelism 2 --slurm exclude=node7 --slurm exclusive --work-dir w --window-batch 4 --compile'
    status, text = run_tool('submit', 'p.json', *options.split(), '--setup', 'module load cuda')
    assert status == 0 and 'job array 4242: 3 tasks' in text and 'fsa-seg status' in text, text
    script = (slurm / 'script').read_text()
    expected = 'partition=gpu account=us qos=high constraint=a100 gpus-per-node=2 ntasks-per-node=2 cpus-per-task=6 '
    expected += 'mem=64GB time=90 array=0-2%2 requeue exclude=node7 exclusive signal=USR2@120 nodes=1'
    for option in expected.split():
        assert f'#SBATCH --{option}\n' in script, option
    assert 'module load cuda\n' in script and '--cpus-per-task=6 ' in script.split('srun', 1)[1]
    folder = glob.glob(str(tmp_path / 'w/sweep/*/slurm'))[0]
    tasks = [
        submitit.core.utils.DelayedSubmission.load(f'{folder}/4242_{i}_submitted.pkl').function.arguments
        for i in range(3)
    ]
    assert [task[task.index('--task') + 1] for task in tasks] == ['p0000', 'p0001.1of2', 'p0001.2of2']
    assert all(task[-5:] == ['--work-dir', str(tmp_path / 'w'), '--window-batch', '4', '--compile'] for task in tasks)
    assert all('--keep-going' in task and '--launcher' in task and os.path.dirname(folder) in task[4] for task in tasks)
    assert not os.path.exists(f'{folder}/../precision')  # the machine that submits may have no GPU
    monkeypatch.setattr(submit, 'MOST_TASKS', 2)
    status, text = run_tool('submit', 'p.json', '--work-dir', 'w2', '--no-requeue')
    assert status == 0 and 'job array 4242: 2 tasks' in text and 'job 4242: 1 task' in text, text
    assert '#SBATCH --no-requeue\n' in (slurm / 'script').read_text()


def test_what_has_failed_is_submitted_by_retry(run_tool, slurm, tmp_path):
    two_passes(tmp_path / 'p.json')
    plan = read_plan(str(tmp_path / 'p.json'))
    made = worker.Worker(plan, plan.tasks, str(tmp_path / 'w'))
    made._write('p0000', plan.tasks[0], dict(failures={0: 'NaN'}, results={}))
    for options, count in (((), 2), (('--retry',), 3), ((), 3)):
        status, text = run_tool('submit', 'p.json', '--work-dir', 'w', *options)
        assert status == 0 and f'job array 4242: {count} tasks' in text, text


def test_what_is_wrong_is_said(run_tool, slurm, tmp_path, monkeypatch):
    two_passes(tmp_path / 'p.json')
    (slurm / 'sbatch').write_text('#!/bin/sh\necho sbatch: error: invalid partition >&2\nexit 1\n')
    assert 'invalid partition' in run_tool('submit', 'p.json')[1]
    assert '--gpus is -1; it has to be at least 0' in run_tool('submit', 'p.json', '--gpus', '-1')[1]
    assert '--hours is 0.0; it has to be above 0' in run_tool('submit', 'p.json', '--hours', '0')[1]
    assert "--slurm '=x' is not KEY=VALUE" in run_tool('submit', 'p.json', '--slurm', '=x')[1]
    (slurm / 'srun').unlink()
    monkeypatch.setenv('PATH', f'{slurm}:/nowhere')
    assert 'sbatch or srun is not on PATH' in run_tool('submit', 'p.json')[1]
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert 'pip install submitit' in run_tool('submit', 'p.json')[1]


@pytest.fixture
def one_part(tmp_path, monkeypatch):
    """A worker of one part of a split pass, its clock, and a function that claims a unit for another worker."""
    two_passes(tmp_path / 'p.json')
    plan, clock = read_plan(str(tmp_path / 'p.json')), [0.0]
    monkeypatch.setattr(worker, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    made = worker.Worker(plan, plan.tasks, str(tmp_path), only='p0001.2of2')

    def claim(name):
        held = lease(os.path.join(made.folder, f'{name}.claim'))
        held.acquire(blocking=False)
        return held

    return made, clock, claim


def end(part, name):
    """Write the outcome of a unit as its worker does."""
    part._write(name, part.plan.tasks[1], dict(failures={}, results={}))


def test_a_worker_of_one_unit_waits_until_the_owner_lives(one_part):
    """The owner may be the task's own earlier run, killed on another node."""
    part, clock, claim = one_part
    held = claim('p0001.2of2')
    for seconds in (0, 5, 80):
        clock[0] = seconds
        assert part._next() == worker.WAIT
    held.release()
    clock[0] = 85
    assert part._next() == 'p0001.2of2'
    part._leases['p0001.2of2'].release()
    held = claim('p0001.2of2')
    for seconds, name in ((100, worker.WAIT), (150, worker.WAIT), (200, None)):
        clock[0] = seconds
        assert part._next() == name
    held.release()


def test_a_split_pass_is_not_lost_when_its_last_parts_end_together(one_part):
    part, clock, claim = one_part
    end(part, 'p0001.2of2')
    assert part._next() is None  # the other part runs, and its worker will make the results
    end(part, 'p0001.1of2')
    held = claim('p0001')
    assert part._next() == worker.WAIT
    held.release()  # the other worker is gone
    clock[0] = 10
    assert part._next() == 'p0001'
    part._leases['p0001'].release()
    assert part.open_units() == ['p0001']
    end(part, 'p0001')
    assert part._next() is None and part.open_units() == []


def test_a_busy_cell_is_tried_again_later(one_part, monkeypatch):
    part, clock, claim = one_part

    def busy(*args):
        raise Busy('another run works on this cell')

    monkeypatch.setattr(part, '_evaluate', busy)
    monkeypatch.setattr(part, '_report', lambda every: None)
    name = part._next()
    part._run(name)
    for seconds, expected in ((1, worker.WAIT), (29, worker.WAIT), (31, name)):
        clock[0] = seconds
        assert part._next() == expected
    part._leases[name].release()


WORK = """
import json, os, signal, sys, time
with open('starts', 'a') as f:
    f.write(json.dumps({key: os.environ.get(key) for key in ('MASTER_PORT', 'SLURM_NTASKS', 'SLURM_PROCID')}) + '\\n')
def end(number, frame):
    time.sleep(0.3)  # the image in hand
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
if len(open('starts').readlines()) <= int(sys.argv[1]):
    open('runs', 'w').close()
    time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


def start_task(slurm, tmp_path, monkeypatch, waits, status, **options):
    """Start a task whose first `waits` processes wait for SIGTERM, and whose last ends with a status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SUBMITIT_EXECUTOR', 'slurm')
    monkeypatch.setenv('PYTHONPATH', ROOT)
    work = submitit.core.utils.DelayedSubmission(ArrayTask(['-c', WORK, str(waits), str(status)], True))
    work.set_timeout(600, 3)
    work.dump(tmp_path / '4242_0_submitted.pkl')
    return submit_again(slurm, tmp_path, **options)


def submit_again(slurm, tmp_path, **options):
    (tmp_path / 'runs').unlink(missing_ok=True)
    return start(slurm, ['srun', sys.executable, '-m', 'submitit.core._submit', str(tmp_path)], **options)


@pytest.mark.parametrize('status', [0, 1])
def test_a_task_has_the_status_of_its_process(slurm, tmp_path, monkeypatch, status):
    assert start_task(slurm, tmp_path, monkeypatch, 0, status).wait(60) == status
    assert json.loads((tmp_path / 'starts').read_text())['MASTER_PORT'] is None


def test_a_preempted_task_is_requeued(slurm, tmp_path, monkeypatch):
    """After SIGUSR2 the process ends its image; the task then is requeued, and the next run finishes it."""
    srun = start_task(slurm, tmp_path, monkeypatch, 1, 0)
    wait_for((tmp_path / 'runs').exists)
    os.kill(int((slurm / 'pid_0').read_text()), signal.SIGUSR2)
    assert srun.wait(60) == 255
    assert (slurm / 'scontrol_calls').read_text() == 'requeue 4242_0\n'
    assert submit_again(slurm, tmp_path).wait(60) == 0
    assert len((tmp_path / 'starts').read_text().splitlines()) == 2


@pytest.mark.parametrize('status, requeue', [(75, True), (75, False), (0, True), (1, True)])
def test_what_is_to_be_continued_is_requeued_alone(monkeypatch, status, requeue):
    """submitit requeues what `checkpoint` returns."""
    task, asked = ArrayTask(['-c', 'pass'], requeue), []
    task._process = SimpleNamespace(pid=-1)
    monkeypatch.setattr(task, '_wait', lambda: status)
    monkeypatch.setattr(submit.os, 'kill', lambda *given: asked.append(given))
    if status == 75 and requeue:
        again = task.checkpoint().function
        assert (again.arguments, again.requeue, again._process) == (task.arguments, True, None)
    else:
        task._stop()  # SLURM sends SIGTERM, too, and a second request would break the image in hand
        with pytest.raises(SystemExit) as end:
            task.checkpoint()
        assert end.value.code == status
    assert asked == [(-1, signal.SIGTERM)]


def test_sigterm_ends_the_image_and_waits_for_slurm(slurm, tmp_path, monkeypatch):
    """SLURM requeues a preempted task itself, if the task still runs in the end."""
    srun = start_task(slurm, tmp_path, monkeypatch, 1, 0)
    wait_for((tmp_path / 'runs').exists)
    pid = int((slurm / 'pid_0').read_text())
    os.kill(pid, signal.SIGTERM)
    time.sleep(1)
    assert srun.poll() is None and not (slurm / 'scontrol_calls').exists()
    os.kill(pid, signal.SIGUSR2)  # as from sites that send both
    assert srun.wait(60) == 255 and (slurm / 'scontrol_calls').read_text() == 'requeue 4242_0\n'


def test_processes_of_a_task_have_a_port_of_their_own(slurm, tmp_path, monkeypatch):
    assert start_task(slurm, tmp_path, monkeypatch, 0, 0, ranks=2).wait(60) == 0
    first = [json.loads(line) for line in (tmp_path / 'starts').read_text().splitlines()]
    assert submit_again(slurm, tmp_path, ranks=2, SLURM_RESTART_COUNT='1').wait(60) == 0
    second = [json.loads(line) for line in (tmp_path / 'starts').read_text().splitlines()][2:]
    assert {rank['SLURM_PROCID'] for rank in first} == {'0', '1'} and {rank['SLURM_NTASKS'] for rank in first} == {'2'}
    ports = [{rank['MASTER_PORT'] for rank in ranks} for ranks in (first, second)]
    assert all(len(each) == 1 for each in ports) and ports[0] != ports[1]


@pytest.mark.slow
def test_two_processes_are_preempted_and_go_on(run_tool, slurm, tmp_path, monkeypatch):
    """The script that sbatch gets runs twice; the second run has the counts of an undisturbed run."""
    plan = toy_plan(run_tool, 'p.json', '--methods', 'sclip', 'clearclip', 'maskclip')
    status, text = run_tool('submit', 'p.json', '--gpus', '2', '--work-dir', 'w')
    assert status == 0 and 'job array 4242: 2 tasks' in text and len(plan.tasks[0].cells) == 2, text
    folder = tmp_path / 'w' / 'sweep' / plan.id
    monkeypatch.chdir(tmp_path)
    job = start(slurm, ['bash', slurm / 'script'], ranks=2)
    wait_for(lambda: list((tmp_path / 'w/logs').glob('*/journal_*/*.jsonl')))
    pids = [int((slurm / f'pid_{rank}').read_text()) for rank in range(2)]
    for pid in pids:
        os.kill(pid, signal.SIGUSR2)
    wait_for((slurm / 'scontrol_calls').exists)
    assert not list(folder.glob('*.claim')) and not (folder / 'p0000.json').exists()
    os.kill(pids[1], signal.SIGKILL)  # as SLURM does then
    job.wait(60)
    counted = {
        json.loads(line)[0]
        for path in (tmp_path / 'w/logs').glob('*/journal_*/*.jsonl')
        for line in path.read_text().splitlines()
    }
    assert 0 < len(counted) < plan.tasks[0].images
    assert start(slurm, ['bash', slurm / 'script'], ranks=2).wait(120) == 0, (slurm / 'log_0').read_text()
    outcome = read_json(folder / 'p0000.json')
    assert outcome['state'] == 'done' and outcome['images'] <= plan.tasks[0].images - len(counted) + 1
    status, text = run_tool('benchmark', '--plan', 'p.json', '--task', 'p0000', '--work-dir', 'plain')
    assert status == 0 and results_in(tmp_path / 'w') == results_in(tmp_path / 'plain') != {}, text
