"""Components of a config: a file configs/KIND/NAME.py with one dict; a new file is a new component.

Folders beside the repository's configs/ are named by the environment variable FSA_SEG_CONFIGS.
"""

import inspect
import json
import os
from collections.abc import Sequence

import torch
from mmengine import Config
from mmengine.config import ConfigDict
from mmseg.registry import DATASETS, MODELS

import fsa_seg.datasets.data_sets  # noqa: F401  (registers the data sets)
from fsa_seg.config.saved import from_json
from fsa_seg.datasets.images import WHITE
from fsa_seg.datasets.label_images import VOID, WIDE_VOID, read_label_map, void_label
from fsa_seg.datasets.palette import even_palette
from fsa_seg.errors import UserError, check_keys, one_of
from fsa_seg.methods import SPELLED_OUT, make_method, method_names
from fsa_seg.methods.base import Method, check_feedback
from fsa_seg.models.clip import BACKBONE_KEYS, load_clip
from fsa_seg.models.segmentor import register_method, vfms_by_role
from fsa_seg.models.text import read_classes
from fsa_seg.models.weights import Weights, weights_from
from fsa_seg.settings import BACKBONE, DATASET, MAPPING, PROTOCOL, TEXT, VFM, WORD_RULES, check_values, dict_of, list_of
from fsa_seg.system.paths import CONFIGS, TOY_MARK, component_files, find_root, local_path

KINDS = dict(
    dataset='datasets',
    method='methods',
    backbone='backbones',
    vfm='vfms',
    feedback='feedback',
    protocol='protocols',
    suite='suites',
)
REQUIRED = dict(
    dataset=('name', 'type', 'data_root', 'data_prefix'),
    backbone=('name', 'model'),
    vfm=('name', 'type'),
    feedback=('name', 'type'),
    protocol=('name', 'default', 'datasets'),
    suite=('name', 'groups'),
)
# what a backbone or a VFM component says about itself, beside how it is built
ABOUT = ('name', 'fsa', 'toy', 'licence', 'custom_imports')
# the same of a data set, and how its files are read
DATA_ABOUT = ('name', 'images', 'custom_imports', 'label_map', 'image_max')
RULES = dict(
    dataset=DATASET,
    backbone=BACKBONE,
    vfm=VFM,
    protocol=dict(name=TEXT, default=MAPPING, datasets=dict_of(MAPPING)),
    feedback=dict(name=TEXT, type=TEXT),
    suite=dict(name=TEXT, groups=list_of(MAPPING)),
)
WEIGHT_KINDS = ('backbone', 'vfm')  # components that have weights
DEFAULTS = dict(words={}, refinement=None)  # settings that a protocol may leave out
SETTINGS = ('logit_scale', 'short', 'window', 'stride', 'prob_thd', 'area_thd', *DEFAULTS)


def component_names(kind):
    """Return the names of all components of a kind ('dataset', 'method', ...), sorted."""
    if not os.path.isdir(CONFIGS):
        raise UserError(
            f'{CONFIGS} is missing: run from a clone of the repository (pip install -e), which has configs/'
        )
    return method_names() if kind == 'method' else sorted(component_files(KINDS[kind]))


def load_component(kind, name):
    """Return the component's dict, given its name or the path of its file, or spelt out (a method, settings of FSA, a data set).

    A method is a `Method`, see `load_method`. Settings of FSA may have a `name`; a data set that is spelt out has all that
    its file would have.

    Raises:
        UserError: no such component (the nearest name is given), or a file that lacks the kind's dict or one of its keys.
    """
    if kind == 'method':
        return load_method(name)
    if isinstance(name, dict):
        return _spelt_out(kind, name)
    if str(name).endswith(('.py', '.json')) or os.sep in str(name):
        path = local_path(name, f'{kind} config')
    else:
        path = component_files(KINDS[kind])[one_of(name, component_names(kind), kind)]
    config = load_file(path)
    component = config.get(kind)
    if not isinstance(component, dict):
        raise UserError(f'{path} has no dict {kind!r}; see the others in {os.path.join(CONFIGS, KINDS[kind])}')
    if config.get('custom_imports'):
        component.custom_imports = config.custom_imports  # a composed config needs them too
    return _checked(component, kind, path)


def load_method(method: str | dict | Method) -> Method:
    """Return a method, whose `name` and `row_title` tell its settings.

    Args:
        method: a name, the path of a file, dict(type=NAME, key=value) or dict(attention=..., residual=..., mlp=...). A dict
            may have a `name` and a `protocol` of its own.

    Raises:
        UserError: as of `fsa_seg.methods.make_method`.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, dict):
        path = str(method)
        return make_method(local_path(path, 'method file') if path.endswith('.py') else path)
    settings = dict(method)
    name, protocol = settings.pop('name', None), settings.pop('protocol', None)
    made = make_method(settings)
    changed = [f'{key}={value}' for key, value in settings.items() if key != 'type']
    if 'type' in settings and changed:
        made.row_title = name or ' '.join([made.title, *changed])
    made.name = name or (' '.join([made.name, *changed]) if 'type' in settings else made.row_title)
    if name:
        made.row_title = name
    if protocol:
        made.protocol = protocol
    return made


def load_file(path, modules=()):
    """Return the mmengine config in a file, or in a result's JSON, which is read as data; a bad one is a UserError.

    Args:
        path (str): a result ends in .json; any other file is a config, a Python program that is run.
        modules (sequence of str): modules of a user's own that a result's config may import.
    """
    try:
        if path.endswith('.json'):
            with open(path, encoding='utf-8') as f:
                return from_json(json.load(f)['config'], path, modules)
        return Config.fromfile(path, format_python_code=False)
    except UserError:
        raise
    except Exception as error:  # the file is executed: anything can be raised
        raise UserError(f'the config {path} cannot be read: {type(error).__name__}: {error}') from error


def load_components(method, feedback, backbone, vfm):
    """Return the components of a model: `method`, `backbone`, `feedback` (None without one), and `vfm`, a dict of role -> component.

    Args:
        method (str or dict): see `load_method`.
        backbone (str): name or file of a component.
        vfm (str or dict): of the method's only role: name or file of a component; of several: 'role=name,role=name', or a dict.
        feedback (None, bool, str or dict): off; FSA's component; name or file of a component; or FSA's component with these settings.

    Raises:
        UserError: as of `load_component`; a role without a VFM, or FSA on a method that has no attention map.
    """
    method, backbone = load_method(method), load_component('backbone', backbone)
    feedback = (
        load_component('feedback', 'fsa' if feedback is True else feedback) if feedback not in (None, False) else None
    )
    check_feedback(method, feedback)
    names = vfms_by_role(method, _vfm_names(method, vfm))
    return dict(
        method=method,
        backbone=backbone,
        feedback=feedback,
        vfm={role: load_component('vfm', vfm) for role, vfm in names.items()},
    )


def component_titles(components) -> dict[str, str | None]:
    """Return what a cell calls its components: kind -> name, None for a component that it does not have."""
    vfms = [vfm.name for vfm in components['vfm'].values()]
    several = ','.join(f'{role}={vfm.name}' for role, vfm in components['vfm'].items())
    return dict(
        method=components['method'].name,
        title=components['method'].row_title,
        backbone=components['backbone'].name,
        feedback=components['feedback'] and components['feedback'].name,
        vfm=several if len(vfms) > 1 else vfms[0] if vfms else None,
    )


def _vfm_names(method: Method, vfm) -> dict:
    """Return role -> name of a VFM component, as it was given."""
    if not method.roles:
        return {}
    if isinstance(vfm, str) and '=' in vfm:
        return dict(pair.split('=', 1) for pair in vfm.split(',') if '=' in pair)
    if isinstance(vfm, str) and len(method.roles) == 1:
        return dict.fromkeys(method.roles, vfm)
    return dict(vfm) if isinstance(vfm, dict) else {}


def segmentor_config(method: Method) -> dict:
    """Return `type` and `method` of a segmentor's config."""
    title = register_method(type(method))
    if type(method).name == SPELLED_OUT:
        return dict(type='TrainingFreeSegmentor', method=dict(type=SPELLED_OUT, **method.settings))
    return dict(type=title, method=dict(method.settings))


def feedback_of(components):
    """Return the feedback's config, or None: λ is the feedback component's own, or else the VFM's, or else the backbone's.

    Args:
        components (dict): of `load_components`.
    """
    if not components['feedback']:
        return None
    own = {key: value for key, value in components['feedback'].items() if key not in ('name', 'custom_imports')}
    of_vfms = {key: value for vfm in components['vfm'].values() for key, value in vfm.get('fsa', {}).items()}
    return {**components['backbone'].get('fsa', {}), **of_vfms, **own}


def load_protocol(name, components):
    """Return a protocol, given its name or file, or 'own': that of the method's publication, with FSA or without."""
    if name == 'own':
        method = components['method']
        name = components['feedback'] and method.fsa_protocol or method.protocol
    return load_component('protocol', name)


def protocol_settings(protocol, dataset):
    """Return a protocol's settings for a data set: its default, replaced by what it says of that data set.

    Args:
        protocol (dict): of a component file: `name`, `default`, `datasets`.
        dataset (str): name; one that the protocol does not know gets the default and its class names as words.

    Raises:
        UserError: a key that is no setting, or a setting that is missing.
    """
    settings = {**DEFAULTS, **protocol['default'], **protocol['datasets'].get(dataset, {})}
    where = f'protocol {protocol["name"]!r} for {dataset!r}'
    _check_protocol(settings, where)
    missing = [key for key in SETTINGS if key not in settings]
    if missing:
        raise UserError(f'protocol {protocol["name"]!r} has no {", ".join(missing)} for {dataset!r}')
    if 0 < settings['window'] < settings['stride']:
        raise UserError(
            f'{where}: stride is {settings["stride"]}; it has to be at most the window, {settings["window"]}'
        )
    return settings


def class_names(dataset):
    """Return the class names, in label order, of a data set's config."""
    name = one_of(dataset['type'], DATASETS.module_dict, 'data set class')
    classes = dataset.get('metainfo', {}).get('classes') or DATASETS.get(name).METAINFO.get('classes')
    if not classes:
        raise UserError(
            f'the data set class {name} has no class names; give metainfo=dict(classes=[...], palette=[...])'
        )
    return classes


def with_classes(dataset, data_root):
    """Return a data set's component; its `classes` and `label_map` (files below its folder) become what they hold.

    Args:
        dataset (dict): of `load_component`.
        data_root (str): the folder that all data sets' folders lie in.
    """
    folder = find_root(os.path.join(data_root, dataset['data_root']))
    if dataset.get('label_map') is not None:
        dataset = ConfigDict(dataset, label_map=read_label_map(dataset['label_map'], folder))
    if 'classes' not in dataset:
        return dataset
    path = os.path.join(folder, dataset['classes'])
    if not os.path.isfile(path):
        raise UserError(
            f'the file {path} does not exist, from which the data set {dataset["name"]!r} has its classes: give '
            'the right --data-root; for those that ship with the suite, tools/prepare_dataset.py writes it '
            '(data/README.md)'
        )
    names = read_classes(path, shipped('dataset', dataset['name']))
    component = ConfigDict(dataset, metainfo=dict(classes=names, palette=even_palette(len(names))))
    del component['classes']
    return component


def dataset_config(component, data_root):
    """Return what a data set is built from: its component (of `with_classes`) without what it says about itself.

    Where 255 is a label, `ignore_index` is 65535 unless the component says another.

    Raises:
        UserError: an `image_max` that is no value of white.

    Args:
        component (dict), data_root (str): as of `with_classes`.
    """
    config = {key: value for key, value in component.items() if key not in DATA_ABOUT}
    if void_label(len(class_names(component)), component.get('reduce_zero_label', False)) != VOID:
        config.setdefault('ignore_index', WIDE_VOID)
    white = component.get('image_max')
    if white is not None and (type(white) is not int or not 255 <= white <= WHITE):
        raise UserError(
            f'image_max is {white!r}; it has to be a whole number from 255 to {WHITE}, the value of white '
            'in 16-bit files'
        )
    return dict(config, data_root=os.path.join(data_root, component['data_root']))


def shipped(kind, name):
    """Return whether a component of this name ships with the suite."""
    return os.path.isfile(os.path.join(CONFIGS, KINDS[kind], f'{name}.py'))


def known_images(name, stated, folder):
    """Return the number of images of a data set, or several, or None where nothing is known.

    A data set that ships keeps its number, whatever a config of its name states. Drawn scenes have none.

    Args:
        name (str): of the data set.
        stated (None, int or list of int): what its config states.
        folder (str): the data set's, or the data root.
    """
    folder = os.path.abspath(folder)
    while not os.path.exists(os.path.join(folder, TOY_MARK)):
        if os.path.dirname(folder) == folder:
            if not shipped('dataset', name):
                return stated
            return load_component('dataset', os.path.join(CONFIGS, KINDS['dataset'], f'{name}.py')).images
        folder = os.path.dirname(folder)
    return None


def component_config(component, random_weights=None):
    """Return what a backbone or a VFM is built from: its component without what the component says about itself."""
    seed = {} if random_weights is None else dict(random_weights=random_weights)
    return dict({key: value for key, value in component.items() if key not in ABOUT}, **seed)


def check_constructor(config, registry, where):
    """Raise a UserError if `config` names no class of the registry, or has a key that its constructor does not take."""
    name = one_of(config.get('type'), registry.module_dict, f'class in {where}')
    allowed = set()
    for cls in registry.get(name).__mro__:
        if '__init__' not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        allowed |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    check_keys({key: value for key, value in config.items() if key != 'type'}, allowed, where)


def _check_protocol(settings, where):
    """Raise a UserError if a protocol's settings, or its words' rules, have a key that is none, or a wrong value."""
    check_keys(settings, SETTINGS, where)
    check_values(settings, PROTOCOL, where)
    check_keys(settings.get('words', {}), WORD_RULES, f'words of {where}')
    check_values(settings.get('words', {}), WORD_RULES, f'words of {where}')


def _checked(component, kind, path):
    """Return a component of a file; keys that it cannot have are UserErrors."""
    if kind == 'protocol':
        check_keys(component, (*REQUIRED[kind], 'custom_imports'), f'{kind} in {path}')
    missing = [key for key in REQUIRED[kind] if key not in component]
    if missing:
        raise UserError(f'{kind} in {path} lacks the keys {", ".join(missing)}')
    check_values(component, RULES[kind], f'{kind} in {path}')
    for settings in (component.default, *component.datasets.values()) if kind == 'protocol' else ():
        _check_protocol(settings, f'protocol in {path}')
    if kind in ('backbone', 'vfm') and 'random_weights' in component:
        raise UserError(
            f'{kind} in {path}: random_weights is no key of a component; use --random-weights SEED, which marks the result'
        )
    if kind == 'backbone':
        check_keys(component, (*ABOUT, *BACKBONE_KEYS), f'{kind} in {path}')
    if kind == 'vfm':
        check_constructor(component_config(component), MODELS, f'{kind} in {path}')
    return component


def _spelt_out(kind, given):
    if kind == 'dataset':
        return _checked(ConfigDict(given), kind, 'the given dict')
    if kind == 'feedback':
        given = ConfigDict(given)
        own = given.pop('name', None)
        settings = ' '.join(
            f'{key}={"+".join(map(str, value)) if isinstance(value, (list, tuple)) else value}'
            for key, value in given.items()
        )
        return ConfigDict(load_component('feedback', 'fsa'), name=own or f'fsa {settings}'.strip(), **given)
    raise UserError(
        f'{kind} {given}: give a name or a file; only methods, settings of FSA and data sets can be spelt out'
    )


def all_weights() -> list[Weights]:
    """Return the `Weights` of every backbone and VFM component."""
    return [weights_of(kind, name) for kind in WEIGHT_KINDS for name in component_names(kind)]


def find_weights(names: Sequence[str]) -> list[Weights]:
    """Return the `Weights` of components, by the components' names; an unknown name is a UserError."""
    candidates = all_weights()
    for name in names:
        one_of(name, {weights.name for weights in candidates}, 'backbone or VFM')
    return [weights for weights in candidates if weights.name in names]


def weights_of(kind: str, name: str) -> Weights:
    """Return the `Weights` of a component.

    Args:
        kind: 'backbone' or 'vfm'.
        name: the component's name or file.
    """
    return weights_from(kind, load_component(kind, name))


def parameters(kind: str, name: str) -> int:
    """Return the number of a component's parameters; no memory is taken for them."""
    component = load_component(kind, name)
    with torch.device('meta'):
        model = (
            load_clip(**component_config(component, 0))[0]
            if kind == 'backbone'
            else MODELS.build(component_config(component, 0))
        )
    return sum(parameter.numel() for parameter in model.parameters())
