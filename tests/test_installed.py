"""The wheel and the sdist, each in an environment of its own, outside of the clone: what a user of pip has."""

import json
import os
import re
import subprocess
import sys

import pytest

from fsa_seg.evaluation.report.published import code_rows
from fsa_seg.system.paths import sources_digest

from conftest import MINI, ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    """The folder of both distributions, built from this clone."""
    folder = tmp_path_factory.mktemp('dist')
    subprocess.run([sys.executable, '-m', 'build', '--outdir', str(folder), ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope='module', params=['*.whl', '*.tar.gz'])
def installed(request, distributions, tmp_path_factory):
    """A function that runs a command of a bare environment, in an empty folder, and returns what it prints."""
    folder = tmp_path_factory.mktemp('installed')
    (file,) = distributions.glob(request.param)
    subprocess.run([sys.executable, '-m', 'venv', str(folder / 'venv')], check=True)
    pip = [str(folder / 'venv' / 'bin' / 'python'), '-m', 'pip', 'install', '-q', str(file)]
    subprocess.run(pip, check=True, cwd=folder)
    names = ('PYTHONPATH', 'FSA_SEG_CONFIGS', 'VIRTUAL_ENV')
    environment = {key: value for key, value in os.environ.items() if key not in names}
    (folder / 'empty').mkdir()

    def run(name, *arguments):
        command = [str(folder / 'venv' / 'bin' / name), *arguments]
        done = subprocess.run(command, cwd=folder / 'empty', env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_published_figures(installed):
    code = 'from fsa_seg.evaluation.report.published import code_rows; print(len(code_rows()))'
    assert int(installed('python', '-c', code)) == len(code_rows())


def test_the_main_job(installed):
    with open(os.path.join(MINI, 'golden.json'), encoding='utf-8') as f:
        golden = json.load(f)['cells']['ProxyCLIP + FSA | toy | toy | fsa']['voc21']
    printed = installed('fsa-seg', 'test', 'voc21', '--mini', '--save-labels')
    assert abs(float(re.search(r'mIoU (\d+\.\d+)', printed).group(1)) - golden) < 0.1, printed
    installed('fsa-seg', 'test', 'voc21', '--mini', '--no-fsa', '--protocol', 'fsa', '--save-labels')
    assert 'report: work_dirs/report/report.html' in installed('fsa-seg', 'report', 'work_dirs')
    page = installed('python', '-c', 'print(open("work_dirs/report/report.html").read())')
    assert 'data:image/webp' in page and 'No picture' not in page


def test_a_picture_and_the_sources(installed):
    """The code's digest is the clone's: a result of either is used by the other."""
    code = (
        'import numpy, fsa_seg; from fsa_seg.system.paths import sources_digest\n'
        'model = fsa_seg.Segmenter("toy", "sclip", vfm="toy")\n'
        'print(model.segment(numpy.zeros((60, 80, 3), "uint8"), ["a", "b"]).labels.shape, sources_digest())'
    )
    assert installed('python', '-c', code).strip() == f'(60, 80) {sources_digest()}'


def test_what_ships(installed):
    assert '  paper  ' in ' '.join(installed('fsa-seg', 'list', 'suites').split('\n'))
    assert installed('fsa-seg', 'doctor', '--only', 'packages', 'golden').rstrip().endswith('none is WRONG')
    assert 'py.typed' in installed('python', '-c', 'import fsa_seg, os; print(os.listdir(fsa_seg.__path__[0]))')
