"""Write composed configs into results as JSON, and read them again without running any code from them.

A saved config may name the classes of this package, of the lists below, and of the component files in the folders of
FSA_SEG_CONFIGS. A key that mmengine would carry out (`_base_`, `_scope_`, ...) is an error. A user's modules are
imported if the user allows them by name.
"""

import json
from collections.abc import Sequence

from mmengine import Config
from mmengine.utils import import_modules_from_strings
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from fsa_seg.config.own_classes import register_own_classes
from fsa_seg.errors import UserError, one_line, one_of
from fsa_seg.methods import SPELLED_OUT, method_names
from fsa_seg.models.regions import SOURCES
from fsa_seg.models.segmentor import register_own_methods
from fsa_seg.system.modules import PREFIX

KEYS = (  # of a composed config
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
)
LIBRARY_CLASSES = (  # of mmengine, mmcv and mmseg, beside mmseg's data sets
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
)
LOGGER = ('type', 'interval', 'log_metric_by_epoch')  # keys of the log's hook that a saved config may set
NOT_SAVED = ('save_labels', 'visualizer')  # what a run writes beside its result; another run is asked for it anew
COMPOSED = {'cell', 'model', 'test_dataloader', 'test_evaluator', 'test_cfg'}  # keys of every composed config
REGISTER = 'fsa_seg.register'  # the suite's own module, which a config may always import
REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS)


def to_json(config: Config) -> dict:
    """Return a composed config as JSON-ready data; a value that JSON does not have (a class, an array) becomes text.

    What a run was asked to write beside its result (NOT_SAVED) is left out.
    """
    data = {key: value for key, value in config.to_dict().items() if key not in NOT_SAVED}
    return json.loads(json.dumps(data, default=repr))


def from_json(data: object, path: str, modules: Sequence[str] = ()) -> Config:
    """Return the composed config that a result's JSON holds under `config`.

    Args:
        data: the value of `config` in the file.
        path: the file, for messages.
        modules: names of a user's modules that may be imported; importing a module registers its classes.

    Raises:
        UserError: the data is no composed config, or has a key or a class that would run code.
    """
    if isinstance(data, str):
        raise UserError(
            f'{path} was written by an earlier fsa_seg, whose results held their config as a program; it is not run: '
            'run the cell anew'
        )
    if not isinstance(data, dict) or not set(data) >= COMPOSED:
        raise UserError(f'{path} holds no composed config; give a result of fsa-seg test, or a config file')
    for key in ('exported', 'test_pipeline', *NOT_SAVED):  # the first two are for mmsegmentation's tools
        data.pop(key, None)
    if isinstance(data.get('default_hooks'), dict):
        data['default_hooks'].pop('visualization', None)
    if isinstance(data['test_evaluator'], dict):
        for key in ('output_dir', 'keep_results'):  # files of predictions that an earlier run was asked for
            data['test_evaluator'].pop(key, None)
    for key in data:
        one_of(key, KEYS, f'key in the config of {path}')
    imports = _imports(data, path)
    refused = [name for name in imports if name not in (*modules, REGISTER)]
    if refused:
        raise UserError(
            f'{path} asks for modules of your own, {", ".join(refused)}, whose code would be run: where you trust '
            f'them, add --allow-modules {" ".join(refused)}'
        )
    if imports:
        _import(imports, path)
    register_own_classes()
    methods = _methods(data['model'], path)
    _check(data, path, _allowed(imports) | methods)
    hooks = data.setdefault('default_hooks', {})
    hooks.pop('pictures', None)  # --show-dir alone names the folder of the pictures
    hooks['logger'] = {key: value for key, value in (hooks.get('logger') or {}).items() if key in LOGGER}
    data['model'].pop('text_cache', None)
    for step in data['test_dataloader'].get('dataset', {}).get('pipeline', ()):
        if isinstance(step.get('scale'), list):
            step['scale'] = tuple(step['scale'])  # mmcv takes no list
    return Config(data, format_python_code=False)


def _methods(model, path):
    """Return the names of method, stage and region sources in a saved segmentor's config.

    The user's own methods that it asks for are registered. A method or a stage is asked for by its name alone: the path
    of a file would be run.
    """
    title = model.get('type') if isinstance(model, dict) else None
    if isinstance(title, str):
        register_own_methods(title.removeprefix('mmseg.'))
    method = model.get('method') if isinstance(model, dict) else None
    name = method.get('type') if isinstance(method, dict) else method
    if name is not None:
        one_of(name, {*method_names(), SPELLED_OUT}, f'method in {path}')
    stages = [part.get('stage') for part in (model, method) if isinstance(part, dict)]
    stages = [stage.get('type') if isinstance(stage, dict) else stage for stage in stages if stage is not None]
    for stage in stages:
        one_of(stage, method_names(), f'stage in {path}')
    return {name, *stages, *SOURCES}


def _imports(data, path):
    """Return the names of the modules that a saved config asks for."""
    imports = (data.get('custom_imports') or {}).get('imports', [])
    if not isinstance(imports, list) or not all(isinstance(name, str) for name in imports):
        raise UserError(f'{path}: custom_imports has to be {{"imports": [names of modules]}}, not {imports!r}')
    return imports


def _import(names, path):
    """Import modules by name; a module that cannot be imported is a UserError."""
    try:
        import_modules_from_strings(names)
    except Exception as error:  # the code of a user's module runs, and can raise any error
        raise UserError(
            f'{path} asks for the modules {", ".join(names)}: {one_line(error)}; run it from the folder '
            'that has them, or name that folder in PYTHONPATH'
        ) from error


def _allowed(imports):
    """Return the names of the classes that a saved config may ask for."""
    names = set(LIBRARY_CLASSES)
    for registry in REGISTRIES:
        for name, cls in registry.module_dict.items():
            if cls.__module__.startswith(('fsa_seg.', PREFIX, 'mmseg.datasets.')) or _within(cls.__module__, imports):
                names.add(name)
    return names


def _within(module, packages):
    """Return whether a module is one of the packages or lies in one of them."""
    return any(module == package or module.startswith(f'{package}.') for package in packages)


def _check(node, path, allowed):
    """Raise a UserError unless a node (dict or list) of a saved config is data alone, at every depth."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(key, str) and key.startswith('_'):
            raise UserError(f'{path}: the key {key!r} has no place in a saved config')
        if key == 'type' and (not isinstance(value, str) or value.removeprefix('mmseg.') not in allowed):
            raise UserError(
                f'{path} asks for {value!r}, which is no class of this suite: it is not built. A method of your own '
                'has to lie in methods/ of a folder that FSA_SEG_CONFIGS names. Another class of your own has to lie '
                "in its component's file in such a folder, or be registered by a module that custom_imports names"
            )
        if isinstance(value, (dict, list)):
            _check(value, path, allowed)
