"""All methods, found by a scan of folders: one file per method, named as the method.

A user's own files lie in methods/ of a folder that the environment variable FSA_SEG_CONFIGS names, or are named by
their path.
"""

import copy
import difflib
import functools
import importlib
import inspect
import os
from types import ModuleType

from fsa_seg.errors import UserError, check_keys, one_line, one_of
from fsa_seg.methods.base import SCOPES, STAGES, Method, option_names
from fsa_seg.system.modules import run_file
from fsa_seg.system.paths import component_files, own_hint

HERE = os.path.dirname(os.path.abspath(__file__))
NOT_METHODS = ('__init__', 'base', 'spelled_out')  # files of this folder that hold no method of a name
SPELLED_OUT = 'spelled_out'


def method_names(users: bool = True) -> list[str]:
    """Return the names of all methods, sorted; with `users` False without a user's own."""
    return sorted(method_files(users))


def method_files(users: bool = True) -> dict[str, str]:
    """Return the files of all methods, as a dict of name -> path; with `users` False without a user's own.

    Raises:
        UserError: two files of one name.
    """
    names = (os.path.splitext(file) for file in sorted(os.listdir(HERE)))
    files = {name: os.path.join(HERE, name + ending) for name, ending in names if ending == '.py'}
    files = {name: path for name, path in files.items() if name not in NOT_METHODS}
    for name, path in component_files('methods').items() if users else ():
        if name.startswith('_'):  # a helper of methods
            continue
        if name in files or name in NOT_METHODS:
            raise UserError(f'{path}: {name!r} is the name of a method of the suite; rename the file')
        files[name] = path
    return files


def find_method(name: str) -> type[Method]:
    """Return the class of a method, given its name or the path of its file.

    Raises:
        UserError: no such method (the nearest name is given), or a file that does not hold exactly one method.
    """
    name = str(name)
    shipped = name.isidentifier() and os.path.isfile(os.path.join(HERE, f'{name}.py'))
    if name == SPELLED_OUT or shipped and name not in NOT_METHODS:
        return _shipped_method(name)  # no look at plug-ins
    if name.endswith('.py'):
        return _load_file(name)
    files = method_files()
    return _load_file(files[one_of(name, files, 'method', own_hint())])


@functools.cache
def _shipped_method(name: str) -> type[Method]:
    """Return a method of the suite."""
    return _method_of(importlib.import_module(f'fsa_seg.methods.{name}'))


def is_shipped(method: type[Method]) -> bool:
    """Return whether a method is the suite's, and no user's own."""
    return os.path.dirname(method.path) == HERE


def make_method(method: 'str | dict | Method') -> Method:
    """Return a method.

    Args:
        method: a name, the path of a file, a `Method`, dict(type=NAME, key=value, ...) with settings of the method's
            constructor, or dict(attention=..., residual=..., mlp=...), see `fsa_seg.methods.spelled_out`. A name with a
            stage is 'NAME+STAGE'; a dict may have the key `stage`, see `with_stage`.

    Raises:
        UserError: an unknown method or setting (the nearest name is given), or a value that a method refuses.
    """
    if isinstance(method, Method):
        return method
    settings = dict(method) if isinstance(method, dict) else dict(type=method)
    name, stage = settings.pop('type', SPELLED_OUT), settings.pop('stage', None)
    host, _, staged = str(name).partition('+')
    if staged and host.isidentifier():
        if stage is not None:
            raise UserError(f'the method {name} has the stage {staged} already; leave out stage={stage!r}')
        name, stage = host, staged
    cls = find_method(name)
    check_keys(settings, option_names(cls), 'method' if name == SPELLED_OUT else f'method {name}')
    instance = cls(**settings)
    instance.given = settings
    return instance if stage is None else with_stage(instance, stage)


def stage_names() -> list[str]:
    """Return the names of the suite's methods that can be a stage of another."""
    return [name for name in method_names(users=False) if find_method(name).stage_roles is not None]


def with_stage(method: Method, stage: 'str | dict | Method') -> Method:
    """Return a method that carries the whole-image hooks of another: `keep` and `merge`, `whole` and `correct`.

    Args:
        method: the host.
        stage: a name such as 'lposs', or dict(type='LPOSS', key=value, ...).

    Raises:
        UserError: no such stage, or a host whose windows it cannot merge.
    """
    if not isinstance(stage, Method):
        settings = dict(stage) if isinstance(stage, dict) else dict(type=stage)
        name = str(settings.pop('type', ''))
        titles = {find_method(known).title: known for known in stage_names()}
        if not name:
            raise UserError(f'stage {stage!r} has no type; name one of {", ".join(titles.values())}')
        name = titles.get(name, name)
        if not name.endswith('.py') and name not in method_names():
            one_of(name, titles.values(), 'stage')
        stage = make_method(dict(settings, type=name))
    if stage.stage_roles is None:
        raise UserError(f'{stage.title} is no stage of another method; the stages are {", ".join(stage_names())}')
    if stage.overrides('merge') and method.overrides('merge'):
        raise UserError(
            f'{method.title} merges the windows of an image itself, so that the stage {stage.title} cannot; leave the '
            'stage out, or put it on a method without `merge`, such as proxyclip'
        )
    if stage.needs_tokens and method.overrides('embed'):
        raise UserError(
            f'{method.title} has an `embed` of its own, and the stage {stage.title} splices what comes before it: give '
            'the method the hook `attend` in its place, or leave the stage out'
        )
    if method.stage is not None or set(method.roles) & set(stage.stage_roles):
        raise UserError(f'{method.row_title} cannot carry {stage.title}: it has a stage, or VFMs of the same roles')
    title = stage.row_title
    if type(stage).row_title is Method.row_title:
        title = ' '.join([title, *(f'{key}={value}' for key, value in stage.given.items())])
    staged = copy.copy(method)
    staged.stage = stage
    staged.roles = {**method.roles, **stage.stage_roles}
    staged.kinds = {**method.kinds, **{role: kind for role, kind in stage.kinds.items() if role in stage.stage_roles}}
    staged.name = f'{method.name}+{stage.name}'
    staged.row_title = f'{method.row_title}+{title}'
    return staged


def _load_file(path: str) -> type[Method]:
    """Return the method of a user's file."""
    return _method_of(run_file(path, 'method file'))


def _method_of(module: ModuleType) -> type[Method]:
    """Return the one method that a module defines, its attributes checked."""
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    assert module.__file__ is not None  # the module was loaded from a file
    path = os.path.abspath(module.__file__)
    if len(classes) != 1:
        names = ', '.join(cls.__name__ for cls in classes) or 'none'
        raise UserError(
            f'{path} has to define exactly one subclass of fsa_seg.methods.base.Method; it defines {names} '
            '(docs/extending.md)'
        )
    (method,) = classes
    if 'path' not in vars(method):
        method.name, method.path = os.path.splitext(os.path.basename(path))[0], path
        _check_attributes(method)
        _check_settings(method)
    return method


def _check_attributes(method: type[Method]) -> None:
    hooks = {name for name, value in vars(Method).items() if callable(value) and not name.startswith('_')}
    for name in {name for name, value in vars(method).items() if inspect.isfunction(value)} - hooks:
        nearest = difflib.get_close_matches(name, hooks, 1, 0.8)
        if nearest:
            raise UserError(f'{method.path}: {name} is no hook of a method (did you mean {nearest[0]!r}?)')
    if not isinstance(method.title, str) or not method.title.isidentifier():
        raise UserError(
            f'{method.path}: title is {method.title!r}; it has to be a name such as "SCLIP", for tables and configs'
        )
    if not isinstance(method.roles, dict):
        raise UserError(f"{method.path}: roles is {method.roles!r}; it has to be a dict such as {{'proxy': 'window'}}")
    for role, scope in method.roles.items():
        if scope not in SCOPES:
            raise UserError(f'{method.path}: the role {role!r} sees {scope!r}; it has to be one of {", ".join(SCOPES)}')
    if method.refines is not None and method.refines not in STAGES:
        raise UserError(
            f'{method.path}: refines is {method.refines!r}; it has to be one of {", ".join(STAGES)}, or None'
        )


def _check_settings(method: type[Method]) -> None:
    """Raise a UserError unless a method runs without any setting, and keeps each as an attribute of its name."""
    for key, parameter in inspect.signature(method.__init__).parameters.items() if option_names(method) else ():
        if key != 'self' and parameter.default is parameter.empty:
            raise UserError(f'{method.path}: the setting {key} has no default; a method runs without any setting')
    try:
        _ = method().settings
    except Exception as error:
        raise UserError(
            f'{method.path}: {method.title}() cannot be made, or keeps a setting under another name than its own: '
            f'{one_line(error)}'
        ) from error


def method_key(method: type[Method]) -> str:
    """Return the name by which `find_method` finds a class, or the path of its file."""
    if method.name in NOT_METHODS or method_files().get(method.name) == method.path:
        return method.name
    return method.path
