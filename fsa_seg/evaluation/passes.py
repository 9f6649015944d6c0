"""Run cells: check the data, run mmengine's test loop, and write one result file per cell; kept results are skipped."""

import contextlib
import copy
import functools
import glob
import inspect
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from PIL import Image

from fsa_seg.config.components import known_images
from fsa_seg.config.fingerprint import Data, differences, fingerprint, shared_key, with_files
from fsa_seg.config.saved import to_json
from fsa_seg.datasets.data_sets import check_count, file_classes, left_out, list_images, loading, read_as_loaded
from fsa_seg.datasets.images import image_size
from fsa_seg.errors import Busy, StopError, UserError, built, one_line, warn_once
from fsa_seg.evaluation.data_checks import check_once
from fsa_seg.evaluation.label_files import claim_folder, label_path, labels_digest, labels_folder, missing_labels
from fsa_seg.evaluation.loop import StepError, TaskLost, Watch, halves, original
from fsa_seg.evaluation.metric import Journal
from fsa_seg.evaluation.ranks import check_shared, on_all, on_main
from fsa_seg.evaluation.results import (
    FIGURES,
    Cell,
    cell_id,
    make_result,
    moved,
    read_result,
    row_name,
    stale,
    write_result,
)
from fsa_seg.methods.base import sees_windows
from fsa_seg.models.clip import check_inner_blocks, load_clip
from fsa_seg.models.regions import shared_regions
from fsa_seg.models.segmentor import (
    check_kinds,
    check_window,
    configured_method,
    keep_models_of,
    load_refinement,
    vfm_config,
    vfms_by_role,
)
from fsa_seg.models.shared_pass import label_field
from fsa_seg.models.vfm import build_vfm, vfm_grid
from fsa_seg.ops.device import device_name, exact_float32
from fsa_seg.ops.windows import windows
from fsa_seg.system.files import free_memory
from fsa_seg.system.paths import check_file, cut_name, find_root, is_drawn, locked, make_folder
from fsa_seg.system.progress import Bar, note
from fsa_seg.visualization.pictures import picture_grid, picture_path

LIMIT_SEED = 0
LONG_LIST = 200  # a log shows lists of the config up to this length whole


def prepare(config: Config) -> Cell:
    """Check the data of a composed config, take the subset of `limit`, and return the `Cell` that can be run.

    A data set with an unexpected number of images needs a `limit`; its result is then partial.

    Raises:
        UserError: the data does not agree with the config.
    """
    exact_float32()
    dataset = config.test_dataloader.dataset
    dataset.data_root = find_root(dataset.data_root)
    _mark_worth(config)
    limit, name = config.cell.limit, config.cell.dataset
    if limit:
        dataset.pop('indices', None)  # a saved result's config holds the subset of its run
    known = known_images(name, config.get('known_images'), dataset.data_root)
    entries, complete, contents = _checked_images(
        json.dumps(dataset), json.dumps(known), name, limit is not None, os.path.join(config.work_dir, 'checks')
    )
    if limit and (limit < len(entries) or not complete):
        indices = np.random.default_rng(LIMIT_SEED).permutation(len(entries))[:limit]
        dataset.indices = sorted(indices.tolist())
        entries = [entries[i] for i in dataset.indices]
    on_all(lambda: _check_region_files(config, [entry['img_path'] for entry in entries]))
    data = Data([entry['name'] for entry in entries], contents)
    return Cell(config, on_main(lambda: fingerprint(config, data)), data)  # it reads files of weights


def _check_region_files(config, paths):
    """Raise a UserError if a method's region maps are files, and an image has no usable one."""
    method = configured_method(config.model)
    for part in method.parts if method else ():
        if part.regions and part.regions['type'] == 'files':
            shared_regions(part.regions).check(paths, [image_size(path) for path in paths])


def _mark_worth(config):
    """Mark a cell of drawn scenes or of random weights, which a user's config may name after the cell was composed."""
    cell, method = config.cell, configured_method(config.model)
    vfms = vfms_by_role(method, config.model.get('vfm')) if method is not None else {}
    seeds = [part.get('random_weights') for part in (config.model.backbone, *vfms.values())]
    if cell.get('random_weights') is None:
        cell.random_weights = next((seed for seed in seeds if seed is not None), None)
    if is_drawn(config.test_dataloader.dataset.data_root):
        cell.update(toy=True, **({'toy_data': True} if 'toy_data' in cell else {}))


def result_path(cell: Cell) -> str:
    """Return the default path of a cell's result: `work_dir`/results/ID.json."""
    return os.path.join(cell.config.work_dir, 'results', cell_id(cell.config.cell, cell.hash) + '.json')


def check_out(path: str, cell: Cell) -> None:
    """Check that a cell's result can be written to a path.

    Raises:
        UserError: the path is not writable, holds another cell's result, or holds a file that is no result.
    """
    check_file(path, '--out')
    if os.path.exists(path):
        try:
            result = read_result(path)
        except UserError:
            raise UserError(
                f'--out {path} exists and is no result of this suite; name another file, or remove it'
            ) from None
        keys = [key for key, *_ in differences(result['fingerprint'], cell.fingerprint, 'number')]
        if keys:
            raise UserError(
                f'--out {path} holds the result of another cell, which differs in {", ".join(keys[:5])}; '
                'name another file, or remove it'
            )


def run_cell(cell: Cell, path: str | None = None) -> dict | None:
    """Run one prepared cell, see `run_pass`; return its result, or None on processes other than the main process."""
    try:
        results = run_pass([cell], [path or result_path(cell)])
    except StepError as error:
        raise original(error) from None
    return results and results[0]


def run_pass(
    cells: Sequence[Cell],
    paths: Sequence[str] | None = None,
    part: tuple[int, int] | None = None,
    failures: dict[str, Exception] | None = None,
    watch: Watch | None = None,
    wait: bool = True,
) -> list[dict | None] | None:
    """Run prepared cells in one pass through `Runner.test()`, and write one result per cell.

    A journal keeps the counts of each image; the next run of an interrupted pass continues from the journal. If another
    process runs a cell, the pass waits, and takes the result that the process has written.

    Args:
        cells: see `prepare`; the cells share one `shared_key`, that is, they differ in the last block alone.
        paths: files of the results; by default see `result_path`.
        part (i, n): evaluate the i-th of n parts of the images, from 1, and write no result: the journals have the
            counts. The pass itself then goes on from the journals.
        failures: gets hash of a cell -> error for the cells that fail alone, such as by NaN; without it, the first
            error is raised when the other cells are finished.
        watch: is told of each batch, and may end the pass.
        wait: whether to wait for another process that runs a cell. Of several processes none waits.

    Returns:
        The results, None for a cell that failed; None on processes other than the main process, and for a part.

    Raises:
        StepError: the models failed on an image.
        Busy: another process runs a cell, and `wait` is False.
        UserError: a folder is not writable, an image cannot be read, or a model cannot be built.
    """
    paths = paths or [result_path(cell) for cell in cells]
    folders = [
        os.path.join(cell.config.work_dir, 'logs', cell_id(cell.config.cell, cell.settings_hash)) for cell in cells
    ]
    on_all(lambda: _make_folders(cells, paths, folders))
    found = {} if failures is None else failures
    with contextlib.ExitStack() as stack:
        lock_folders = [] if part else sorted(set(folders))
        single = wait and get_world_size() == 1
        waited = on_main(lambda: _lock(stack, lock_folders, single))
        if waited and all(results := [usable(path, cell) for path, cell in zip(paths, cells)]):
            note('another process has written the results meanwhile; this process takes them')
            return results
        results = _run_locked_pass(cells, paths, folders, part, found, watch)
    if failures is None and found:
        raise next(iter(found.values()))
    return results


def _make_folders(cells, paths, folders):
    """Make the folders of the results, the logs and the predicted labels of cells."""
    for path, cell, folder in zip(paths, cells, folders):
        make_folder(os.path.dirname(os.path.abspath(path)))
        make_folder(folder)
        _claim_labels(path, cell)


def usable(path: str, cell: Cell) -> dict | None:
    """Return the result in a file if cell, code and weights agree with a cell's; else, or without its labels, None."""
    try:
        result = read_result(path)
    except UserError:
        return None
    return None if _unusable(result, path, cell) else result


def _unusable(result, path, cell):
    """Return the reasons why the result in a file cannot stand for a cell, see `stale`."""
    labels = missing_labels(result, path) if cell.config.get('save_labels') else None
    return [*stale(result, cell), *([labels] if labels else [])]


def _labels_folder(path, cell):
    """Return the folder of the predicted labels that a cell writes; None for a cell that writes none."""
    return labels_folder(cell.config.work_dir, path) if cell.config.get('save_labels') else None


def _claim_labels(path, cell):
    """Make the folder of the predicted labels that a cell writes, see `claim_folder`."""
    if folder := _labels_folder(path, cell):
        claim_folder(folder, path, cell.data.names)


def _lock(stack, folders, wait):
    """Lock folders until a stack ends, and return whether any of them was waited for."""
    waits = [stack.enter_context(locked(folder, wait)) for folder in folders]
    return any(waits)


def run_apart(
    cells: Sequence[Cell], part: tuple[int, int] | None = None, watch: Watch | None = None, wait: bool = True
) -> tuple[dict[str, dict], dict[str, Exception]]:
    """Run cells in one pass; where the models fail on an image, halves of the cells run on, until one cell is left.

    Args: as of `run_pass`.

    Returns:
        hash of a cell -> result, which is empty on processes other than the main process and for a part; and hash of
        a cell -> the error that it failed by.

    Raises:
        StopError, Busy, TaskLost: the run cannot go on here; no cell has failed.
    """
    results, failures, groups = {}, {}, [cells]
    while groups:
        group = groups.pop(0)
        try:
            found = run_pass(group, None, part, failures, watch, wait)
            results.update((cell.hash, result) for cell, result in zip(group, found or ()) if result)
        except StepError as error:
            if len(group) > 1:
                note(f'one of {len(group)} cells may have failed, so that halves of them run on. {error}')
                groups = [*halves(group), *groups]
            else:
                failures[group[0].hash] = original(error)
        except (Busy, StopError, TaskLost):
            raise
        except UserError as error:
            check_shared(error)
            check_roots([group[0].config.test_dataloader.dataset.data_root])
            failures.update((cell.hash, error) for cell in group)
    return results, failures


def check_roots(roots: Sequence[str]) -> None:
    """Raise a StopError if none of some folders of data is there, such as after a disk was unmounted."""
    if not on_main(lambda: any(map(os.path.isdir, roots))):
        raise StopError(
            f'the folder of the data, {roots[0]}, has vanished: mount or restore it; the same command goes on from '
            'what is counted'
        )


def _run_locked_pass(cells, paths, folders, part, failures, watch):
    """Run the cells of one pass, whose folders are locked, and return their results; see `run_pass`."""
    run = _run_config(cells, folders)
    journals = [
        Journal(
            os.path.join(folder, f'journal_{cell.sources_hash[:10]}'),
            cell.settings_hash + cell.sources_hash,
            cell.data.contents,
            cell.weights,
        )
        for folder, cell in zip(folders, cells)
    ]
    label_folders = [_labels_folder(path, cell) for path, cell in zip(paths, cells)]
    names = cells[0].data.names
    counts = _skip_counted(run, journals, label_folders, names, part)
    if not run.test_dataloader.dataset.get('indices', names):
        return None  # all images of the part are counted
    keep_models_of([cell.config.model for cell in cells])
    runner = on_all(lambda: built('the run of this config', lambda: _runner(run)))
    model = getattr(runner.model, 'module', runner.model)
    on_all(lambda: _check_memories(cells, model.members if len(cells) > 1 else [model]))
    metrics, runner.test_loop.watch = runner.test_loop.evaluator.metrics, watch or Watch()
    cells = [cell._replace(fingerprint=with_files(cell.fingerprint, cell.config)) for cell in cells]
    for metric, counts_of_cell, journal, labels, cell in zip(metrics, counts, journals, label_folders, cells):
        if labels:
            metric.output_dir, metric.by_path = labels, True
        journal.weights = cell.weights
        metric.done, metric.journal, metric.isolated, metric.part = counts_of_cell, journal, True, bool(part)
        metric.settings = f'{row_name(cell.config.cell)}, {cell.config.model.precision}'
    if logging.getLevelName(run.log_level) > logging.INFO:  # else the console has the log's lines of progress
        runner.register_hook(ImageBar())
    if run.get('visualizer'):
        runner.register_hook(CellMetrics([cell_id(cell.config.cell, cell.hash) for cell in cells]))
    start = time.perf_counter()
    runner.test()
    seconds = time.perf_counter() - start
    failures.update((cell.hash, metric.failure) for cell, metric in zip(cells, metrics) if metric.failure)
    if part:
        return None
    for metric in metrics:
        if not metric.failure and metric.images != sorted(names):
            raise RuntimeError(f'{len(metric.images)} images were evaluated, not the {len(names)} of the split')
    written = []
    on_main(lambda: written.extend(_write_results(cells, paths, journals, runner, seconds)))
    return written if is_main_process() else None


def _run_config(cells, folders):
    """Return the config of a pass: the first cell's config with the models and metrics of all cells."""
    first = cells[0].config
    name = os.path.basename(folders[0]) + (f'_and_{len(cells) - 1}_more' if len(cells) > 1 else '')
    run = copy.deepcopy(first)
    run.work_dir = os.path.join(first.work_dir, 'logs', name)
    run.experiment_name = f'{cut_name(name)}_{time.time_ns()}'
    if run.get('visualizer'):  # mmengine gives out one visualizer for each name
        run.visualizer = {'type': 'Visualizer', **run.visualizer, 'name': run.experiment_name}
    run.test_dataloader.pin_memory = torch.cuda.is_available()
    run.test_dataloader.persistent_workers = False  # they would live on until Python collects the pass
    metrics = [dict(cell.config.test_evaluator, root=run.test_dataloader.dataset.data_root) for cell in cells]
    if len(cells) > 1:
        run.model = dict(type='SharedPass', members=[cell.config.model for cell in cells])
        metrics = [
            dict(metric, field=label_field(i), prefix=f'{i} {row_name(cell.config.cell)}')
            for i, (metric, cell) in enumerate(zip(metrics, cells))
        ]
    run.test_evaluator, run.test_cfg = metrics, dict(type='PassLoop')
    return run


def _write_results(cells, paths, journals, runner, seconds):
    """Write the results of a finished pass, remove its journals, and return the results; None for a failed cell."""
    model = getattr(runner.model, 'module', runner.model)
    members = model.members if len(cells) > 1 else [model]
    metrics, device, results = runner.test_loop.evaluator.metrics, device_name(members[0].device), []
    for cell, path, metric, member, journal in zip(cells, paths, metrics, members, journals):
        if metric.failure:
            results.append(None)
            continue
        result = make_result(cell, metric, metric.dataset_meta['classes'], member.weights, device, seconds)
        result.update(cells_in_pass=len(cells), window_batch=members[0].windows_at_once)
        if folder := _labels_folder(path, cell):
            result['labels'] = os.path.relpath(folder, os.path.dirname(os.path.abspath(path))).replace(os.sep, '/')
            result['labels_digest'] = labels_digest(folder, metric.images)
        write_result(result, path)
        journal.remove()
        results.append(result)
    return results


def _runner(config):
    """Return mmengine's runner of a config.

    The runner logs and writes the config with its long lists cut, and without a visualizer, which may hold a key.
    """
    settings = {key: value for key, value in config.to_dict().items() if key != 'visualizer' or not value}
    shown = Config(_shortened(settings), format_python_code=False)
    options = {key: config[key] for key in inspect.signature(Runner.__init__).parameters if key in config}
    return LoggedRunner(**options, cfg=shown)


class LoggedRunner(Runner):
    """mmengine's runner, whose log file has everything from INFO on; the config's `log_level` is the console's."""

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **options) -> MMLogger:
        """Return the logger, see mmengine's `Runner`."""
        logger = super().build_logger('INFO', log_file, **options)
        least = logging.getLevelName(log_level) if isinstance(log_level, str) else log_level
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(max(handler.level, least))
        return logger

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Return the visualizer, see mmengine's `Runner`; what fails when its trackers are closed ends no run."""
        built_visualizer = super().build_visualizer(visualizer)
        close = built_visualizer.close

        def guarded():
            try:
                close()
            except Exception as error:  # a tracker's package, or its service
                warn_once(f'visualizer: it could not be closed: {one_line(error)}')

        built_visualizer.close = guarded
        return built_visualizer


def _shortened(value):
    """Return a config's value; lists of more than LONG_LIST elements are cut to their first three."""
    if isinstance(value, dict):
        return {key: _shortened(element) for key, element in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    cut = len(value) > LONG_LIST
    elements = [_shortened(element) for element in (value[:3] if cut else value)]
    return type(value)([*elements, f'... {len(value)} in all, see the result file'] if cut else elements)


def _member_name(cell):
    """Return the name of a cell in the list of its pass: row, VFM, and words that are not the protocol's."""
    words = f'words {cell["words"]}' if cell['words'] != cell['protocol'] else None
    return ' '.join(filter(None, (row_name(cell), cell['vfm'] and f'({cell["vfm"]})', words)))


def run_cells(
    configs: Sequence[Config],
    progress: Callable[[list[list[Cell]]], Iterable[list[Cell]]],
    force: bool = False,
    most: int = 32,
) -> list[dict]:
    """Run cells and return their results; cells that differ in the last block alone share one pass over the data.

    A cell with a kept result does not run again, unless the result is stale: other code or weights made it. Cells that
    differ in their names alone run once, in one call or in two: cells of two protocols that agree on a data set, `fsa`
    and its default settings spelt out. Before the first cell runs, the data of all cells is checked, and each backbone
    and VFM is loaded once.

    Args:
        configs: composed configs.
        progress: function that shows progress over the passes, such as `Bar`; a pass is a list of cells.
        force: run the cells with a kept result too.
        most: largest number of cells in a pass; each cell holds its own cosines of the images in a batch.

    Returns:
        The results; an empty list on processes other than the main process.

    Raises:
        UserError: see `prepare` and `run_pass`.
    """
    cells, kept, passes = check_cells(configs, force, most)
    results = {cell.hash: kept[path] for cell in cells if (path := result_path(cell)) in kept}
    for group in progress(passes):
        found, failed = run_apart(group)
        results.update(found)
        if failed:
            raise next(iter(failed.values()))
    if not is_main_process():
        return []
    return [named_result(cell, kept.get(result_path(cell)) or results[cell.hash]) for cell in cells]


def check_cells(
    configs: Sequence[Config], force: bool = False, most: int = 32
) -> tuple[list[Cell], dict[str, dict], list[list[Cell]]]:
    """Check the data of cells, and load each backbone and VFM once, before the first cell runs; say what will run.

    Args: as of `run_cells`.

    Returns:
        The prepared cells; path -> result for kept results that can be used, on the main process; and the passes that
        give the absent results.

    Raises:
        UserError: see `prepare`; or weights that cannot be loaded.
    """
    forget_checks()  # files may have changed since the last call
    cells = [prepare(config) for config in configs]
    kept = {}
    if not force:
        on_main(lambda: kept.update(kept_results(cells)))
    there = set(on_main(lambda: sorted(kept)))
    _check_models([cell for cell in cells if result_path(cell) not in there])
    passes = _passes(cells, {cell.hash for cell in cells if result_path(cell) in there}, most)
    for cell in (cell for group in passes for cell in group):
        _claim_labels(result_path(cell), cell)
    shared = [
        f'\n  {group[0].config.cell.dataset}: ' + ', '.join(_member_name(cell.config.cell) for cell in group)
        for group in passes
        if len(group) > 1
    ]
    note(
        f'{len(cells)} cells: {len(there)} are there, {sum(map(len, passes))} run in {len(passes)} passes '
        'over the data' + ('; these share trunk and VFM:' + ''.join(shared) if shared else '')
    )
    return cells, kept, passes


def _passes(cells, there, most):
    """Return the passes over the data that give the absent results: lists of at most `most` cells with one shared key.

    Args:
        cells (list of Cell): all cells.
        there (set): hashes of cells with a kept result, which are in no pass.
        most (int): largest number of cells in a pass.
    """
    groups, hashes = {}, set(there)
    for cell in cells:
        if cell.hash not in hashes:
            groups.setdefault(shared_key(cell.fingerprint), []).append(cell)
            hashes.add(cell.hash)
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]


def kept_results(cells: Sequence[Cell]) -> dict[str, dict]:
    """Return path -> result for the kept results that can be used; warn of stale results and of moved last digits.

    A cell without a result of its own takes that of a cell of the same hash, whatever its names.
    """
    kept, stale_paths, moved_paths = {}, {}, {}
    for cell in cells:
        path = result_path(cell)
        result = _kept_result(path) if os.path.exists(path) else None
        reasons = _unusable(result, path, cell) if result else []
        if result is None or reasons:
            result = _result_of_other_names(cell)
        if result is None:
            if reasons:
                stale_paths.setdefault('; '.join(reasons[:3]), []).append(path)
            continue
        kept[path] = result
        for text in moved(result, cell):
            moved_paths.setdefault(text, []).append(path)
    for reason, paths in stale_paths.items():
        warn_once(f'{len(paths)} results are stale and run again, {paths[0]} the first: {reason}')
    if moved_paths:
        warn_once(
            'kept results may differ in their last digits from new results: '
            + '; '.join(f'{len(paths)} by {text}' for text, paths in list(moved_paths.items())[:5])
        )
    return kept


def _kept_result(path):
    """Return the result in a file; None, with a warning, for a file that is none."""
    try:
        return read_result(path)
    except UserError as error:
        warn_once(f'{error}; now its cell runs again')
        return None


def _result_of_other_names(cell):
    """Return the result of a cell of the same hash that ran under other names, such as `fsa` for `p=0.45`, or None."""
    own_path = result_path(cell)
    pattern = os.path.join(glob.escape(os.path.dirname(own_path)), f'*_{cell.hash[:10]}.json')
    partial = cell.config.test_dataloader.dataset.get('indices') is not None
    found = (usable(path, cell) for path in sorted(glob.glob(pattern)) if path != own_path)
    return next((result for result in found if result and result['partial'] == partial), None)


def named_result(cell: Cell, result: dict) -> dict:
    """Return a result under a cell's own names, and write the renamed result to the cell's path.

    Cells of two protocols that agree on a data set have one number under two names.
    """
    if result['cell'] == dict(cell.config.cell):
        return result
    result = dict(result, cell=dict(cell.config.cell), config=to_json(cell.config))
    write_result(result, result_path(cell))
    return result


class ImageBar(Hook):
    """A bar that shows how many images of a pass are evaluated."""

    def before_test(self, runner: Runner) -> None:
        self.bar = Bar(
            total=len(runner.test_dataloader.dataset),
            desc='images',
            unit='image',
            leave=False,
            disable=not is_main_process(),
        )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self.bar.update(min(len(outputs) * get_world_size(), self.bar.total - self.bar.n))  # each process has its share

    def after_test(self, runner: Runner) -> None:
        self.bar.close()


class CellMetrics(Hook):
    """Gives the metrics of each cell of a pass to the config's trackers, as NAME/mIoU, NAME/mAcc and NAME/aAcc.

    A tracker that fails ends no run: the number is in the result.

    Args:
        names: of the cells. Characters that a tracker may refuse in a name become '-'.
    """

    def __init__(self, names: Sequence[str]):
        self.names = [re.sub(r'[^A-Za-z0-9_.-]+', '-', name) for name in names]

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Send the metrics; mmengine's `Hook` gives the arguments."""
        for name, metric in zip(self.names, runner.test_loop.evaluator.metrics):
            if metric.failure or metric.part:
                continue
            figures = {key: (metrics or {})['/'.join(filter(None, (metric.prefix, key)))] for key in FIGURES}
            scalars = {f'{name}/{key}': figure for key, figure in figures.items() if math.isfinite(figure)}
            try:
                runner.visualizer.add_scalars(scalars)
            except Exception as error:  # a tracker's package, or its service
                warn_once(f'visualizer: the metrics of {name} are not recorded: {one_line(error)}')


def picture_of_rows(configs: Sequence[Config], index: int = 0, columns: int = 4) -> Image.Image:
    """Return a picture of one image of a data set: the image, its truth, and the labels of each config's row.

    Args:
        configs: composed configs of one data set.
        index: position of the image in the data set.
        columns: number of tiles side by side.
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
        prediction = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
        for i, config in enumerate(members):
            maps[row_name(config.cell)] = prediction.get(label_field(i)).data[0].cpu().numpy()
    meta = dataset.metainfo
    return picture_grid(read_as_loaded(dataset, sample.img_path), maps, meta['classes'], meta['palette'], columns)


def forget_checks() -> None:
    """Let the next `prepare` look at the files of the data again."""
    _checked_images.cache_clear()


@functools.lru_cache
def _checked_images(dataset, known, name, limited, folder):
    """Return a data set's `list_images`, whether the data set is complete, and image name -> digest of contents.

    The main process checks the files, and reads those that have changed since a check of this work dir.

    Args:
        dataset (str): the data set's config, as JSON.
        known (str): the known numbers of images, as JSON.
        name (str): name of the data set.
        limited (bool): whether an incomplete data set passes the check.
        folder (str): of the kept checks, see `check_once`.
    """
    dataset = json.loads(dataset)
    entries = on_all(lambda: list_images(dataset))
    all_entries = entries if dataset.get('indices') is None else list_images(dict(dataset, indices=None))
    complete = on_all(lambda: check_count(all_entries, json.loads(known), name, limited))

    def contents():
        for line in left_out(dataset):
            warn_once(f'not used: {line}')
        unloaded = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
        return check_once(
            folder,
            entries,
            len(file_classes(unloaded)[0]),
            unloaded.reduce_zero_label,
            unloaded.ignore_index,
            'ignore_index' in dataset,
            **loading(dataset),
        )

    return entries, complete, on_main(contents)


def _check_models(cells):
    """Load each backbone and VFM of cells once, and check the methods' windows, inner blocks and memory."""
    towers, vfms, refinements = {}, {}, set()
    for cell in cells:
        model = cell.config.model
        method = configured_method(model)
        key = json.dumps(model.backbone)
        if key not in towers:
            visual = load_clip(**model.backbone)[0].visual
            towers[key] = visual.patch_size, len(visual.transformer.resblocks)
        patch, depth = towers[key]
        if method is None:
            continue
        check_inner_blocks(method.inner_blocks(depth), depth)
        window_vfms = {}
        for role, config in vfms_by_role(method, model.get('vfm')).items():
            key = json.dumps(vfm_config(config))
            if key not in vfms:
                vfms[key] = build_vfm(vfm_config(config))
            check_kinds(method, {role: config}, {role: vfms[key]})
            if sees_windows(method.roles[role]):
                window_vfms[role] = vfms[key]
        multiple = check_window(model.window, patch, window_vfms)
        _check_memory(cell, patch, multiple, window_vfms.values())
        key = json.dumps(model.get('refinement'))
        if model.get('refinement') and key not in refinements:
            load_refinement(model.refinement)
            refinements.add(key)


def _check_memories(cells, members):
    """See `_check_memory`, for the cells of a pass and their segmentors."""
    for cell, member in zip(cells, members):
        if configured_method(cell.config.model) is not None:
            _check_memory(cell, member.visual.patch_size, member.multiple, member.window_vfms().values())


def _check_memory(cell, patch, multiple, vfms):
    """Raise a UserError if stages on the whole image need more memory than is free, by the largest image of a split.

    Args:
        cell (Cell): to be run.
        patch (int, int): of CLIP.
        multiple (int, int): of a window's sides.
        vfms (iterable): that see windows.
    """
    root, model = cell.config.test_dataloader.dataset.data_root, cell.config.model
    method, steps = configured_method(model), cell.config.test_dataloader.dataset.pipeline
    resize = next((step for step in steps if step.type == 'Resize' and 'scale' in step), None)
    if resize is None or not any(part.overrides('memory') for part in method.parts):
        return
    sides = [-(-max(model.window, 1) // side) * side for side in multiple]
    grids = [[side // length for side, length in zip(sides, patch)], *(vfm_grid(vfm, *sides) for vfm in vfms)]
    patches, shapes = max(map(math.prod, grids)), {}
    for name in cell.data.names:
        height, width = image_size(os.path.join(root, name))
        scale = min(max(resize.scale) / max(height, width), min(resize.scale) / min(height, width))
        shapes[name] = round(height * scale), round(width * scale)
    name, shape = max(shapes.items(), key=lambda item: math.prod(item[1]))
    count, queries = len(windows(*shape, model.window, model.stride)), sum(map(len, model.words))
    free = torch.cuda.mem_get_info()[0] if get_device() == 'cuda' else free_memory()
    for part in method.parts:
        size, mend = part.memory(count, patches, queries, math.prod(shape))
        if free is not None and size > free:
            raise UserError(
                f'{part.title} takes about {size / 1e9:.1f} GB for the largest image, {name}, which is resized to '
                f'{shape[0]}×{shape[1]} pixels and cut into {count} windows, and {free / 1e9:.1f} GB are free; less '
                f'is taken by {mend}'
            )


def _skip_counted(config, journals, label_folders, names, part):
    """Take the images that the journals of all cells have counted out of a pass, and return their counts.

    The last image always runs, so that each process has an image; but for a part.

    Args:
        config (Config): of the pass; its data set loses the counted images.
        journals (list of Journal): one per cell.
        label_folders (list): folder of the predicted labels of each cell, or None. An image whose labels are missing
            there is not taken out.
        names (list of str): the images of the split, in order.
        part (int, int): of the images; None for all.

    Returns:
        list of dict: for each cell, image name -> sparse confusion matrix (3, n).
    """
    dataset = config.test_dataloader.dataset
    label_files = [folder and functools.partial(label_path, folder) for folder in label_folders]
    readings = on_main(lambda: list(map(Journal.read, journals, label_files)))
    chosen = set(names[part[0] - 1 :: part[1]] if part else names)
    counted = set(names if part else names[:-1]).intersection(*readings)
    pictures = config.default_hooks.get('pictures')
    if pictures:
        root = dataset.data_root
        counted = {
            name for name in counted if os.path.exists(picture_path(pictures.folder, os.path.join(root, name), root))
        }
    if counted:
        note(f'{len(counted)} of {len(names)} images are counted already')
    if counted or part:
        indices = dataset.get('indices') or range(len(names))
        dataset.indices = [index for index, name in zip(indices, names) if name in chosen - counted]
    return [{name: counts for name, counts in reading.items() if name in counted} for reading in readings]
