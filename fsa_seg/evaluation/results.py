"""Results: one JSON file per cell, the check whether a kept result can be used, and tables from such files alone."""

import csv
import glob
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine import Config

from fsa_seg.config.fingerprint import Data, Entry, cell_hash, differences, shown, sources_hash, weights_files
from fsa_seg.config.saved import to_json
from fsa_seg.errors import UserError, warn_once
from fsa_seg.evaluation.metric import ExactIoUMetric, metrics, per_image_counts, sum_confusions
from fsa_seg.system.markdown import markdown_table
from fsa_seg.system.paths import cut_name, new_file

COMPONENTS = ('dataset', 'method', 'feedback', 'backbone', 'vfm', 'protocol', 'words')  # whose names a cell has
FIGURES = ('mIoU', 'mAcc', 'aAcc')
ROW = ('method', 'backbone', 'VFM', 'protocol')  # columns that name a row of a table
SCHEMA = 2  # version of the file format; version 1 held the config as a program
TOY_NOTE = (
    'These are the numbers of toy models on the toy world that the repository ships: they show that the suite '
    'works, and are never comparable with published ones.'
)
TOY_MODELS_NOTE = (
    'These are the numbers of toy models, which know the toy world alone: on other data they mean nothing.'
)
TOY_DATA_NOTE = 'These are numbers on the drawn scenes of the toy world: they are never comparable with published ones.'
TOY_NOTES = {(True, True): TOY_NOTE, (True, False): TOY_MODELS_NOTE, (False, True): TOY_DATA_NOTE}  # models, data


class Cell(NamedTuple):
    """One cell of a table, ready to be run.

    Attributes:
        config: composed config, whose data is checked.
        fingerprint: see `fsa_seg.config.fingerprint.fingerprint`.
        data: the images and label images.
    """

    config: Config
    fingerprint: list[Entry]
    data: Data

    hash = property(lambda self: cell_hash(self.fingerprint))
    settings_hash = property(lambda self: cell_hash(self.fingerprint, contents=False))
    sources_hash = property(lambda self: sources_hash(self.fingerprint))
    weights = property(lambda self: weights_files(self.fingerprint))


def row_name(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell's row, such as 'ProxyCLIP + FSA'."""
    name = cell.get('title', cell['method'])
    if not cell['feedback']:
        return name
    return f'{name} + {feedback_title(cell["feedback"])}'


def feedback_title(name: str) -> str:
    """Return a feedback's name for tables, 'FSA' or 'SFR+FSA rounds=2'; a user's own name stays as it is."""
    return re.sub('^(fsa|sfr|sfr\\+fsa)(?= |$)', lambda found: found.group().upper(), name)


def settings_text(cell: Mapping[str, Any]) -> str:
    """Return a cell's protocol, its words if they are not the protocol's, and what is changed: 'fsa, words names'."""
    words = [f'words {cell["words"]}'] if cell['words'] != cell['protocol'] else []
    return ', '.join([cell['protocol'], *words, *cell['changed']])


def toy_note(cell: Mapping[str, Any]) -> str | None:
    """Return the line that goes with a cell's number if models or data are of the toy world, else None."""
    both = cell['toy']  # an older result does not tell models from data
    return TOY_NOTES.get((cell.get('toy_models', both), cell.get('toy_data', both)))


def cell_id(cell: Mapping[str, Any], digest: str) -> str:
    """Return a cell's file name: its components' names, cut to a file system's limit, and the head of its hash."""
    parts = [
        cell['dataset'],
        cell['method'] + (f'+{cell["feedback"]}' if cell['feedback'] else ''),
        cell['backbone'],
        cell['vfm'],
        cell['protocol'],
        cell['words'] if cell['words'] != cell['protocol'] else None,
        f'limit{cell["limit"]}' if cell['limit'] else None,
        f'random{seed}' if (seed := cell.get('random_weights')) is not None else None,
    ]
    name = re.sub(r'[^\w.+=-]+', '-', '_'.join(part for part in parts if part))
    return f'{cut_name(name)}_{digest[:10]}'


def make_result(
    cell: Cell,
    metric: ExactIoUMetric,
    classes: Sequence[str],
    weights: Mapping[str, str | None],
    device: str,
    seconds: float,
) -> dict:
    """Return the result of one cell as a JSON-ready dict.

    Args:
        cell: the cell that was run.
        metric: the metric after its evaluation.
        classes: names in label order.
        weights: digest of each model's loaded weights.
        device: name of the device that ran the pass.
        seconds: time of the pass, without the images of an interrupted run.
    """
    total = sum_confusions(metric.confusions, len(classes))
    figures = metrics(total)
    truth, predicted = total.nonzero()
    images = [dict(name=name, **counts) for name, counts in zip(metric.images, per_image_counts(metric.confusions))]
    config = cell.config
    return dict(
        schema=SCHEMA,
        cell=dict(config.cell),
        partial=config.test_dataloader.dataset.get('indices') is not None,
        hash=cell.hash,
        metrics={key: _number(figures[key]) for key in FIGURES},
        classes=_class_entries(classes, figures),
        confusion=dict(truth=truth.tolist(), predicted=predicted.tolist(), pixels=total[truth, predicted].tolist()),
        images=images,
        seconds=seconds,
        images_resumed=len(metric.done),
        device=device,
        weights=weights,
        fingerprint=list(cell.fingerprint),
        config=to_json(config),
    )


def _class_entries(classes, figures):
    """Return the name, IoU and accuracy of each class."""
    return [
        dict(name=name.strip(), IoU=_number(iou), Acc=_number(acc))
        for name, iou, acc in zip(classes, figures['IoU'], figures['Acc'])
    ]


def write_result(result: object, path: str | os.PathLike) -> None:
    """Write a result, or another JSON-ready value; a half-written file never appears under `path`."""
    with new_file(path) as part, open(part, 'w', encoding='utf-8') as f:
        json.dump(result, f, allow_nan=False)


def read_result(path: str | os.PathLike) -> dict:
    """Return the result in a file. Reading executes no code from the file.

    Raises:
        UserError: the file is not a result; the message names the file.
    """
    try:
        with open(path, encoding='utf-8') as f:
            result = json.load(f)
        result['cell']['dataset'], result['metrics']['mIoU'], result['hash']
        if result.get('schema') != SCHEMA:
            raise UserError(
                f'{path} is a result of schema {result.get("schema", 1)}, and this fsa_seg writes {SCHEMA}; '
                'remove it, and run its cell again'
            )
        result['fingerprint'] = [Entry(*entry) for entry in result['fingerprint']]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError):
            raise UserError(f'{path} cannot be read: {error.strerror}; give the JSON file of a result') from None
        raise UserError(f'{path} is not a result of this suite ({error!r}); remove it or run its cell again') from None
    return result


def result_files(folder: str) -> list[str]:
    """Return the JSON files of a folder of results, or of a work_dir, whose results lie in results/; sorted."""
    results = os.path.join(folder, 'results')
    return sorted(glob.glob(os.path.join(glob.escape(results if os.path.isdir(results) else folder), '*.json')))


def load_results(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """Return a row for each result in a folder, ordered by data set and file: `pandas.DataFrame` takes the list.

    Args:
        folder: holds result files, or is a work_dir, whose results lie in results/. Other files are left out with a
            warning.

    Returns:
        Rows, see `result_row`.

    Raises:
        UserError: the folder does not exist, or holds no result.
    """
    folder, rows = os.fspath(folder), []
    for path in result_files(folder):
        try:
            rows.append(result_row(read_result(path), path))
        except UserError as error:
            warn_once(f'left out: {error}')
    if not rows:
        raise UserError(f'{folder} has no result; give the work_dir of a run, or the folder of its *.json')
    return sorted(rows, key=lambda row: (row['dataset'], row['path']))


def result_row(result: Mapping[str, Any], path: str | None = None) -> dict[str, Any]:
    """Return a result as one flat row.

    Args:
        result: see `read_result`.
        path: the result's file.

    Returns:
        dict: the row's name in tables (`row`), the names of the cell's components (`dataset`, `method`, ...), mIoU,
        mAcc and aAcc in percent, what the result is worth (`partial`, `toy`, `random_weights`), `images` (their
        number), `seconds`, `device`, `hash`, `path`, and every setting that can change the number, as it was: numbers
        as numbers, such as `window`, `stride`, `feedback.lam`. Lists, such as the words, are left out; where a
        user has changed them, `changed` has their digests.
    """
    cell = result['cell']
    about = {key: cell.get(key) for key in COMPONENTS}
    worth = dict(partial=result['partial'], toy=cell['toy'], random_weights=cell.get('random_weights'))
    about['changed'] = ', '.join(cell['changed'])
    run = dict(images=len(result['images']), **{key: result[key] for key in ('seconds', 'device', 'hash')}, path=path)
    settings = {
        key.removeprefix('model.'): value
        for key, value, level in result['fingerprint']
        if level == 'number' and not isinstance(value, (dict, list)) and not key.startswith('data.')
    }
    settings.pop('feedback', None)  # the class; the cell's entry has the component
    return {**settings, 'row': row_name(cell), **about, **result['metrics'], **worth, **run}


def stale(result: Mapping[str, Any], cell: Cell) -> list[str]:
    """Return the reasons why a kept result cannot stand for a cell; the list is empty if the result can be used.

    Args:
        result: see `read_result`.
        cell: the cell that would be run.
    """
    rows = [
        row for level in ('number', 'source') for row in differences(result['fingerprint'], cell.fingerprint, level)
    ]
    rows += [] if rows or result['hash'] == cell.hash else [('hash', result['hash'], cell.hash)]
    return [_difference_text(*row) for row in rows]


def moved(result: Mapping[str, Any], cell: Cell) -> list[str]:
    """Return the differences that may have moved a kept result's last digits, as texts."""
    return [_difference_text(*row) for row in differences(result['fingerprint'], cell.fingerprint, 'rounding')]


def _difference_text(key, before, now):
    """Return one difference as a text with long values cut."""
    before, now = (
        text if len(text := json.dumps(value, ensure_ascii=False)) <= 40 else text[:37] + '...'
        for value in (before, now)
    )
    return f'{key} (was {before}, is {now})'


def table(results: Sequence[Mapping[str, Any]], datasets: Sequence[str]) -> str:
    """Return a Markdown table of mIoU (percent): a row per method, feedback and setting, a column per data set.

    Different cells never share a row: where they would, each row names the settings that differ. Lines above the
    table tell of toy models and toy data. The table leaves out partial results and results of random weights, and a
    line says so.

    Args:
        results: see `read_result`.
        datasets: the columns, in order.
    """
    figures = [
        [*row, *('–' if math.isnan(value) else f'{value:.1f}' for value in values)]
        for row, values in _table_figures(results, datasets).items()
    ]
    columns = [*datasets, 'mean']
    body = markdown_table([*ROW, *columns], figures, right=columns)
    complete = [result for result in results if table_row(result)]
    note = []
    for line in dict.fromkeys(filter(None, (toy_note(result['cell']) for result in results))):
        note += [line, '']
    if len(complete) < len(results):
        note += [
            f'{len(results) - len(complete)} results of random weights, or of a part of a data set, are left out.',
            '',
        ]
    return '\n'.join([*note, 'mIoU in percent.', '', body])


def table_csv(results: Sequence[Mapping[str, Any]], datasets: Sequence[str]) -> str:
    """Return the table of `table` as CSV, with unrounded numbers and empty fields where there is none.

    A field `toy` is 1 in rows of toy models or toy data, whose numbers are never comparable with published ones.
    """
    toy = {row: result['cell']['toy'] for result, row in zip(results, table_rows(results)) if row}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow([*ROW, 'toy', *datasets, 'mean'])
    for row, values in _table_figures(results, datasets).items():
        writer.writerow([*row, int(toy[row]), *('' if math.isnan(value) else value for value in values)])
    return out.getvalue()


def _table_figures(results, datasets):
    """Return row -> mIoU on each data set and their mean; NaN where there is none."""
    complete = [result for result in results if table_row(result)]
    rows = {}
    for result, row in zip(complete, table_rows(complete)):
        figure = result['metrics']['mIoU']
        rows.setdefault(row, {})[result['cell']['dataset']] = math.nan if figure is None else figure
    values = {row: [cells.get(dataset, math.nan) for dataset in datasets] for row, cells in rows.items()}
    return {row: [*figures, sum(figures) / len(figures)] for row, figures in values.items()}


def table_row(result: Mapping[str, Any]) -> tuple[str, str, str, str] | None:
    """Return the row of a result in a table: (method, backbone, VFM, protocol); None if the result enters no table."""
    cell = result['cell']
    if result['partial'] or cell.get('random_weights') is not None:
        return None
    return row_name(cell), cell['backbone'], cell['vfm'] or '–', settings_text(cell)


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str] | None]:
    """Return the row of each result: `table_row`, with the settings that tell cells of one row and data set apart.

    The rows also tell apart results of one cell from different code. A setting that tells cells of one data set apart
    stands in the names of the row's other cells, too, if they have one of its values: so a row stays together.
    """
    rows = [table_row(result) for result in results]
    groups = {}
    for i, row in enumerate(rows):
        if row:
            groups.setdefault(row, {}).setdefault(results[i]['cell']['dataset'], []).append(i)
    for row, by_dataset in groups.items():
        clashes = {name: _telling_keys([results[i] for i in group]) for name, group in by_dataset.items()}
        if any(keys is not None for keys in clashes.values()):
            _tell_apart(rows, row, results, by_dataset, clashes)
    return rows


def _tell_apart(rows, row, results, by_dataset, clashes):
    """Add the telling settings to the rows of a group of results with one name.

    Args:
        rows: changed in place.
        row: the name.
        results: all results.
        by_dataset: data set -> indices of the group's results.
        clashes: data set -> the keys of `_telling_keys`.
    """
    values = {
        i: {entry[0]: entry[1] for entry in results[i].get('fingerprint', ())}
        for group in by_dataset.values()
        for i in group
    }
    seen = {}  # key -> the values, as texts, where the key tells results apart
    for name, keys in clashes.items():
        for key in keys or ():
            seen.setdefault(key, set()).update(shown(key, values[i].get(key)) for i in by_dataset[name])
    for name, group in by_dataset.items():
        for i in group:
            texts = {key: shown(key, values[i].get(key)) for key in seen}
            own = clashes[name] or ()
            telling = [text for key, text in texts.items() if key in own or clashes[name] is None and text in seen[key]]
            if clashes[name] is not None and not own:
                telling.append(f'hash={results[i]["hash"][:6]}')
            if telling:
                rows[i] = (*row[:3], ', '.join([row[3], *telling]))


def _telling_keys(results):
    """Return the fingerprint's keys in which results of one data set differ; None if all share one cell and code."""
    first, keys, distinct = results[0], {}, False
    for result in results[1:]:
        pair = first.get('fingerprint', ()), result.get('fingerprint', ())
        differing = [key for level in ('number', 'source') for key, _, _ in differences(*pair, level)]
        distinct |= bool(differing) or first['hash'] != result['hash']
        keys.update((key, None) for key in differing)
    return list(keys) if distinct else None


def _number(value):
    """Return the value, or None for NaN, which JSON lacks."""
    return None if math.isnan(value) else value
