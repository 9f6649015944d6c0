"""Errors that a user can mend, and the checks that raise them."""

import contextlib
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


class StopError(UserError):
    """An error of the machine, such as a full disk: the run ends, and no cell has failed by it."""


class Busy(UserError):
    """Another run works on the cell, or as many requests wait as may."""


def reason(error: Exception) -> str:
    """Return the message of a UserError, or another error as one line.

    An error of a data loader's process has a traceback before its message, which is left out.
    """
    return str(error).rsplit('UserError: ', 1)[-1].strip() if isinstance(error, UserError) else one_line(error)


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
    return {p.name for p in parameters(cls) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}


@functools.lru_cache(1024)
def parameters(cls: type) -> tuple[inspect.Parameter, ...]:
    """Return the parameters of a class's constructor; `**kwargs` stands for those of the next base, which follow."""
    found: list[inspect.Parameter] = []
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        found += inspect.signature(base.__init__).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.__init__).parameters.values()):
            break
    return tuple(found)


@functools.lru_cache(None)
def warn_once(message: str) -> None:
    """Print a warning to standard error, once, whatever the loggers' levels are.

    Of several processes the main process alone prints.
    """
    if os.environ.get('RANK', '0') == '0':
        print(f'warning: {message}', file=sys.stderr, flush=True)


def last_words(message: str) -> None:
    """Print why this process ends, to standard error; under a launcher write it to the file FSA_SEG_ERROR_FILE.

    The first process that fails writes the file, and the launcher prints it.
    """
    if path := os.environ.get('FSA_SEG_ERROR_FILE'):
        with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as f:
            f.write(f'error: {message}')
    else:
        print(f'error: {message}', file=sys.stderr, flush=True)


def _nearest(name, names):
    """Return a hint at the name that is nearest to `name`; an empty text if none is near."""
    match = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f' (did you mean {match[0]!r}?)' if match else ''
