"""The set-up of quickstart.sh, run_tests.sh and check.sh, with stand-ins for Python and pip."""

import glob
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from conftest import ROOT

PYTHON = """#!/bin/sh
case "$1" in
  --version) echo "Python $VERSION" ;;
  -c) exec "$REAL" -c "import sys; sys.version_info = tuple(map(int, '$VERSION'.split('.'))); $2" ;;
  -m) mkdir -p "$3/bin" && cp venv_python.sh "$3/bin/python" && echo made >> venvs ;;
esac
"""

VENV_PYTHON = """#!/bin/sh
case "$*" in
  --version) echo "Python ${MADE_BY:-3.11.7}" ;;
  "-m pip --version") ;;
  "-m pip install"*)
    [ -z "$PIP_FAILS" ] || { echo "ERROR: no route to the registry"; exit 1; }
    echo "installed $*" >> pip_calls ;;
  "-m ruff"*|"-m mypy"*)
    echo "$*" >> checks
    [ "$*" != "-m $FAILS" ] || { echo "what is wrong"; exit 1; } ;;
  tools/benchmark.py*) echo "$*" > benchmark; exit "${BENCHMARK:-0}" ;;
  "-c import cv2")
    [ -z "$NO_LIBGL" ] || { echo "ImportError: libGL.so.1: cannot open shared object file" >&2; exit 1; } ;;
esac
"""


def script(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def repository(tmp_path):
    """A repository with the set-up scripts alone; the stand-ins run in place of tools/benchmark.py and pytest."""
    (tmp_path / 'tools').mkdir()
    for name in ('setup_env.sh', 'quickstart.sh', 'run_tests.sh', 'check.sh'):
        shutil.copy(os.path.join(ROOT, 'tools', name), tmp_path / 'tools')
    for name in ('pyproject.toml', 'requirements.txt', 'setup.py'):
        (tmp_path / name).write_text(name)
    script(tmp_path / 'fake_python', PYTHON)
    script(tmp_path / 'venv_python.sh', VENV_PYTHON)
    return tmp_path


def run(repository, name='quickstart.sh', version='3.11.7', **environment):
    default = dict(PYTHON=str(repository / 'fake_python'), VERSION=version, REAL=sys.executable)
    environment = {**os.environ, **default, **environment}
    return subprocess.run(['bash', str(repository / 'tools' / name)], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('name', ['quickstart.sh', 'run_tests.sh', 'check.sh'])
def test_python_too_old(repository, name):
    done = run(repository, name, version='3.8.1')
    assert done.returncode == 1
    assert 'error: Python 3.8.1 is too old; Python 3.10 or newer is needed' in done.stderr


def old_pythons():
    """Return the interpreters of this machine that are older than 3.10."""
    names = ('python2.7', *(f'python3.{minor}' for minor in range(6, 10)))
    found = [shutil.which(name) for name in names] + glob.glob(os.path.expanduser('~/.pyenv/versions/*/bin/python'))
    ask = 'import sys; sys.exit(sys.version_info >= (3, 10))'
    return sorted({path for path in filter(None, found) if subprocess.run([path, '-c', ask]).returncode == 0})


@pytest.mark.parametrize('python', old_pythons() or [pytest.param(None, marks=pytest.mark.skip('no old Python'))])
def test_a_real_python_that_is_too_old(repository, python):
    done = run(repository, PYTHON=python)
    assert done.returncode == 1 and 'is too old; Python 3.10 or newer is needed' in done.stderr
    assert not (repository / '.venv').exists()


def foreign(repository, pip):
    """Make an environment as other tools do: with or without pip, and with a file of its own."""
    folder = repository / '.venv'
    (folder / 'bin').mkdir(parents=True)
    script(folder / 'bin' / 'python', VENV_PYTHON if pip else '#!/bin/sh\necho "No module named pip" >&2; exit 1\n')
    (folder / 'pyvenv.cfg').write_text('uv = 0.9\n')
    return folder


@pytest.mark.parametrize('pip', [True, False])
def test_an_environment_that_the_script_did_not_make_stays(repository, pip):
    folder = foreign(repository, pip)
    done = run(repository)
    assert done.returncode == 1
    assert '.venv was not made by this script and stays as it is' in done.stderr, done.stderr
    assert 'VENV=.venv-fsa_seg bash tools/quickstart.sh;' in done.stderr and 'uv pip install --python' in done.stderr
    assert sorted(os.listdir(folder)) == ['bin', 'pyvenv.cfg'] and not (repository / 'pip_calls').exists()
    assert run(repository, VENV='other').returncode == 0
    assert (repository / 'other' / 'installed').exists() and sorted(os.listdir(folder)) == ['bin', 'pyvenv.cfg']


def test_a_folder_with_a_file_installed_stays(repository):
    (repository / 'mydata').mkdir()
    for name in ('installed', 'precious'):
        (repository / 'mydata' / name).write_text('mine')
    done = run(repository, VENV='mydata')
    assert done.returncode == 1 and 'mydata was not made by this script' in done.stderr
    assert sorted(os.listdir(repository / 'mydata')) == ['installed', 'precious']


def test_a_half_made_environment_is_made_again(repository):
    """It was interrupted before it had an interpreter; the script's mark stands first."""
    (repository / '.venv').mkdir()
    (repository / '.venv' / 'made_by_setup_env').touch()
    done = run(repository)
    assert done.returncode == 0 and (repository / '.venv' / 'installed').exists(), done.stderr


def test_no_python(repository):
    (repository / 'fake_python').unlink()
    done = run(repository)
    assert done.returncode == 1 and 'not found; install Python 3.10 or newer' in done.stderr


def test_a_download_that_fails(repository):
    done = run(repository, PIP_FAILS='1')
    assert done.returncode == 1
    assert (
        'no route to the registry' in done.stderr
        and 'error: the installation failed; see .venv/install.log' in done.stderr
    )
    assert not (repository / '.venv' / 'installed').exists()


def test_no_libgl(repository):
    done = run(repository, NO_LIBGL='1')
    assert done.returncode == 1
    assert 'libGL.so.1' in done.stderr and 'apt-get install libgl1' in done.stderr


def test_the_environment_is_made_again_only_when_it_is_out_of_date(repository):

    def counts():
        """Return how often pip installed, and how often an environment was made."""
        installs, environments = (repository / name for name in ('pip_calls', 'venvs'))
        return installs.read_text().count('installed'), environments.read_text().count('made')

    for _ in range(2):
        assert run(repository).returncode == 0
    assert counts() == (1, 1)
    (repository / 'requirements.txt').write_text('changed')
    run(repository)
    assert counts() == (2, 1)
    run(repository, version='3.12.0')  # for another Python the environment is made again
    assert counts() == (3, 2)


def test_the_tests_alone_get_the_packages_of_the_page(repository):
    """They are added to an environment of quickstart.sh, which stays current for all scripts."""
    steps = [('quickstart.sh', {}), ('run_tests.sh', {}), ('quickstart.sh', {}), ('check.sh', {}), ('run_tests.sh', {})]
    extras = ['.[test]', '.[test,test-demo]']
    assert installs(repository, steps) == extras
    (repository / 'newest.txt').write_text('pillow==13.0.0')
    constrained = dict(CONSTRAINTS='newest.txt')  # which the page's packages contradict
    assert installs(repository, [('run_tests.sh', constrained), ('quickstart.sh', constrained)]) == [*extras, '.[test]']
    assert installs(repository, steps) == [*extras, '.[test]', *extras]  # the page's packages may have lost a version
    assert (repository / 'venvs').read_text().count('made') == 1


def installs(repository, steps):
    """Run scripts; return what pip was asked to install so far, of each call the last word."""
    for name, environment in steps:
        done = run(repository, name, **environment)
        assert done.returncode == 0, done.stderr
    return [line.split()[-1] for line in (repository / 'pip_calls').read_text().splitlines()]


def test_quickstart_compares_with_the_expected_numbers(repository):
    """A second run in the same environment compares too; the script ends with the comparison's status."""
    assert run(repository).returncode == 0
    assert '--golden data/mini/golden.json' in (repository / 'benchmark').read_text()
    assert run(repository, BENCHMARK='1').returncode == 1


CHECKS = ['ruff check .', 'ruff format --check .', 'mypy']


@pytest.mark.parametrize('fails', ['', *CHECKS])
def test_every_check_runs_and_one_that_fails_is_the_status(repository, fails):
    """Each check prints one line, and a check that fails prints what is wrong as well."""
    done = run(repository, 'check.sh', FAILS=fails)
    assert done.returncode == bool(fails)
    assert (repository / 'checks').read_text().splitlines() == [f'-m {check}' for check in CHECKS]
    expected = [f'{check}: failed\nwhat is wrong\n' if check == fails else f'{check}: passed\n' for check in CHECKS]
    assert done.stdout.endswith(''.join(expected))


def test_versions_of_a_constraints_file(repository):
    """pip gets the constraints, and a changed file of constraints makes pip install again."""
    (repository / 'oldest.txt').write_text('torch==2.4.0')
    assert run(repository, CONSTRAINTS='oldest.txt').returncode == 0
    assert '-c oldest.txt' in (repository / 'pip_calls').read_text()
    (repository / 'oldest.txt').write_text('torch==2.5.0')
    run(repository, CONSTRAINTS='oldest.txt')
    run(repository)
    assert (repository / 'pip_calls').read_text().count('installed') == 3


def test_constraints_name_every_floor():
    """The oldest set is that of the requirements, and both sets name every requirement but those of the web page."""
    sets = {
        name: dict(re.findall(r'^([\w-]+)==(\S+)', open(os.path.join(ROOT, 'constraints', name)).read(), re.M))
        for name in ('oldest.txt', 'newest.txt')
    }
    with open(os.path.join(ROOT, 'requirements.txt'), encoding='utf-8') as f:
        floors = dict(re.findall(r'^([\w-]+)>=([\d.]+)', f.read(), re.M))
    with open(os.path.join(ROOT, 'pyproject.toml'), encoding='utf-8') as f:
        extras = f.read().split('[project.optional-dependencies]')[1].split('\n[')[0]
    extras = re.sub(r'^(test-)?demo = .*$', '', extras, flags=re.M)
    floors.update(re.findall(r'"([\w-]+)>=([\d.]+)', extras))
    assert set(floors) == set(sets['oldest.txt']) == set(sets['newest.txt'])
    for name, floor in floors.items():
        assert (sets['oldest.txt'][name] + '.0.0').startswith(floor + '.'), name


def test_no_backport_hides_a_module_of_python():
    assert 'typing' not in {distribution.metadata['Name'] for distribution in importlib.metadata.distributions()}


@pytest.mark.parametrize('name', ['dist_test.sh', 'slurm_test.sh'])
def test_launchers_say_how_they_are_used(name):
    done = subprocess.run(['bash', os.path.join(ROOT, 'tools', name)], capture_output=True, text=True)
    assert done.returncode == 2 and f'usage: tools/{name}' in done.stderr


def test_slurm_starts_the_test_tool(tmp_path):
    """srun gets the resources and the command, with the options of tools/test.py."""
    script(tmp_path / 'srun', '#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    done = subprocess.run(
        ['bash', os.path.join(ROOT, 'tools', 'slurm_test.sh'), 'part', 'job', 'voc21', '--mini'],
        env=dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4'),
        capture_output=True,
        text=True,
    )
    words = done.stdout.split()
    assert words[:2] == ['-p', 'part'] and '--ntasks=4' in words and '--gres=gpu:4' in words
    assert words[-4:] == ['voc21', '--launcher', 'slurm', '--mini']


@pytest.mark.parametrize(
    'message, status, line', [('', 75, 'stopped by the scheduler: '), ('error: full', 1, 'error: ')]
)
def test_slurm_tells_how_its_processes_ended(tmp_path, message, status, line):
    """SIGTERM reaches srun; the error of a process counts more than the status of those that SIGTERM then stopped."""
    write = f'printf "{message}" > "$FSA_SEG_ERROR_FILE"; ' if message else ''
    script(tmp_path / 'srun', f"#!/bin/bash\ntrap '{write}exit 75' TERM\necho ready\nwhile sleep 0.1; do :; done\n")
    process = subprocess.Popen(
        ['bash', os.path.join(ROOT, 'tools', 'slurm_test.sh'), 'part', 'job', 'benchmark', '--mini'],
        cwd=tmp_path,
        env=dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}'),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'ready\n'
    process.terminate()
    printed = process.communicate(timeout=20)[1]
    assert process.returncode == status and printed.startswith(line), printed
    assert [path.name for path in tmp_path.iterdir()] == ['srun']
