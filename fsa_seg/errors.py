"""Errors that a user can mend, and the checks that raise them."""

import difflib
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import TypeVar

Value = TypeVar('Value')
LONG = 60  # choices that a message names at most


class UserError(ValueError):
    """An error that a user can mend; the message says what was found, what was expected, and how to mend it.

    The tools print the message alone and exit with status 1.
    """


def built(subject: str, make: Callable[[], Value]) -> Value:
    """Return the result of `make`, which builds an object of a library's or a user's class.

    Args:
        subject: names the object in the message.
        make: function without arguments.

    Raises:
        UserError: `make` raised an error of any kind.
    """
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{subject} cannot be built: {one_line(error)}') from error


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an exception's class and message as one line; without a message, the line of code that raised it.

    Args:
        error: the exception.
        most: the largest number of characters.
    """
    text, name = ' '.join(str(error).split()), type(error).__name__
    if not text and (frames := traceback.extract_tb(error.__traceback__)):
        name, text = f'{name} in {frames[-1].filename}, line {frames[-1].lineno}', frames[-1].line
    return f'{name}: {text}'[:most] if text else name


def one_of(name: Value, allowed: Collection, kind: str, hint: str = '') -> Value:
    """Return `name` if it is among `allowed`; else raise a UserError that names the nearest match and the choices.

    Args:
        name: the value.
        allowed: the choices; of more than LONG the message names the nearest few.
        kind: names the value in the message.
        hint: ends the message.
    """
    if isinstance(name, Hashable) and name in allowed:
        return name
    names = sorted(str(choice) for choice in allowed)
    shown = ', '.join(names)
    if len(names) > LONG:
        few = difflib.get_close_matches(str(name), names, 5, 0.3) or names[:5]
        shown = f'{", ".join(few)}, ... ({len(names)} in all)'
    raise UserError(f'unknown {kind} {name!r}{_nearest(name, names)}; choose from: {shown}{hint}')


def check_keys(keys: Iterable[str], allowed: Collection[str], where: str) -> None:
    """Raise a UserError if a key is not among `allowed`; `where` names the keys' mapping in the message."""
    for key in keys:
        if key not in allowed:
            names = sorted(allowed)
            raise UserError(f'unknown key {key!r} in {where}{_nearest(key, names)}; its keys: {", ".join(names)}')


def constructor_keys(cls: type) -> set[str]:
    """Return the names of the arguments that a class takes; `**kwargs` stands for those of the next base."""
    allowed = set()
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        allowed |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return allowed


@functools.lru_cache(None)
def warn_once(message: str) -> None:
    """Print a warning to standard error, once, whatever the loggers' levels are.

    Of several processes the main process alone prints.
    """
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {message}', file=sys.stderr, flush=True)


def _nearest(name, names):
    """Return a hint at the name that is nearest to `name`; an empty text if none is near."""
    match = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f' (did you mean {match[0]!r}?)' if match else ''
