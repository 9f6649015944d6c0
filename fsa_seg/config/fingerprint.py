"""The fingerprint of a cell: what can change its number, in one list of resolved values.

This list decides the hash of a cell and the reuse of its result. It also decides which cells share a pass, and which
options `--cfg-options` marks as changed. Each entry has a level:

    number    another value is another cell: the entry is part of the hash
    source    code and files of weights behind the number: another value makes a result stale
    rounding  may move the last digits: a run that uses a result again prints the difference
    none      cannot change a number: paths, launcher, workers

The list has all defaults, so a config that spells a default out is the same cell. 3 and 3.0 are the same value.
"""

import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import open_clip
import timm
import torch
from mmengine import Config
from mmengine.device import get_device
from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS

from fsa_seg.errors import UserError, parameters
from fsa_seg.methods import is_shipped
from fsa_seg.models.clip import CONFIG_FILE, _config_beside, _pretrained_tag
from fsa_seg.models.regions import shared_regions
from fsa_seg.models.segmentor import configured_method, registered, resolve_precision, vfms_by_role
from fsa_seg.models.text import templates_digest
from fsa_seg.models.weights import path_of, timm_tag, weights_from
from fsa_seg.ops.device import device_name, tf32_state
from fsa_seg.ops.feedback import FSA, TERMS
from fsa_seg.system.machine import FINGERPRINT_PACKAGES
from fsa_seg.system.modules import PREFIX, source_files
from fsa_seg.system.paths import file_digest, files_digest, local_path, sources_digest

LEVELS = ('number', 'source', 'rounding', 'none')
LOCAL = 'local-dir:'  # before the path of a folder that holds a CLIP model
WEIGHT_SUFFIXES = ('.json', '.safetensors', '.bin', '.pt', '.pth')
SPELT_OUT = ('method', 'stage', 'backbone', 'vfm', 'feedback', 'refinement')  # settings whose own settings are entries
MODEL_LEVELS = dict(
    window_batch='rounding', compile='rounding', keep_scores='none', text_cache='none'
)  # other keys: number
MODEL_IGNORED = ('models', 'members', 'pretrained', 'train_cfg')
DATASET_IGNORED = (
    'data_root',
    'pipeline',
    'indices',
    'test_mode',
    'serialize_data',
    'lazy_init',
    'max_refetch',
    'backend_args',
    'metainfo',
)  # arguments of a data set that other entries cover, or that change no number
SHIPPED_HOOKS = ('runtime_info', 'timer', 'logger', 'sampler_seed', 'pictures', 'visualization')  # change no number
METRIC_IGNORED = ('root', 'collect_device', 'output_dir', 'keep_results', 'prefix', 'field')
MEMBER_KEYS = (
    'method',
    'model.feedback',
    'model.refinement',
    'model.vfm',
    'model.words',
    'model.logit_scale',
    'model.prob_thd',
    'model.area_thd',
    'class ',
    'method file',
)  # beginnings of the keys whose values may differ among the cells of a pass
LATER = dict(fit=None)  # settings that were added, which at these values are no entry: hashes stay as they were
MASK_PACKAGE = 'transformers'  # of the refinement by SAM, and of two sources of region maps
SHORT = 32  # longest value, in characters, that a row of a table shows in full

_tag = functools.lru_cache(64)(_pretrained_tag)  # open_clip goes through all its tags, and copies what it returns
_architecture = functools.lru_cache(64)(open_clip.get_model_config)


class Entry(NamedTuple):
    """One value that may change a number.

    Attributes:
        key: the value's place in the composed config, such as 'model.stride'; else the value's name.
        value: JSON-ready and resolved.
        level: of LEVELS.
    """

    key: str
    value: object
    level: str


class Data(NamedTuple):
    """The data of a cell on disk.

    Attributes:
        names: the images of the split, in order.
        contents: name -> digest of the image's bytes and the label image's values.
    """

    names: list[str]
    contents: dict[str, str]


def fingerprint(config: Config, data: Data | None = None) -> list[Entry]:
    """Return the fingerprint of a composed config: its entries, in a fixed order.

    Args:
        config: composed config, complete and checked.
        data: None leaves the entries 'data.*' out.

    Raises:
        UserError: no registry knows a class that the config names, or a path of weights leads to no file.
    """
    method = configured_method(config.model)
    entries = [*_model(config.model, method), *_dataset(config), *_runtime(config, method), *_sources(config, method)]
    if data is not None:
        contents = [data.contents[name] for name in data.names]
        entries += [
            Entry('data.split', _sha256(data.names), 'number'),
            Entry('data.contents', _sha256(contents), 'number'),
        ]
    return [Entry(key, canonical(value), level) for key, value, level in entries]


def with_files(entries: Sequence[Entry], config: Config) -> list[Entry]:
    """Return a fingerprint in which files of weights that were downloaded since have their digests."""
    present = [*_backbone(config.model.backbone)]
    vfms = _vfms(config.model, configured_method(config.model))
    present += [entry for role, vfm in vfms.items() for entry in _vfm(role, vfm)]
    by_key = {entry.key: entry for entry in present}
    return [by_key[entry.key] if entry.value is None and entry.key.endswith('.file') else entry for entry in entries]


def cell_hash(entries: Sequence[Entry], contents: bool = True) -> str:
    """Return the SHA-256 of the entries of level 'number', as a hexadecimal string.

    Args:
        entries: of `fingerprint`.
        contents: False leaves the entry 'data.contents' out: the hash then ignores the bytes of the images.
    """
    return _sha256(
        [entry[:2] for entry in entries if entry.level == 'number' and (contents or entry.key != 'data.contents')]
    )


def sources_hash(entries: Sequence[Entry | list]) -> str:
    """Return the SHA-256 of the code behind a number: entries of level 'source', without files of weights.

    Args:
        entries: of `fingerprint`, or lists [key, value, level] of a result's JSON.
    """
    return _sha256([entry[:2] for entry in entries if entry[2] == 'source' and not entry[0].endswith('.file')])


def weights_files(entries: Sequence[Entry | list]) -> list[str | None]:
    """Return the digests of the files of weights in the libraries' caches; None for a missing file.

    Args:
        entries: as of `sources_hash`.
    """
    return [entry[1] for entry in entries if entry[2] == 'source' and entry[0].endswith('.file')]


def differences(
    before: Sequence[Entry | list], now: Sequence[Entry | list], level: str
) -> list[tuple[str, object, object]]:
    """Return the differences of two fingerprints at a level: a list of (key, value before, value now).

    A file of weights that either fingerprint lacks (None: not downloaded yet) is no difference.

    Args:
        before, now: as of `sources_hash`.
        level: of LEVELS.
    """
    old, new = ({entry[0]: entry[1] for entry in entries if entry[2] == level} for entries in (before, now))
    rows = [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return [row for row in rows if not row[0].endswith('.file') or None not in row[1:]]


def shared_key(entries: Sequence[Entry]) -> str:
    """Return a text that is equal for all cells of a pass over the data.

    Cells of a pass may differ in the last block and its words. A segmentor class of a user shares a pass with no other
    cell: the class may override the steps of a pass.
    """
    own_class = any(entry.key == 'segmentor' for entry in entries)
    return json.dumps([entry[:2] for entry in entries if own_class or not entry.key.startswith(MEMBER_KEYS)])


def shown(key: str, value: object) -> str:
    """Return 'key=value' for a row of a table; the head of its digest stands for a long value."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'{key}={text if len(text) <= SHORT else _sha256(value)[:6]}'


def canonical(value: object) -> object:
    """Return a value in JSON's types; a float that is a whole number becomes an integer: 3.0 becomes 3."""
    if value is None or type(value) in (str, int, bool):  # most values
        return value
    if isinstance(value, dict):
        return {str(key): canonical(child) for key, child in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [child if type(child) is str else canonical(child) for child in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def resolved(cls: type, config: dict) -> dict:
    """Return a class's arguments: its constructors' defaults, replaced by the entries of its config but `type`."""
    defaults = {}
    for parameter in parameters(cls):
        if parameter.default is not parameter.empty:
            defaults.setdefault(parameter.name, parameter.default)
    return {**defaults, **{key: value for key, value in config.items() if key != 'type'}}


def versions() -> dict[str, str | int | None]:
    """Return the versions of the installed libraries, and of Python, CUDA and cuDNN."""
    return dict(
        _library_versions(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    )


@functools.cache  # those of the process's start, as the libraries that it has imported
def _library_versions():
    """Return the versions of Python and of the installed libraries."""
    numbers = dict(python='.'.join(map(str, sys.version_info[:3])))
    for package in FINGERPRINT_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            numbers[package] = importlib.metadata.version(package)
    return numbers


def _model(model, method):
    """Return the entries of a segmentor's config."""
    cls = _class_of(MODELS, model.type)
    arguments, entries = resolved(cls, model), []
    if method is not None:
        entries = [Entry('method.type', type(method).name, 'number')]
        if not is_shipped(type(method)):  # two files of one name
            entries.append(Entry('method.title', method.title, 'number'))
        entries += _method_settings(method, 'method')
        entries += _whole_image(method)
    if not cls.__module__.startswith('fsa_seg.'):
        entries.append(Entry('segmentor', model.type, 'number'))
    arguments['precision'] = resolve_precision(arguments['precision'])
    if not arguments.get('window', 1):
        arguments['stride'] = None  # a whole image has no stride
    for key, value in arguments.items():
        if key not in (*SPELT_OUT, *MODEL_IGNORED) and not (key in LATER and value == LATER[key]):
            entries.append(Entry(f'model.{key}', value, MODEL_LEVELS.get(key, 'number')))
    entries += [entry for role, vfm in _vfms(model, method).items() for entry in _vfm(role, vfm)]
    entries += [
        *_settings_of('feedback', arguments.get('feedback')),
        *_settings_of('refinement', arguments.get('refinement')),
    ]
    return [*entries, Entry('prompts', templates_digest(), 'number'), *_backbone(model.backbone)]


def _whole_image(method):
    """Return the entries of a method's stage, and of its region maps."""
    entries, stage = [], method.stage
    if stage:
        entries.append(Entry('method.stage', type(stage).name, 'number'))
        if not is_shipped(type(stage)):
            entries.append(Entry('method.stage.file', files_digest(source_files(type(stage).path)), 'source'))
        entries += _method_settings(stage, 'method.stage')
    for part in method.parts:
        if part.regions:
            entries.append(Entry('method.regions.digest', shared_regions(part.regions).digest, 'number'))
    return entries


def _method_settings(part, key):
    """Return the entries of a method's settings; of region maps the source's type, as the digest covers the rest."""
    values = {**part.settings, 'regions': part.regions['type']} if part.regions else part.settings
    return [Entry(f'{key}.{name}', value, 'number') for name, value in values.items()]


def _vfms(model, method):
    """Return role -> config of the VFMs of a segmentor's config."""
    return vfms_by_role(method, model.get('vfm')) if method is not None else {}


def _settings_of(key, config):
    """Return the entries of a feedback's or a refinement's config; without a config, an entry of None."""
    if not config:
        return [Entry(f'model.{key}', None, 'number')]
    cls = _class_of(MODELS, config['type'])
    arguments = resolved(cls, config)
    if issubclass(cls, FSA) and 'terms' in arguments:
        terms = arguments['terms']
        arguments['terms'] = [term for term in TERMS if term in ((terms,) if isinstance(terms, str) else terms)]
    return [
        Entry(f'model.{key}', config['type'], 'number'),
        *(
            Entry(f'model.{key}.{name}', _content(value), 'rounding' if name == 'block' else 'number')
            for name, value in arguments.items()
        ),
    ]


def _backbone(config):
    """Return the entries of CLIP's config: the architecture and weights that its names lead to."""
    model, checkpoint, seed = (config.get(key) for key in ('model', 'checkpoint', 'random_weights'))
    architecture, files = _clip_files(model, checkpoint)
    weights = (
        dict(random=seed)
        if seed is not None
        else dict(sha256=files_digest(files))
        if files
        else dict(tag=config.get('pretrained'))
    )
    return [
        Entry('model.backbone.architecture', architecture, 'number'),
        Entry('model.backbone.weights', weights, 'number'),
        Entry('model.backbone.pixels', _clip_pixels(config), 'number'),
        Entry('model.backbone.file', _cached_digest('backbone', config) if 'tag' in weights else None, 'source'),
        Entry('model.backbone.cache_dir', config.get('cache_dir'), 'none'),
    ]


def _local_folder(model):
    """Return the folder that an architecture 'local-dir:FOLDER' names; an empty text for other architectures."""
    return model.removeprefix(LOCAL) if model.startswith(LOCAL) else ''


def _clip_files(model, checkpoint):
    """Return CLIP's architecture (dict) and the paths of its local files: weights, and a checkpoint's config."""
    folder = _local_folder(model)
    if folder:
        path = local_path(folder, 'folder of a CLIP model')
        architecture = _read_json(os.path.join(path, CONFIG_FILE))
        files = sorted(glob.glob(os.path.join(glob.escape(path), '*')))
        return architecture, [file for file in files if file.endswith(WEIGHT_SUFFIXES)]
    architecture = _architecture(model)
    files = [local_path(checkpoint, f'checkpoint of the backbone {model}')] if checkpoint else []
    configs = [os.path.join(os.path.dirname(file), CONFIG_FILE) for file in files]
    return architecture, files + [path for path in configs if os.path.isfile(path)]


def _clip_pixels(config):
    """Return CLIP's mean and std of pixels; of a local folder, None unless set: its digest covers the values."""
    if _local_folder(config['model']):
        return {key: config.get(key) or None for key in ('mean', 'std')}
    preprocessing = _tag(config['model'], config.get('pretrained'))
    preprocessing = preprocessing or _config_beside(config.get('checkpoint')).get('preprocess_cfg', {})
    defaults = dict(mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    return {key: config.get(key) or preprocessing.get(key) or default for key, default in defaults.items()}


def _vfm(role, config):
    """Return the entries of the VFM of a role."""
    place = f'model.vfm.{role}'
    arguments = resolved(_class_of(MODELS, config['type']), config)
    if arguments.get('scope') == 'window':
        del arguments['scope']  # the default
    checkpoint, seed = arguments.pop('checkpoint', None), arguments.pop('random_weights', None)
    weights = dict(random=seed) if seed is not None else None
    if weights is None and checkpoint:
        weights = dict(sha256=file_digest(local_path(checkpoint, 'checkpoint of the VFM')))
    cached = _cached_digest('vfm', config) if weights is None else None
    if timm.is_model(arguments.get('model') or ''):  # a mean or std of None is timm's
        tag = timm_tag(arguments['model'])
        arguments.update((key, getattr(tag, key)) for key in ('mean', 'std') if arguments.get(key, tag) is None)
    return [
        Entry(place, config['type'], 'number'),
        Entry(f'{place}.weights', weights, 'number'),
        Entry(f'{place}.file', cached, 'source'),
        *(Entry(f'{place}.{key}', _content(value), 'number') for key, value in arguments.items()),
    ]


def _content(value):
    """Return a value; for the path of a file, or of a model's folder, its digest: a class may read it."""
    if isinstance(value, str) and os.path.isfile(os.path.join(value, 'config.json')):
        files = sorted(glob.glob(os.path.join(glob.escape(value), '*')))
        return dict(sha256=files_digest([file for file in files if file.endswith(WEIGHT_SUFFIXES)]))
    return dict(sha256=file_digest(value)) if isinstance(value, str) and os.path.isfile(value) else value


def _dataset(config):
    """Return the entries of a data set's definition, its pipeline, the metric and the loop."""
    dataset = config.test_dataloader.dataset
    cls = _class_of(DATASETS, dataset.type)
    classes = dataset.get('metainfo', {}).get('classes') or cls.METAINFO.get('classes')
    arguments = {key: value for key, value in resolved(cls, dataset).items() if key not in DATASET_IGNORED}
    steps = [
        dict(resolved(_class_of(TRANSFORMS, step['type']), step), type=step['type'])
        for step in dataset.get('pipeline', ())
    ]
    metric = config.test_evaluator
    hooks = config.get('default_hooks') or {}
    own_hooks = [hook for name, hook in hooks.items() if hook and name not in SHIPPED_HOOKS]
    return [
        Entry('dataset.type', dataset.type, 'number'),
        Entry('dataset.classes', classes, 'number'),
        *(Entry(f'dataset.{key}', value, 'number') for key, value in arguments.items()),
        Entry('dataset.data_root', dataset.get('data_root'), 'none'),
        Entry('pipeline', steps, 'number'),
        Entry('metric.type', metric.type, 'number'),
        *(
            Entry(f'metric.{key}', value, 'number')
            for key, value in resolved(_class_of(METRICS, metric.type), metric).items()
            if key not in METRIC_IGNORED
        ),
        *(Entry(f'loop.{key}', value, 'number') for key, value in config.test_cfg.items()),
        Entry('hooks', [*config.get('custom_hooks', []), *own_hooks], 'number'),
    ]


def _runtime(config, method):
    """Return the entries of where and how the cell runs."""
    ignored = ('work_dir', 'launcher', 'workers', 'log_level', 'log_interval', 'default_hooks', 'custom_imports')
    masks = MASK_PACKAGE if _uses_masks(config.model, method) else None
    return [
        *([Entry(f'version of {masks}', importlib.metadata.version(masks), 'rounding')] if masks else []),
        Entry('batch_size', config.test_dataloader.get('batch_size'), 'rounding'),
        Entry('env', config.get('env_cfg', {}).get('cudnn_benchmark'), 'rounding'),
        Entry('device', device_name(get_device()), 'rounding'),
        Entry('tf32', tf32_state(), 'rounding'),
        *(Entry(f'version of {name}', version, 'rounding') for name, version in versions().items()),
        *(Entry(key, config.get(key), 'none') for key in ignored),
    ]


def _uses_masks(model, method):
    """Return whether a segmentor's config runs a model of `transformers`."""
    sources = [part.regions['type'] for part in method.parts if part.regions] if method is not None else []
    return 'SAMRefinement' in str((model.get('refinement') or {}).get('type')) or {'sam2', 'mask2former'} & set(sources)


def _sources(config, method):
    """Return the entries of the code behind a number: the package, and the other classes that the config names."""
    entries = [Entry('package', sources_digest(), 'source')]
    configs = [
        (MODELS, config.model),
        *((MODELS, vfm) for vfm in _vfms(config.model, method).values()),
        (MODELS, config.model.get('feedback')),
        (MODELS, config.model.get('refinement')),
        (DATASETS, config.test_dataloader.dataset),
        (METRICS, config.test_evaluator),
        *((TRANSFORMS, step) for step in config.test_dataloader.dataset.get('pipeline', ())),
        *((HOOKS, hook) for hook in config.get('custom_hooks', [])),
    ]
    for registry, class_config in configs:
        files = _files_of(_class_of(registry, class_config['type'])) if class_config else []
        if files:
            entries.append(Entry(f'class {class_config["type"]}', files_digest(files), 'source'))
    for name in (config.get('custom_imports') or {}).get('imports', []):
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and not name.startswith('fsa_seg.'):
            entries.append(Entry(f'module {name}', _module_digest(name, file), 'source'))
    if method is None or is_shipped(type(method)):
        return entries
    return [*entries, Entry('method file', files_digest(source_files(type(method).path)), 'source')]


def _files_of(cls):
    """Return the source files of a class, its bases and their neighbours, without the suite's and the libraries'."""
    files = []
    for base in cls.__mro__:
        library = base.__module__.split('.')[0] in (
            'builtins',
            'fsa_seg',
            'torch',
            'mmseg',
            'mmengine',
            'mmcv',
            'timm',
            'abc',
            'typing',
        )
        file = None if library else getattr(sys.modules.get(base.__module__), '__file__', None)
        if file and os.path.isfile(file):
            files += source_files(file) if base.__module__.startswith(PREFIX) else _neighbours(file)
    return sorted(set(files))


def _neighbours(file):
    """Return the files of a module and of all loaded modules in its folder, which the module may import."""
    folder = os.path.dirname(os.path.abspath(file))
    module_files = [getattr(module, '__file__', None) for module in list(sys.modules.values())]
    return sorted(
        {
            path
            for path in (os.path.abspath(file), *module_files)  # torch names a file that does not exist
            if path and path.endswith('.py') and os.path.dirname(path) == folder and os.path.isfile(path)
        }
    )


def _module_digest(name, file):
    """Return the digest of a module and its neighbours; for a module in a package, of all files of the package."""
    if '.' not in name and not file.endswith('__init__.py'):
        return files_digest(_neighbours(file))
    top = getattr(sys.modules.get(name.split('.')[0]), '__file__', None) or file
    return files_digest(
        sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(top)), '**', '*.py'), recursive=True))
    )


def _class_of(registry, name):
    """Return a registered class; its name may have a scope ('mmseg.Resize')."""
    cls = registered(registry, name)
    if cls is None:
        raise UserError(
            f'unknown class {name!r}: no registry has it; name the module that registers it in custom_imports'
        )
    return cls


def _cached_digest(kind, config):
    """Return the digest of the file of weights in the libraries' caches; None for a missing file."""
    try:
        path = path_of(weights_from(kind, config))
    except UserError:
        return None
    return file_digest(path) if path and os.path.isfile(path) else None


def _read_json(path):
    """Return the contents of a JSON file; a file that cannot be read is a UserError."""
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}') from None


def _sha256(value):
    """Return the SHA-256 of a value's canonical JSON, as a hexadecimal string."""
    return hashlib.sha256(json.dumps(canonical(value), sort_keys=True).encode()).hexdigest()
