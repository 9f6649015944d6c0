"""Write a composed config as a file that mmsegmentation's own tools run, and read such a file again.

The file has absolute paths, and names one module of this package in `custom_imports`. Its entry `exported` holds
digests of the settings, by which `mark_changes` knows what a user has changed.
"""

import copy
import hashlib
import inspect
import json
import os
import pprint

import torch
from mmengine import Config
from mmseg.registry import DATASETS, MODELS

from fsa_seg import __version__
from fsa_seg.config.components import FEEDBACKS, class_names
from fsa_seg.config.compose import check_config
from fsa_seg.config.fingerprint import LOCAL, Entry, fingerprint, shown
from fsa_seg.config.runtime import default_runtime
from fsa_seg.datasets.palette import even_palette
from fsa_seg.errors import UserError, warn_once
from fsa_seg.methods import is_shipped
from fsa_seg.models.segmentor import configured_method, vfms_by_role
from fsa_seg.system.files import read_file
from fsa_seg.system.modules import PREFIX
from fsa_seg.system.paths import check_file, config_folders, find_root, local_path, new_file

READER = dict(type='LoadImageFromFile')  # mmseg's inferencer looks for this step; the suite's own step reads anew
VISUALIZER = dict(type='SegLocalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')])
LOG_LEVEL = 'INFO'  # mmseg's tools show what they do
DIGEST = 12  # characters of a setting's digest
HEAD = """\
# {row}, written by fsa_seg {version}.
# It runs where fsa_seg is installed, from any folder:
#   fsa-seg test {name}.py
#   python MMSEGMENTATION/tools/test.py {name}.py {name}.pth
#   mmseg.apis.init_model('{name}.py', '{name}.pth', device='cpu')
# The .pth holds class names alone: backbone and VFM load their own weights, which mmengine then lists as missing.
# A config of yours may start from it: _base_ = ['{name}.py'], and then what differs: model = dict(stride=56).
"""


def export_config(config: Config, path: str, row: str) -> str:
    """Write a composed config to a file, and beside it a checkpoint without weights, which holds the class names.

    Args:
        config: complete, see `fsa_seg.config.compose.check_config`.
        path: the file, whose name ends in .py.
        row: what the config computes, in words.

    Returns:
        The path of the checkpoint.

    Raises:
        UserError: a file cannot be written, a local file of weights does not exist, the config has a `limit`, or the
            file exists with other content.
    """
    if config.cell.limit:
        raise UserError('--export writes a config of the whole data set: leave out --limit')
    _check_found_by_name(config)
    stem = os.path.splitext(path)[0]
    checkpoint = f'{stem}.pth'
    data = _for_mmseg(config)
    data['exported'] = _digests(fingerprint(config))
    row = ' '.join(f'{row}, {config.model.precision}'.split())  # one line, whatever a name holds
    text = HEAD.format(row=row, version=__version__, name=os.path.basename(stem))
    own = config_folders()[1:]
    if own:
        text += f'# Methods and classes of your own: FSA_SEG_CONFIGS={os.pathsep.join(own)!r}\n'
    for key, value in data.items():
        text += f'{key} = {pprint.pformat(value, 1, 120, compact=True, sort_dicts=False)}\n'
    for file in (path, checkpoint):
        check_file(file, '--export')
    if os.path.exists(path) and read_file(path).decode(errors='replace') != text:
        raise UserError(f'--export {path} exists, and holds something else; name another file, or remove it')
    if os.path.exists(checkpoint) and not _is_ours(checkpoint):
        raise UserError(
            f'--export: {checkpoint}, which goes beside {path}, exists and is another checkpoint; name another'
        )
    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        f.write(text)
    meta = dict(zip(('classes', 'palette'), _classes(config.test_dataloader.dataset)))
    with new_file(checkpoint) as part:
        torch.save(dict(state_dict={}, meta=dict(dataset_meta=meta)), part)
    return checkpoint


def _check_found_by_name(config):
    """Raise a UserError if the config names a class of a file that was given by its path: no registry will have it."""
    method = configured_method(config.model)
    vfms = vfms_by_role(method, config.model.get('vfm')) if method is not None else {}
    files = [method.path] if method is not None and not is_shipped(type(method)) else []
    classes = [MODELS.get(vfm['type']) for vfm in vfms.values()]
    files += [inspect.getsourcefile(cls) for cls in classes if cls.__module__.startswith(PREFIX)]
    folders = tuple(os.path.join(folder, '') for folder in config_folders()[1:])
    for file in files:
        if not os.path.abspath(file).startswith(folders or ('\0',)):
            raise UserError(
                f'--export: no config finds the class of {file}, which was given by its path: put it into methods/ or '
                'vfms/ of a folder that FSA_SEG_CONFIGS names'
            )


def _is_ours(path):
    """Return whether a checkpoint holds no weights, as those of `export_config`."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True).get('state_dict') == {}
    except Exception:  # any file may lie there
        return False


def mark_changes(config: Config) -> None:
    """Make the suite's own config of an exported config, and list in the cell's `changed` what a user has changed.

    Args:
        config: changed in place; another config than an exported config stays as it is.

    Raises:
        UserError: the changed config cannot run.
    """
    check_config(config)
    pipeline = config.test_dataloader.dataset.pipeline
    from_export = bool(pipeline) and dict(pipeline[0]) == READER
    if 'exported' not in config and not from_export:
        return
    digests = config._cfg_dict.pop('exported', None) or {}
    if not digests:
        warn_once('the config came from an export, and has lost its `exported`: every setting counts as changed')
    config._cfg_dict.pop('test_pipeline', None)
    if config.get('visualizer') == VISUALIZER:  # else it is a user's own
        del config._cfg_dict['visualizer']
    config.default_hooks.pop('visualization', None)
    if config.log_level == LOG_LEVEL:
        config.log_level = default_runtime()['log_level']
    if from_export:
        del pipeline[0]
    entries = fingerprint(config)
    now = _digests(entries)
    changed = {
        entry.key: shown(entry.key, entry.value)
        for entry in entries
        if entry.key in now and digests.get(entry.key) != now[entry.key]
    }
    gone = [key for key in digests if key not in now and not _below(key, changed)]
    changed.update({key: f'{key}=none' for key in gone})
    earlier = [text for text in config.cell.changed if text.split('=')[0] not in changed]
    config.cell.changed = sorted([*earlier, *changed.values()])
    _rename(config, changed)


def _below(key, changed):
    """Return whether a setting belongs to a part that has changed as a whole, such as the feedback's λ."""
    part = key.rsplit('.', 1)[0]
    return part in changed or f'{part}.type' in changed


def _rename(config, changed):
    """Give the cell the names of a method or a feedback that a user has changed."""
    method = configured_method(config.model)
    if method is not None and 'method.type' in changed:
        config.cell.update(method=method.name, title=method.title)
    if 'model.feedback' in changed:
        kind = config.model.feedback and config.model.feedback['type']
        config.cell.feedback = kind and FEEDBACKS.get(kind, kind.lower())


def _digests(entries: list[Entry]) -> dict[str, str]:
    """Return key -> digest of the value, of the entries that are part of a cell's hash."""
    return {
        entry.key: hashlib.sha256(json.dumps(entry.value).encode()).hexdigest()[:DIGEST]
        for entry in entries
        if entry.level == 'number'
    }


def _for_mmseg(config):
    """Return a config as a dict, with absolute paths and with what mmseg's tools expect."""
    data = copy.deepcopy(config.to_dict())
    model, dataset, hooks = data['model'], data['test_dataloader']['dataset'], data['default_hooks']
    model.pop('text_cache', None)
    hooks.pop('pictures', None)
    hooks['visualization'] = dict(type='SegVisualizationHook', draw=False)
    data['visualizer'] = copy.deepcopy(VISUALIZER)
    dataset['data_root'] = os.path.abspath(find_root(dataset['data_root']))
    dataset['pipeline'].insert(0, dict(READER))
    data['test_pipeline'] = copy.deepcopy(dataset['pipeline'])
    backbone = model['backbone']
    if backbone['model'].startswith(LOCAL):
        folder = local_path(backbone['model'].removeprefix(LOCAL), 'folder of a CLIP model')
        backbone['model'] = LOCAL + os.path.abspath(folder)
    vfms = model.get('vfm') or {}
    for part in (backbone, *([vfms] if 'type' in vfms else vfms.values())):
        if part.get('checkpoint'):
            part['checkpoint'] = os.path.abspath(local_path(part['checkpoint'], 'checkpoint'))
    return dict(data, log_level=LOG_LEVEL, launcher='none')


def _classes(dataset):
    """Return class names and palette of a data set's config."""
    names = list(class_names(dataset))
    palette = dataset.get('metainfo', {}).get('palette') or DATASETS.get(dataset['type']).METAINFO.get('palette')
    return names, [list(map(int, color)) for color in palette or even_palette(len(names))]
