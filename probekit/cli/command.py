"""The command-line application, and the display of errors and warnings of all commands."""

from __future__ import annotations

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from probekit.errors import ProbekitError, ProbekitWarning, plain

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

app = typer.Typer(
    name="probekit",
    help="Understand trained vision networks, unit by unit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Example: probekit analyze -o result.nc   (a bundled network on a bundled test set)",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command that reports user errors in one sentence, with exit status 2."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with _notes():
                    function(*args, **kwargs)
                    sys.stdout.flush()
            except ProbekitError as error:
                print(f"probekit: {plain(error)}", file=sys.stderr)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                print("probekit: interrupted", file=sys.stderr)
                raise typer.Exit(130) from None
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    raise
                # Otherwise Python flushes the remaining output at exit and reports a second error.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                print(f"probekit: no room to write: {error.strerror}", file=sys.stderr)
                raise typer.Exit(2) from None

        return app.command(**options)(run)

    return wrap


@contextmanager
def _notes() -> Iterator[None]:
    """Shows probekit's warnings as notes, each of them once."""
    shown: set[str] = set()
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, ProbekitWarning):
            usual(message, category, *rest, **more)
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"note: {plain(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", ProbekitWarning)
        warnings.showwarning = show
        yield
