"""Errors that a user can mend, and the checks that raise them."""

import difflib
import functools
import os
import sys
from collections.abc import Hashable


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, what is allowed, and how to mend it.

    The tools print the message alone and exit with status 1.
    """


def built(what, make):
    """Return what `make` returns; whatever a class of a library or of a user's own raises is a UserError that names `what`."""
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{what} cannot be built: {type(error).__name__}: {" ".join(str(error).split())[:300]}'
        ) from error


def one_of(name, allowed, kind):
    """Return `name` if it is among `allowed`; else raise a UserError that names the nearest match and the choices."""
    if isinstance(name, Hashable) and name in allowed:
        return name
    names = sorted(str(choice) for choice in allowed)
    raise UserError(f'unknown {kind} {name!r}{_nearest(name, names)}; choose from: {", ".join(names)}')


def check_keys(given, allowed, where):
    """Raise a UserError if the mapping `given` has keys that are not among `allowed`."""
    for key in given:
        if key not in allowed:
            names = sorted(allowed)
            raise UserError(f'unknown key {key!r} in {where}{_nearest(key, names)}; its keys: {", ".join(names)}')


@functools.lru_cache(None)
def warn_once(message):
    """Print a warning to standard error, once in a process, whatever the loggers' levels are; of several processes the main one
    prints."""
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {message}', file=sys.stderr, flush=True)


def _nearest(name, names):
    match = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f' (did you mean {match[0]!r}?)' if match else ''
