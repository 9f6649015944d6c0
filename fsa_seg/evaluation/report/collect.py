"""Read folders of results: what each result is worth, and which files are left out, and why.

A report keeps the light part of every result: names, figures and fingerprint. The counts of the images and the config
stay in the file; `heavy` reads them for the pairs that need them.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fsa_seg.config.fingerprint import differences
from fsa_seg.errors import UserError, one_line
from fsa_seg.evaluation.metric import sum_confusions
from fsa_seg.evaluation.report.soundness import EXACT, PAIRS, check_sound
from fsa_seg.evaluation.report.statistics import Counts, image_counts
from fsa_seg.evaluation.results import COMPONENTS, read_result, result_files, result_row
from fsa_seg.system.paths import file_state

Light = dict[str, Any]  # a result without `images`, `confusion` and `config`; with `path`, `flat` and `label_folder`
HEAVY = ('images', 'confusion', 'config')
WORTHS = dict(  # what a result is worth -> how a report calls it
    full='complete results with trained weights',
    toy='the toy world: toy models or drawn scenes, never comparable with published numbers',
    partial='a part of a data set',
    random='random weights',
)


class Found(NamedTuple):
    """What folders hold.

    Attributes:
        results: light results, without duplicates.
        left_out: a line for each file that is no usable result: the file, and what to do.
        duplicates: a line for each file whose cell another file has.
    """

    results: list[Light]
    left_out: list[str]
    duplicates: list[str]


class Heavy(NamedTuple):
    """The heavy part of a result.

    Attributes:
        counts: of the images.
        confusion: (K truth, K predicted) int64, in pixels.
        config: the composed config, as a dict.
    """

    counts: Counts
    confusion: np.ndarray
    config: dict


def worth(result: Mapping[str, Any]) -> str:
    """Return what a result is worth: a key of WORTHS."""
    if result['cell'].get('random_weights') is not None:
        return 'random'
    if result['partial']:
        return 'partial'
    return 'toy' if result['cell']['toy'] else 'full'


def find_results(places: Sequence[str], progress: Callable[[list[str]], Iterable[str]] = iter) -> Found:
    """Return the results in files and folders.

    Args:
        places: result files; folders of result files; work_dirs, whose results lie in results/.
        progress: function that shows progress over the files, such as `Bar`.

    Raises:
        UserError: a place does not exist, or no place holds a result.
    """
    results, left_out, duplicates, kept = [], [], [], {}
    paths: dict[str, str] = {}  # one folder may be given under two names
    for path in (path for place in places for path in _files(place)):
        paths.setdefault(os.path.realpath(path), path)
    for path in progress(list(paths.values())):
        try:
            result = light(path)
        except UserError as error:
            left_out.append(str(error))
            continue
        others = kept.setdefault(_identity(result), [])
        same = next((other for other in others if _of_one_code(other, result)), None)
        if same:
            duplicates.append(_duplicate(same, result))
        else:
            others.append(result)
            results.append(result)
    if not results:
        lines = '\n'.join(f'  {line}' for line in left_out[:5])
        raise UserError(
            f'{", ".join(places)}: no result; give the work_dir of a run, or the folder of its *.json'
            + (f'. Left out:\n{lines}' if lines else '')
        )
    return Found(results, left_out, duplicates)


def light(path: str) -> Light:
    """Return the light part of a result file.

    Raises:
        UserError: the file is no result, or a damaged one; the message names the file.
    """
    result = read_result(path)
    try:
        check_sound(result)
        flat = {**_listed(result), **result_row(result, path)}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f'{path} is a damaged result ({one_line(error)}); remove it, and run its cell again') from None
    labels = result.get('labels')
    folder = os.path.join(os.path.dirname(path), labels) if isinstance(labels, str) else None
    kept = {key: value for key, value in result.items() if key not in HEAVY}
    return dict(kept, path=path, flat=flat, label_folder=folder)


def _listed(result):
    """Return the settings of the feedback that are lists, such as its terms, as texts; a row leaves lists out."""
    return {
        key.removeprefix('model.'): '+'.join(map(str, value))
        for key, value, _ in result['fingerprint']
        if key.startswith('model.feedback.') and isinstance(value, list)
    }


def heavy(path: str) -> Heavy:
    """Return the heavy part of a result file that `light` has read; the last files stay in memory until they change."""
    return _heavy(path, file_state(path))


@functools.lru_cache(4)
def _heavy(path, state):
    result = read_result(path)
    confusion = sum_confusions([[result['confusion'][key] for key in PAIRS]], len(result['classes']))
    return Heavy(image_counts(result), confusion, result['config'])


def _files(place):
    """Return the JSON files of a place."""
    if os.path.isfile(place):
        return [place]
    if not os.path.isdir(place):
        raise UserError(f'{place} does not exist; give result files, or folders such as work_dirs')
    return result_files(place)


def _identity(result):
    """Return what the files of one cell share: its hash and its names."""
    cell = result['cell']
    return (result['hash'], result['partial'], *(cell.get(name) for name in (*COMPONENTS, 'title')))


def _of_one_code(first, second):
    """Return whether two results of one cell come from the same code and weights."""
    return not differences(first['fingerprint'], second['fingerprint'], 'source')


def _duplicate(first, second):
    """Return a line about a file whose cell another file has."""
    values = [result['metrics']['mIoU'] for result in (first, second)]
    same = values[0] == values[1] or None not in values and abs(values[0] - values[1]) < EXACT
    texts = ['' if same else f' (mIoU {value})' for value in values]
    figures = 'with the same figures' if same else 'with other figures'
    return f'Two files hold one cell, {figures}: {first["path"]}{texts[0]} is used, {second["path"]}{texts[1]} is not'
