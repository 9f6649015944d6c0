"""Composed configs as data: written into results as JSON, and read again without running anything that they say.

Only classes of this package and those of the named lists are built; a key that mmengine would carry out (`_base_`, `_scope_`,
...) is an error. Modules of a user's own are imported where they are allowed by name.
"""

import json

from mmengine import Config
from mmengine.utils import import_modules_from_strings
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from fsa_seg.errors import UserError, one_of

KEYS = (
    'batch_size',
    'cell',
    'compile',
    'custom_hooks',
    'custom_imports',
    'default_hooks',
    'default_scope',
    'env_cfg',
    'known_images',
    'launcher',
    'log_interval',
    'log_level',
    'model',
    'model_wrapper_cfg',
    'test_cfg',
    'test_dataloader',
    'test_evaluator',
    'window_batch',
    'work_dir',
    'workers',
)  # of a composed config
LIBRARY_CLASSES = (
    'Resize',
    'PackSegInputs',
    'LoadAnnotations',
    'DefaultSampler',
    'TestLoop',
    'IoUMetric',
    'RuntimeInfoHook',
    'IterTimerHook',
    'LoggerHook',
    'DistSamplerSeedHook',
    'SideBySideHook',
    'MMSeparateDistributedDataParallel',
    'MMDistributedDataParallel',
    'pseudo_collate',
)  # of mmengine, mmcv and mmseg, beside mmseg's data sets
LOGGER = ('type', 'interval', 'log_metric_by_epoch')  # what a saved config may say of the log
REGISTER = 'fsa_seg.register'  # the suite's own module, which a config may always import
REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS)


def to_json(config):
    """Return a composed config as JSON-ready data; what JSON does not have (a class, an array) becomes its text."""
    return json.loads(json.dumps(config.to_dict(), default=repr))


def from_json(data, path, modules=()):
    """Return the composed config in what a result's JSON says under `config`.

    Args:
        data: what the file says.
        path (str): the file, for errors.
        modules (sequence of str): names of modules that may be imported, since they register classes.

    Raises:
        UserError: it is no composed config, or holds a key or class that would run code.
    """
    if isinstance(data, str):
        raise UserError(
            f'{path} was written by an earlier fsa_seg, whose results held their config as a program; it is not run: '
            'run the cell anew'
        )
    if not isinstance(data, dict) or not {'cell', 'model', 'test_dataloader', 'test_evaluator', 'test_cfg'} <= set(
        data
    ):
        raise UserError(f'{path} holds no composed config; give a result of tools/test.py, or a config file')
    for key in data:
        one_of(key, KEYS, f'key in the config of {path}')
    imports = _imports(data, path)
    refused = [name for name in imports if name not in (*modules, REGISTER)]
    if refused:
        raise UserError(
            f'{path} asks for modules of your own, {", ".join(refused)}, whose code would be run: where you trust them, '
            f'add --allow-modules {" ".join(refused)}'
        )
    if imports:
        _import(imports, path)
    _check(data, path, _allowed(imports))
    hooks = data.setdefault('default_hooks', {})
    hooks.pop('pictures', None)  # --show-dir names where pictures go, not a file
    hooks['logger'] = {key: value for key, value in (hooks.get('logger') or {}).items() if key in LOGGER}
    data['model'].pop('text_cache', None)
    for step in data['test_dataloader'].get('dataset', {}).get('pipeline', ()):
        if isinstance(step.get('scale'), list):
            step['scale'] = tuple(step['scale'])  # mmcv takes no list
    return Config(data, format_python_code=False)


def _imports(data, path):
    imports = (data.get('custom_imports') or {}).get('imports', [])
    if not isinstance(imports, list) or not all(isinstance(name, str) for name in imports):
        raise UserError(f'{path}: custom_imports has to be {{"imports": [names of modules]}}, not {imports!r}')
    return imports


def _import(names, path):
    try:
        import_modules_from_strings(names)
    except Exception as error:  # a user's module is executed: anything can be raised
        raise UserError(
            f'{path} asks for the modules {", ".join(names)}: {type(error).__name__}: {error}; run it from the folder '
            'that has them, or name that folder in PYTHONPATH'
        ) from error


def _allowed(imports):
    """Return the names of the classes that a saved config may ask for."""
    names = set(LIBRARY_CLASSES)
    for registry in REGISTRIES:
        for name, cls in registry.module_dict.items():
            if cls.__module__.startswith(('fsa_seg.', 'mmseg.datasets.')) or _within(cls.__module__, imports):
                names.add(name)
    return names


def _within(module, packages):
    """Return whether a module is one of some packages or lies in one."""
    return any(module == package or module.startswith(f'{package}.') for package in packages)


def _check(node, path, allowed):
    """Raise a UserError unless a saved config, a dict or list, is data alone."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(key, str) and key.startswith('_'):
            raise UserError(f'{path}: the key {key!r} has no place in a saved config')
        if key == 'type' and (not isinstance(value, str) or value.removeprefix('mmseg.') not in allowed):
            raise UserError(
                f'{path} asks for {value!r}, which is no class of this suite: it is not built. A class of your own '
                'has to be registered by a module that custom_imports names'
            )
        if isinstance(value, (dict, list)):
            _check(value, path, allowed)
