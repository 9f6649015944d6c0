"""Running cells: check first, run by mmengine's test loop, write one result file each; skip what is there."""

import contextlib
import copy
import functools
import inspect
import json
import os
import time

import numpy as np
import torch
from mmengine import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from tqdm import tqdm

from fsa_seg.config.components import known_images
from fsa_seg.config.fingerprint import Data, differences, fingerprint, shared_key, with_files
from fsa_seg.config.saved import to_json
from fsa_seg.datasets.data_sets import (
    check_count,
    check_images,
    file_classes,
    left_out,
    list_images,
    loading,
    read_as_loaded,
)
from fsa_seg.errors import UserError, built, warn_once
from fsa_seg.evaluation.metric import Journal
from fsa_seg.evaluation.results import Cell, cell_id, make_result, moved, read_result, row_name, stale, write_result
from fsa_seg.models.clip import check_inner_blocks, load_clip
from fsa_seg.models.segmentor import check_window, configured_method, vfms_by_role
from fsa_seg.models.shared_pass import label_field
from fsa_seg.models.vfm import check_vfm
from fsa_seg.ops.device import device_name, exact_float32
from fsa_seg.system.paths import check_file, cut_name, find_root, locked, make_folder
from fsa_seg.visualization.pictures import picture_grid, picture_path

LIMIT_SEED = 0
LONG_LIST = 200  # elements that a list of the config has in a log


def prepare(config):
    """Check the data of a composed config, take the subset of `limit`, and return the `Cell` that can be run.

    A data set with another number of images than its name has needs a `limit`, and all of its images are a part then.

    Raises:
        UserError: the data is not as the config says.
    """
    exact_float32()
    dataset = config.test_dataloader.dataset
    dataset.data_root = find_root(dataset.data_root)
    limit, name = config.cell.limit, config.cell.dataset
    if limit:
        dataset.pop('indices', None)  # of the run that a result is of
    known = known_images(name, config.get('known_images'), dataset.data_root)
    entries, whole, contents = _checked_images(json.dumps(dataset), json.dumps(known), name, limit is not None)
    if limit and (limit < len(entries) or not whole):
        indices = np.random.default_rng(LIMIT_SEED).permutation(len(entries))[:limit]
        dataset.indices = sorted(indices.tolist())
        entries = [entries[i] for i in dataset.indices]
    data = Data([entry['name'] for entry in entries], contents)
    entries = [fingerprint(config, data) if is_main_process() else None]  # it reads files of weights
    broadcast_object_list(entries)
    return Cell(config, entries[0], data)


def result_path(cell):
    """Return where a cell's result lies by default: `work_dir`/results/ID.json."""
    return os.path.join(cell.config.work_dir, 'results', cell_id(cell.config.cell, cell.hash) + '.json')


def check_out(path, cell):
    """Raise a UserError unless a cell's result can be written under a path that holds no other cell's."""
    check_file(path, '--out')
    if os.path.exists(path):
        try:
            other = read_result(path)
        except UserError:
            raise UserError(
                f'--out {path} is there and is no result of this suite; name another file, or remove it'
            ) from None
        rows = differences(other['fingerprint'], cell.fingerprint, 'number')
        if rows:
            raise UserError(
                f'--out {path} holds the result of another cell, which differs in {", ".join(row[0] for row in rows[:5])}; '
                'name another file, or remove it'
            )


def run_cell(cell, path=None):
    """Run one prepared cell, see `run_pass`; return its result (None on other processes than the main one)."""
    results = run_pass([cell], [path or result_path(cell)])
    return results and results[0]


def run_pass(cells, paths=None):
    """Run prepared cells that differ in the last block alone in one pass through `Runner.test()`, and write a result each.

    The counts of each image are kept as they come; a run that was interrupted goes on from them. A cell that another
    process runs is waited for; where that process has written the result then, the result is taken.

    Args:
        cells (list of Cell): of `prepare`; several are alike in their `shared_key`.
        paths (list of str): files of the results; by default those of `result_path`.

    Returns:
        list of dict: the results; None on other processes than the main one.

    Raises:
        UserError: a place that cannot be written to, or what shows when images are read and models built.
    """
    paths = paths or [result_path(cell) for cell in cells]
    folders = [
        os.path.join(cell.config.work_dir, 'logs', cell_id(cell.config.cell, cell.settings_hash)) for cell in cells
    ]
    for path, folder in zip(paths, folders):
        make_folder(os.path.dirname(os.path.abspath(path)))
        make_folder(folder)
    with contextlib.ExitStack() as stack:
        mine = sorted(set(folders)) if is_main_process() else []
        waits = [stack.enter_context(locked(folder, get_world_size() == 1)) for folder in mine]
        kept = [usable(path, cell) for path, cell in zip(paths, cells)] if any(waits) else [None]
        taken = [all(kept)]
        broadcast_object_list(taken)
        if taken[0]:
            print_log('another process has written the results meanwhile; they are taken', 'current')
            return kept if is_main_process() else None
        return _run_locked_pass(cells, paths, folders)


def usable(path, cell):
    """Return the result in a file if it is the cell's, and made by the same code and weights; else None."""
    try:
        result = read_result(path)
    except UserError:
        return None
    return None if stale(result, cell) else result


def _run_locked_pass(cells, paths, folders):
    """Run the cells of one pass, whose folders are locked, and return their results."""
    first = cells[0].config
    name = os.path.basename(folders[0]) + (f'_and_{len(cells) - 1}_more' if len(cells) > 1 else '')
    run = copy.deepcopy(first)
    run.work_dir = os.path.join(first.work_dir, 'logs', name)
    run.experiment_name = f'{cut_name(name)}_{time.time_ns()}'
    run.test_dataloader.pin_memory = torch.cuda.is_available()
    journals = [
        Journal(
            os.path.join(folder, f'journal_{cell.sources_hash[:10]}'),
            cell.settings_hash + cell.sources_hash,
            cell.data.contents,
            cell.weights,
        )
        for folder, cell in zip(folders, cells)
    ]
    done = _skip_done(run, journals, cells[0].data.names)
    metrics = [dict(cell.config.test_evaluator, root=run.test_dataloader.dataset.data_root) for cell in cells]
    if len(cells) > 1:
        run.model = dict(type='SharedPass', members=[cell.config.model for cell in cells])
        metrics = [
            dict(metric, field=label_field(i), prefix=f'{i} {row_name(cell.config.cell)}')
            for i, (metric, cell) in enumerate(zip(metrics, cells))
        ]
    run.test_evaluator = metrics

    runner = built('the run of this config', lambda: _runner(run))
    metrics = runner.test_loop.evaluator.metrics
    cells = [cell._replace(fingerprint=with_files(cell.fingerprint, cell.config)) for cell in cells]
    for journal, cell in zip(journals, cells):
        journal.weights = cell.weights
    for metric, counted, journal, cell in zip(metrics, done, journals, cells):
        metric.done, metric.journal = counted, journal
        metric.settings = f'{row_name(cell.config.cell)}, {cell.config.model.precision}'
    if run.log_level == 'ERROR':  # mmengine's own lines of progress are not shown
        runner.register_hook(ImageBar())
    start = time.perf_counter()
    runner.test()
    seconds = time.perf_counter() - start
    for metric in metrics:
        if metric.images != sorted(cells[0].data.names):
            raise RuntimeError(
                f'{len(metric.images)} images were evaluated, not the {len(cells[0].data.names)} of the split'
            )
    if not is_main_process():
        return None
    model = getattr(runner.model, 'module', runner.model)
    members = model.members if len(cells) > 1 else [model]
    device, results = device_name(members[0].device), []
    for cell, path, metric, member, journal in zip(cells, paths, metrics, members, journals):
        result = make_result(cell, metric, metric.dataset_meta['classes'], member.weights, device, seconds)
        result.update(cells_in_pass=len(cells), window_batch=members[0].windows_at_once)
        write_result(result, path)
        journal.remove()
        results.append(result)
    return results


def _runner(config):
    """Return mmengine's runner of a config. What it logs and writes of the config has long lists cut."""
    shown = Config(_shortened(config.to_dict()), format_python_code=False)
    options = {key: config[key] for key in inspect.signature(Runner.__init__).parameters if key in config}
    return Runner(**options, cfg=shown)


def _shortened(value):
    """Return a config's value whose lists of more than LONG_LIST elements are cut to the first few."""
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    cut = len(value) > LONG_LIST
    kept = [_shortened(one) for one in (value[:3] if cut else value)]
    return type(value)([*kept, f'... {len(value)} in all, see the result file'] if cut else kept)


def _member_name(cell):
    """Return what tells a cell from the others of its pass."""
    return ' '.join(filter(None, (row_name(cell), cell['vfm'] and f'({cell["vfm"]})')))


def run_cells(configs, progress, force=False, most=32):
    """Run cells and return their results; those that differ in the last block alone share one pass over the data.

    A cell whose result is there is not run again, unless the result is stale: made by other code or weights. Cells that
    differ in their names alone (a setting under two protocols that agree on a data set) are run once. The data of all cells
    is checked, and each backbone and VFM loaded once, before the first cell runs.

    Args:
        configs (list): composed configs.
        progress: function (list) -> iterable that shows progress, such as `tqdm`; it gets the passes, each a list of
            cells.
        force (bool): run all.
        most (int): cells of a pass; each holds its own cosines of the images whose windows are in a batch.

    Raises:
        UserError: as of `prepare` and `run_pass`.
    """
    _checked_images.cache_clear()  # files may have changed since an earlier call of the process
    cells = [prepare(config) for config in configs]
    there = {} if force else _kept_results(cells)
    _check_models([cell.config.model for cell in cells if result_path(cell) not in there])
    done = {cell.hash: there[result_path(cell)] for cell in cells if result_path(cell) in there}
    groups, seen = {}, set(done)
    for cell in cells:
        if cell.hash not in seen:
            groups.setdefault(shared_key(cell.fingerprint), []).append(cell)
            seen.add(cell.hash)
    passes = [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]
    shared = [
        f'\n  {group[0].config.cell.dataset}: ' + ', '.join(_member_name(cell.config.cell) for cell in group)
        for group in passes
        if len(group) > 1
    ]
    print_log(
        f'{len(cells)} cells: {len(there)} are there, {sum(map(len, passes))} run in {len(passes)} passes over the '
        'data' + ('; these share trunk and VFM:' + ''.join(shared) if shared else ''),
        'current',
    )
    for group in progress(passes):
        done.update((cell.hash, result) for cell, result in zip(group, run_pass(group)))
    return [_named_result(cell, there.get(result_path(cell)) or done[cell.hash]) for cell in cells]


def _kept_results(cells):
    """Return the results that are there and can be used, by their path; what is stale or may have moved is said."""
    there, stales, moves = {}, {}, {}
    for cell in cells:
        path = result_path(cell)
        if not os.path.exists(path):
            continue
        result = read_result(path)
        why = stale(result, cell)
        if why:
            stales.setdefault('; '.join(why[:3]), []).append(path)
            continue
        there[path] = result
        for text in moved(result, cell):
            moves.setdefault(text, []).append(path)
    for why, paths in stales.items():
        warn_once(f'{len(paths)} results are stale and run again, {paths[0]} the first: {why}')
    if moves:
        warn_once(
            'results that are there may differ in their last digits from new ones: '
            + '; '.join(f'{len(paths)} by {text}' for text, paths in list(moves.items())[:5])
        )
    return there


def _named_result(cell, result):
    """Return a result under a cell's own names, and write it there: cells under protocols that agree here have one number."""
    if result['cell'] == dict(cell.config.cell):
        return result
    result = dict(result, cell=dict(cell.config.cell), config=to_json(cell.config))
    write_result(result, result_path(cell))
    return result


class ImageBar(Hook):
    """Shows how many images of a pass are done."""

    def before_test(self, runner):
        self.bar = tqdm(
            total=len(runner.test_dataloader.dataset),
            desc='images',
            unit='image',
            leave=False,
            disable=not is_main_process(),
        )

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
    groups = {}
    for config in configs:
        groups.setdefault(shared_key(fingerprint(config)), []).append(config)
    for members in groups.values():
        data = DATASETS.build(members[0].test_dataloader.dataset)[index]
        model = MODELS.build(dict(type='SharedPass', members=[config.model for config in members])).to(get_device())
        out = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
        for i, config in enumerate(members):
            maps[row_name(config.cell)] = out.get(label_field(i)).data[0].cpu().numpy()
    meta = dataset.metainfo
    return picture_grid(read_as_loaded(dataset, sample.img_path), maps, meta['classes'], meta['palette'], columns)


@functools.lru_cache
def _checked_images(dataset, known, name, limited):
    """Return `list_images` of a data set, whether it is whole, and the digest of each entry's content by name.

    The main process checks the files and reads them, once.

    Args:
        dataset, known (str): its config, and the known numbers of images, as JSON.
        name (str): of the data set.
        limited (bool): whether a part of it will do.
    """
    dataset = json.loads(dataset)
    entries = list_images(dataset)
    everything = entries if dataset.get('indices') is None else list_images(dict(dataset, indices=None))
    whole, contents = check_count(everything, json.loads(known), name, limited), [None]
    if is_main_process():
        for line in left_out(dataset):
            warn_once(f'not used: {line}')
        made = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
        contents = [
            check_images(
                entries,
                len(file_classes(made)[0]),
                made.reduce_zero_label,
                made.ignore_index,
                'ignore_index' in dataset,
                **loading(dataset),
            )
        ]
    broadcast_object_list(contents)
    return entries, whole, contents[0]


def _check_models(models):
    """Load each backbone and VFM of the models' configs once, and check the windows and blocks that methods get."""
    towers, vfms = {}, {}
    for model in models:
        method = configured_method(model)
        key = json.dumps(model.backbone)
        if key not in towers:
            visual = load_clip(**model.backbone)[0].visual
            towers[key] = visual.patch_size, len(visual.transformer.resblocks)
        patch, depth = towers[key]
        if method is None:
            continue
        check_inner_blocks(method.inner_blocks(depth), depth)
        used = {}
        for role, config in vfms_by_role(method, model.get('vfm')).items():
            key = json.dumps(config)
            if key not in vfms:
                vfms[key] = built('the VFM', lambda config=config: MODELS.build(config))
                check_vfm(vfms[key], config['type'])
            if method.roles[role] == 'window':
                used[role] = vfms[key]
        check_window(model.window, patch, used)


def _skip_done(config, journals, names):
    """Leave the images out that an interrupted run of the same cells has counted in all of them; return their counts.

    The last image is always run, so that no process is without one.
    """
    dataset = config.test_dataloader.dataset
    found = [[journal.read() for journal in journals] if is_main_process() else None]
    broadcast_object_list(found)
    everywhere = set(names[:-1]).intersection(*found[0])
    pictures = config.default_hooks.get('pictures')
    if pictures:
        root = dataset.data_root
        everywhere = {
            name for name in everywhere if os.path.exists(picture_path(pictures.folder, os.path.join(root, name), root))
        }
    if everywhere:
        print_log(f'{len(everywhere)} of {len(names)} images were counted by an interrupted run', 'current')
        chosen = dataset.get('indices') or range(len(names))
        dataset.indices = [index for index, name in zip(chosen, names) if name not in everywhere]
    return [{name: counts for name, counts in kept.items() if name in everywhere} for kept in found[0]]
