"""A user's Python files as modules: a file is run once for each state of it, under whatever path it is named."""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from types import ModuleType

from fsa_seg.errors import UserError, one_line
from fsa_seg.system.machine import PACKAGE
from fsa_seg.system.paths import file_digest

PREFIX = 'fsa_seg_own_'  # of the names of such modules
_imported: dict[str, str] = {}  # a module that such a file imports -> its digest when it was first seen


def run_file(path: str, what: str) -> ModuleType:
    """Return the module of a user's file.

    Args:
        path: the file.
        what: names the file's kind in messages, such as 'method file'.

    Raises:
        UserError: the file cannot be read, or raises an error; the message has its line.
    """
    path = os.path.abspath(path)
    try:
        return _run(path, os.stat(path).st_mtime_ns, what)
    except OSError as error:
        raise UserError(f'the {what} {path} cannot be read: {error.strerror}') from None


@functools.lru_cache(None)
def _run(path: str, changed: int, what: str) -> ModuleType:
    name = os.path.splitext(os.path.basename(path))[0]
    place = hashlib.sha256(path.encode()).hexdigest()[:8]  # two files of one name are two modules
    spec = importlib.util.spec_from_file_location(f'{PREFIX}{name}_{place}', path)
    module = importlib.util.module_from_spec(spec)
    _forget_classes(spec.name)
    sys.modules[spec.name] = module
    sys.path.insert(0, os.path.dirname(path))  # of helpers beside the file
    try:
        spec.loader.exec_module(module)
    except OSError:
        raise
    except (Exception, SystemExit) as error:  # the file is executed: anything can be raised
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = getattr(error, 'lineno', None) if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = f', line {line}' if line else ''
        raise UserError(f'the {what} {path}{where}: {one_line(error)}') from error
    finally:
        sys.path.remove(os.path.dirname(path))
    return module


def _forget_classes(module: str) -> None:
    """Remove the classes that an earlier state of a file has registered in mmseg."""
    if module not in sys.modules:
        return
    from mmengine.registry import Registry
    from mmseg import registry

    for classes in (value.module_dict for value in vars(registry).values() if isinstance(value, Registry)):
        for name in [name for name, cls in classes.items() if cls.__module__ == module]:
            del classes[name]


def source_files(path: str) -> list[str]:
    """Return a user's file, and the files of the modules that it imports, libraries and the suite left out."""
    files, pending = [], [os.path.abspath(path)]
    while pending:
        path = pending.pop()
        files.append(path)
        with open(path, encoding='utf-8') as f:
            imports = [node for node in ast.walk(ast.parse(f.read())) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in imports for alias in node.names if isinstance(node, ast.Import)}
        for node in imports:
            if isinstance(node, ast.ImportFrom):
                names |= {node.module or '', *(f'{node.module}.{alias.name}' for alias in node.names)}
        modules = (sys.modules.get(name) for name in sorted(names))
        pending += [file for file in map(_own_file, modules) if file and file not in (*files, *pending)]
    for file in files[1:]:
        if _imported.setdefault(file, file_digest(file)) != file_digest(file):
            raise UserError(f'{file} has changed since it was imported: start Python anew, which then runs it')
    return files


def _own_file(module) -> str | None:
    """Return the file of a module that is neither a library nor the suite's, or None."""
    file = getattr(module, '__file__', None)
    if not file or not file.endswith('.py'):
        return None
    library = 'site-packages' in file or file.startswith((sysconfig.get_path('stdlib'), PACKAGE))
    return None if library else os.path.abspath(file)
