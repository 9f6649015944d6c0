"""Results: one JSON file per cell, its identity, and the tables made from such files alone."""
import functools
import glob
import hashlib
import importlib.metadata
import json
import math
import os
import re

import torch

from fsa_seg.errors import UserError
from fsa_seg.evaluation import metrics, per_image_counts, sum_confusions
from fsa_seg.paths import ROOT, local_path, new_file, part_files
from fsa_seg.text import templates_digest

PACKAGES = ('torch', 'torchvision', 'open_clip_torch', 'timm', 'mmengine', 'mmcv', 'mmsegmentation', 'numpy',
            'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation')  # yapf: disable
TOY_NOTE = ('These are the numbers of toy models on the toy world that the repository ships: they show that the suite '
            'works, and are never comparable with published ones.')


def identity(config, names, labels=None):
    """Return what can change a cell's number, as a JSON-ready dict.

    Method, feedback, protocol, words, prompts, weights, precision and split are in it; paths, launcher, workers and
    batch are not.

    Args:
        config: composed config.
        names (list of str): the split's images, in order.
        labels (str): digest of the label images of a user's own data, which no name stands for.
    """
    model = json.loads(json.dumps(config.model))
    for key in ('text_cache', 'keep_scores', 'window_batch'):
        model.pop(key, None)
    if not model.get('compile'):  # compiled, half precision rounds elsewhere
        model.pop('compile', None)
    (model.get('feedback') or {}).pop('block', None)
    backbone = model['backbone']
    backbone.pop('cache_dir', None)
    if backbone['model'].startswith('local-dir:'):
        backbone['model'] = _weights_identity(backbone['model'])
    backbone['checkpoint'] = _weights_identity(backbone.get('checkpoint'))
    if model.get('vfm'):
        model['vfm']['checkpoint'] = _weights_identity(model['vfm'].get('checkpoint'))
    dataset = json.loads(json.dumps(config.test_dataloader.dataset))
    for key in ('data_root', 'data_prefix', 'ann_file', 'indices', 'test_mode', 'serialize_data'):
        dataset.pop(key, None)
    evaluator = {key: value for key, value in config.test_evaluator.items() if key not in ('journal', 'root')}
    own = {} if labels is None else dict(labels=labels)
    return dict(own, model=model, prompts=templates_digest(), dataset=dataset, evaluator=evaluator, loop=config.test_cfg,
                split=hashlib.sha256('\n'.join(names).encode()).hexdigest())


def identity_hash(config, names, labels=None):
    """Return the SHA-256 of `identity`, as a hexadecimal string."""
    return hashlib.sha256(json.dumps(identity(config, names, labels), sort_keys=True).encode()).hexdigest()


def row_name(cell):
    """Return the name of a cell's row, such as 'ProxyCLIP + FSA'."""
    names = dict(clip='CLIP', maskclip='MaskCLIP', sclip='SCLIP', clearclip='ClearCLIP', proxyclip='ProxyCLIP')
    name = names.get(cell['method'], cell['method'])
    if not cell['feedback']:
        return name
    return f'{name} + {re.sub("^fsa(?= |$)", "FSA", cell["feedback"])}'


def cell_id(cell, digest):
    """Return a file name for a cell: its parts, and the head of its hash."""
    parts = [cell['dataset'], cell['method'] + (f'+{cell["feedback"]}' if cell['feedback'] else ''), cell['backbone'],
             cell['vfm'], cell['protocol'], cell['words'] if cell['words'] != cell['protocol'] else None,
             f'limit{cell["limit"]}' if cell['limit'] else None,
             f'random{seed}' if (seed := cell.get('random_weights')) is not None else None, digest[:10]]  # yapf: disable
    return re.sub(r'[^\w.+=-]+', '-', '_'.join(part for part in parts if part))


def make_result(config, digest, metric, classes, weights, device, seconds):
    """Return the result of one cell as a JSON-ready dict.

    Args:
        config: composed config.
        digest (str): `identity_hash`.
        metric: the evaluated `ExactIoUMetric`.
        classes (sequence of str): names in label order.
        weights (dict): digest of each model's loaded weights.
        device (str), seconds (float): where it ran, and how long the pass took for the images that were not resumed.
    """
    total = sum_confusions(metric.confusions, len(classes))
    figures = metrics(total)
    truth, predicted = total.nonzero()
    images = [dict(name=name, **counts) for name, counts in zip(metric.images, per_image_counts(metric.confusions))]
    partial = config.test_dataloader.dataset.get('indices') is not None
    return dict(
        cell=dict(config.cell), partial=partial,
        hash=digest, metrics={key: _number(figures[key]) for key in ('mIoU', 'mAcc', 'aAcc')},
        classes=[dict(name=name.strip(), IoU=_number(iou), Acc=_number(acc))
                 for name, iou, acc in zip(classes, figures['IoU'], figures['Acc'])],
        confusion=dict(truth=truth.tolist(), predicted=predicted.tolist(), pixels=total[truth, predicted].tolist()),
        images=images, seconds=seconds, images_resumed=len(metric.done), device=device, weights=weights,
        prompts=templates_digest(), sources=sources_digest(), versions=versions(), config=config.pretty_text)  # yapf: disable


def write_result(result, path):
    """Write a result, or what else is JSON; a half-written one never appears under `path`."""
    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        json.dump(result, f, allow_nan=False)


def read_result(path):
    """Return the result in a file; one that is no result is a UserError that names it."""
    try:
        with open(path, encoding='utf-8') as f:
            result = json.load(f)
        result['cell'], result['metrics']['mIoU'], result['hash']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not a result of this suite ({error!r}); remove it or run its cell again') from None
    return result


def table(results, datasets):
    """Return a Markdown table of mIoU (percent): a row per method, feedback and setting, a column per data set.

    A line above the table says when there are toy results. Partial results and those of random weights are left out, and
    a line says so.

    Args:
        results (list of dict): of `read_result`.
        datasets (list of str): the columns, in order.
    """
    rows, left_out = {}, 0
    for result in results:
        cell = result['cell']
        if result['partial'] or cell.get('random_weights') is not None:
            left_out += 1
            continue
        words = [f'words {cell["words"]}'] if cell['words'] != cell['protocol'] else []
        row = (row_name(cell), cell['backbone'], cell['vfm'] or '–', ', '.join([cell['protocol'], *words, *cell['changed']]))
        rows.setdefault(row, {})[cell['dataset']] = result
    lines = [f'| method | backbone | VFM | protocol | {" | ".join(datasets)} | mean |',
             '|---|---|---|---|' + '---:|' * (len(datasets) + 1)]
    for row, cells in rows.items():
        values = [cells[d]['metrics']['mIoU'] if d in cells else None for d in datasets]
        values = [math.nan if value is None else value for value in values]
        mean = sum(values) / len(values)
        shown = ' | '.join('–' if math.isnan(value) else f'{value:.1f}' for value in [*values, mean])
        lines.append(f'| {" | ".join(row)} | {shown} |')
    note = [TOY_NOTE, ''] if any(result['cell']['toy'] for result in results) else []
    if left_out:
        note += [f'{left_out} results of random weights, or of a part of a data set, are left out.', '']
    return '\n'.join([*note, 'mIoU in percent.', '', *lines])


def sources_digest():
    """Return the SHA-256 of the package's source files and of added attention maps, as a hexadecimal string."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(os.path.join(ROOT, 'fsa_seg', '*.py'))) + sorted(part_files('attentions').values()):
        with open(path, 'rb') as f:
            digest.update(os.path.basename(path).encode() + f.read())
    return digest.hexdigest()


def versions():
    """Return the versions of the libraries that are installed, and of CUDA."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return dict(found, cuda=torch.version.cuda)


def _weights_identity(name):
    """Return the digest of the file or folder that `name` stands for, or `name` itself if it is no local one."""
    if not name:
        return None
    try:
        path = local_path(name.removeprefix('local-dir:'), 'weights')
    except UserError:
        return name
    files = [path] if os.path.isfile(path) else sorted(glob.glob(os.path.join(path, '*')))
    files = [file for file in files if file.endswith(('.json', '.safetensors', '.bin', '.pt', '.pth'))]
    return 'sha256:' + files_digest(files)


def files_digest(paths):
    """Return the SHA-256 of files' contents, in order, as a hexadecimal string."""
    digests = [_file_digest(file, os.path.getmtime(file), os.path.getsize(file)) for file in paths]
    return hashlib.sha256(''.join(digests).encode()).hexdigest()


@functools.lru_cache(None)
def _file_digest(path, modified, size):
    """Return the SHA-256 of a file, read once for each state of it."""
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _number(value):
    return None if math.isnan(value) else value
