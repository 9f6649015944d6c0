"""Several processes: a lost process ends the others in time and is named, and flags reach all."""

import json
import os
import signal
import socket
import subprocess
import time

import pytest

from fsa_seg.cli import launch
from fsa_seg.errors import UserError
from fsa_seg.evaluation import ranks
from fsa_seg.system.stopping import STOPPED

from conftest import MINI, ROOT
from new_process import start_python

LIMIT = 2  # seconds
WORK = """
import os, sys, time
sys.path.insert(0, os.environ['SUITE'])
from fsa_seg.cli.tool import run_tool
from fsa_seg.evaluation import ranks
from fsa_seg.system import stopping

def main():
    ranks.start_processes('pytorch')
    rank = int(os.environ['RANK'])
    with open(f'pid{rank}.part', 'w') as f:
        f.write(str(os.getpid()))
    os.replace(f'pid{rank}.part', f'pid{rank}')
    work(rank)
    ranks.leave_processes()

"""
WAIT = WORK + 'def work(rank):\n    [time.sleep(0.05) for _ in range(1200)]\nrun_tool(main)'
COLLECTIVES = (
    WORK
    + """
def work(rank):
    while True:
        with stopping.finishing():
            time.sleep(0.1)
            if stopping.asked():
                ranks.raise_flag('stop', f'of rank {rank}')
        if any(ranks.agree(ranks.flag('stop'))):
            raise stopping.ToBeContinued
run_tool(main)
"""
)
ONE = f'error: process 1 (host {socket.gethostname()}, pid 101)'
FLAGS = (
    WORK
    + """
from fsa_seg.errors import UserError

def fail(rank, failing):
    if rank == failing:
        raise UserError(f'of rank {rank}')

def message(call, function, *given):
    try:
        call(lambda: function(*given))
    except UserError as error:
        return str(error)

def work(rank):
    assert ranks.agree(dict(rank=rank)) == [dict(rank=0), dict(rank=1)]
    assert ranks.flag('pass 1') is None
    ranks.agree(None)
    if rank == 1:
        ranks.raise_flag('pass 1', 'a reason')
        ranks.raise_flag('pass 1', 'a later reason')
    ranks.agree(None)
    assert ranks.flag('pass 1') == 'a reason' and ranks.flag('pass 2') is None
    assert ranks.on_main(lambda: rank) == 0 and ranks.on_all(lambda: rank) == rank
    assert message(ranks.on_main, fail, rank, rank) == 'of rank 0'
    assert message(ranks.on_all, fail, rank, 1) == ('of rank 1' if rank else 'process 1: of rank 1')
    assert message(ranks.on_all, fail, rank, rank) == f'of rank {rank}'
    try:
        ranks.on_all(lambda: fail(rank, 1))
    except UserError as error:
        ranks.check_shared(error)  # all processes go on together
    own = UserError('of one process alone')
    assert message(lambda function: function(), ranks.check_shared, own) == 'of one process alone'
    time.sleep(0 if rank else 1.5 * LIMIT)  # rank 1 is done early, and is not missed
    with open(f'done{rank}', 'w'):
        pass
run_tool(main)
""".replace('LIMIT', str(LIMIT))
)


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def environment(**variables):
    own = dict(OMP_NUM_THREADS='1', FSA_SEG_RANK_LIMIT=str(LIMIT), SUITE=ROOT, MASTER_PORT=free_port())
    return dict(os.environ, **own, **variables)


def start_ranks(folder, code):
    """Start two processes by hand in a folder, without a launcher, and return them."""
    shared = environment(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    return [
        start_python(
            '-c',
            code,
            cwd=folder,
            env=dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            outputs=[folder / f'out{rank}', folder / f'err{rank}'],
        )
        for rank in range(2)
    ]


def process_ids(folder, seconds=60):
    """Return the process ids of two ranks once they have joined."""
    deadline = time.monotonic() + seconds
    while not all((folder / f'pid{rank}').exists() for rank in range(2)):
        assert time.monotonic() < deadline, [path.read_text() for path in folder.glob('err*')]
        time.sleep(0.05)
    time.sleep(0.5)  # until they have heard of each other
    return [int((folder / f'pid{rank}').read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    'number, victim, code',
    [(signal.SIGKILL, 1, COLLECTIVES), (signal.SIGSTOP, 0, WAIT)],
    ids=['killed, in collectives', 'frozen, apart'],
)
def test_a_lost_process_ends_the_other_and_is_named(tmp_path, number, victim, code):
    """Rank 0 keeps the store of the processes that are started by hand."""
    processes = start_ranks(tmp_path, code)
    ids = process_ids(tmp_path)
    try:
        os.kill(ids[victim], number)
        start = time.monotonic()
        processes[1 - victim].join(4 * LIMIT)
        assert processes[1 - victim].exitcode == 1 and time.monotonic() - start < 2 * LIMIT
    finally:
        for process in processes:
            process.kill()
    lines = (tmp_path / f'err{1 - victim}').read_text().splitlines()
    told = [line for line in lines if line.startswith('error: ')]
    assert len(told) == 1 and f'process {victim} (host {socket.gethostname()}, pid {ids[victim]})' in told[0], lines
    assert f'has not been heard of for {LIMIT} s' in told[0] and not any('Traceback' in line for line in lines), lines


def test_flags_reach_all_and_who_is_done_is_not_missed(tmp_path):
    processes = start_ranks(tmp_path, FLAGS)
    for rank, process in enumerate(processes):
        process.join(60)
        assert process.exitcode == 0, (tmp_path / f'err{rank}').read_text()
    assert (tmp_path / 'done0').exists() and (tmp_path / 'done1').exists()


def start_launcher(folder, code):
    """Start two processes under the launcher, and return the launcher's process."""
    (folder / 'work.py').write_text(code)
    launcher = os.path.join(ROOT, 'tools', 'launch.py')
    arguments = ('--nproc_per_node=2', f'--master_port={free_port()}', 'work.py')
    return start_python(launcher, *arguments, cwd=folder, env=environment(), outputs=[folder / 'out', folder / 'err'])


def all_end(process_ids, seconds=10):
    """Return whether processes end in time; a dead process may wait for its parent to notice."""
    deadline = time.monotonic() + seconds
    while any(map(runs, process_ids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(runs, process_ids))


def runs(process_id):
    try:
        with open(f'/proc/{process_id}/stat') as f:
            return f.read().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_schedulers_signal_to_one_process_ends_all_to_be_continued(tmp_path):
    launcher = start_launcher(tmp_path, COLLECTIVES)
    ids = process_ids(tmp_path)
    os.kill(ids[0], signal.SIGTERM)
    launcher.join(30)
    assert launcher.exitcode == 75 and all_end(ids)
    assert (tmp_path / 'err').read_text() == f'{STOPPED}\n'


def test_without_their_launcher_the_processes_end(tmp_path):
    launcher = start_launcher(tmp_path, WAIT)
    ids = process_ids(tmp_path)
    launcher.kill()
    assert all_end(ids) and f'error: the launcher (pid {launcher.pid}) is gone' in (tmp_path / 'err').read_text()


@pytest.mark.parametrize(
    'codes, status, line',
    [
        ({1: -9}, 1, f'{ONE} was ended by SIGKILL, as the system does'),
        ({0: 75, 1: -11}, 1, f'{ONE} was ended by SIGSEGV; results'),
        ({0: 75, 1: 3}, 1, f'{ONE} ended with status 3; results'),
        ({0: 75, 1: -15}, 75, STOPPED),
        (signal.SIGTERM, 75, STOPPED),
        (signal.SIGHUP, 129, 'interrupted: results'),
    ],
)
def test_the_launchers_last_line(monkeypatch, capsys, codes, status, line):
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def torchrun(argv):
        if isinstance(codes, signal.Signals):
            raise SignalException('a signal', codes)
        raise ChildFailedError(
            'work', {rank: ProcessFailure(rank, 100 + rank, code, '') for rank, code in codes.items()}
        )

    monkeypatch.setattr('torch.distributed.run.main', torchrun)
    for name in ('FSA_SEG_ERROR_FILE', 'TORCH_CPP_LOG_LEVEL'):
        monkeypatch.setenv(name, '')  # restored after the test
    with pytest.raises(SystemExit) as end:
        launch.main([])
    text = isinstance(end.value.code, str)
    assert (1 if text else end.value.code) == status
    assert (end.value.code if text else capsys.readouterr().err).startswith(line)


def test_the_launchers_last_line_is_the_error_of_the_process_that_failed(monkeypatch):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def torchrun(argv):
        with open(os.environ['FSA_SEG_ERROR_FILE'], 'w') as f:
            f.write('error: x.jpg is damaged')
        raise ChildFailedError('work', {0: ProcessFailure(0, 100, 1, '')})

    monkeypatch.setattr('torch.distributed.run.main', torchrun)
    for name in ('FSA_SEG_ERROR_FILE', 'TORCH_CPP_LOG_LEVEL'):
        monkeypatch.setenv(name, '')
    with pytest.raises(SystemExit, match='^error: x.jpg is damaged$'):
        launch.main([])


def test_one_process_alone():
    ranks.start_processes('none')
    assert ranks.agree(3) == [3] and ranks.flag('a') is None
    ranks.raise_flag('a', 'first')
    ranks.raise_flag('a', 'second')
    assert ranks.flag('a') == 'first' and ranks.flag('b') is None
    ranks.leave_processes()
    ranks.start_processes('none')
    assert ranks.flag('a') is None


@pytest.mark.parametrize('text', ['soon', '0', 'inf', 'nan'])
def test_a_limit_that_is_none(monkeypatch, text):
    for name in ranks.RANK_VARIABLES['pytorch']:
        monkeypatch.setenv(name, '0')
    monkeypatch.setenv('FSA_SEG_RANK_LIMIT', text)
    with pytest.raises(UserError, match=f"FSA_SEG_RANK_LIMIT is '{text}'; it has to be a number of seconds"):
        ranks.start_processes('pytorch')


@pytest.mark.slow
def test_a_stopped_run_of_two_processes_goes_on_to_equal_counts(tmp_path):
    command = ['bash', os.path.join(ROOT, 'tools', 'dist_test.sh'), 'voc21', '2', '--mini', '--limit', '8']

    def run(name, stop):
        options = ['--data-root', MINI, '--work-dir', name, '--out', f'{name}.json']
        variables = dict(environment(), PORT=free_port())
        process = subprocess.Popen(
            [*command, *options],
            cwd=tmp_path,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + 60
        while stop and not any(path.stat().st_size for path in tmp_path.glob(f'{name}/logs/*/journal*')):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if stop:
            process.send_signal(signal.SIGTERM)
        printed = process.communicate(timeout=120)[0]
        assert 'Traceback' not in printed, printed
        return process.returncode, printed

    assert run('undisturbed', False)[0] == 0
    status, printed = run('stopped', True)
    assert status == 75 and printed.splitlines()[-1].startswith('stopped by the scheduler: '), printed
    assert not (tmp_path / 'stopped.json').exists()
    status, printed = run('stopped', False)
    assert status == 0, printed
    first, second = (json.loads((tmp_path / f'{name}.json').read_text()) for name in ('undisturbed', 'stopped'))
    assert second['images_resumed'] > 0
    for key in ('images', 'confusion', 'hash'):
        assert first[key] == second[key]
