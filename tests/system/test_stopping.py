"""SIGTERM, a scheduler's signal: the work in hand ends, one line, status 75."""

import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT

SETUP = """
import sys, time
sys.path.insert(0, sys.argv[1])
from fsa_seg.cli.tool import run_tool
from fsa_seg.system import stopping
def ready(): print('ready', flush=True)
"""


# a signal right before a long sleep would wait for the end of the sleep
NAPS = '[time.sleep(0.05) for _ in range(1200)]'


def stopped(body, signals=1, pause=0.0):
    """Run a tool with this body of main in a process, and send SIGTERM after its first line, `signals` times.

    Returns:
        The process's status, and its further output on both streams.
    """
    code = f'{SETUP}\ndef main():\n' + '\n'.join(f' {line}' for line in body.splitlines()) + '\nrun_tool(main)'
    process = subprocess.Popen(
        [sys.executable, '-c', code, ROOT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout.readline() == 'ready\n'
    for i in range(signals):
        time.sleep(pause if i else 0)
        process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=20)[0]
    return process.returncode, printed


LINE = 'stopped by the scheduler: results already written stay, and the same command goes on from them\n'


@pytest.mark.parametrize('handler', ['raise', 'raise ImportError("numpy was stopped")', 'raise RuntimeError("x")'])
def test_outside_of_work_the_tool_ends_at_once(handler):
    """Also where a library turns the signal into another error."""
    assert stopped(f'try:\n ready()\n {NAPS}\nexcept BaseException:\n {handler}') == (75, LINE)


def test_work_in_hand_ends_first():
    """The scheduler's signal and the launcher's are one request."""
    body = """
with stopping.finishing():
    with stopping.finishing():
        ready()
        time.sleep(0.4)
    print('finished', stopping.asked())
    stopping.check()
"""
    assert stopped(body, signals=2, pause=0.1) == (75, 'finished True\n' + LINE)


def test_work_in_hand_survives_the_processes_that_load_images():
    """The scheduler's signal ends these processes, too, and torch's handler of SIGCHLD raises an error."""
    body = """
import multiprocessing, signal
def lost(*_): raise RuntimeError('DataLoader worker is killed by signal')
signal.signal(signal.SIGCHLD, lost)
loader = multiprocessing.get_context('fork').Process(target=time.sleep, args=(0.2,))
loader.start()
with stopping.finishing():
    ready()
    while not stopping.asked():
        time.sleep(0.01)
    time.sleep(0.5)  # the process ends meanwhile
    print('finished')
    stopping.check()
"""
    assert stopped(body) == (75, 'finished\n' + LINE)


def test_a_second_request_ends_what_hangs():
    body = f'stopping.ONE_REQUEST = 0.1\nwith stopping.finishing():\n ready()\n {NAPS}'
    assert stopped(body, signals=2, pause=0.5) == (75, '')


def test_a_process_that_loads_images_ends_by_the_signal():
    """The signal to that process alone asks nothing of the tool."""
    body = """
import multiprocessing
context = multiprocessing.get_context('fork')
loads = context.Event()
loader = context.Process(target=lambda: (loads.set(), time.sleep(60)))
loader.start()
ready()
loads.wait(10)
loader.terminate()
loader.join(10)
print(loader.exitcode, stopping.asked())
"""
    assert stopped(body, signals=0) == (0, '-15 False\n')
