"""Running cells: check first, run by mmengine's test loop, write one result file each; skip what is there."""
import copy
import functools
import json
import os
import shutil
import time

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS

from fsa_seg.clip import load_clip
from fsa_seg.config import compose, find_root
from fsa_seg.datasets import check_images, list_images
from fsa_seg.errors import UserError
from fsa_seg.evaluation import read_journal
from fsa_seg.parts import class_names
from fsa_seg.results import (cell_id, identity_hash, make_result, read_result, row_name, sources_digest,
                             write_result)  # yapf: disable
from fsa_seg.segmentor import check_window
from fsa_seg.visualization import panel, read_image

LIMIT_SEED = 0


def prepare(config):
    """Check the data of a composed config, take the subset of `limit`, and return the hash of the cell.

    Raises:
        UserError: the data is not as the config says.
    """
    dataset = config.test_dataloader.dataset
    dataset.data_root = find_root(dataset.data_root)
    names = _checked_names(json.dumps(dataset))
    limit = config.cell.limit
    if limit and limit < len(names):
        indices = np.random.default_rng(LIMIT_SEED).permutation(len(names))[:limit]
        dataset.indices = sorted(indices.tolist())
        names = [names[i] for i in dataset.indices]
    return identity_hash(config, names)


def result_path(config, digest):
    """Return where a cell's result lies by default: `work_dir`/results/ID.json."""
    return os.path.join(config.work_dir, 'results', cell_id(config.cell, digest) + '.json')


def run_cell(config, digest, path):
    """Run a prepared config through `Runner.test()`, write its result, and return it (None on other processes).

    The counts of each image are kept as they come; a run that was interrupted goes on from them.

    Args:
        config: composed and prepared.
        digest (str): of `prepare`.
        path (str): file of the result.

    Raises:
        UserError: a place that cannot be written to, or what shows when images are read and models built.
    """
    run = copy.deepcopy(config)
    run.work_dir = os.path.join(config.work_dir, 'logs', cell_id(config.cell, digest))
    run.experiment_name = f'{cell_id(config.cell, digest)}_{time.time_ns()}'
    journal = os.path.join(run.work_dir, f'journal_{sources_digest()[:10]}')
    for folder in (os.path.dirname(os.path.abspath(path)), journal):
        make_folder(folder)
    done, names = _skip_done(run, journal)
    run.test_evaluator.update(journal=journal, root=run.test_dataloader.dataset.data_root)

    runner = Runner.from_cfg(run)
    metric = runner.test_loop.evaluator.metrics[0]
    metric.done = done
    start = time.perf_counter()
    runner.test()
    seconds = time.perf_counter() - start
    if metric.images != sorted(names):
        raise RuntimeError(f'{len(metric.images)} images were evaluated, not the {len(names)} of the split')
    if not is_main_process():
        return None
    model = getattr(runner.model, 'module', runner.model)
    device = model.text.device
    device = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'cpu ({torch.get_num_threads()} threads)'
    result = make_result(config, digest, metric, metric.dataset_meta['classes'], model.weights, device, seconds)
    write_result(result, path)
    shutil.rmtree(journal, ignore_errors=True)
    return result


def run_cells(configs, progress, force=False):
    """Run cells one after the other and return their results; a cell whose result is there is not run again.

    Cells that differ in their names alone (a setting under two protocols that agree on a data set) are run once. The
    data of all cells is checked, and each backbone and VFM loaded once, before the first cell runs.

    Args:
        configs (list): composed configs.
        progress: function (list) -> iterable that shows progress, such as `tqdm`; it gets the prepared cells.
        force (bool): run all.

    Raises:
        UserError: as of `prepare` and `run_cell`.
    """
    prepared = []
    for config in configs:
        digest = prepare(config)
        prepared.append((config, digest, result_path(config, digest)))
    there = {path: read_result(path) for _, _, path in prepared if os.path.exists(path) and not force}
    if any(result['sources'] != sources_digest() for result in there.values()):
        print_log('some of the results that are there were made by other sources of fsa_seg; --force runs them again',
                  'current')
    _check_models([config.model for config, _, path in prepared if path not in there])
    results, done = [], {}
    for config, digest, path in progress(prepared):
        data = config.test_dataloader.dataset  # where it lies is not in the hash
        key = json.dumps([digest, *(data.get(name) for name in ('type', 'data_root', 'data_prefix', 'ann_file'))])
        if path in there:
            result = there[path]
        elif key in done:  # cells under protocols that agree here: one number, two names
            result = dict(done[key], cell=dict(config.cell), config=config.pretty_text)
            write_result(result, path)
        else:
            result = run_cell(config, digest, path)
        done[key] = result
        results.append(result)
    return results


def picture_of_rows(configs, index=0, columns=4):
    """Return a picture of one image of a data set: the image, its truth, and the labels of each config's row.

    Args:
        configs (list): composed configs of one data set.
        index (int): of the image.
    """
    dataset = DATASETS.build(configs[0].test_dataloader.dataset)
    sample = dataset[index]['data_samples']
    maps = dict(truth=sample.gt_sem_seg.data[0].numpy())
    for config in configs:
        data = DATASETS.build(config.test_dataloader.dataset)[index]
        model = MODELS.build(config.model).to(get_device())
        out = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
        maps[row_name(config.cell)] = out.pred_sem_seg.data[0].cpu().numpy()
    meta = dataset.metainfo
    return panel(read_image(sample.img_path), maps, meta['classes'], meta['palette'], columns)


def make_folder(path):
    """Make a folder; one that cannot be made or written to is a UserError."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f'the folder {path} cannot be made: {error}') from None
    if not os.access(path, os.W_OK):
        raise UserError(f'the folder {path} cannot be written to')


@functools.lru_cache
def _checked_names(dataset):
    """Return the names of a data set's images (config as JSON); the main process checks the files, once."""
    dataset = json.loads(dataset)
    entries = list_images(dataset)
    if is_main_process():
        built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
        classes = built.label_map or class_names(dataset)  # of the files; a config may choose some of them
        check_images(entries, len(classes), built.reduce_zero_label)
    return [entry['name'] for entry in entries]


def _check_models(models):
    """Load each backbone and VFM of the models' configs once, and check the windows that they will get."""
    patches = {key: load_clip(**model.backbone)[0].visual.patch_size
               for key, model in {json.dumps(model.backbone): model for model in models}.items()}
    for vfm, config in {json.dumps(model.vfm): model.vfm for model in models}.items():
        built = MODELS.build(config) if config else None
        for model in models:
            if json.dumps(model.vfm) == vfm:
                check_window(model.window, patches[json.dumps(model.backbone)], built)


def _skip_done(config, journal):
    """Leave the images out that an interrupted run of the same cell has counted; return these counts, and all names.

    The last image is always run, so that no process is without one.
    """
    dataset = config.test_dataloader.dataset
    names = [entry['name'] for entry in list_images(dataset)]
    found = [read_journal(journal) if is_main_process() else None]
    broadcast_object_list(found)
    done = {name: counts for name, counts in found[0].items() if name in set(names[:-1])}
    if done:
        print_log(f'{len(done)} of {len(names)} images were counted by an interrupted run', 'current')
        chosen = dataset.get('indices') or range(len(names))
        dataset.indices = [index for index, name in zip(chosen, names) if name not in done]
    return done, names
