"""Exceptions, warnings and missing packages; messages state what was requested, found, and what to do."""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MOST_NAMED = 5
_INNER = re.compile(r"(probekit|torch)\.|contextlib$")  # contextlib wraps decorated functions
_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)
# The extra of probekit that installs each package; other packages are installed by name.
EXTRAS = {
    "accelerate": "train",
    "captum": "captum",
    "dask": "cluster",
    "distributed": "cluster",
    "imagecorruptions": "frost",
    "matplotlib": "plot",
    "mlflow": "mlflow",
    "pyarrow": "parquet",
    "pyautoattack": "autoattack",
    "rsatoolbox": "rsatoolbox",
    "sklearn": "train",
    "tensorboard": "tensorboard",
    "transformers": "huggingface",
    "wandb": "wandb",
}


class ProbekitError(Exception):
    """An error that the user can fix; the command line shows the message and exits with 2.

    Example:
        >>> import probekit as pk
        >>> try:
        ...     pk.load_data("photoz")
        ... except pk.ProbekitError as error:
        ...     print(type(error).__name__)
        DataError
    """


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
    """A warning about something that changes the meaning of a number.

    Example:
        >>> warnings.simplefilter("error", ProbekitWarning)  # raise it instead
    """


@contextmanager
def foreign_file(sentence: str, kind: type[ProbekitError], advice: str = "") -> Iterator[None]:
    """Converts any exception raised while reading an external file to an error with one sentence.

    Args:
        sentence: The beginning of the message, which names the file.
        kind: The error to raise.
        advice: The end of the message: what to do.

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
    except Exception as error:  # parsers may raise any exception for damaged files
        raise kind(f"{sentence}: {first_line(error)}{advice}") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if the message is empty.

    >>> first_line(ValueError("one\\ntwo")), first_line(MemoryError())
    ('one', 'MemoryError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def plain(text: object) -> str:
    """Formats text as one line, with control characters escaped.

    >>> plain("red \\x1b[31m and\\nnext")
    'red \\\\x1b[31m and\\\\nnext'
    """
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(text)
    )


def close_matches(asked: str, known: Iterable[str], *, what: str) -> str:
    """The end of an error message: the known names closest to the requested one.

    >>> close_matches("fgo", ["fog", "snow"], what="corruption")
    'close matches: fog'
    >>> close_matches("xyz", ["fog", "frost"], what="corruption")
    'known: fog, frost'
    """
    names = list(known)
    near = difflib.get_close_matches(asked, names, n=_MOST_NAMED, cutoff=0.5)
    near += [name for name in names if asked and asked.lower() in name.lower() and name not in near]
    if near:
        return f"close matches: {', '.join(near[:_MOST_NAMED])}"
    if not names:
        return f"there is no {what} at all"
    return f"known: {some_of(names, 4 * _MOST_NAMED)}"


def some_of(names: Sequence[str], most: int = _MOST_NAMED, separator: str = ", ") -> str:
    """The first of many names, and the number of remaining ones.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def warn(sentence: str) -> None:
    """Issues a `ProbekitWarning` at the calling line outside this package, and outside torch for hooks."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _INNER.match(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    if (notes := _NOTES.get()) is not None and sentence not in notes:
        notes.append(sentence)
    warnings.warn(sentence, ProbekitWarning, stacklevel=level)


def remember(sentences: Iterable[str]) -> None:
    """Adds the messages of earlier warnings to the notes, without warning again."""
    if (notes := _NOTES.get()) is not None:
        notes += [sentence for sentence in dict.fromkeys(sentences) if sentence not in notes]


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the messages of `warn` inside the context, for the attribute `notes` of a result.

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
    """Wraps a function to store its warnings in the attribute `notes` of its result, one per line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with noted() as notes:
            result: Any = function(*args, **kwargs)
            stored = str(result.attrs.get("notes", "")).splitlines()
        if notes := [*dict.fromkeys([*stored, *notes])]:
            result.attrs["notes"] = "\n".join(map(plain, notes))
        return result  # type: ignore[no-any-return]  # as above

    return run


@contextmanager
def optional(package: str, purpose: str) -> Iterator[None]:
    """Raises `MissingPackageError` if an import in the block fails for lack of an optional package.

    `package` is its import name, such as `sklearn`; `purpose`, which needs it, is the subject of the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        install = f'"probekit[{EXTRAS[package]}]"' if package in EXTRAS else package
        raise MissingPackageError(
            f"{purpose} needs the package {package}, which is not installed; install it with: "
            f"pip install {install}"
        ) from None
