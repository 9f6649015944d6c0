"""How a run is carried out: the entries of configs/runtime.py, and those that a user's own runtime.py replaces."""

import importlib.util
import os
from collections.abc import Mapping

import mmengine.visualization  # noqa: F401  (registers visualizers and their backends, as the next line does)
import mmseg.visualization  # noqa: F401
from mmengine.registry import VISBACKENDS, VISUALIZERS
from mmseg.registry import VISBACKENDS as MMSEG_VISBACKENDS
from mmseg.registry import VISUALIZERS as MMSEG_VISUALIZERS

from fsa_seg.config.components import load_file
from fsa_seg.config.own_classes import defined_classes
from fsa_seg.errors import UserError, check_keys, constructor_keys, one_of
from fsa_seg.settings import RUNTIME as RULES
from fsa_seg.settings import check_values
from fsa_seg.system.paths import CONFIGS, config_folders

RUNTIME = os.path.join(CONFIGS, 'runtime.py')
PACKAGES = dict(  # mmengine's backend of a visualizer -> the package that it needs
    AimVisBackend='aim',
    ClearMLVisBackend='clearml',
    DVCLiveVisBackend='dvclive',
    MLflowVisBackend='mlflow',
    NeptuneVisBackend='neptune',
    TensorboardVisBackend='tensorboard',
    WandbVisBackend='wandb',
)


def default_runtime(users: bool = True) -> dict:
    """Return the entries of configs/runtime.py, replaced by those of a runtime.py in a folder of FSA_SEG_CONFIGS.

    The modules in `custom_imports` of a user's file are imported, and stand in no config: they change no number.

    Args:
        users: whether to read a user's file.

    Raises:
        UserError: two such files, a file that cannot be read or defines a class, an unknown key or a wrong value.
    """
    entries = load_file(RUNTIME, copied=False).to_dict()
    paths = [os.path.join(folder, 'runtime.py') for folder in (config_folders()[1:] if users else ())]
    paths = [path for path in paths if os.path.isfile(path)]
    if len(paths) > 1:
        raise UserError(f'two files say how runs are carried out: {paths[0]} and {paths[1]}; remove one')
    for path in paths:
        own = _own_entries(path)
        check_keys(own, entries, path)
        check_values(own, RULES, path)
        entries.update(own)
    return entries


def _own_entries(path):
    """Return the entries of a user's runtime.py, without `custom_imports`, whose modules mmengine has imported."""
    try:
        classes = defined_classes(path)
    except SyntaxError:
        classes = []  # load_file says what is wrong
    if classes:
        raise UserError(f'{path} defines {classes[0]}: put the class into a module, and name it in custom_imports')
    own = load_file(path).to_dict()
    own.pop('custom_imports', None)
    return own


def check_visualizer(visualizer: Mapping | None) -> None:
    """Raise a UserError if a config's `visualizer` names a class, a key or a package that is not there.

    Args:
        visualizer: dict(vis_backends=[dict(type=...), ...]), with the `type` and the keys of mmengine's `Visualizer`;
            None is no tracker.
    """
    if visualizer is None:
        return
    _check_class(dict(dict(type='Visualizer'), **visualizer), VISUALIZERS, MMSEG_VISUALIZERS, 'visualizer')
    backends = visualizer.get('vis_backends') or []
    for backend in backends if isinstance(backends, (list, tuple)) else [backends]:
        if not isinstance(backend, Mapping):
            raise UserError(f"visualizer: vis_backends holds {backend!r}; give a list of dict(type='...VisBackend')")
        keys = {key: value for key, value in backend.items() if key != 'name'}
        name = _check_class(keys, VISBACKENDS, MMSEG_VISBACKENDS, 'vis_backends')
        package = PACKAGES.get(name)
        if package and not _installed(package):
            raise UserError(
                f'{name} needs the package {package}, which is not installed: pip install {package}, or take the '
                'backend out of visualizer'
            )


def _check_class(config, registry, child, where):
    """Return the name of a class in one of two registries; an unknown name or key is a UserError."""
    classes = {**registry.module_dict, **child.module_dict}
    name = str(config.get('type')).split('.')[-1]  # without the scope
    one_of(name, classes, f'class in {where}', '; a class of your own is registered by a module in custom_imports')
    check_keys([key for key in config if key != 'type'], constructor_keys(classes[name]), where)
    return name


def _installed(package):
    """Return whether a package can be imported; a folder of its name, as trackers write, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
