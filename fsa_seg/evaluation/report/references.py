"""What stands beside a figure: the published figures of its cell, if the cell really has the published settings."""

import contextlib
import functools
import io
from collections.abc import Mapping
from typing import Any

from fsa_seg.config.compose import compose
from fsa_seg.config.fingerprint import fingerprint
from fsa_seg.errors import UserError
from fsa_seg.evaluation.report.published import Figure, published

DATA_KEYS = ('data.split', 'data.contents')  # entries of a fingerprint that tell images apart
NAMES = ('dataset', 'method', 'feedback', 'backbone', 'vfm', 'protocol')
UNCOMPARED = (*DATA_KEYS, 'model.precision')  # may differ from those of the published figures, as weights may
OWN = ('method', 'model')  # beginnings of keys that a cell that ships has, if it has them in this version


def references(result: Mapping[str, Any]) -> tuple[list[Figure], str | None]:
    """Return the published figures of a result, and why it has none although its names have; or None.

    Args:
        result: light or whole.
    """
    figures = published(result['cell'])
    keys = unlike_published(result) if figures else []
    return ([], f'other settings than the published: {", ".join(keys[:3])}') if keys else (figures, None)


def unlike_published(result: Mapping[str, Any]) -> list[str]:
    """Return the entries in which a result's fingerprint differs from that of the cell of its names that ships.

    A user's own file may have the name of a component that ships. Weights and precision are not compared: a local file
    may hold the published weights. Settings that the result's version of the suite lacked are not compared either.
    """
    shipped = _shipped_entries(*(result['cell'].get(name) for name in NAMES))
    if shipped is None:
        return ['a component does not ship']
    keys = []
    for key, value, level in result['fingerprint']:
        if key in shipped:
            differs = level == 'number' and shipped[key] != value and not _uncompared(key)
        else:  # a class, module or file of the user's own is an entry of level 'source'
            differs = level == 'source' and not key.endswith('.file')
            differs |= level == 'number' and key.split('.')[0] in OWN and not _uncompared(key)
        keys += [key] if differs else []
    return keys


@functools.cache
def _shipped_entries(dataset, method, feedback, backbone, vfm, protocol):
    """Return key -> value of the fingerprint of the cell of these names; None where a component is not there."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # warnings about words: the run has printed them
            config = compose(dataset, method, feedback, backbone, vfm, protocol, users_runtime=False)
        return {entry.key: entry.value for entry in fingerprint(config)}
    except UserError:
        return None


def _uncompared(key):
    """Return whether a setting may differ from that of the published figures."""
    return key in UNCOMPARED or key.endswith('.weights')
