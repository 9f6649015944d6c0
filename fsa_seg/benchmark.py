"""Running cells: check first, run by mmengine's test loop, write one result file each; skip what is there."""
import os
import time

import mmseg  # noqa: F401  (registers mmseg's data sets and transforms)
import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS

from fsa_seg.config import compose
from fsa_seg.datasets import check_dataset
from fsa_seg.evaluation import read_journal, remove_journal
from fsa_seg.results import (cell_id, identity_hash, make_result, read_result, row_name, sources_digest,
                             write_result)  # yapf: disable
from fsa_seg.visualization import panel, read_image

DATASET_NAMES = ('voc21', 'context60', 'coco_object', 'voc20', 'context59', 'coco_stuff164k', 'cityscapes', 'ade20k')
METHOD_NAMES = ('clip', 'maskclip', 'sclip', 'clearclip', 'proxyclip')
LIMIT_SEED = 0


def prepare(config):
    """Check the data of a composed config, take the subset of `limit`, and return the hash of the cell.

    Raises:
        UserError: the data is not as the config says.
    """
    dataset = config.test_dataloader.dataset
    names = check_dataset(dataset)
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

    Args:
        config: composed and prepared.
        digest (str): of `prepare`.
        path (str): file of the result.
    """
    name = cell_id(config.cell, digest)
    original, config = config, config.copy()
    config.work_dir = os.path.join(config.work_dir, 'logs', name)
    config.experiment_name = f'{name}_{time.time_ns()}'
    journal = os.path.join(config.work_dir, f'journal_{sources_digest()[:10]}')
    os.makedirs(config.work_dir, exist_ok=True)
    _skip_done(config, journal)
    runner = Runner.from_cfg(config)
    start = time.perf_counter()
    runner.test()
    seconds = time.perf_counter() - start
    if not is_main_process():
        return None
    model = getattr(runner.model, 'module', runner.model)
    device = model.text.device
    device = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'cpu ({torch.get_num_threads()} threads)'
    metric = runner.test_evaluator.metrics[0]
    result = make_result(original, digest, metric, metric.dataset_meta['classes'], model.weights, device, seconds)
    write_result(result, path)
    remove_journal(journal)
    return result


def run_cells(configs, progress, force=False):
    """Run cells one after the other and return their results; a cell whose result is there is not run again.

    All cells are checked before the first one runs.

    Args:
        configs (list): composed configs.
        progress: function (list) -> iterable that shows progress, such as `tqdm`; it gets the prepared cells.
        force (bool): run all.
    """
    prepared = []
    for config in configs:
        digest = prepare(config)
        prepared.append((config, digest, result_path(config, digest)))
    results = []
    for config, digest, path in progress(prepared):
        if os.path.exists(path) and not force:
            results.append(read_result(path))
        else:
            results.append(run_cell(config, digest, path))
    return results


def _skip_done(config, journal):
    """Leave the images out that an interrupted run of the same cell has in its journal (the last one is run again)."""
    done = set(read_journal(journal))
    barrier()  # no process may write to the journal before all have read it
    config.test_evaluator.journal = journal
    dataset = config.test_dataloader.dataset
    entries = DATASETS.build(dict(dataset, pipeline=[], serialize_data=False))
    left = [i for i in range(len(entries)) if entries.get_data_info(i)['img_path'] not in done]
    if done:
        print_log(f'{len(entries) - len(left)} of {len(entries)} images are in the journal of an interrupted run', 'current')
        chosen = dataset.get('indices') or range(len(entries))
        dataset.indices = [chosen[i] for i in left or [len(entries) - 1]]


def default_cells(datasets, methods, feedbacks=(None, 'fsa'), **options):
    """Return the composed configs of methods × feedback × data sets; `options` go to `compose`."""
    return [compose(dataset, method, feedback, **options)
            for method in methods for feedback in feedbacks for dataset in datasets]


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
        model = MODELS.build(config.model)
        out = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
        maps[row_name(config.cell)] = out.pred_sem_seg.data[0].cpu().numpy()
    meta = dataset.metainfo
    return panel(read_image(sample.img_path), maps, meta['classes'], meta['palette'], columns)
