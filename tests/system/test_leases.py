import os
import subprocess
import sys
import time

import pytest

from fsa_seg.system import leases
from fsa_seg.system.leases import lease, leased

from conftest import ROOT

OWNER = """
import sys, time
from fsa_seg.system.leases import leased
with leased(sys.argv[1], 'tests'):
    print('held', flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lease."""
    path = str(tmp_path / 'folder' / 'work.lease')
    process = subprocess.Popen([sys.executable, '-c', OWNER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    yield process, path
    process.kill()
    process.wait()


def test_a_killed_owner_frees_its_lease(owner):
    """SIGKILL leaves the file behind; the next process on the host takes it at once."""
    process, path = owner
    held = lease(path)
    with pytest.raises(TimeoutError):
        held.acquire(blocking=False)
    process.kill()
    process.wait()
    assert os.path.exists(path)
    start = time.monotonic()
    with leased(path, 'tests'):
        assert time.monotonic() - start < 5
    assert not os.path.exists(path)


def test_a_long_wait_is_said_once(owner, monkeypatch, capsys):
    process, path = owner
    monkeypatch.setattr(leases, 'PATIENCE', 0.1)
    monkeypatch.setattr(leases, 'note', lambda text: (print(text), process.kill(), process.wait()))
    with leased(path, 'embeds words'):
        pass
    assert capsys.readouterr().out == f'waiting for another process that embeds words ({path})\n'


def test_an_owner_on_another_host_is_waited_for_by_the_own_clock(tmp_path, monkeypatch):
    """Neither the time of the file nor the host's time of day ends a lease: both clocks can jump."""
    path, clock = str(tmp_path / 'work.lease'), [0.0]
    with leased(path, 'tests'):
        text = open(path).read()
    import socket

    assert socket.gethostname() in text
    with open(path, 'w') as f:
        f.write(text.replace(socket.gethostname(), 'another-host'))
    os.utime(path, (0, 0))
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    held = lease(path)
    for clock[0] in (0.0, 30.0, 59.0):
        with pytest.raises(TimeoutError):
            held.acquire(blocking=False)
    clock[0] = 61.0
    held.acquire(timeout=1)
    held.release()


def test_without_a_folder_the_work_is_done_without_a_lease(tmp_path):
    (tmp_path / 'file').touch()
    with leased(str(tmp_path / 'file' / 'work.lease'), 'tests'):
        assert os.listdir(tmp_path) == ['file']
    with pytest.raises(RuntimeError, match='of the block'), leased(str(tmp_path / 'x.lease'), 'tests'):
        raise RuntimeError('of the block')
    assert os.listdir(tmp_path) == ['file']
