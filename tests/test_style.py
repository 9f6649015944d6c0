"""The code's form: `ruff` with the settings of pyproject.toml."""

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.mark.parametrize('command', [['check'], ['format', '--check']], ids=['check', 'format'])
def test_ruff(command):
    run = subprocess.run(
        [sys.executable, '-m', 'ruff', *command, '.'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
