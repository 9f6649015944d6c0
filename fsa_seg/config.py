"""Configs: finding the parts by name, composing them into one that mmengine runs, and checking it before a run.

A part is a file in configs/KIND/NAME.py with one dict; a new file is a new part. A composed config is complete: it is
saved with its result and can be run again as it is.
"""
import inspect
import json
import os

from mmengine import Config
from mmengine.config import ConfigDict
from mmseg.registry import DATASETS, METRICS, MODELS

from fsa_seg.errors import UserError, check_keys, one_of
from fsa_seg.methods import METHODS
from fsa_seg.paths import CONFIGS, ROOT, local_path
from fsa_seg.segmentor import resolve_precision
from fsa_seg.text import check_words, class_words, read_words

KINDS = dict(dataset='datasets', method='methods', backbone='backbones', vfm='vfms', feedback='feedback',
             protocol='protocols')  # yapf: disable
SETTINGS = ('logit_scale', 'short', 'window', 'stride', 'prob_thd', 'area_thd', 'words')
NUMBERED = ('model', 'test_dataloader', 'test_evaluator')  # entries of a config that can change a number
ABOUT = ('name', 'fsa', 'toy')  # what a backbone or a VFM part says about itself: its λ, and whether it is a toy
MAX_LONG_SIDE = 2048  # of the resized image, in every published configuration


def part_names(kind):
    """Return the names of all parts of a kind ('dataset', 'method', ...), sorted."""
    return sorted(name[:-3] for name in os.listdir(os.path.join(CONFIGS, KINDS[kind])) if name.endswith('.py'))


def load_part(kind, name):
    """Return the part's dict, given its name or the path of its file.

    Raises:
        UserError: no such part (the nearest name is given), or a file without the kind's dict.
    """
    if str(name).endswith('.py'):
        path = local_path(name, f'{kind} config')
    else:
        path = os.path.join(CONFIGS, KINDS[kind], one_of(name, part_names(kind), kind) + '.py')
    return _part_of(load_file(path), kind, path)


def load_file(path):
    """Return the mmengine config in a file, or in a result's JSON; one that cannot be read is a UserError."""
    try:
        if path.endswith('.json'):
            with open(path, encoding='utf-8') as f:
                return Config.fromstring(json.load(f)['config'], '.py')
        return Config.fromfile(path)
    except Exception as error:  # the file is executed: anything can be raised
        raise UserError(f'the config {path} cannot be read: {type(error).__name__}: {error}') from error


def is_complete(config):
    """Return whether a config is a composed one, not a part."""
    return 'model' in config and 'test_dataloader' in config


def compose(dataset, method='proxyclip', feedback='fsa', backbone='clip_vit-b16', vfm='dino_vit-b8', protocol='own',
            words=None, data_root='data', limit=None, precision='auto', runtime=None):
    """Return the complete config of one cell.

    Args:
        dataset, method, backbone, vfm (str): name or file of a part; the VFM is used by proxy attention alone.
        feedback (str): name or file of a feedback part; None for the bare method.
        protocol (str): 'own' (the method's publication's), or name or file of a protocol.
        words (str): a file of class words in place of the protocol's; see `fsa_seg.text.read_words`.
        data_root (str): folder that holds all data sets.
        limit (int): evaluate only so many images, a seeded choice; the result is marked as partial.
        precision (str): 'auto', 'fp32', 'fp16', 'bf16'.
        runtime (dict): replaces entries of configs/runtime.py.

    Raises:
        UserError: a part, a key or a value that cannot be used.
    """
    parts = load_parts(method, feedback, backbone, vfm)
    data, method, feedback = load_part('dataset', dataset), parts['method'], parts['feedback']
    if protocol == 'own':
        protocol = method.get('fsa_protocol', method.protocol) if feedback else method.protocol
    protocol = load_part('protocol', protocol)
    settings = protocol_settings(protocol, data.name)
    if limit is not None and limit < 1:
        raise UserError(f'--limit is {limit}; it has to be at least 1')
    if not os.path.isdir(data_root) and os.path.isdir(os.path.join(ROOT, data_root)):
        data_root = os.path.join(ROOT, data_root)
    dataset_cfg = dict(data, data_root=os.path.join(data_root, data.data_root))
    name = dataset_cfg.pop('name')
    classes = class_names(dataset_cfg)
    queries = read_words(words, classes) if words else class_words(classes, **settings['words'])
    model = dict(model_config(parts, settings, precision), words=queries)
    cell = dict(dataset=name, method=method.name, feedback=feedback and feedback.name, backbone=parts['backbone'].name,
                vfm=parts['vfm'] and parts['vfm'].name, protocol=protocol.name, words='file' if words else protocol.name, limit=limit, changed=[],
                toy=any((parts[kind] or {}).get('toy', False) for kind in ('backbone', 'vfm')))
    config = Config(dict(load_file(os.path.join(CONFIGS, 'runtime.py')), **(runtime or {})))
    config.merge_from_dict(dict(cell=cell, model=model))
    _add_loop(config, dataset_cfg, settings['short'])
    check_config(config)
    return config


def load_parts(method, feedback, backbone, vfm):
    """Return the parts of a model as a dict of kind -> dict; None for no feedback, or a VFM that no proxy map asks for.

    Args and errors: as of `compose`.
    """
    method = load_part('method', method)
    check_keys(method, ('name', 'segmentor', 'protocol', 'fsa_protocol'), f'method {method.get("name")!r}')
    return dict(
        method=method, backbone=load_part('backbone', backbone),
        feedback=load_part('feedback', feedback) if feedback else None,
        vfm=load_part('vfm', vfm) if _needs_vfm(method.segmentor) else None)  # yapf: disable


def model_config(parts, settings, precision='auto'):
    """Return the config of a segmentor, without its words.

    λ is the feedback part's own, or else the VFM's, or else the backbone's, or else FSA's default.

    Args:
        parts (dict): of `load_parts`.
        settings (dict): of `protocol_settings`.
        precision (str): resolved here, since it can change a number.
    """
    backbone, vfm, feedback = parts['backbone'], parts['vfm'], parts['feedback']
    if feedback:
        feedback = {**backbone.get('fsa', {}), **(vfm or {}).get('fsa', {}), **_without(feedback, 'name')}
    return dict(
        parts['method'].segmentor, backbone=_without(backbone, *ABOUT), vfm=vfm and _without(vfm, *ABOUT),
        feedback=feedback, precision=resolve_precision(precision),
        **{key: settings[key] for key in ('logit_scale', 'window', 'stride', 'prob_thd', 'area_thd')})


def protocol_settings(protocol, dataset):
    """Return a protocol's settings for a data set: its default, replaced by what it says of that data set.

    Args:
        protocol (dict): of a part file: `name`, `default`, `datasets`.
        dataset (str): name; one that the protocol does not know gets the default and its class names as words.
    """
    check_keys(protocol, ('name', 'default', 'datasets'), f'protocol {protocol.get("name")!r}')
    settings = {'words': {}, **protocol['default'], **protocol['datasets'].get(dataset, {})}
    check_keys(settings, SETTINGS, f'protocol {protocol["name"]!r} for {dataset!r}')
    missing = [key for key in SETTINGS if key not in settings]
    if missing:
        raise UserError(f'protocol {protocol["name"]!r} has no {", ".join(missing)} for {dataset!r}')
    return settings


def check_config(config):
    """Raise a UserError if a composed config has a key that the class it goes to does not take, or words missing."""
    dataset = _without(config.test_dataloader.dataset, 'pipeline')
    _check_constructor(config.model, MODELS, 'model')
    for key in ('vfm', 'feedback'):
        if config.model.get(key):
            _check_constructor(config.model[key], MODELS, f'model.{key}')
    _check_constructor(dataset, DATASETS, 'dataset')
    _check_constructor(config.test_evaluator, METRICS, 'test_evaluator')
    check_keys(config.model.backbone, ('model', 'pretrained', 'cache_dir'), 'model.backbone')
    check_words(config.model.words, class_names(dataset), 'model.words')


def merge_options(config, options):
    """Set `--cfg-options` in a composed config; a key whose parent is not there is a UserError."""
    for key in options or {}:
        node, path = config._cfg_dict, key.split('.')
        for depth, step in enumerate(path[:-1]):
            if not isinstance(node, dict) or step not in node:
                raise UserError(f'--cfg-options {key}: there is no {".".join(path[:depth + 1])!r} in the config')
            node = node[step]
        if len(path) == 1:
            check_keys([key], list(node), '--cfg-options')
    if options:
        config.merge_from_dict(dict(options))
        config.cell.changed = sorted({*config.cell.changed, *(key for key in options if key.startswith(NUMBERED))})
    check_config(config)


def _add_loop(config, dataset, short):
    """Add the data loader, loop, metric and hooks that mmengine's test run needs."""
    pipeline = [
        dict(type='mmseg.LoadImage'),
        dict(type='Resize', scale=(MAX_LONG_SIDE, short), keep_ratio=True),
        dict(type='mmseg.LoadLabels'),
        dict(type='mmseg.PackSegInputs')
    ]
    config.merge_from_dict(dict(
        test_dataloader=dict(
            batch_size=config.batch_size, num_workers=config.workers, persistent_workers=config.workers > 0,
            sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(dataset, test_mode=True, pipeline=pipeline)),
        test_cfg=dict(type='TestLoop'), test_evaluator=dict(type='ExactIoUMetric'),
        default_hooks=dict(
            runtime_info=dict(type='RuntimeInfoHook'), timer=dict(type='IterTimerHook'),
            logger=dict(type='LoggerHook', interval=config.log_interval, log_metric_by_epoch=False),
            sampler_seed=dict(type='DistSamplerSeedHook'))))  # yapf: disable


def _check_constructor(config, registry, where):
    """Raise a UserError if `config` names no class of the registry, or has a key that its constructor does not take."""
    config = dict(config)
    name = config.pop('type', None)
    if not name or registry.get(name) is None:
        raise UserError(f'{where}: there is no registered class {name!r}')
    allowed = set()
    for cls in registry.get(name).__mro__:
        if '__init__' not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        allowed |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    check_keys(config, allowed, where)


def _needs_vfm(segmentor):
    own = getattr(MODELS.get(segmentor['type']), 'own_method', None)
    return segmentor.get('attention', METHODS[own]['attention'] if own else None) == 'proxy'


def class_names(dataset):
    """Return the class names, in label order, of a data set's config."""
    return dataset.get('metainfo', {}).get('classes') or DATASETS.get(dataset['type']).METAINFO['classes']


def _part_of(config, kind, path):
    if kind not in config:
        raise UserError(f'the config {path} has no dict {kind!r}; see the others in {os.path.join(CONFIGS, KINDS[kind])}')
    return ConfigDict(config[kind])


def _without(mapping, *keys):
    return {key: value for key, value in mapping.items() if key not in keys}
