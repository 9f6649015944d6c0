"""Models that stay loaded from pass to pass."""

import contextlib
import gc
import glob
import json
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from mmengine import ConfigDict
from mmseg.registry import MODELS

from fsa_seg.errors import UserError
from fsa_seg.models.weights import path_of, weights_from
from fsa_seg.ops.device import trim_memory
from fsa_seg.system.paths import local_path

_kept: dict[str, Any] | None = None  # None: nothing is kept
_states: dict[str, Any] = {}  # of the kept models, see `_state`


@contextlib.contextmanager
def kept_models() -> Iterator[None]:
    """Keep the models of all segmentors that are built in the block without `models`, until the block ends.

    `keep_only` drops those that a pass does not need. A block in a block changes nothing.
    """
    global _kept
    if _kept is not None:
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        keep_only([])
        _kept = None


def shared_models() -> dict[str, Any]:
    """Return the models that new segmentors share: those of `kept_models`, or none yet."""
    return {} if _kept is None else _kept


def once(models: dict[str, Any], key: list, make: Callable[[], Any]) -> Any:
    """Return what `make` makes, from `models` if it is there.

    Args:
        models: key as JSON -> model.
        key: what decides the model, ready for JSON: its kind, its config, and how it was changed after it was loaded.
        make: function without arguments.
    """
    name = json.dumps(key, sort_keys=True)
    if name not in models:
        before = _state(key) if models is _kept else None
        models[name] = make()
        if models is _kept:  # files that a download made, or that changed meanwhile: the next pass loads anew
            _states[name] = before if before == _state(key) else None
    return models[name]


def keep_only(keys: Collection[list]) -> None:
    """Drop the kept models whose keys are not named, and those whose files or classes have changed since."""
    states = {json.dumps(key, sort_keys=True): _state(key) for key in keys} if _kept else {}
    dropped = [name for name in _kept or () if states.get(name) is None or states[name] != _states.get(name)]
    if any(json.loads(name)[0] == 'backbone' for name in dropped):  # an encoder holds its CLIP
        dropped += [name for name in _kept or () if json.loads(name)[0] == 'encoder' and name not in dropped]
    for name in dropped:
        assert _kept is not None
        del _kept[name]
        _states.pop(name, None)
    if dropped:
        gc.collect()  # a finished run holds its model, in cycles
        torch.cuda.empty_cache()
        trim_memory()


def _state(key: list) -> list:
    """Return the state of every file, and the class of every type, that the configs of a key name, in order."""
    return [_config_state(config) for config in key if isinstance(config, dict)]


def _config_state(value: Any) -> list:
    if isinstance(value, str):
        return [_file_state(path) for path in _files(value)]
    if not isinstance(value, dict):
        return [_config_state(element) for element in value] if isinstance(value, (list, tuple)) else []
    states: list[Any] = [_config_state(element) for _, element in sorted(value.items())]
    states.append(MODELS.get(value['type']) if isinstance(value.get('type'), str) else None)
    with contextlib.suppress(UserError, AttributeError, TypeError):  # a config without weights of a library
        path = path_of(weights_from('vfm' if 'type' in value else 'backbone', ConfigDict(value)))
        states.append(path and _file_state(path))
    return states


def _files(name: str) -> list[str]:
    """Return the files that a setting names: a file and the configs beside it, or a folder's files."""
    try:
        path = local_path(name.removeprefix('local-dir:'), '')
    except (UserError, ValueError):  # no path
        return []
    folder = glob.escape(path if os.path.isdir(path) else os.path.dirname(path))
    found = sorted(glob.glob(os.path.join(folder, '*' if os.path.isdir(path) else '*.json')))
    return found if os.path.isdir(path) else [path, *found]


def _file_state(path: str) -> tuple:
    try:
        state = os.stat(path)
    except OSError:
        return (path,)
    return os.path.realpath(path), state.st_size, state.st_mtime_ns, state.st_ino
