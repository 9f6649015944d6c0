"""Components of a config: a component is a file configs/KIND/NAME.py with one dict.

A new file is a new component. The environment variable FSA_SEG_CONFIGS names further folders of components.
"""

import copy
import functools
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine import Config
from mmengine.config import ConfigDict
from mmengine.registry import Registry
from mmseg.registry import DATASETS, MODELS

import fsa_seg.datasets.data_sets  # noqa: F401  (registers the data sets)
from fsa_seg.config.own_classes import defined_classes, load_module
from fsa_seg.config.saved import from_json
from fsa_seg.datasets.images import WHITE
from fsa_seg.datasets.label_images import VOID, WIDE_VOID, read_label_map, void_label
from fsa_seg.datasets.palette import even_palette
from fsa_seg.errors import UserError, check_keys, constructor_keys, one_line, one_of
from fsa_seg.methods import SPELLED_OUT, make_method, method_key, method_names
from fsa_seg.methods.base import Method, check_feedback, sees_windows
from fsa_seg.models.clip import BACKBONE_KEYS, load_clip
from fsa_seg.models.segmentor import check_built, feedback_class, register_method, vfm_config, vfms_by_role
from fsa_seg.models.text import read_classes
from fsa_seg.models.weights import Weights, weights_from
from fsa_seg.ops.feedback import FSA
from fsa_seg.ops.sfr import SFRAndFSA
from fsa_seg.settings import BACKBONE, DATASET, MAPPING, PROTOCOL, TEXT, VFM, WORD_RULES, check_values, dict_of, list_of
from fsa_seg.system.paths import CONFIGS, component_files, file_state, find_root, is_drawn, local_path, own_hint

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
# keys of a backbone or a VFM component that its class does not take
ABOUT = ('name', 'fsa', 'toy', 'licence', 'custom_imports')
# keys of a data set's component that its class does not take
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
FEEDBACKS = dict(FSA='fsa', SFR='sfr', SFRAndFSA='sfr+fsa')  # class -> component that ships
WHOLE = '@image'  # behind a VFM's name: it sees the whole image, and its features are cut for each window
NAMES = 'names'  # in place of a protocol's words: the plain class names
DEFAULTS = dict(fit=None, words={}, refinement=None, method={}, feedback={})  # settings that a protocol may leave out
SETTINGS = ('logit_scale', 'short', 'window', 'stride', 'prob_thd', 'area_thd', *DEFAULTS)


def component_names(kind: str) -> list[str]:
    """Return the names of all components of a kind ('dataset', 'method', ...), sorted."""
    _check_folder()
    return method_names() if kind == 'method' else sorted(component_files(KINDS[kind]))


def _check_folder():
    """Raise a UserError if the components that ship are missing."""
    if not os.path.isdir(CONFIGS):
        raise UserError(
            f'{CONFIGS} is missing, which ships with the package: install the package again, or '
            'run from a whole clone of the repository'
        )


def load_component(kind: str, name: str | dict | Method, copied: bool = True) -> ConfigDict | Method:
    """Return a component's dict; of the kind 'method' a `Method`, see `load_method`.

    Args:
        kind: of KINDS.
        name: name of the component, or path of its file. A VFM's name with '@image' behind it is the VFM that sees the
            whole image once. A method, FSA's settings (with or without a `name`) and a data
            set can be a dict: a data set's dict has the keys that its file would have.
        copied: whether the dict is the caller's own. Without a copy, which takes time, nothing may change the dict: all
            cells share that of a component that ships.

    Raises:
        UserError: no such component (the message gives the nearest name), or the file lacks the dict or a key.
    """
    if kind == 'method':
        return load_method(name)
    component = _component(kind, name)
    return own_copy(component, ConfigDict) if copied else component


def _component(kind, name):
    """Return a component's dict, see `load_component`."""
    if isinstance(name, dict):
        return _spelt_out(kind, name)
    if kind == 'vfm' and str(name).endswith(WHOLE):
        component = _component(kind, str(name).removesuffix(WHOLE))
        return ConfigDict(component, name=component.name + WHOLE, scope='image')
    if str(name).endswith(('.py', '.json')) or os.sep in str(name):
        path = local_path(name, f'{kind} config')
    else:
        _check_folder()
        files = component_files(KINDS[kind])
        path = files[one_of(name, files, kind, own_hint())]
    states = _shipped_states(path)
    return _shipped_component(kind, states) if states else _read_component(kind, path)


@functools.lru_cache(256)
def _shipped_component(kind, states):
    """Return the dict of a component that ships, from files in these states."""
    return _read_component(kind, states[0][0])


def _read_component(kind, path):
    """Return the dict of a component's file, checked."""
    config = load_file(path)
    component = config.get(kind)
    if not isinstance(component, dict):
        raise UserError(f'{path} has no dict {kind!r}; see the files in {os.path.join(CONFIGS, KINDS[kind])}')
    if config.get('custom_imports'):
        component.custom_imports = config.custom_imports  # a composed config imports the modules too
    component = _checked(component, kind, path)
    _check_name(component.get('name'), kind, path)
    return component


def own_copy(value: Any, kind: type[dict] = dict) -> Any:
    """Return a value whose dicts, lists and tuples are copies, the dicts of type `kind`.

    The copy is much faster than `copy.deepcopy` and than `ConfigDict`, which goes through every list twice.
    """
    if isinstance(value, dict):
        copied = kind()
        dict.update(copied, {key: own_copy(child, kind) for key, child in dict.items(value)})
        return copied
    if type(value) not in (list, tuple):
        return value
    return type(value)([child if type(child) is str else own_copy(child, kind) for child in value])


def _check_name(name, kind, path):
    """Raise a UserError if a component's name is that of another file that ships, as a name from `_base_` is."""
    stem = os.path.splitext(os.path.basename(path))[0]
    if kind != 'dataset' and name != stem and shipped(kind, name):
        raise UserError(
            f'{path}: its name is {name!r}, which is the name of a {kind} that ships: give name={stem!r}, or its rows '
            'would pass for those of the other'
        )


def load_method(method: str | dict | Method) -> Method:
    """Return a method; its `name` and `row_title` tell its settings.

    Args:
        method: a name, the path of a file, or a dict. The dict is dict(type=NAME, key=value) or dict(attention=...,
            residual=..., mlp=...), and may have a `name` and a `protocol`.

    Raises:
        UserError: as of `fsa_seg.methods.make_method`.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, dict):
        path = str(method)
        is_file = path.endswith('.py') and not path.partition('+')[0].isidentifier()
        return make_method(local_path(path, 'method file') if is_file else path)
    settings = dict(method)
    name, protocol = settings.pop('name', None), settings.pop('protocol', None)
    instance = make_method(settings)
    changed = [
        f'{key}={value.get("type", value) if isinstance(value, dict) else value}'
        for key, value in settings.items()
        if key not in ('type', 'stage')
    ]
    if 'type' in settings and changed and type(instance).row_title is Method.row_title:
        instance.row_title = ' '.join([instance.row_title, *changed])
    instance.name = name or (' '.join([instance.name, *changed]) if 'type' in settings else instance.row_title)
    if name:
        instance.row_title = name
    if protocol:
        instance.protocol = protocol
    return instance


def load_file(path: str, modules: Sequence[str] = (), copied: bool = True) -> Config:
    """Return the mmengine config of a file. A result's JSON is data: no code runs from it.

    A file that defines classes is a Python module, without mmengine's `_base_`; its dicts are the config.

    Args:
        path: a result ends in .json; any other file is a config, a Python program that runs here.
        modules: names of a user's modules that a result's config may import.
        copied: whether the config is the caller's own, see `load_component`.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if path.endswith('.json'):
            with open(path, encoding='utf-8') as f:
                return from_json(json.load(f)['config'], path, modules)
        states = _shipped_states(path)
        if not states:
            return _program(path)
        return copy.deepcopy(_shipped_config(states)) if copied else _shipped_config(states)
    except UserError:
        raise
    except FileNotFoundError as error:
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        base = os.path.join(CONFIGS, folder, os.path.basename(error.filename or ''))
        mend = f'; the file that ships is _base_ = {base!r}' if os.path.isfile(base) else ''
        raise UserError(f'the config {path} cannot be read: {one_line(error)}{mend}') from None
    except RecursionError:
        raise UserError(f'the config {path} cannot be read: its _base_ files name each other in a cycle') from None
    except Exception as error:  # the file is a program, and can raise any error
        raise UserError(f'the config {path} cannot be read: {one_line(error)}') from error


def _program(path):
    """Return the config of a program."""
    return load_module(path) if defined_classes(path) else Config.fromfile(path, format_python_code=False)


@functools.lru_cache(256)
def _shipped_config(states):
    """Return the config of a program that ships, from files in these states."""
    return _program(states[0][0])


def _shipped_states(path: str) -> tuple[tuple, ...]:
    """Return the states of a program that ships and of its `_base_` files: (path, state) of each.

    While they are equal, so is the program's config, which a process makes once. Of any other program (a user's, or one
    that imports or defines something) there are none: it runs at each call.
    """
    if not os.path.abspath(path).startswith(os.path.join(CONFIGS, '')):
        return ()
    try:
        own = path, file_state(path)
    except OSError:
        return ()
    base = _base_of(*own)
    if base is None:
        return ()
    bases = _shipped_states(base) if base else ()
    return (own, *bases) if bases or not base else ()


@functools.lru_cache(256)
def _base_of(path, state):
    """Return the `_base_` file of a program, '' without one; None if the program depends on more than files' text."""
    with open(path, encoding='utf-8') as f:
        text = f.read()
    bases = re.findall(r"^_base_ = '(.+)'$", text, re.M)
    others = re.findall(r'^(?:custom_imports|class|import|from|_base_)\b', text, re.M)
    if others != ['_base_'] * len(bases) or len(bases) > 1:
        return None
    return os.path.join(os.path.dirname(path), bases[0]) if bases else ''


def load_components(
    method: str | dict | Method,
    feedback: bool | str | dict | None,
    backbone: str | dict,
    vfm: str | dict[str, str] | None,
) -> dict:
    """Return the components of a model: dict(method, feedback, backbone, vfm).

    `feedback` is None for the bare method. `vfm` is a dict of role -> component.

    Args:
        method: see `load_method`.
        feedback: None or False for the bare method; True for FSA; name or file of a component; or FSA's settings.
        backbone: name or file of a component.
        vfm: name or file of a component, for all roles of the method; 'role=name,role=name' or a dict for some of them.
            A role without a VFM has the published one.

    Raises:
        UserError: as of `load_component`; a role lacks its VFM, or the method has no attention map for FSA.
    """
    method, backbone = load_method(method), load_component('backbone', backbone, copied=False)
    feedback = (
        load_component('feedback', 'fsa' if feedback is True else feedback, copied=False)
        if feedback not in (None, False, 'none')
        else None
    )
    check_feedback(method, feedback_class(feedback))
    names = vfms_by_role(method, _vfm_names(method, vfm))
    return dict(
        method=method,
        backbone=backbone,
        feedback=feedback,
        vfm={role: load_component('vfm', vfm, copied=False) for role, vfm in names.items()},
    )


def component_titles(components: dict) -> dict[str, str | None]:
    """Return the names of a cell's components: kind -> name; None without the component.

    Args:
        components: of `load_components`.
    """
    vfms = [vfm.name for vfm in components['vfm'].values()]
    roles_and_names = ','.join(f'{role}={vfm.name}' for role, vfm in components['vfm'].items())
    alike = len(set(vfms)) == 1
    return dict(
        method=components['method'].name,
        title=components['method'].row_title,
        backbone=components['backbone'].name,
        feedback=components['feedback'] and components['feedback'].name,
        vfm=vfms[0] if alike else roles_and_names or None,
    )


def has_toy_models(components: dict) -> bool:
    """Return whether a backbone or VFM of `load_components` knows the toy world alone."""
    return any(component.get('toy', False) for component in (components['backbone'], *components['vfm'].values()))


def _vfm_names(method: Method, vfm) -> dict:
    """Return role -> name of a VFM component, from `vfm` of `load_components`."""
    if not method.roles:
        return {}
    published = method.published_vfms()
    if not isinstance(vfm, str):
        return {**published, **(vfm or {})}
    if '=' not in vfm or os.path.exists(vfm):
        return dict.fromkeys(method.roles, vfm)
    pairs = [pair.split('=', 1) for pair in vfm.split(',')]
    if any(len(pair) != 2 or not all(pair) for pair in pairs) or len(dict(pairs)) < len(pairs):
        raise UserError(f'the VFMs {vfm!r}: give role=name,role=name, each role once')
    return {**published, **dict(pairs)}


def segmentor_config(method: Method, published: Mapping[str, Mapping] | None = None) -> dict:
    """Return `type` and `method` of a segmentor's config, and its `stage` if there is one.

    Args:
        method: of `load_method`; settings that were given with its name come first.
        published: a protocol's `method`: name of a method -> its settings.
    """
    title, name = register_method(type(method)), type(method).name
    stage = {}
    if method.stage:
        stage = dict(stage=dict(type=method_key(type(method.stage)), **_published_settings(method.stage, published)))
    if name == SPELLED_OUT:
        return dict(type='TrainingFreeSegmentor', method=dict(type=SPELLED_OUT, **method.settings), **stage)
    return dict(type=title, method=_published_settings(method, published), **stage)


def _published_settings(method: Method, published: Mapping[str, Mapping] | None) -> dict:
    """Return a method's settings under a protocol, see `segmentor_config`."""
    name = type(method).name
    if not published or name not in published or method_key(type(method)) != name:  # a user's file of the name
        return dict(method.settings)
    defaults = type(method)().settings
    given = {key: value for key, value in method.settings.items() if value != defaults[key]}
    return dict(type(method)(**{**method.settings, **published[name], **given, **method.given}).settings)


def feedback_of(components: dict, published: Mapping[str, Mapping] | None = None) -> dict | None:
    """Return the feedback's config; None for the bare method.

    Of a setting such as λ, the feedback component's value comes first, then the protocol's, then of FSA the VFM's, then
    the backbone's.

    Args:
        components: of `load_components`.
        published: a protocol's `feedback`: class of a feedback -> its settings.
    """
    if not components['feedback']:
        return None
    settings = {key: value for key, value in components['feedback'].items() if key not in ('name', 'custom_imports')}
    cls, published = feedback_class(settings), published or {}
    own: dict = {}
    for name in (base.__name__ for base in reversed(cls.__mro__)) if inspect.isclass(cls) else ():
        if name == SFRAndFSA.__name__:
            own.update({f'sfr_{key}': value for key, value in published.get('SFR', {}).items()})
        own.update(published.get(name, {}))
    if not _is_fsa(components):
        return own_copy({**own, **settings})
    method = components['method']
    others = [role for role, scope in method.roles.items() if not sees_windows(scope)]
    others += method.stage.stage_roles if method.stage else []  # of which FSA's map is not made
    vfms = [vfm for role, vfm in components['vfm'].items() if role not in others]
    vfm_settings = {key: value for vfm in vfms for key, value in vfm.get('fsa', {}).items()}
    return own_copy({**components['backbone'].get('fsa', {}), **vfm_settings, **own, **settings})


def _is_fsa(components: dict) -> bool:
    """Return whether the feedback is FSA, or FSA after SFR."""
    cls = feedback_class(components['feedback'])
    return inspect.isclass(cls) and issubclass(cls, FSA)


def load_protocol(name: str, components: dict) -> ConfigDict:
    """Return a protocol by its name or file; 'own' is the protocol of the method's publication.

    Args:
        name: name, file or 'own'. With FSA, 'own' is the method's protocol for FSA, if the method has such a protocol.
        components: of `load_components`.
    """
    if name == 'own':
        method = components['method']
        name = _is_fsa(components) and method.fsa_protocol or method.protocol
    return load_component('protocol', name, copied=False)


def protocol_settings(protocol: dict, dataset: str | None) -> dict:
    """Return a protocol's settings for a data set: the default, replaced by the data set's entries.

    Args:
        protocol: of a component file: `name`, `default`, `datasets`.
        dataset: name; None, or a data set without entries, has the default, whose words are the class names.

    Raises:
        UserError: an unknown key, a missing setting or a wrong value.
    """
    default, own = protocol['default'], protocol['datasets'].get(dataset, {})
    settings = own_copy({**DEFAULTS, **default, **own})
    for key in ('method', 'feedback'):  # a data set replaces single settings of a part
        parts = {**default.get(key, {}), **own.get(key, {})}
        parts = {part: {**default.get(key, {}).get(part, {}), **values} for part, values in parts.items()}
        settings[key] = own_copy(parts)
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


def class_names(dataset: dict) -> Sequence[str]:
    """Return the class names, in label order, of a data set's config."""
    name = one_of(dataset['type'], DATASETS.module_dict, 'data set class')
    classes = dataset.get('metainfo', {}).get('classes') or DATASETS.module_dict[name].METAINFO.get('classes')
    if not classes:
        raise UserError(
            f'the data set class {name} has no class names; give metainfo=dict(classes=[...], palette=[...])'
        )
    return classes


def with_classes(dataset: ConfigDict, data_root: str) -> ConfigDict:
    """Return a data set's component with the contents of its files `classes` and `label_map`.

    Both files lie below the data set's folder. The class names go into `metainfo`.

    Args:
        dataset: of `load_component`.
        data_root: folder that holds all data sets' folders.
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
            'the right --data-root; for a data set that ships with the suite, fsa-seg prepare writes the '
            'file (data/README.md)'
        )
    names = read_classes(path, shipped('dataset', dataset['name']))
    component = ConfigDict(dataset, metainfo=dict(classes=names, palette=even_palette(len(names))))
    del component['classes']
    return component


def dataset_config(component: dict, data_root: str) -> dict:
    """Return the config that builds a data set: its component without the keys of DATA_ABOUT.

    If 255 is a label, `ignore_index` is 65535, unless the component sets another value.

    Args:
        component: of `with_classes`.
        data_root: as of `with_classes`.

    Raises:
        UserError: `image_max` cannot be the value of white.
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


def shipped(kind: str, name: str) -> bool:
    """Return whether a component of this name ships with the suite."""
    return os.path.isfile(os.path.join(CONFIGS, KINDS[kind], f'{name}.py'))


def known_images(name: str, stated: int | list[int] | None, folder: str) -> int | list[int] | None:
    """Return the number of images that a data set must have, a list of numbers, or None for any number.

    For a data set that ships, the number of its file counts, whatever `stated` is. Drawn scenes may have any number.

    Args:
        name: the data set's name.
        stated: the number in the data set's config.
        folder: the data set's folder, or the data root.
    """
    if is_drawn(folder):
        return None
    if not shipped('dataset', name):
        return stated
    return load_component('dataset', os.path.join(CONFIGS, KINDS['dataset'], f'{name}.py'), copied=False).images


def component_config(component: dict, random_weights: int | None = None) -> dict:
    """Return the config that builds a backbone or a VFM: its component without the keys of ABOUT.

    Args:
        component: of `load_component`.
        random_weights: seed of random weights in place of trained weights.
    """
    seed = {} if random_weights is None else dict(random_weights=random_weights)
    return dict({key: own_copy(value) for key, value in component.items() if key not in ABOUT}, **seed)


def check_constructor(config: Mapping, registry: Registry, where: str) -> None:
    """Raise a UserError if `config` names no class of the registry, or has a key that the class does not take.

    Args:
        config: `type` and arguments of the class.
        registry: the registry of the class.
        where: names the config in the message.
    """
    hint = '; a class of your own is registered by its file in a folder of FSA_SEG_CONFIGS, or by custom_imports'
    name = one_of(config.get('type'), registry.module_dict, f'class in {where}', hint)
    check_keys([key for key in config if key != 'type'], constructor_keys(registry.module_dict[name]), where)


def _check_protocol(settings, where):
    """Raise a UserError if a protocol's settings have an unknown key or a wrong value."""
    check_keys(settings, SETTINGS, where)
    check_values(settings, PROTOCOL, where)
    check_keys(settings.get('words', {}), WORD_RULES, f'words of {where}')
    check_values(settings.get('words', {}), WORD_RULES, f'words of {where}')
    for name, method_settings in settings.get('method', {}).items():
        make_method(dict(method_settings, type=one_of(name, method_names(), f'method in {where}')))
    for kind, feedback in settings.get('feedback', {}).items():
        kinds = [name for name, cls in MODELS.module_dict.items() if callable(getattr(cls, 'loop', None))]
        config = dict(feedback, type=one_of(kind, kinds, f'feedback in {where}'))
        check_constructor(config, MODELS, f'feedback of {where}')
        check_built(MODELS, config)


def _checked(component, kind, path):
    """Return a component, checked: a missing key, an unknown key or a wrong value is a UserError."""
    if kind == 'protocol':
        check_keys(component, (*REQUIRED[kind], 'custom_imports'), f'{kind} in {path}')
        if component.get('name') == NAMES:
            raise UserError(f'protocol in {path}: its name is {NAMES!r}, which stands for the plain class names')
    missing = [key for key in REQUIRED[kind] if key not in component]
    if missing:
        raise UserError(f'{kind} in {path} lacks the keys {", ".join(missing)}')
    check_values(component, RULES[kind], f'{kind} in {path}')
    for settings in (component.default, *component.datasets.values()) if kind == 'protocol' else ():
        _check_protocol(settings, f'protocol in {path}')
    if kind in ('backbone', 'vfm') and 'random_weights' in component:
        raise UserError(
            f'{kind} in {path}: random_weights is no key of a component; use --random-weights SEED, which marks the '
            'result'
        )
    if kind == 'backbone':
        check_keys(component, (*ABOUT, *BACKBONE_KEYS), f'{kind} in {path}')
    if kind == 'vfm':
        if component.type not in MODELS.module_dict and component.type in defined_classes(path):
            raise UserError(
                f'{path} defines {component.type}, and does not register it: put @MODELS.register_module() above '
                'the class (from mmseg.registry import MODELS)'
            )
        check_constructor(vfm_config(component_config(component)), MODELS, f'{kind} in {path}')
    return component


def _spelt_out(kind, settings):
    """Return the component that a dict spells out: a data set, or a feedback (FSA by default) with these settings."""
    if kind == 'dataset':
        return _checked(ConfigDict(settings), kind, 'the given dict')
    if kind == 'feedback':
        settings = ConfigDict(settings)
        name = settings.pop('name', None)
        title = ' '.join(
            f'{key}={"+".join(map(str, value)) if isinstance(value, (list, tuple)) else value}'
            for key, value in settings.items()
            if key != 'type'
        )
        kind = settings.pop('type', FSA.__name__)
        one_of(kind, FEEDBACKS, 'feedback')
        base = load_component('feedback', FEEDBACKS[kind])
        return ConfigDict(base, name=name or f'{FEEDBACKS[kind]} {title}'.strip(), **settings)
    raise UserError(
        f'{kind} {settings}: give a name or a file; only methods, settings of FSA and data sets can be spelt out'
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
    """Return the number of a component's parameters; the model takes no memory."""
    component = load_component(kind, name)
    with torch.device('meta'):
        model = (
            load_clip(**component_config(component, 0))[0]
            if kind == 'backbone'
            else MODELS.build(component_config(component, 0))
        )
    return sum(parameter.numel() for parameter in model.parameters())
