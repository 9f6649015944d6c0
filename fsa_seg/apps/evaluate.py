"""Evaluate cells of the table from Python: `fsa_seg.evaluate`."""

import functools
import inspect
import itertools
import os
from collections.abc import Sequence
from typing import Any

from fsa_seg.config.components import load_file
from fsa_seg.config.compose import compose
from fsa_seg.config.runtime import RUNTIME
from fsa_seg.errors import UserError, check_keys
from fsa_seg.evaluation.passes import run_cells
from fsa_seg.evaluation.results import cell_id, result_row
from fsa_seg.system.paths import MINI
from fsa_seg.system.progress import Bar


def evaluate(
    dataset: str | dict | Sequence,
    method: str | dict | Sequence = 'proxyclip',
    feedback: bool | str | dict | None | Sequence = True,
    backbone: str | Sequence[str] | None = None,
    vfm: str | dict | Sequence | None = None,
    protocol: str | Sequence[str] = 'own',
    *,
    data_root: str | None = None,
    words: str | None = None,
    limit: int | None = None,
    precision: str = 'auto',
    random_weights: int | None = None,
    mini: bool = False,
    force: bool = False,
    **runtime,
) -> dict[str, Any] | list[dict[str, Any]]:
    """Evaluate one cell, or the product of lists; what is computed, kept and used again is as with `fsa-seg benchmark`.

    >>> row = evaluate('voc21', 'sclip', mini=True)                                    # doctest: +SKIP
    >>> rows = evaluate(['voc21', 'ade20k'], ['sclip', 'clearclip'], [False, True])    # doctest: +SKIP

    Args:
        dataset, method, feedback, backbone, vfm, protocol: as of `fsa_seg.config.compose.compose`, or lists of such
            values. Cells that differ in the last block alone share one pass over the data. By default the backbone is
            clip_vit-b16, and the VFMs are those of the method's publication.
        data_root, words, limit, precision, random_weights: as of `compose`.
        mini: the toy models on the mini splits, unless a backbone, a VFM or a data root is given.
        force: also run the cells that have a result.
        runtime: entries of configs/runtime.py, such as work_dir='work_dirs', workers=4, batch_size=8.

    Returns:
        The row of the cell, see `fsa_seg.evaluation.results.result_row`; for lists a list of rows, in order.

    Raises:
        UserError: before any cell runs, where a component, a value, data or weights cannot be used.
    """
    check_keys(runtime, {*load_file(RUNTIME), *inspect.signature(evaluate).parameters} - {'runtime'}, 'evaluate')
    default = MINI if mini else dict(data_root='data', backbone='clip_vit-b16', vfm=None)
    given = dict(backbone=backbone, vfm=vfm, data_root=data_root)
    default = {**default, **{key: value for key, value in given.items() if value is not None}}
    parts = dict(
        dataset=dataset,
        method=method,
        feedback=feedback,
        backbone=default['backbone'],
        vfm=default['vfm'],
        protocol=protocol,
    )
    several = [key for key, value in parts.items() if isinstance(value, (list, tuple))]
    for key in several:
        if not parts[key]:
            raise UserError(f'{key} is an empty list; give at least one')
    options = dict(
        words=words,
        data_root=default['data_root'],
        limit=limit,
        precision=precision,
        random_weights=random_weights,
        runtime=dict(dict(workers=0) if mini else {}, **runtime),
    )
    lists = [value if key in several else [value] for key, value in parts.items()]
    configs = [compose(**dict(zip(parts, values)), **options) for values in itertools.product(*lists)]
    bar = functools.partial(Bar, desc='passes', unit='pass', disable=len(configs) == 1)
    folder, rows = os.path.join(configs[0].work_dir, 'results'), []
    for result in run_cells(configs, bar, force):
        name = cell_id(result['cell'], result['hash'])
        rows.append(result_row(result, os.path.join(folder, f'{name}.json')))
    return rows if several else rows[0]
