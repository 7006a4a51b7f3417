"""What goes wrong, told in one sentence: what was asked, what was found, what to do."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = [
    "DataError",
    "LayerError",
    "MissingPackageError",
    "ModelError",
    "OptionError",
    "OutputError",
    "ProbekitError",
    "ProbekitWarning",
    "close_matches",
    "first_line",
    "foreign_file",
    "keep_notes",
    "noted",
    "plain",
    "some_of",
    "warn",
]

P = ParamSpec("P")
R = TypeVar("R")


class ProbekitError(Exception):
    """An error that the user can fix; the command line shows the message and exits with 2."""


class ModelError(ProbekitError):
    """A model or its weights cannot be loaded or used."""


class LayerError(ProbekitError):
    """A layer does not exist, never runs, or has an output without units."""


class DataError(ProbekitError):
    """Images or labels are missing, unreadable or out of range."""


class OptionError(ProbekitError):
    """An option has an invalid value."""


class MissingPackageError(OptionError, ImportError):
    """A required optional package is not installed."""


class OutputError(ProbekitError):
    """A result cannot be written to the requested path."""


class ProbekitWarning(UserWarning):
    """Something that changes what a number means."""


@contextmanager
def foreign_file(sentence: str, kind: type[ProbekitError], advice: str = "") -> Iterator[None]:
    """Whatever goes wrong inside, while a file from elsewhere is read, becomes one sentence.

    Args:
        sentence: Its beginning, which names the file.
        kind: The error to raise.
        advice: Its end: what to do.

    >>> with foreign_file("weights 'a.pt' cannot be read", ModelError, "; save them anew"):
    ...     raise IndexError("pop from empty list")
    Traceback (most recent call last):
    ...
    probekit.errors.ModelError: weights 'a.pt' cannot be read: pop from empty list; save them anew
    """
    try:
        yield
    except ProbekitError:
        raise
    except Exception as error:  # a parser raises whatever a damaged file makes it stumble on
        raise kind(f"{sentence}: {first_line(error)}{advice}") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where there is none.

    >>> first_line(ValueError("one\\ntwo")), first_line(MemoryError())
    ('one', 'MemoryError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def plain(text: object) -> str:
    """Text as one line, without signs that a terminal would obey rather than show.

    >>> plain("red \\x1b[31m and\\nnext")
    'red \\\\x1b[31m and\\\\nnext'
    """
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text)
    )


def close_matches(asked: str, known: Iterable[str], *, what: str = "name", most: int = 5) -> str:
    """The end of an error message: the known names nearest to the one asked for.

    >>> close_matches("fgo", ["fog", "snow"], what="corruption")
    'close matches: fog'
    >>> close_matches("xyz", ["fog", "frost"], what="corruption")
    'known: fog, frost'
    """
    names = list(known)
    near = difflib.get_close_matches(asked, names, n=most, cutoff=0.5)
    near += [name for name in names if asked and asked.lower() in name.lower() and name not in near]
    if near:
        return f"close matches: {', '.join(near[:most])}"
    if not names:
        return f"there is no {what} at all"
    return f"known: {some_of(names, 4 * most)}"


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def warn(sentence: str) -> None:
    """Warns of something in the numbers, at the line outside this package that asked for them."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("probekit."):
        frame, level = frame.f_back, level + 1
    if (notes := _NOTES.get()) is not None and sentence not in notes:
        notes.append(sentence)
    warnings.warn(sentence, ProbekitWarning, stacklevel=level - 1)


_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the sentences that `warn` gives inside, for the attribute `notes` of a result.

    >>> with noted() as notes, warnings.catch_warnings(action="ignore"):
    ...     warn("2 images could not be read")
    >>> notes
    ['2 images could not be read']
    """
    outer, notes = _NOTES.get(), list[str]()
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
        if outer is not None:
            outer += [sentence for sentence in notes if sentence not in outer]


def keep_notes(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose result has what was warned of meanwhile as its attribute `notes`, one a line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with noted() as notes:
            result = function(*args, **kwargs)
        if notes:
            result.attrs["notes"] = "\n".join(notes)  # type: ignore[attr-defined]
        return result

    return run
