import io
import sys

from fsa_seg.system import progress
from fsa_seg.system.progress import Bar, note


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch, seconds=0.0):
    """Return what a bar over ten items writes to a stream, when a look at the clock takes so many seconds."""
    clock = iter(range(10**6))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: seconds * next(clock))
    monkeypatch.setattr(sys, 'stderr', stream)
    assert list(Bar(range(10), desc='images', mininterval=0)) == list(range(10))
    return stream.getvalue()


def test_a_terminal_has_a_bar(monkeypatch):
    assert 'images: 100%' in shown(Terminal(), monkeypatch)


def test_a_log_has_few_whole_lines(monkeypatch):
    """None for what is quick; then one in two minutes."""
    assert shown(io.StringIO(), monkeypatch) == ''
    lines = shown(io.StringIO(), monkeypatch, seconds=50.0).splitlines()
    assert 2 <= len(lines) <= 5 and all(line.startswith('images: ') and '\r' not in line for line in lines)


def test_notes_of_the_main_process_alone(monkeypatch, capsys):
    note('once')
    monkeypatch.setenv('RANK', '1')
    note('twice')
    assert capsys.readouterr().err == 'once\n'
