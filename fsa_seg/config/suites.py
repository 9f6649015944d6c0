"""Suites: lists of cells as small data files, configs/suites/NAME.py.

A suite is dict(name, groups); a group is the product of its lists, by kind of component. A suite with a `window` needs
no data: `fsa_seg.profiling.architectures` runs its cells on one window with random weights.
"""

import itertools
import json
from collections.abc import Sequence

from mmengine.config import ConfigDict

from fsa_seg.config.components import component_names, load_component
from fsa_seg.errors import UserError, check_keys

KINDS = ('backbone', 'vfm', 'method', 'feedback', 'protocol', 'words', 'dataset')  # from the outermost loop inwards
WINDOW_KINDS = ('backbone', 'vfm', 'method', 'feedback')  # the kinds of a suite with a `window`
OLD_NAMES = dict(smoke='architectures')
SUITE_KEYS = ('name', 'groups', 'window', 'queries')


def load_suite(name: str) -> ConfigDict:
    """Return the dict of a suite by its name or file; an unknown key is a UserError."""
    suite = load_component('suite', OLD_NAMES.get(name, name))
    check_keys(suite, SUITE_KEYS, f'suite {name}')
    kinds = KINDS
    if 'window' in suite:
        suite.setdefault('queries', 21)
        kinds = (*WINDOW_KINDS, 'check')
        for key in ('window', 'queries'):
            if not isinstance(suite[key], int) or suite[key] < 1:
                raise UserError(f'suite {name}: {key} is {suite[key]!r}; it has to be a whole number, at least 1')
    for group in suite.groups:
        check_keys(group, kinds, f'a group of the suite {name}')
    return suite


def suite_cells(suite: dict, **chosen: Sequence) -> list[dict]:
    """Return the cells of a suite without repetitions; a cell is a dict of kind -> component.

    Args:
        suite: of `load_suite`.
        chosen: kind -> list that replaces the suite's list. A chosen method that the suite names stays in the groups
            that name it; any other joins all groups.

    Raises:
        UserError: a list is no list, or the suite has no cell.
    """
    cells = {}
    named = [method for group in suite['groups'] for method in group.get('method', ())]
    for group in suite['groups']:
        lists = {**{kind: group[kind] for kind in KINDS if kind in group}, **chosen}
        if 'method' in chosen and 'method' in group:
            own = group['method']
            lists['method'] = [method for method in chosen['method'] if method in own or method not in named]
        for kind, values in lists.items():
            if not isinstance(values, (list, tuple)):
                raise UserError(f'suite {suite["name"]}: {kind} is {values!r}; give a list, such as [{values!r}]')
        lists = {kind: _all_components(kind) if list(values) == ['all'] else values for kind, values in lists.items()}
        kinds = sorted(lists, key=KINDS.index)
        for values in itertools.product(*(lists[kind] for kind in kinds)):
            cell = dict(zip(kinds, values), **({'check': True} if group.get('check') else {}))
            cells[json.dumps(cell, sort_keys=True)] = cell
    if not cells:
        raise UserError(f'suite {suite["name"]} has no cell: one of its lists is empty')
    return list(cells.values())


def _all_components(kind):
    """Return the names of all components of a kind, without the toys."""
    if kind == 'words':
        raise UserError("words=['all']: name files of words, protocols or 'names'")
    names = component_names(kind)
    return names if kind == 'method' else [name for name in names if not load_component(kind, name).get('toy')]
