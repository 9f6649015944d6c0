"""pyproject.toml describes the package. One step is code: a wheel gets a copy of what ships beside the package."""

import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = (
    'configs',
    'data/mini',
    'tests/golden',
    'requirements.txt',
)  # -> fsa_seg/shipped/, where system.machine looks


class BuildWithShipped(build_py):
    """The usual build, and the copy; an editable installation reads the clone itself."""

    def run(self):
        shutil.rmtree(os.path.join(self.build_lib, 'fsa_seg'), ignore_errors=True)  # files of an earlier build
        super().run()
        for path in () if self.editable_mode else SHIPPED:
            target = os.path.join(self.build_lib, 'fsa_seg', 'shipped', path)
            if os.path.isdir(path):
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(path, target, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy(path, target)


setup(cmdclass=dict(build_py=BuildWithShipped))
