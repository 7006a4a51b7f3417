"""Progress: a bar on a terminal and in a notebook, a line per minute where the output is piped."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

__all__ = ["hidden", "progress_bar"]

_SECONDS = 60.0


def progress_bar(*, progress: bool, **options: Any) -> Any:
    """A bar for a long pass; where the output is piped, a line per minute with the time left.

    Args:
        progress: Whether progress is shown at all.
        **options: As for tqdm.
    """
    if not progress or sys.stderr.isatty() or _in_notebook():
        return tqdm(disable=hidden(progress), **options)
    return _Lines(**options)


class _Lines(std.tqdm):  # type: ignore[misc]  # tqdm has no types
    """Lines instead of a bar that is drawn again and again; work of less than a minute has none."""

    disable: bool

    def __init__(self, **options: Any) -> None:
        self._next = monotonic() + _SECONDS
        options["disable"] = False
        super().__init__(miniters=1, mininterval=_SECONDS / 2, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if monotonic() >= self._next:
            self._next = monotonic() + _SECONDS
            print(self, file=sys.stderr, flush=True)

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def hidden(progress: bool) -> bool | None:
    """What tqdm's `disable` is to be.

    tqdm itself finds out whether it writes to a terminal (None). Its bar for notebooks is shown in any
    case, but the bar of text that stands in where ipywidgets is not installed takes a notebook for a
    file.

    Args:
        progress: Whether a bar is wanted at all.

    Example:
        >>> hidden(False)
        True
        >>> hidden(True) is None
        True
    """
    if not progress:
        return True
    return False if _in_notebook() else None


def _in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None
