"""Progress: a bar on a terminal or in a notebook, one line per minute if the output is piped."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

_SECONDS = 60.0


def progress_bar(*, progress: bool, **options: Any) -> Any:
    """A progress bar for a long pass; if the output is piped, one line per minute with the time left."""
    if not progress or sys.stderr.isatty() or _in_notebook():
        return tqdm(disable=hidden(progress), **options)
    return _Lines(**options)


class _Lines(std.tqdm):  # type: ignore[misc]  # tqdm has no types
    """Prints lines instead of redrawing a bar; work of less than a minute prints none."""

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
    """The value of tqdm's option `disable`.

    With None, tqdm checks whether it writes to a terminal. Its notebook bar is always shown, but the
    text bar that replaces it without ipywidgets treats a notebook as a file.

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
