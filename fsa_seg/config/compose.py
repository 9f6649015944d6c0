"""Configs: composing components into one that mmengine runs, and checking it before a run.

A composed config is complete: it is saved with its result and can be run again as it is.
"""

import hashlib
import json
import os
import re

from mmengine import Config
from mmengine.device import get_device
from mmengine.utils import import_modules_from_strings
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from fsa_seg.config.components import (
    check_constructor,
    class_names,
    component_config,
    component_titles,
    dataset_config,
    feedback_of,
    known_images,
    load_component,
    load_components,
    load_file,
    load_protocol,
    protocol_settings,
    segmentor_config,
    shipped,
    with_classes,
)
from fsa_seg.config.fingerprint import differences, fingerprint, shown
from fsa_seg.config.saved import REGISTER
from fsa_seg.datasets.label_images import VOID
from fsa_seg.errors import UserError, built, check_keys
from fsa_seg.models.clip import BACKBONE_KEYS
from fsa_seg.models.segmentor import (
    check_settings,
    configured_method,
    register_own_methods,
    resolve_precision,
    vfms_by_role,
)
from fsa_seg.models.text import check_words, class_words, read_words
from fsa_seg.settings import CELL, DATASET, LOADER, LOOP, METRIC, SEED, check_values, whole
from fsa_seg.settings import RUNTIME as RUNTIME_RULES
from fsa_seg.system.paths import CONFIGS, TOY_MARK, find_root

RUNTIME = os.path.join(CONFIGS, 'runtime.py')

RUN_OPTIONS = ('batch_size', 'workers', 'window_batch', 'compile')  # of configs/runtime.py that a tool's option sets
MAX_LONG_SIDE = 2048  # of the resized image, in every published configuration
FROM_PROTOCOL = ('logit_scale', 'window', 'stride', 'prob_thd', 'area_thd', 'refinement')
ABOUT = ('cell', 'known_images')  # what a run is, not how it is carried out
REQUIRED = {  # keys that a complete config has
    '': (
        'cell',
        'model',
        'test_dataloader',
        'test_evaluator',
        'test_cfg',
        'default_hooks',
        *RUN_OPTIONS,
        'work_dir',
        'log_level',
        'log_interval',
    ),
    'cell': (
        'dataset',
        'method',
        'feedback',
        'backbone',
        'vfm',
        'protocol',
        'words',
        'limit',
        'changed',
        'toy',
        'random_weights',
    ),
    'model': (
        'type',
        'backbone',
        'words',
        'window',
        'stride',
        'logit_scale',
        'prob_thd',
        'precision',
        'window_batch',
        'compile',
    ),
    'model.backbone': ('model',),
    'test_dataloader': ('dataset', 'batch_size'),
    'test_evaluator': ('type',),
    'test_cfg': ('type',),
    'test_dataloader.dataset': ('type', 'data_root', 'data_prefix', 'pipeline'),
    'default_hooks': ('logger',),
}
# dicts that --cfg-options may add a key to: it is checked
CHECKED = re.compile(
    r'model(\.(backbone|method|feedback|refinement|vfm\.\w+(\.model_args)?))?|test_dataloader\.dataset|test_evaluator'
)


def is_complete(config):
    """Return whether a config is a composed one, not a component."""
    return 'model' in config and 'test_dataloader' in config


def compose(
    dataset,
    method='proxyclip',
    feedback='fsa',
    backbone='clip_vit-b16',
    vfm='dino_vit-b8',
    protocol='own',
    words=None,
    data_root='data',
    limit=None,
    precision='auto',
    random_weights=None,
    runtime=None,
):
    """Return the complete config of one cell.

    Args:
        dataset, method, backbone, vfm (str): name or file of a component; the VFM is used by proxy attention alone. A
            data set and a method can be spelt out, see `fsa_seg.config.components.load_component`.
        feedback (str or dict): name or file of a feedback component, or settings of FSA; None for the bare method.
        protocol (str): 'own' (the method's publication's), or name or file of a protocol.
        words (str): a file of class words in place of the protocol's; see `fsa_seg.models.text.read_words`.
        data_root (str): folder that holds all data sets; a relative one is looked up here and in the repository.
        limit (int): evaluate only so many images, a seeded choice; the result is marked as partial.
        precision (str): 'auto', 'fp32', 'fp16', 'bf16'.
        random_weights (int): seed of random weights in place of trained ones; the result is marked, and in no table.
        runtime (dict): replaces entries of configs/runtime.py.

    Raises:
        UserError: a component, a key or a value that cannot be used.
    """
    components, data = (
        load_components(method, feedback, backbone, vfm),
        with_classes(load_component('dataset', dataset), data_root),
    )
    protocol = load_protocol(protocol, components)
    settings = protocol_settings(protocol, data.name)
    check_values(
        dict(limit=limit, random_weights=random_weights),
        {
            **({} if limit is None else dict(limit=whole(1))),
            **({} if random_weights is None else dict(random_weights=SEED)),
        },
        'options',
    )
    classes = class_names(data)
    queries = read_words(words, classes) if words is not None else class_words(classes, **settings['words'])
    model = dict(model_config(components, settings, precision, random_weights=random_weights), words=queries)
    toy = any(component.get('toy', False) for component in (components['backbone'], *components['vfm'].values()))
    drawn = os.path.exists(os.path.join(find_root(data_root), TOY_MARK))
    cell = dict(
        component_titles(components),
        dataset=data.name,
        protocol=protocol.name,
        limit=limit,
        random_weights=random_weights,
        changed=[],
        words=_words_name(words, queries) if words is not None else protocol.name,
        toy=toy or drawn,
    )
    runtime = dict(load_file(RUNTIME), **(runtime or {}))
    config = Config(runtime, format_python_code=False)  # formatting the words of 171 classes takes a second each time
    known = known_images(data.name, data.get('images'), find_root(data_root))
    config.merge_from_dict(dict(cell=cell, model=model, known_images=known))
    named = (components['backbone'], components['feedback'], *components['vfm'].values(), data, protocol)
    imports = [
        name for component in named if component for name in component.get('custom_imports', {}).get('imports', [])
    ]
    config.custom_imports = dict(imports=[REGISTER, *imports])
    import_modules_from_strings(config.custom_imports.imports)
    _add_loop(config, dataset_config(data, data_root), settings['short'], data.get('label_map'), data.get('image_max'))
    check_config(config)
    return config


def model_config(components, settings, precision='auto', device=None, random_weights=None):
    """Return the config of a segmentor, without its words.

    Args:
        components (dict): of `fsa_seg.config.components.load_components`.
        settings (dict): of `fsa_seg.config.components.protocol_settings`.
        precision (str), device (str): see `fsa_seg.models.segmentor.resolve_precision`; resolved here, since it can change a
            number.
        random_weights (int): seed of random weights in place of trained ones.
    """
    return dict(
        segmentor_config(components['method']),
        backbone=component_config(components['backbone'], random_weights),
        vfm={role: component_config(vfm, random_weights) for role, vfm in components['vfm'].items()} or None,
        feedback=feedback_of(components),
        precision=resolve_precision(precision, device),
        **{key: settings[key] for key in FROM_PROTOCOL},
    )


def check_config(config):
    """Raise a UserError if a composed config has a key that the class it goes to does not take, a value of a wrong type or out
    of its range, or words missing."""
    for where, keys in REQUIRED.items():
        node = config._cfg_dict
        for step in where.split('.') if where else ():
            node = node.get(step) if isinstance(node, dict) else None
        missing = [key for key in keys if not isinstance(node, dict) or key not in node]
        if missing:
            raise UserError(
                f'{where or "the config"} lacks {", ".join(missing)}; give a complete config, such as a saved result'
            )
    check_values(config, RUNTIME_RULES, 'the config')
    check_values(config.cell, CELL, 'cell')
    check_values(config.test_dataloader, LOADER, 'test_dataloader')
    check_values(config.test_evaluator, METRIC, 'test_evaluator')
    check_values(config.test_cfg, LOOP, 'test_cfg')
    dataset = _without(config.test_dataloader.dataset, 'pipeline')
    _check_void(config)
    check_values(config.test_dataloader.dataset, DATASET, 'the data set')
    _check_model(config.model)
    check_constructor(dataset, DATASETS, 'dataset')
    check_constructor(config.test_evaluator, METRICS, 'test_evaluator')
    check_keys(config.model.backbone, BACKBONE_KEYS, 'model.backbone')
    cell = config.cell
    published = cell.words == cell.protocol and shipped('protocol', cell.protocol) and shipped('dataset', cell.dataset)
    check_words(config.model.words, class_names(dataset), f'the words ({cell.words}) of {cell.dataset}', published)
    built('the pipeline', lambda: [TRANSFORMS.build(step) for step in config.test_dataloader.dataset.pipeline])


def _check_model(model):
    """Raise a UserError if a segmentor's config has a key or a value that the class, method, VFM or feedback refuses."""
    register_own_methods(model.type)
    check_constructor(model, MODELS, 'model')
    method = configured_method(model)
    check_settings(model, method)
    vfms = vfms_by_role(method, model.get('vfm')) if method is not None else {}
    for role, vfm in vfms.items():
        check_constructor(vfm, MODELS, f'model.vfm.{role}')
    for key in ('feedback', 'refinement'):
        if model.get(key):
            check_constructor(model[key], MODELS, f'model.{key}')
            MODELS.build(model[key])  # its values


def _check_void(config):
    """Raise a UserError unless data set, loading and metric take the same label for void."""
    dataset = config.test_dataloader.dataset
    loading = [
        step.get('void', VOID) for step in dataset.get('pipeline', ()) if str(step.get('type')).endswith('LoadLabels')
    ]
    voids = [dataset.get('ignore_index', VOID), *loading, config.test_evaluator.get('ignore_index', VOID)]
    if len(set(map(str, voids))) > 1:
        raise UserError(
            f'void is {voids[0]} for the data set, {voids[1]} where labels are loaded and {voids[-1]} for the metric: set '
            'ignore_index in the config of the data set (for own data --ignore-index), which sets all three'
        )


def merge_options(config, options):
    """Set `--cfg-options` in a composed config, and note in its cell what they changed of the number's fingerprint.

    Raises:
        UserError: a key that is not there, or a value where the config has a dict or a list.
    """
    options = options or {}
    if options:
        check_config(config)
    before = fingerprint(config) if options else []
    for key, value in options.items():
        if key in (*RUN_OPTIONS, 'launcher'):
            raise UserError(f'--cfg-options {key}: use --{key.replace("_", "-")}')
        if key.split('.')[0] in ABOUT:
            raise UserError(f'--cfg-options {key}: it tells what the run is, and follows from the other options')
        if key.endswith('.random_weights'):
            raise UserError(f'--cfg-options {key}: use --random-weights SEED, which marks the result')
        node = config._cfg_dict
        *path, last = key.split('.')
        for depth, step in enumerate(path):
            node = _child(node, step)
            if not isinstance(node, (dict, list)):
                raise UserError(f'--cfg-options {key}: there is no {".".join(path[: depth + 1])!r} in the config')
        old = _child(node, last)
        if key == 'model.refinement' and isinstance(value, (str, type(None))):  # switched on by its name, or off
            old, value = None, value and dict(type=value)
        _check_kind(key, old, value)
        if old is None and isinstance(node, dict) and not CHECKED.fullmatch('.'.join(path)):
            check_keys([last], list(node), f'--cfg-options {key}')
        if isinstance(node, dict):
            node[last] = value
        elif last.isdigit() and int(last) < len(node):
            node[int(last)] = value
        else:
            raise UserError(
                f'--cfg-options {key}: {".".join(path)} is a list of {len(node)}; {last!r} is no place in it'
            )
    try:
        check_config(config)
        if not options:
            return
        config.model.precision = resolve_precision(config.model.precision)
        after = fingerprint(config)
    except UserError as error:
        raise UserError(f'--cfg-options {", ".join(options)}: {error}' if options else str(error)) from error
    changed = {key: shown(key, now) for key, _, now in differences(before, after, 'number')}
    kept = [text for text in config.cell.changed if text.split('=')[0] not in changed]
    config.cell.changed = sorted([*kept, *changed.values()])


def _check_kind(key, old, value):
    """Raise a UserError if an option's value is of another kind than the value it replaces."""
    kinds = (
        (bool, 'True or False'),
        ((int, float), 'a number'),
        (str, 'a text'),
        ((list, tuple), 'a list'),
        (dict, 'a dict'),
    )
    for kind, name in kinds if old != 'auto' else ():  # which stands for a number
        if isinstance(old, kind):
            if not isinstance(value, kind) or kind is not bool and isinstance(value, bool):
                mend = '; set what is in it' if kind in (dict, (list, tuple)) else ''
                raise UserError(f'--cfg-options {key}={value}: it holds {name}{mend}')
            return


def set_runtime(config, runtime):
    """Replace entries of configs/runtime.py in a complete config, in all places where they stand; add those it lacks."""
    if not all(key in config for key in RUN_OPTIONS):  # saved before an entry was there
        config.merge_from_dict({key: value for key, value in load_file(RUNTIME).items() if key not in config})
    config.merge_from_dict(runtime)
    gpu = get_device() == 'cuda'
    config.test_dataloader.batch_size = (8 if gpu else 1) if config.batch_size == 'auto' else config.batch_size
    for key in ('window_batch', 'compile'):
        if key in runtime or key not in config.model:
            config.model[key] = config[key]
    config.test_dataloader.num_workers = config.workers
    config.test_dataloader.persistent_workers = config.workers > 0
    config.default_hooks.logger.interval = config.log_interval


def _add_loop(config, dataset, short, label_map, image_max):
    """Add the data loader, loop, metric and hooks that mmengine's test run needs."""
    void = dataset.get('ignore_index', VOID)
    wide = {} if void == VOID else dict(void=void)
    renumbered = {} if label_map is None else dict(label_map=label_map)
    white = {} if image_max is None else dict(image_max=image_max)
    pipeline = [
        dict(type='mmseg.LoadImage', **white),
        dict(type='Resize', scale=(MAX_LONG_SIDE, short), keep_ratio=True),
        dict(type='mmseg.LoadLabels', **wide, **renumbered),
        dict(type='mmseg.PackSegInputs'),
    ]
    config.merge_from_dict(
        dict(
            test_dataloader=dict(
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(dataset, test_mode=True, serialize_data=False, pipeline=pipeline),
            ),
            test_cfg=dict(type='TestLoop', fp16=False),
            test_evaluator=dict(type='ExactIoUMetric', **(dict(ignore_index=void) if wide else {})),
            default_hooks=dict(
                runtime_info=dict(type='RuntimeInfoHook'),
                timer=dict(type='IterTimerHook'),
                logger=dict(type='LoggerHook', log_metric_by_epoch=False),
                sampler_seed=dict(type='DistSamplerSeedHook'),
            ),
        )
    )
    set_runtime(config, {})


def _words_name(path, words):
    """Return what a cell calls the words of a file: the file's name, and the head of their digest."""
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    return f'{os.path.splitext(os.path.basename(path))[0]}-{digest[:6]}'


def _child(node, step):
    if isinstance(node, list):
        return node[int(step)] if step.isdigit() and int(step) < len(node) else None
    return node.get(step) if isinstance(node, dict) else None


def _without(mapping, *keys):
    return {key: value for key, value in mapping.items() if key not in keys}
