"""Configs: compose components into a config that mmengine runs, and check the config before a run.

A composed config is complete: a result saves its config, and the config can run again unchanged.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping

from mmengine import Config
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.utils import import_modules_from_strings
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from fsa_seg.config.components import (
    NAMES,
    check_constructor,
    class_names,
    component_config,
    component_names,
    component_titles,
    dataset_config,
    feedback_of,
    has_toy_models,
    known_images,
    load_component,
    load_components,
    load_file,
    load_protocol,
    own_copy,
    protocol_settings,
    segmentor_config,
    shipped,
    with_classes,
)
from fsa_seg.config.fingerprint import differences, fingerprint, shown
from fsa_seg.config.runtime import RUNTIME, check_visualizer, default_runtime
from fsa_seg.config.saved import REGISTER
from fsa_seg.datasets.label_images import VOID
from fsa_seg.errors import UserError, built, check_keys, one_of
from fsa_seg.methods.base import Method
from fsa_seg.models.clip import BACKBONE_KEYS
from fsa_seg.models.regions import build_regions
from fsa_seg.models.segmentor import (
    check_built,
    check_settings,
    configured_method,
    register_own_methods,
    resolve_precision,
    vfm_config,
    vfms_by_role,
)
from fsa_seg.models.text import check_words, class_words, read_words
from fsa_seg.settings import CELL, DATASET, LOADER, LOOP, METRIC, SEED, VFM, check_values, whole
from fsa_seg.settings import RUNTIME as RUNTIME_RULES
from fsa_seg.system.machine import usable_cores
from fsa_seg.system.paths import find_root, is_drawn

RUN_OPTIONS = ('batch_size', 'workers', 'window_batch', 'compile')  # runtime entries that a tool's option sets
MAX_LONG_SIDE = 2048  # pixels of a resized image, in every published configuration
FROM_PROTOCOL = ('logit_scale', 'window', 'stride', 'prob_thd', 'area_thd', 'refinement')
PROCESS_COUNTS = ('LOCAL_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_SIZE', 'SLURM_NTASKS_PER_NODE')  # of a machine
ABOUT = ('cell', 'known_images')  # entries that describe a run; options do not set them
REQUIRED = {  # place -> keys of a complete config
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
# dicts that --cfg-options may add a key to: the dict's class checks the key
CHECKED = re.compile(
    r'model(\.(backbone|method(\.regions)?|stage|feedback|refinement|vfm\.\w+(\.model_args)?))?|test_dataloader\.dataset|test_evaluator'
)


def is_complete(config: Config) -> bool:
    """Return whether a config is a composed config, not a component."""
    return 'model' in config and 'test_dataloader' in config


def compose(
    dataset: str | dict,
    method: str | dict | Method = 'proxyclip',
    feedback: bool | str | dict | None = 'fsa',
    backbone: str | dict = 'clip_vit-b16',
    vfm: str | dict[str, str] | None = None,
    protocol: str = 'own',
    words: str | None = None,
    data_root: str = 'data',
    limit: int | None = None,
    precision: str = 'auto',
    random_weights: int | None = None,
    runtime: dict | None = None,
    users_runtime: bool = True,
) -> Config:
    """Return the complete config of one cell.

    Args:
        dataset: name, file or dict of a component, see `fsa_seg.config.components.load_component`.
        method, feedback, backbone, vfm: as of `fsa_seg.config.components.load_components`.
        protocol: name or file of a protocol; 'own' is the protocol of the method's publication.
        words: class words that replace the protocol's: the name of another protocol; 'names' for the plain class names;
            or a file, see `fsa_seg.models.text.read_words`.
        data_root: folder that holds all data sets; a relative path may start here or at the repository.
        limit: number of images to evaluate, a seeded choice; the result is marked as partial.
        precision: 'auto', 'fp32', 'fp16' or 'bf16'.
        random_weights: seed of random weights in place of trained weights; the result is marked, and in no table.
        runtime: replaces entries of configs/runtime.py, and of a user's own, see `default_runtime`.
        users_runtime: whether a user's own runtime.py counts; it changes no number.

    Raises:
        UserError: a component, a key or a value that cannot be used.
    """
    components = load_components(method, feedback, backbone, vfm)
    data = with_classes(load_component('dataset', dataset, copied=False), data_root)
    protocol = load_protocol(protocol, components)
    settings = protocol_settings(protocol, data.name)
    for key, value, rule in (('limit', limit, whole(1)), ('random_weights', random_weights, SEED)):
        if value is not None:
            check_values({key: value}, {key: rule}, 'options')
    classes = class_names(data)
    queries, words_name = _queries(words, protocol.name, settings['words'], data.name, classes)
    model = dict(model_config(components, settings, precision, random_weights=random_weights), words=queries)
    toy_models = has_toy_models(components)
    toy_data = is_drawn(find_root(os.path.join(data_root, data['data_root'])))
    cell = dict(
        component_titles(components),
        dataset=data.name,
        protocol=protocol.name,
        limit=limit,
        random_weights=random_weights,
        changed=[],
        words=words_name,
        toy=toy_models or toy_data,
        toy_models=toy_models,
        toy_data=toy_data,
    )
    defaults = default_runtime(users_runtime)
    check_keys(runtime or {}, defaults, 'the runtime')
    entries = dict(
        dict(defaults, **(runtime or {})),
        cell=cell,
        model=model,
        known_images=known_images(data.name, data.get('images'), find_root(data_root)),
        custom_imports=_imports(
            [components['backbone'], components['feedback'], *components['vfm'].values(), data, protocol]
        ),
        **_loop(dataset_config(data, data_root), settings['short'], data.get('label_map'), data.get('image_max')),
    )
    # formatting the words of 171 classes takes a second each time; the components' dicts are those of all cells
    config = Config(own_copy(entries, ConfigDict), format_python_code=False)
    set_runtime(config, {})
    check_config(config)
    return config


def model_config(
    components: dict,
    settings: dict,
    precision: str = 'auto',
    device: str | None = None,
    random_weights: int | None = None,
) -> dict:
    """Return the config of a segmentor, without its words.

    The config has the resolved precision, since precision can change a number.

    Args:
        components: of `fsa_seg.config.components.load_components`.
        settings: of `fsa_seg.config.components.protocol_settings`.
        precision, device: see `fsa_seg.models.segmentor.resolve_precision`.
        random_weights: seed of random weights in place of trained weights.
    """
    return dict(
        segmentor_config(components['method'], settings['method']),
        backbone=component_config(components['backbone'], random_weights),
        vfm={role: component_config(vfm, random_weights) for role, vfm in components['vfm'].items()} or None,
        feedback=feedback_of(components, settings['feedback']),
        precision=resolve_precision(precision, device),
        **{key: settings[key] for key in FROM_PROTOCOL},
        **({'fit': settings['fit']} if settings['fit'] else {}),
    )


def check_config(config: Config) -> None:
    """Raise a UserError if a composed config cannot run.

    Every required key is there; every class takes its keys; every value fits its rule; every class name has words.
    """
    _check_required(config)
    for key in ('load_from', 'resume'):
        if config.get(key):
            raise UserError(
                f'the config has {key}={config[key]!r}, which would replace weights: backbone and vfm name theirs'
            )
    check_values(config._cfg_dict, RUNTIME_RULES, 'the config')
    check_values(config.cell, CELL, 'cell')
    check_values(config.test_dataloader, LOADER, 'test_dataloader')
    check_values(config.test_evaluator, METRIC, 'test_evaluator')
    check_values(config.test_cfg, LOOP, 'test_cfg')
    check_visualizer(config.get('visualizer'))
    if config.get('save_labels') and config.test_evaluator.get('output_dir'):
        raise UserError(
            f'save_labels (--save-labels) and output_dir={config.test_evaluator.output_dir!r} of test_evaluator both '
            'say where the predicted labels go; leave one out'
        )
    dataset = _without(config.test_dataloader.dataset, 'pipeline')
    check_values(config.test_dataloader.dataset, DATASET, 'the data set')
    _check_void(config)
    _check_model(config.model)
    check_constructor(dataset, DATASETS, 'dataset')
    check_constructor(config.test_evaluator, METRICS, 'test_evaluator')
    check_keys(config.model.backbone, BACKBONE_KEYS, 'model.backbone')
    cell = config.cell
    published = (cell.words == NAMES or shipped('protocol', cell.words)) and shipped('dataset', cell.dataset)
    check_words(config.model.words, class_names(dataset), f'the words ({cell.words}) of {cell.dataset}', published)
    built('the pipeline', lambda: [check_built(TRANSFORMS, step) for step in config.test_dataloader.dataset.pipeline])


def _check_required(config):
    """Raise a UserError if a composed config lacks a required key."""
    for place, keys in REQUIRED.items():
        node = config._cfg_dict
        for step in place.split('.') if place else ():
            node = node.get(step) if isinstance(node, dict) else None
        missing = [key for key in keys if not isinstance(node, dict) or key not in node]
        if missing:
            raise UserError(
                f'{place or "the config"} lacks {", ".join(missing)}; give a complete config, such as a saved result'
            )


def _check_model(model):
    """Raise a UserError if a segmentor's class, method, VFM, feedback or refinement refuses a key or a value."""
    register_own_methods(model.type)
    check_constructor(model, MODELS, 'model')
    method = configured_method(model)
    check_settings(model, method)
    for part in method.parts if method is not None else ():
        if part.regions:
            build_regions(part.regions)  # the class checks its values
    vfms = vfms_by_role(method, model.get('vfm')) if method is not None else {}
    for role, vfm in vfms.items():
        check_values(vfm, VFM, f'model.vfm.{role}')
        check_constructor(vfm_config(vfm), MODELS, f'model.vfm.{role}')
    for key, hook in (('feedback', 'loop'), ('refinement', 'refine')):
        if model.get(key):
            classes = [name for name, cls in MODELS.module_dict.items() if callable(getattr(cls, hook, None))]
            one_of(model[key].get('type'), classes, key)
            check_constructor(model[key], MODELS, f'model.{key}')
            check_built(MODELS, model[key])


def _check_void(config):
    """Raise a UserError unless data set, loading and metric have the same label for void."""
    dataset = config.test_dataloader.dataset
    loading = [
        step.get('void', VOID) for step in dataset.get('pipeline', ()) if str(step.get('type')).endswith('LoadLabels')
    ]
    voids = [dataset.get('ignore_index', VOID), *loading, config.test_evaluator.get('ignore_index', VOID)]
    if len(set(map(str, voids))) > 1:
        raise UserError(
            f'void is {voids[0]} for the data set, {voids[1]} where labels are loaded and {voids[-1]} for the metric: '
            'set ignore_index in the config of the data set (for own data --ignore-index), which sets all three'
        )


def merge_options(config: Config, options: Mapping[str, object] | None) -> None:
    """Check a composed config, and set the values of `--cfg-options` in the config.

    The cell's `changed` lists the values that make the config another cell.

    Args:
        config: changed in place.
        options: dotted key -> value.

    Raises:
        UserError: the config lacks a key's place, a value has the wrong kind, or the changed config cannot run.
    """
    check_config(config)
    if not options:
        return
    before = fingerprint(config)
    for key, value in options.items():
        _check_option(key)
        _set_option(config, key, value)
    try:
        check_config(config)
        config.model.precision = resolve_precision(config.model.precision)
        after = fingerprint(config)
    except UserError as error:
        raise UserError(f'--cfg-options {", ".join(options)}: {error}') from error
    changed = {key: shown(key, now) for key, _, now in differences(before, after, 'number')}
    earlier = [text for text in config.cell.changed if text.split('=')[0] not in changed]
    config.cell.changed = sorted([*earlier, *changed.values()])


def _check_option(key):
    """Raise a UserError if `--cfg-options` may not set a key."""
    if key in (*RUN_OPTIONS, 'launcher'):
        raise UserError(f'--cfg-options {key}: use --{key.replace("_", "-")}')
    if key.split('.')[0] in ABOUT:
        raise UserError(f'--cfg-options {key}: it tells what the run is, and follows from the other options')
    if key.endswith('.random_weights'):
        raise UserError(f'--cfg-options {key}: use --random-weights SEED, which marks the result')


def _set_option(config, key, value):
    """Set the value of a dotted key in a config; a place that does not exist is a UserError."""
    node = config._cfg_dict
    *path, last = key.split('.')
    for depth, step in enumerate(path):
        node = _child(node, step)
        if not isinstance(node, (dict, list)):
            place = '.'.join(path[: depth + 1])
            mend = '; switch it on by model.refinement=PAMR before' if place == 'model.refinement' else ''
            raise UserError(f'--cfg-options {key}: there is no {place!r} in the config{mend}')
    old = _child(node, last)
    if key == 'model.refinement' and isinstance(value, (str, type(None))):  # a name, or None for no refinement
        old, value = None, value and dict(type=value)
    _check_kind(key, old, value)
    if old is None and isinstance(node, dict) and not CHECKED.fullmatch('.'.join(path)):
        check_keys([last], list(node), f'--cfg-options {key}')
    if isinstance(node, dict):
        node[last] = value
    elif last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    else:
        raise UserError(f'--cfg-options {key}: {".".join(path)} is a list of {len(node)}; {last!r} is no place in it')


def _check_kind(key, old, value):
    """Raise a UserError if an option's value and the value that it replaces differ in kind."""
    kinds = (
        (bool, 'True or False'),
        ((int, float), 'a number'),
        (str, 'a text'),
        ((list, tuple), 'a list'),
        (dict, 'a dict'),
    )
    for kind, name in kinds if old != 'auto' else ():  # 'auto' stands for a number
        if isinstance(old, kind):
            if not isinstance(value, kind) or kind is not bool and isinstance(value, bool):
                mend = '; set what is in it' if kind in (dict, (list, tuple)) else ''
                raise UserError(f'--cfg-options {key}={value}: it holds {name}{mend}')
            return


def set_runtime(config: Config, runtime: Mapping[str, object]) -> None:
    """Set entries of configs/runtime.py in a complete config, in all their places, and add missing entries.

    Args:
        config: changed in place.
        runtime: entry -> value.
    """
    if not all(key in config for key in RUN_OPTIONS):  # an older config may lack an entry
        config.merge_from_dict({key: value for key, value in load_file(RUNTIME).items() if key not in config})
    if runtime:
        config.merge_from_dict(runtime)
    gpu = get_device() == 'cuda'
    model, loader = config.model, config.test_dataloader
    loader.batch_size = (8 if gpu else 1) if config.batch_size == 'auto' else config.batch_size
    for key in ('window_batch', 'compile'):
        if key in runtime or key not in model:
            model[key] = config[key]
    workers = _share_of_cores() if config.workers == 'auto' else config.workers
    loader.num_workers = workers
    loader.persistent_workers = workers > 0
    config.default_hooks.logger.interval = config.log_interval


def _share_of_cores(most: int = 4) -> int:
    """Return the usable cores of a process, at most `most`; the processes of a machine share its cores."""
    counts = (re.match(r'\d+', os.environ.get(name, '')) for name in PROCESS_COUNTS)
    return min(most, usable_cores() // max([1, *(int(count.group()) for count in counts if count)]))


def _imports(components):
    """Return the `custom_imports` of a config, the modules that components import, and import them."""
    imports = [
        name for component in components if component for name in component.get('custom_imports', {}).get('imports', [])
    ]
    imports = [REGISTER, *imports]
    import_modules_from_strings(imports)
    return dict(imports=imports)


def _loop(dataset, short, label_map, image_max):
    """Return the data loader, loop, metric and hooks that mmengine's test run needs."""
    void = dataset.get('ignore_index', VOID)
    load_options = {} if image_max is None else dict(image_max=image_max)
    label_options = {} if void == VOID else dict(void=void)
    metric_options = {} if void == VOID else dict(ignore_index=void)
    if label_map is not None:
        label_options['label_map'] = label_map
    pipeline = [
        dict(type='mmseg.LoadImage', **load_options),
        dict(type='Resize', scale=(MAX_LONG_SIDE, short), keep_ratio=True),
        dict(type='mmseg.LoadLabels', **label_options),
        dict(type='mmseg.PackSegInputs'),
    ]
    return dict(
        test_dataloader=dict(
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(dataset, test_mode=True, serialize_data=False, pipeline=pipeline),
        ),
        test_cfg=dict(type='TestLoop', fp16=False),
        test_evaluator=dict(type='ExactIoUMetric', **metric_options),
        default_hooks=dict(
            runtime_info=dict(type='RuntimeInfoHook'),
            timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', log_metric_by_epoch=False),
            sampler_seed=dict(type='DistSamplerSeedHook'),
        ),
    )


def _queries(words, protocol, rules, dataset, classes):
    """Return the words of each class that `words` of `compose` asks for, and the cell's name of these words.

    Args:
        words, dataset: of `compose`; the data set's name.
        protocol, rules: name of the protocol, and its `words` for the data set.
        classes: names.
    """
    if words is None or words == protocol:
        return class_words(classes, **rules), protocol
    words = str(words)
    if words == NAMES:
        return class_words(classes), NAMES
    protocols = component_names('protocol')
    if words in protocols:
        other = load_component('protocol', words, copied=False)
        return class_words(classes, **protocol_settings(other, dataset)['words']), words
    if not os.path.splitext(words)[1] and os.sep not in words and not os.path.isfile(words):
        one_of(words, [NAMES, *protocols], 'words', '; or give a file of words, such as my_words.txt')
    queries = read_words(words, classes)
    return queries, _words_name(words, queries)


def _words_name(path, words):
    """Return a cell's name of the words in a file: the file's name, and the head of the words' digest."""
    digest = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    return f'{os.path.splitext(os.path.basename(path))[0]}-{digest[:6]}'


def _child(node, step):
    """Return the child of a dict or a list at a key or an index; None without the child."""
    if isinstance(node, list):
        return node[int(step)] if step.isdigit() and int(step) < len(node) else None
    return node.get(step) if isinstance(node, dict) else None


def _without(mapping, *keys):
    """Return a copy of a dict without some keys."""
    return {key: value for key, value in mapping.items() if key not in keys}
