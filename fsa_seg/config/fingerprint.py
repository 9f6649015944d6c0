"""The fingerprint of a cell: what can change its number, in one list of resolved values.

The hash of a cell, the reuse of its result, what cells may share a pass and what `--cfg-options` changed all follow from
this list. Each entry has a level:

    number    another value is another cell: the entry is part of the hash
    source    code and files of weights behind the number: another value makes a result stale
    rounding  may move the last digits: a difference is said when a result is used again
    none      cannot change a number: paths, launcher, workers

Defaults are filled in, so that a default that is spelt out is the same cell; 3 and 3.0 are one value.
"""

import glob
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
from typing import NamedTuple

import open_clip
import timm
import torch
from mmengine.device import get_device
from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS

from fsa_seg.errors import UserError
from fsa_seg.methods import method_file, method_key
from fsa_seg.models.clip import CONFIG_FILE, _config_beside, _pretrained_tag
from fsa_seg.models.segmentor import configured_method, resolve_precision, vfms_by_role
from fsa_seg.models.text import templates_digest
from fsa_seg.models.weights import path_of, weights_from
from fsa_seg.ops.device import device_name, tf32_state
from fsa_seg.ops.feedback import FSA, TERMS
from fsa_seg.system.machine import FINGERPRINT_PACKAGES
from fsa_seg.system.paths import file_digest, files_digest, local_path, sources_digest

LEVELS = ('number', 'source', 'rounding', 'none')
WEIGHT_SUFFIXES = ('.json', '.safetensors', '.bin', '.pt', '.pth')
SPELT_OUT = ('method', 'backbone', 'vfm', 'feedback', 'refinement')  # settings whose own settings are entries
MODEL_LEVELS = dict(
    window_batch='rounding', compile='rounding', keep_scores='none', text_cache='none'
)  # others: number
DATASET_BLIND = (
    'data_root',
    'pipeline',
    'indices',
    'test_mode',
    'serialize_data',
    'lazy_init',
    'max_refetch',
    'backend_args',
    'metainfo',
)  # arguments of a data set that stand elsewhere in the list, or change nothing
METRIC_BLIND = ('root', 'collect_device', 'output_dir', 'prefix', 'field')
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
)  # in which the cells of one pass may differ
SHORT = 32  # characters of a value that a row of a table shows


class Entry(NamedTuple):
    """One value that may change a number.

    Attributes:
        key (str): the place in the composed config, where it has one, such as 'model.stride'.
        value: JSON-ready and resolved.
        level (str): of LEVELS.
    """

    key: str
    value: object
    level: str


class Data(NamedTuple):
    """The data of a cell, as it lies on disk.

    Attributes:
        names (list of str): the images of the split, in order.
        contents (dict): name -> digest of the image's bytes and the label image's values.
    """

    names: list
    contents: dict


def fingerprint(config, data=None):
    """Return the fingerprint of a composed config: a list of `Entry`, in a fixed order.

    Args:
        config: composed config, complete and checked.
        data (Data): None leaves the entries 'data.*' out.

    Raises:
        UserError: a class that the config names and no registry knows, or weights that are not where a path says.
    """
    entries = [*_model(config.model), *_dataset(config), *_runtime(config), *_sources(config)]
    if data is not None:
        contents = [data.contents[name] for name in data.names]
        entries += [
            Entry('data.split', _sha256(data.names), 'number'),
            Entry('data.contents', _sha256(contents), 'number'),
        ]
    return [Entry(entry.key, canonical(entry.value), entry.level) for entry in entries]


def with_files(entries, config):
    """Return a fingerprint with the digests of the weights that were downloaded meanwhile."""
    entries_now = [*_backbone(config.model.backbone)]
    entries_now += [entry for role, vfm in _vfms(config.model).items() for entry in _vfm(role, vfm)]
    now = {entry.key: entry for entry in entries_now}
    return [now[entry.key] if entry.value is None and entry.key.endswith('.file') else entry for entry in entries]


def cell_hash(entries, contents=True):
    """Return the SHA-256 of the entries of level 'number', as a hexadecimal string.

    Args:
        entries (list of Entry): of `fingerprint`.
        contents (bool): False leaves 'data.contents' out, and with it what the files hold.
    """
    return _sha256(
        [entry[:2] for entry in entries if entry.level == 'number' and (contents or entry.key != 'data.contents')]
    )


def sources_hash(entries):
    """Return the SHA-256 of the code behind a number: the entries of level 'source' but for the files of weights."""
    return _sha256([entry[:2] for entry in entries if entry[2] == 'source' and not entry[0].endswith('.file')])


def weights_files(entries):
    """Return the digests of the files of weights in the libraries' caches, None for a file that is not there yet."""
    return [entry[1] for entry in entries if entry[2] == 'source' and entry[0].endswith('.file')]


def differences(before, now, level):
    """Return what differs between two fingerprints at one level: a list of (key, value before, value now).

    A file of weights that one side does not know (None: it was not downloaded yet) is no difference.
    """
    old, new = ({entry[0]: entry[1] for entry in entries if entry[2] == level} for entries in (before, now))
    found = [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return [row for row in found if not row[0].endswith('.file') or None not in row[1:]]


def shared_key(entries):
    """Return what the cells of one pass over the data have in common, as a string: all but the last block and its words.

    A segmentor class of a user's own shares with no other cell, since it may do what a pass does in another way.
    """
    own = any(entry.key == 'segmentor' for entry in entries)
    return json.dumps([entry[:2] for entry in entries if own or not entry.key.startswith(MEMBER_KEYS)])


def shown(key, value):
    """Return 'key=value' for a row of a table; a long value is shown as the head of its digest."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'{key}={text if len(text) <= SHORT else _sha256(value)[:6]}'


def canonical(value):
    """Return a value as JSON has it, whole numbers that are floats as integers: 3.0 and 3 are one value."""
    if isinstance(value, dict):
        return {str(key): canonical(child) for key, child in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [canonical(child) for child in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def resolved(cls, config):
    """Return the arguments that a class is built with: those of its config (less `type`), and its constructors' defaults."""
    defaults = {}
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for parameter in parameters:
            if parameter.default is not parameter.empty:
                defaults.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return {**defaults, **{key: value for key, value in config.items() if key != 'type'}}


def versions():
    """Return the versions of the libraries that are installed, and of Python, CUDA and cuDNN."""
    found = dict(python='.'.join(map(str, sys.version_info[:3])))
    for package in FINGERPRINT_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return dict(
        found, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version() if torch.cuda.is_available() else None
    )


def _model(model):
    """Return the entries of a segmentor's config."""
    cls = MODELS.get(model.type)
    arguments, method = resolved(cls, model), configured_method(model)
    entries = []
    if method is not None:
        entries = [Entry('method.type', type(method).name, 'number')]
        entries += [Entry(f'method.{key}', value, 'number') for key, value in method.settings.items()]
    if not cls.__module__.startswith('fsa_seg.'):
        entries.append(Entry('segmentor', model.type, 'number'))
    arguments['precision'] = resolve_precision(arguments['precision'])
    if not arguments.get('window', 1):
        arguments['stride'] = None  # of a whole image
    for key, value in arguments.items():
        if key not in (*SPELT_OUT, 'models', 'members'):
            entries.append(Entry(f'model.{key}', value, MODEL_LEVELS.get(key, 'number')))
    entries += [entry for role, vfm in _vfms(model).items() for entry in _vfm(role, vfm)]
    entries += [
        *_settings_of('feedback', arguments.get('feedback')),
        *_settings_of('refinement', arguments.get('refinement')),
    ]
    return [*entries, Entry('prompts', templates_digest(), 'number'), *_backbone(model.backbone)]


def _vfms(model):
    """Return role -> config of the VFMs of a segmentor's config."""
    method = configured_method(model)
    return vfms_by_role(method, model.get('vfm')) if method is not None else {}


def _settings_of(key, config):
    """Return the entries of a feedback's or a refinement's config, or of none."""
    if not config:
        return [Entry(f'model.{key}', None, 'number')]
    cls = MODELS.get(config['type'])
    arguments = resolved(cls, config)
    if cls is FSA:
        terms = arguments['terms']
        arguments['terms'] = [term for term in TERMS if term in ((terms,) if isinstance(terms, str) else terms)]
    return [
        Entry(f'model.{key}', config['type'], 'number'),
        *(
            Entry(f'model.{key}.{name}', value, 'rounding' if name == 'block' else 'number')
            for name, value in arguments.items()
        ),
    ]


def _backbone(config):
    """Return the entries of CLIP's config: its architecture and its weights, whatever they are called."""
    model, checkpoint, seed = (config.get(key) for key in ('model', 'checkpoint', 'random_weights'))
    folder = model.removeprefix('local-dir:') if model.startswith('local-dir:') else None
    if folder:
        path = local_path(folder, 'folder of a CLIP model')
        architecture, files = (
            _read_json(os.path.join(path, CONFIG_FILE)),
            sorted(glob.glob(os.path.join(glob.escape(path), '*'))),
        )
        files = [file for file in files if file.endswith(WEIGHT_SUFFIXES)]
    else:
        architecture = open_clip.get_model_config(model)
        files = [local_path(checkpoint, f'checkpoint of the backbone {model}')] if checkpoint else []
        beside = [os.path.join(os.path.dirname(file), CONFIG_FILE) for file in files]
        files += [path for path in beside if os.path.isfile(path)]
    weights = (
        dict(random=seed)
        if seed is not None
        else dict(sha256=files_digest(files))
        if files
        else dict(tag=config.get('pretrained'))
    )
    known = (
        {}
        if folder
        else _pretrained_tag(model, config.get('pretrained')) or _config_beside(checkpoint).get('preprocess_cfg', {})
    )
    pixels = {
        key: config.get(key) or known.get(key) or (None if folder else own)
        for key, own in (('mean', open_clip.OPENAI_DATASET_MEAN), ('std', open_clip.OPENAI_DATASET_STD))
    }
    return [
        Entry('model.backbone.architecture', architecture, 'number'),
        Entry('model.backbone.weights', weights, 'number'),
        Entry('model.backbone.pixels', pixels, 'number'),
        Entry('model.backbone.file', _cached_digest('backbone', config) if 'tag' in weights else None, 'source'),
        Entry('model.backbone.cache_dir', config.get('cache_dir'), 'none'),
    ]


def _vfm(role, config):
    """Return the entries of the VFM of a role."""
    place = f'model.vfm.{role}'
    arguments = resolved(MODELS.get(config['type']), config)
    checkpoint, seed = arguments.pop('checkpoint', None), arguments.pop('random_weights', None)
    weights = dict(random=seed) if seed is not None else None
    if weights is None and checkpoint:
        weights = dict(sha256=file_digest(local_path(checkpoint, 'checkpoint of the VFM')))
    cached = _cached_digest('vfm', config) if weights is None else None
    if timm.is_model(arguments.get('model') or ''):  # timm's normalisation, where none is given
        cfg = timm.get_pretrained_cfg(arguments['model'], allow_unregistered=False)
        arguments.update((key, getattr(cfg, key)) for key in ('mean', 'std') if arguments.get(key, cfg) is None)
    return [
        Entry(place, config['type'], 'number'),
        Entry(f'{place}.weights', weights, 'number'),
        Entry(f'{place}.file', cached, 'source'),
        *(Entry(f'{place}.{key}', _content(value), 'number') for key, value in arguments.items()),
    ]


def _content(value):
    """Return a value, or the digest of the file that it names: a class of a user's own may read it."""
    return dict(sha256=file_digest(value)) if isinstance(value, str) and os.path.isfile(value) else value


def _dataset(config):
    """Return the entries of a data set's definition, its pipeline, the metric and the loop."""
    dataset = config.test_dataloader.dataset
    cls = DATASETS.get(dataset.type)
    classes = dataset.get('metainfo', {}).get('classes') or cls.METAINFO.get('classes')
    arguments = {key: value for key, value in resolved(cls, dataset).items() if key not in DATASET_BLIND}
    steps = [
        dict(resolved(_class_of(TRANSFORMS, step['type']), step), type=step['type'])
        for step in dataset.get('pipeline', ())
    ]
    metric = config.test_evaluator
    return [
        Entry('dataset.type', dataset.type, 'number'),
        Entry('dataset.classes', classes, 'number'),
        *(Entry(f'dataset.{key}', value, 'number') for key, value in arguments.items()),
        Entry('dataset.data_root', dataset.get('data_root'), 'none'),
        Entry('pipeline', steps, 'number'),
        Entry('metric.type', metric.type, 'number'),
        *(
            Entry(f'metric.{key}', value, 'number')
            for key, value in resolved(METRICS.get(metric.type), metric).items()
            if key not in METRIC_BLIND
        ),
        *(Entry(f'loop.{key}', value, 'number') for key, value in config.test_cfg.items()),
        Entry('hooks', config.get('custom_hooks', []), 'number'),
    ]


def _runtime(config):
    """Return the entries of where and how the cell runs."""
    blind = ('work_dir', 'launcher', 'workers', 'log_level', 'log_interval', 'default_hooks', 'custom_imports')
    return [
        Entry('batch_size', config.test_dataloader.get('batch_size'), 'rounding'),
        Entry('env', config.get('env_cfg', {}).get('cudnn_benchmark'), 'rounding'),
        Entry('device', device_name(get_device()), 'rounding'),
        Entry('tf32', tf32_state(), 'rounding'),
        *(Entry(f'version of {name}', version, 'rounding') for name, version in versions().items()),
        *(Entry(key, config.get(key), 'none') for key in blind),
    ]


def _sources(config):
    """Return the entries of the code behind a number: the package's, and that of every other class that the config names."""
    entries = [Entry('package', sources_digest(), 'source')]
    named = [
        (MODELS, config.model),
        *((MODELS, vfm) for vfm in _vfms(config.model).values()),
        (MODELS, config.model.get('feedback')),
        (MODELS, config.model.get('refinement')),
        (DATASETS, config.test_dataloader.dataset),
        (METRICS, config.test_evaluator),
        *((TRANSFORMS, step) for step in config.test_dataloader.dataset.get('pipeline', ())),
        *((HOOKS, hook) for hook in config.get('custom_hooks', [])),
    ]
    for registry, part in named:
        files = _files_of(_class_of(registry, part['type'])) if part else []
        if files:
            entries.append(Entry(f'class {part["type"]}', files_digest(files), 'source'))
    for name in (config.get('custom_imports') or {}).get('imports', []):
        file = getattr(sys.modules.get(name), '__file__', None)
        if file and not name.startswith('fsa_seg.'):
            entries.append(Entry(f'module {name}', _module_digest(name, file), 'source'))
    method = configured_method(config.model)
    path = method and method_file(method_key(type(method)))
    return entries + ([Entry('method file', file_digest(path), 'source')] if path else [])


def _files_of(cls):
    """Return the source files of a class, its bases and the modules beside them, but for the package's and the libraries'."""
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
        files += _neighbours(file) if file and os.path.isfile(file) else []
    return sorted(set(files))


def _neighbours(file):
    """Return a module's file and those of the loaded modules that lie in its folder, which it may have imported."""
    folder = os.path.dirname(os.path.abspath(file))
    loaded = [getattr(module, '__file__', None) for module in list(sys.modules.values())]
    return sorted(
        {
            path
            for path in (os.path.abspath(file), *loaded)  # torch names a file that is none
            if path and path.endswith('.py') and os.path.dirname(path) == folder and os.path.isfile(path)
        }
    )


def _module_digest(name, file):
    """Return the digest of a module and its neighbours, or, of a module in a package, of all files of that package."""
    if '.' not in name and not file.endswith('__init__.py'):
        return files_digest(_neighbours(file))
    top = getattr(sys.modules.get(name.split('.')[0]), '__file__', None) or file
    return files_digest(
        sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(top)), '**', '*.py'), recursive=True))
    )


def _class_of(registry, name):
    """Return a registered class, by its name with or without a scope."""
    cls = registry.get(name)
    if cls is None:
        raise UserError(
            f'unknown class {name!r}: no registry has it; name the module that registers it in custom_imports'
        )
    return cls


def _cached_digest(kind, config):
    """Return the digest of the file of weights in the libraries' caches, or None where there is none yet."""
    try:
        path = path_of(weights_from(kind, config))
    except UserError:
        return None
    return file_digest(path) if path and os.path.isfile(path) else None


def _read_json(path):
    try:
        with open(path, encoding='utf-8') as f:
            return json.load(f)
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as JSON: {error}') from None


def _sha256(value):
    return hashlib.sha256(json.dumps(canonical(value), sort_keys=True).encode()).hexdigest()
