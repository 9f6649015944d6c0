"""Output paths are checked before a run; processes on one cell do not disturb each other; every end is one line."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from fsa_seg.config.compose import compose
from fsa_seg.errors import UserError
from fsa_seg.evaluation import metric
from fsa_seg.evaluation.passes import prepare, result_path, run_cell
from fsa_seg.system import paths

from conftest import MINI, ROOT

IMAGE = os.path.join(MINI, 'VOCdevkit', 'VOC2012', 'JPEGImages', '2007_000033.jpg')
TEST = ('test', 'voc21', '--mini', '--method', 'clip', '--no-fsa', '--limit', 1)


@pytest.mark.parametrize(
    'command, message',
    [
        ((*TEST, '--out', 'folder'), '--out folder is a folder; name a file in it'),
        ((*TEST, '--out', 'folder/'), 'is a folder'),
        ((*TEST, '--out', '图' * 90), 'has 270 bytes; file systems allow 255'),
        ((*TEST, '--out', 'file/x.json'), 'cannot be made'),
        ((*TEST, '--out', 'file'), 'is no result of this suite'),
        ((*TEST, '--out', 'pipe'), 'is there and is no file'),
        ((*TEST, '--work-dir', 'file'), 'cannot be made'),
        ((*TEST, '--show-dir', 'file'), 'cannot be made'),
        (('segment', IMAGE, 'cat', '--mini', '--out', 'folder'), '--out folder is a folder'),
        (('segment', IMAGE, 'cat', '--mini', '--out', 'x.docx'), 'pictures are not written as .docx'),
        (('segment', IMAGE, 'cat', '--mini', '--labels', 'folder'), '--labels folder is a folder'),
        (('segment', IMAGE, 'cat', '--mini', '--labels', 'x.jpg'), '--labels x.jpg: the name has to end in .png'),
        (('segment', IMAGE, 'cat', '--mini', '--scores', 'file/x.npz'), 'cannot be made'),
        (('segment', IMAGE, 'cat', '--mini', '--scores', 'x.npy'), '--scores x.npy: the name has to end in .npz'),
        (('segment', IMAGE, 'cat', '--mini', '--labels', './segmented.png'), 'is the file of --out; name another'),
        (('segment', IMAGE, 'cat', '--mini', '--out', IMAGE), 'is the file of the picture; name another'),
        (('benchmark', '--mini', '--picture', 'folder'), '--picture folder is a folder'),
        (('benchmark', '--mini', '--write-golden', 'folder'), '--write-golden folder is a folder'),
        (('benchmark', '--mini', '--work-dir', 'taken'), 'the table taken/table.md is a folder'),
        (
            ('benchmark', '--suite', 'architectures', '--mini', '--work-dir', 'taken'),
            'table_architectures.md is a folder',
        ),
        (('prepare', '--check', MINI, '--out', 'file/x'), 'cannot be made'),
    ],
)
def test_places_are_checked_before_a_run(run_tool, tmp_path, monkeypatch, command, message):
    for folder in ('folder', 'taken/table.md', 'taken/table_architectures.md'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'file').write_text('not yours')
    os.mkfifo(tmp_path / 'pipe')
    monkeypatch.setattr('fsa_seg.evaluation.passes.run_pass', lambda *_: pytest.fail('a cell was run'))
    monkeypatch.setattr('fsa_seg.models.segmentor.load_clip', lambda **_: pytest.fail('a model was loaded'))
    status, printed = run_tool(*command)
    assert status == 1 and message in printed and 'Traceback' not in printed, printed
    assert (tmp_path / 'file').read_text() == 'not yours'


def test_a_folder_with_a_long_name_in_three_bytes_a_letter(run_tool, tmp_path):
    folder = tmp_path / ('图' * 70)
    voc = os.path.join(MINI, 'VOCdevkit', 'VOC2012')
    for sub, source in (('images', 'JPEGImages/2007_000033.jpg'), ('labels', 'SegmentationClass/2007_000033.png')):
        (folder / sub).mkdir(parents=True)
        shutil.copy(os.path.join(voc, source), folder / sub)
    from mmseg.datasets import PascalVOCDataset

    (folder / 'classes.txt').write_text('\n'.join(PascalVOCDataset.METAINFO['classes']))
    data = ('--images', folder / 'images', '--labels', folder / 'labels', '--classes', folder / 'classes.txt')
    models = ('--backbone', 'toy', '--vfm', 'toy', '--method', 'clip', '--no-fsa')
    status, printed = run_tool('test', *data, *models, '--workers', 0)
    assert status == 0, printed
    assert len(list((tmp_path / 'work_dirs' / 'results').glob('own_图*.json'))) == 1


def test_temporary_names_are_unique_and_short(tmp_path):
    """Names are unique over hosts too, where two processes can have the same number."""
    target = tmp_path / ('图' * 85)
    with paths.new_file(str(target)) as first, paths.new_file(str(target)) as second:
        assert first != second and max(len(os.fsencode(os.path.basename(name))) for name in (first, second)) <= 255
        for name in (first, second):
            open(name, 'w').close()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_full_disk_is_one_line(run_tool, tmp_path, monkeypatch):
    """A full disk under the result or the journal ends the tool; a full disk under the text cache ends nothing."""
    replace, keep, calls = os.replace, metric.Journal.keep, []

    def full(part, path):
        calls.append(path)
        if path.endswith(suffix):
            raise OSError(errno.ENOSPC, 'No space left on device', path)
        return replace(part, path)

    suffix = '.json'
    monkeypatch.setattr(os, 'replace', full)
    status, printed = run_tool(*TEST)
    assert (
        status == 1 and 'cannot be written (No space left on device); what is there stays' in printed.splitlines()[-1]
    )
    assert 'Traceback' not in printed and not list(tmp_path.rglob('*.part'))
    suffix = '.safetensors'
    monkeypatch.setenv('FSA_SEG_CACHE', str(tmp_path / 'cache'))
    status, printed = run_tool(*TEST)
    assert status == 0 and 'the text embeddings are not kept' in printed, printed
    monkeypatch.setattr(
        metric.Journal, 'keep', lambda self, *args: keep(metric.Journal('/proc/none', 'cell', self._contents), *args)
    )
    status, printed = run_tool(*TEST, '--work-dir', 'other')
    assert status == 1 and 'cannot be written' in printed and 'Traceback' not in printed


def small_cell(tmp_path):
    runtime = dict(workers=0, work_dir=str(tmp_path))
    return prepare(compose('voc21', 'clip', None, 'toy', data_root=MINI, limit=1, runtime=runtime))


def test_a_cell_that_another_process_runs_is_waited_for(tmp_path, capfd):
    """The other process writes the result meanwhile; this process takes the result and computes nothing."""
    cell = small_cell(tmp_path)
    result = run_cell(cell)
    (folder,) = (tmp_path / 'logs').iterdir()
    written = json.loads(open(result_path(cell)).read())
    os.remove(result_path(cell))
    code = (
        'import fcntl, os, sys, time; handle = os.open(sys.argv[1] + "/lock", os.O_RDWR); '
        'fcntl.flock(handle, fcntl.LOCK_EX); print("held", flush=True); sys.stdin.read()'
    )
    holder = subprocess.Popen([sys.executable, '-c', code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b'held\n'

    def finish():
        time.sleep(0.3)
        with open(result_path(cell), 'w') as f:
            json.dump(dict(written, seconds=123.0), f)
        holder.kill()  # the lock ends with its process

    thread = threading.Thread(target=finish)
    thread.start()
    taken = run_cell(small_cell(tmp_path))
    thread.join()
    assert taken['seconds'] == 123.0 and taken['confusion'] == result['confusion']
    assert 'another process runs this cell' in capfd.readouterr().err


def test_one_of_several_processes_does_not_wait(tmp_path):
    with paths.locked(str(tmp_path)), pytest.raises(UserError, match='another run works on this cell'):
        with paths.locked(str(tmp_path), wait=False):
            pass


# a signal right before a long sleep would wait for the end of the sleep
NAPS = '[time.sleep(0.05) for _ in range(1200)]'


def interrupted(body, signals):
    """Run a tool with this body of main in a process, and send SIGINT after each of its first lines.

    Returns:
        The process's status, and its standard error.
    """
    code = (
        'import sys, time; sys.path.insert(0, sys.argv[1]); from fsa_seg.cli.tool import run_tool\n'
        f'def main():\n{body}\nrun_tool(main)'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code, ROOT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(signals):
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(signal.SIGINT)
    return process.wait(20), process.stderr.read()


@pytest.mark.parametrize('handler', ['raise', 'raise ImportError("numpy was interrupted")'])
def test_an_interrupt_is_one_line_wherever_it_comes(handler):
    """Also where a library turns the interrupt into another error."""
    body = f' try:\n  print("ready", flush=True)\n  {NAPS}\n except KeyboardInterrupt:\n  {handler}'
    status, printed = interrupted(body, 1)
    assert status == 130 and printed.startswith('interrupted: ') and printed.count('\n') == 1


def test_a_second_interrupt_ends_what_waits():
    body = f' while True:\n  try:\n   print("ready", flush=True)\n   {NAPS}\n  except BaseException:\n   pass'
    assert interrupted(body, 2)[0] == 130


def test_the_error_of_several_processes_is_the_last_line_and_printed_once(tmp_path):
    done = subprocess.run(
        ['bash', os.path.join(ROOT, 'tools', 'dist_test.sh'), 'voc12', '2', '--mini'],
        cwd=tmp_path,
        env=dict(os.environ, PORT='29613', OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 1 and printed.splitlines()[-1].startswith("error: unknown dataset 'voc12'"), printed
    assert printed.count('error: unknown') == 1 and 'Traceback' not in printed.splitlines()[-1]


def test_levels_of_the_libraries_logs_are_restored():
    import logging

    from fsa_seg.models.clip import _quiet

    logging.disable(logging.INFO)
    try:
        with _quiet():
            assert logging.root.manager.disable == logging.ERROR
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
