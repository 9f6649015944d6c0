"""The code's form and types: `ruff` and `mypy` with the settings of pyproject.toml."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(*command):
    """Run a module of Python in the repository."""
    return subprocess.run([sys.executable, '-m', *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=['check', 'format'])
def test_ruff(command):
    done = run('ruff', *command, '.')
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy():
    done = run('mypy')
    assert done.returncode == 0, done.stdout + done.stderr
