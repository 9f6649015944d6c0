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
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from tqdm import tqdm

from fsa_seg.clip import load_clip
from fsa_seg.datasets import check_count, check_images, file_classes, list_images
from fsa_seg.device import device_name
from fsa_seg.evaluation import read_journal
from fsa_seg.panel import SHARED_KEYS, label_field
from fsa_seg.paths import find_root, make_folder
from fsa_seg.results import (cell_id, files_digest, identity_hash, make_result, read_result, row_name, sources_digest,
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
    entries = _checked_images(json.dumps(dataset), json.dumps(config.get('known_images')))
    limit = config.cell.limit
    if limit and limit < len(entries):
        indices = np.random.default_rng(LIMIT_SEED).permutation(len(entries))[:limit]
        dataset.indices = sorted(indices.tolist())
        entries = [entries[i] for i in dataset.indices]
    own = dataset.type == 'ImageFolderDataset'  # what its label images hold is nowhere published
    labels = files_digest(entry['seg_map_path'] for entry in entries) if own else None
    return identity_hash(config, [entry['name'] for entry in entries], labels)


def result_path(config, digest):
    """Return where a cell's result lies by default: `work_dir`/results/ID.json."""
    return os.path.join(config.work_dir, 'results', cell_id(config.cell, digest) + '.json')


def run_cell(config, digest, path):
    """Run one prepared config, see `run_panel`; return its result (None on other processes than the main one)."""
    results = run_panel([(config, digest, path)])
    return results and results[0]


def run_panel(cells):
    """Run prepared configs that differ in the last block alone in one pass through `Runner.test()`, and write a result each.

    The counts of each image are kept as they come; a run that was interrupted goes on from them.

    Args:
        cells (list of (config, digest, path)): composed and prepared; digest of `prepare`; file of the result. Several
            are alike in `panel_key`.

    Returns:
        list of dict: the results; None on other processes than the main one.

    Raises:
        UserError: a place that cannot be written to, or what shows when images are read and models built.
    """
    first, digest, _ = cells[0]
    name = cell_id(first.cell, digest) + (f'_and_{len(cells) - 1}_more' if len(cells) > 1 else '')
    run = copy.deepcopy(first)
    run.work_dir = os.path.join(first.work_dir, 'logs', name)
    run.experiment_name = f'{name}_{time.time_ns()}'
    run.test_dataloader.pin_memory = torch.cuda.is_available()
    journals = [os.path.join(config.work_dir, 'logs', cell_id(config.cell, digest), f'journal_{sources_digest()[:10]}')
                for config, digest, _ in cells]
    for journal, (_, _, path) in zip(journals, cells):
        make_folder(os.path.dirname(os.path.abspath(path)))
        make_folder(journal)
    done, names = _skip_done(run, journals)
    metrics = [dict(config.test_evaluator, journal=journal, root=run.test_dataloader.dataset.data_root)
               for journal, (config, _, _) in zip(journals, cells)]
    if len(cells) > 1:
        run.model = dict(type='Panel', members=[config.model for config, _, _ in cells])
        metrics = [dict(metric, field=label_field(i), prefix=f'{i} {row_name(config.cell)}')
                   for i, (metric, (config, _, _)) in enumerate(zip(metrics, cells))]
    run.test_evaluator = metrics

    runner = Runner.from_cfg(run)
    metrics = runner.test_loop.evaluator.metrics
    for metric, counted in zip(metrics, done):
        metric.done = counted
    if run.log_level == 'ERROR':  # mmengine's own lines of progress are not shown
        runner.register_hook(ImageBar())
    start = time.perf_counter()
    runner.test()
    seconds = time.perf_counter() - start
    for metric in metrics:
        if metric.images != sorted(names):
            raise RuntimeError(f'{len(metric.images)} images were evaluated, not the {len(names)} of the split')
    if not is_main_process():
        return None
    model = getattr(runner.model, 'module', runner.model)
    members = model.members if len(cells) > 1 else [model]
    device, results = device_name(members[0].text.device), []
    for (config, digest, path), metric, member, journal in zip(cells, metrics, members, journals):
        result = make_result(config, digest, metric, metric.dataset_meta['classes'], member.weights, device, seconds)
        result.update(panel=len(cells), window_batch=members[0].batch_size(None))
        write_result(result, path)
        shutil.rmtree(journal, ignore_errors=True)
        results.append(result)
    return results


def _member_name(cell):
    """Return what tells a cell from the others of its pass."""
    return ' '.join(filter(None, (row_name(cell), cell['vfm'] and f'({cell["vfm"]})')))


def panel_key(config):
    """Return what cells have to have in common to run in one pass, as a string."""
    shared = dict(config.to_dict(), model={key: config.model.get(key) for key in SHARED_KEYS})
    return json.dumps({key: value for key, value in shared.items() if key not in ('cell', 'custom_imports')}, sort_keys=True)


def run_cells(configs, progress, force=False, most=32):
    """Run cells and return their results; those that differ in the last block alone share one pass over the data.

    A cell whose result is there is not run again. Cells that differ in their names alone (a setting under two protocols
    that agree on a data set) are run once. The data of all cells is checked, and each backbone and VFM loaded once, before
    the first cell runs.

    Args:
        configs (list): composed configs.
        progress: function (list) -> iterable that shows progress, such as `tqdm`; it gets the passes, each a list of
            cells.
        force (bool): run all.
        most (int): cells of a pass; each holds its own cosines of the images whose windows are in a batch.

    Raises:
        UserError: as of `prepare` and `run_panel`.
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
    done = {_number_key(config, digest): there[path] for config, digest, path in prepared if path in there}
    panels, seen = {}, set(done)
    for cell in prepared:
        key = _number_key(*cell[:2])
        if key not in seen:
            panels.setdefault(panel_key(cell[0]), []).append(cell)
            seen.add(key)
    passes = [cells[start:start + most] for cells in panels.values() for start in range(0, len(cells), most)]
    shared = [f'\n  {cells[0][0].cell.dataset}: ' + ', '.join(_member_name(config.cell) for config, _, _ in cells)
              for cells in passes if len(cells) > 1]
    print_log(f'{len(prepared)} cells: {len(there)} are there, {sum(map(len, passes))} run in {len(passes)} passes over the '
              'data' + ('; these share trunk and VFM:' + ''.join(shared) if shared else ''), 'current')
    for cells in progress(passes):
        for (config, digest, _), result in zip(cells, run_panel(cells)):
            done[_number_key(config, digest)] = result
    results = []
    for config, digest, path in prepared:
        result = there.get(path) or done[_number_key(config, digest)]
        if path not in there and result['cell'] != dict(config.cell):  # cells under protocols that agree here: one number, two names
            result = dict(result, cell=dict(config.cell), config=config.pretty_text)
            write_result(result, path)
        results.append(result)
    return results


class ImageBar(Hook):
    """Shows how many images of a pass are done."""

    def before_test(self, runner):
        self.bar = tqdm(total=len(runner.test_dataloader.dataset), desc='images', unit='image', leave=False,
                        disable=not is_main_process())

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.bar.update(len(outputs))

    def after_test(self, runner):
        self.bar.close()


def picture_of_rows(configs, index=0, columns=4):
    """Return a picture of one image of a data set: the image, its truth, and the labels of each config's row.

    Args:
        configs (list): composed configs of one data set.
        index (int): of the image.
    """
    dataset = DATASETS.build(configs[0].test_dataloader.dataset)
    sample = dataset[index]['data_samples']
    maps = dict(truth=sample.gt_sem_seg.data[0].numpy(), **{row_name(config.cell): None for config in configs})
    panels = {}
    for config in configs:
        panels.setdefault(panel_key(config), []).append(config)
    for members in panels.values():
        data = DATASETS.build(members[0].test_dataloader.dataset)[index]
        model = MODELS.build(dict(type='Panel', members=[config.model for config in members])).to(get_device())
        out = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
        for i, config in enumerate(members):
            maps[row_name(config.cell)] = out.get(label_field(i)).data[0].cpu().numpy()
    meta = dataset.metainfo
    return panel(read_image(sample.img_path), maps, meta['classes'], meta['palette'], columns)


@functools.lru_cache
def _checked_images(dataset, known):
    """Return `list_images` of a data set (config and known numbers as JSON); the main process checks the files, once."""
    dataset = json.loads(dataset)
    entries = list_images(dataset)
    check_count(entries, json.loads(known))
    if is_main_process():
        built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
        check_images(entries, len(file_classes(built)[0]), built.reduce_zero_label, built.ignore_index)
    return entries


def _check_models(models):
    """Load each backbone and VFM of the models' configs once, and check the windows that they will get."""
    patches = {key: load_clip(**model.backbone)[0].visual.patch_size
               for key, model in {json.dumps(model.backbone): model for model in models}.items()}
    for vfm, config in {json.dumps(model.vfm): model.vfm for model in models}.items():
        built = MODELS.build(config) if config else None
        for model in models:
            if json.dumps(model.vfm) == vfm:
                check_window(model.window, patches[json.dumps(model.backbone)], built)


def _number_key(config, digest):
    """Return what tells a cell's number: its hash, and where its data lies, which is not in the hash."""
    data = config.test_dataloader.dataset
    return json.dumps([digest, *(data.get(name) for name in ('type', 'data_root', 'data_prefix', 'ann_file'))])


def _skip_done(config, journals):
    """Leave the images out that an interrupted run of the same cells has counted in all of them.

    Return the counts of each cell's journal, and all names. The last image is always run, so that no process is without
    one.
    """
    dataset = config.test_dataloader.dataset
    names = [entry['name'] for entry in list_images(dataset)]
    found = [[read_journal(journal) for journal in journals] if is_main_process() else None]
    broadcast_object_list(found)
    everywhere = set(names[:-1]).intersection(*found[0])
    if everywhere:
        print_log(f'{len(everywhere)} of {len(names)} images were counted by an interrupted run', 'current')
        chosen = dataset.get('indices') or range(len(names))
        dataset.indices = [index for index, name in zip(chosen, names) if name not in everywhere]
    return [{name: counts for name, counts in one.items() if name in everywhere} for one in found[0]], names
