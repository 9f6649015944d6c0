"""Parts of a config: a file configs/KIND/NAME.py with one dict; a new file is a new part."""
import json
import os

from mmengine import Config
from mmengine.config import ConfigDict
from mmseg.registry import DATASETS, MODELS

from fsa_seg.errors import UserError, check_keys, one_of
from fsa_seg.methods import METHODS
from fsa_seg.paths import CONFIGS, local_path

KINDS = dict(dataset='datasets', method='methods', backbone='backbones', vfm='vfms', feedback='feedback',
             protocol='protocols')  # yapf: disable
REQUIRED = dict(
    dataset=('name', 'type', 'data_root', 'data_prefix'), method=('name', 'segmentor', 'protocol'),
    backbone=('name', 'model'), vfm=('name', 'type'), feedback=('name', 'type'),
    protocol=('name', 'default', 'datasets'))  # yapf: disable
SETTINGS = ('logit_scale', 'short', 'window', 'stride', 'prob_thd', 'area_thd', 'words')


def part_names(kind):
    """Return the names of all parts of a kind ('dataset', 'method', ...), sorted."""
    folder = os.path.join(CONFIGS, KINDS[kind])
    if not os.path.isdir(folder):
        raise UserError(f'{folder} is missing: run from a clone of the repository (pip install -e), which has configs/')
    return sorted(name[:-3] for name in os.listdir(folder) if name.endswith('.py'))


def load_part(kind, name):
    """Return the part's dict, given its name or the path of its file.

    Raises:
        UserError: no such part (the nearest name is given), or a file that lacks the kind's dict or one of its keys.
    """
    if str(name).endswith(('.py', '.json')) or os.sep in str(name):
        path = local_path(name, f'{kind} config')
    else:
        path = os.path.join(CONFIGS, KINDS[kind], one_of(name, part_names(kind), kind) + '.py')
    config = load_file(path)
    part = config.get(kind)
    if not isinstance(part, dict):
        raise UserError(f'{path} has no dict {kind!r}; see the others in {os.path.join(CONFIGS, KINDS[kind])}')
    if kind in ('method', 'protocol'):
        check_keys(part, (*REQUIRED[kind], 'fsa_protocol'), f'{kind} in {path}')
    missing = [key for key in REQUIRED[kind] if key not in part]
    if missing:
        raise UserError(f'{kind} in {path} lacks the keys {", ".join(missing)}')
    return part


def load_file(path):
    """Return the mmengine config in a file, or in a result's JSON; one that cannot be read is a UserError."""
    try:
        if path.endswith('.json'):
            with open(path, encoding='utf-8') as f:
                return Config.fromstring(json.load(f)['config'], '.py')
        return Config.fromfile(path, format_python_code=False)
    except Exception as error:  # the file is executed: anything can be raised
        raise UserError(f'the config {path} cannot be read: {type(error).__name__}: {error}') from error


def load_parts(method, feedback, backbone, vfm):
    """Return the parts of a model as a dict of kind -> dict; None for no feedback, or a VFM that no proxy map asks for.

    Args:
        method, backbone, vfm (str): name or file of a part.
        feedback (None, bool, str or dict): off; FSA's part; name or file of a part; or FSA's part with these settings.

    Raises:
        UserError: as of `load_part`.
    """
    method, backbone = load_part('method', method), load_part('backbone', backbone)
    settings = feedback if isinstance(feedback, dict) else {}
    if feedback is not None and feedback is not False:
        feedback = ConfigDict(load_part('feedback', feedback if isinstance(feedback, str) else 'fsa'), **settings)
    return dict(method=method, backbone=backbone, feedback=feedback or None,
                vfm=load_part('vfm', vfm) if _needs_vfm(method.segmentor) else None)


def load_protocol(name, parts):
    """Return a protocol, given its name or file, or 'own': that of the method's publication, with FSA or without."""
    if name == 'own':
        method = parts['method']
        name = method.get('fsa_protocol', method.protocol) if parts['feedback'] else method.protocol
    return load_part('protocol', name)


def protocol_settings(protocol, dataset):
    """Return a protocol's settings for a data set: its default, replaced by what it says of that data set.

    Args:
        protocol (dict): of a part file: `name`, `default`, `datasets`.
        dataset (str): name; one that the protocol does not know gets the default and its class names as words.

    Raises:
        UserError: a key that is no setting, or a setting that is missing.
    """
    settings = {'words': {}, **protocol['default'], **protocol['datasets'].get(dataset, {})}
    check_keys(settings, SETTINGS, f'protocol {protocol["name"]!r} for {dataset!r}')
    missing = [key for key in SETTINGS if key not in settings]
    if missing:
        raise UserError(f'protocol {protocol["name"]!r} has no {", ".join(missing)} for {dataset!r}')
    return settings


def class_names(dataset):
    """Return the class names, in label order, of a data set's config."""
    name = one_of(dataset['type'], DATASETS.module_dict, 'data set class')
    classes = dataset.get('metainfo', {}).get('classes') or DATASETS.get(name).METAINFO.get('classes')
    if not classes:
        raise UserError(f'the data set class {name} has no class names; give metainfo=dict(classes=[...], palette=[...])')
    return classes


def _needs_vfm(segmentor):
    name = one_of(segmentor.get('type'), MODELS.module_dict, 'segmentor')
    own = METHODS.get(getattr(MODELS.get(name), 'own_method', None), {})
    return segmentor.get('attention', own.get('attention')) == 'proxy'
