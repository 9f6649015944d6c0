"""A user's component files that define classes: such a file is a Python module, and registers its classes."""

import ast
import os

from mmengine import Config

from fsa_seg.errors import UserError, warn_once
from fsa_seg.system.modules import run_file
from fsa_seg.system.paths import component_files, config_folders

FOLDERS = ('vfms', 'datasets', 'feedback', 'protocols')  # of the components whose class can be a user's


def defined_classes(path: str) -> list[str]:
    """Return the names of the classes that a component file defines, if it is Python."""
    if not path.endswith('.py'):
        return []
    with open(path, encoding='utf-8') as f:
        return [node.name for node in ast.parse(f.read()).body if isinstance(node, ast.ClassDef)]


def load_module(path: str) -> Config:
    """Return the dicts of a component file that defines classes; the file registers its classes.

    Raises:
        UserError: see `fsa_seg.system.modules.run_file`.
    """
    entries = vars(run_file(path, 'component file')).items()
    return Config({key: value for key, value in entries if isinstance(value, dict) and not key.startswith('_')})


def register_own_classes() -> None:
    """Register the classes of the component files in the folders of FSA_SEG_CONFIGS; a faulty file is a warning."""
    own = tuple(os.path.join(folder, '') for folder in config_folders()[1:])
    for path in (path for folder in FOLDERS for path in component_files(folder).values()):
        try:
            if path.startswith(own) and defined_classes(path):
                run_file(path, 'component file')
        except (UserError, OSError, SyntaxError, UnicodeDecodeError) as error:
            warn_once(f'the classes of {path} are not registered: {error}')
