"""The command `fsa-seg`: quick answers, the list of components, and the two lines of tools/."""

import os
import subprocess
import sys

import pytest

from fsa_seg.cli.main import TOOLS
from fsa_seg.profiling.costs import SECTIONS
from fsa_seg.profiling.doctor import CHECKS

from conftest import ROOT

HEAVY = ('torch', 'numpy', 'mmengine', 'mmseg', 'open_clip', 'timm', 'cv2', 'tqdm')


def answer(*argv):
    """Run the command in a process that then prints the heavy libraries that it has loaded: (status, text, loaded)."""
    code = (
        'import sys; from fsa_seg.cli.main import main\n'
        'try: main(sys.argv[1:])\n'
        'except SystemExit as error: status = error.code\n'
        f'else: status = 0\nprint("loaded", [name for name in {HEAVY!r} if name in sys.modules])\nsys.exit(status)'
    )
    run = subprocess.run([sys.executable, '-c', code, *argv], cwd=ROOT, capture_output=True, text=True)
    text, loaded = run.stdout.rsplit('loaded ', 1)
    return run.returncode, text + run.stderr, loaded.strip()


@pytest.mark.parametrize('tool', TOOLS)
def test_help_and_a_misspelt_option_load_no_library(tool):
    status, text, loaded = answer(tool, '--help')
    assert status == 0 and f'usage: fsa-seg {tool}' in text and loaded == '[]', text
    status, text, loaded = answer(tool, '--no-such-option')
    assert status == 2 and f'fsa-seg {tool}: error: ' in text and loaded == '[]', text
    assert len(text.splitlines()) == 1


def test_the_command_itself():
    status, text, loaded = answer('--help')
    assert status == 0 and loaded == '[]' and all(f'  {tool} ' in text for tool in TOOLS)
    status, text, _ = answer('tset')
    assert status == 1 and "error: unknown tool 'tset' (did you mean 'test'?)" in text
    assert answer()[0] == 2
    assert answer('--version')[1].strip().count('.') == 2


def test_the_nearest_option():
    text = answer('test', 'a', '--metod', 'x')[1]
    assert 'unknown option --metod (did you mean --method?); fsa-seg test --help' in text
    assert answer('benchmark', '--method', 'sclip')[0] == 2  # no abbreviation of --methods


def test_a_pipe_that_ends(tmp_path):
    run = subprocess.run(
        f'{sys.executable} -m fsa_seg list | head -1', shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert 'Traceback' not in run.stderr and 'BrokenPipe' not in run.stderr, run.stderr


def test_help_names_what_can_be_chosen():
    for tool, names in (('measure', SECTIONS), ('doctor', CHECKS)):
        text = ' '.join(answer(tool, '--help')[1].split())
        assert f'of {", ".join(names)} (default: all' in text, text


def test_tools_of_a_clone_are_the_command(tmp_path):
    """Each file of tools/ runs the tool of its name, from another folder too."""
    files = {'prepare_dataset' if tool == 'prepare' else tool: tool for tool in TOOLS if tool != 'list'}
    for file, tool in files.items():
        path = os.path.join(ROOT, 'tools', f'{file}.py')
        run = subprocess.run([sys.executable, path, '--help'], cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0 and run.stdout.startswith(f'usage: fsa-seg {tool}'), run.stderr


def test_list_has_a_line_for_each_component(run_tool, tmp_path, monkeypatch):
    own = tmp_path / 'mine' / 'protocols' / 'my_own.py'
    own.parent.mkdir(parents=True)
    own.write_text('# My settings. Long ones.\nprotocol = dict()\n')
    (own.parent / 'latin.py').write_bytes(b'# caf\xe9\n')
    monkeypatch.setenv('FSA_SEG_CONFIGS', str(tmp_path / 'mine'))
    status, printed = run_tool('list', 'protocols')
    lines = {line.split()[0]: line for line in printed.splitlines()}
    names = {file[:-3] for file in os.listdir(os.path.join(ROOT, 'configs', 'protocols'))} - {'__pycach'}
    assert (
        status == 0
        and set(lines) == names | {'my_own', 'latin'}
        and all(len(line.split()) > 2 for line in lines.values())
    )
    assert lines['my_own'].endswith('My settings  [mine/protocols/my_own.py]')
    status, printed = run_tool('list', 'methods')
    assert status == 0 and 'SCLIP: correlative self-attention' in printed and 'spelled_out' not in printed
    status, printed = run_tool('list')
    assert status == 0 and all(f'\n{kind}\n' in printed for kind in ('methods', 'backbones', 'vfms', 'suites'))
    status, printed = run_tool('list', 'backbone')
    assert status == 1 and "did you mean 'backbones'?" in printed


def test_the_console_gets_the_result_and_the_file_the_rest(run_tool, tmp_path):
    """No bar either, since standard error is no terminal; --verbose shows the log."""
    command = ('test', 'voc20', '--mini', '--method', 'clip', '--no-fsa', '--limit', 2)
    status, printed = run_tool(*command)
    assert status == 0 and len(printed.splitlines()) <= 5, printed
    (log,) = tmp_path.glob('work_dirs/logs/*/*/*.log')
    assert len(log.read_text().splitlines()) > 100 and 'per-class IoU' in log.read_text()
    status, printed = run_tool(*command, '--verbose')
    assert status == 0 and 'per-class IoU' in printed
