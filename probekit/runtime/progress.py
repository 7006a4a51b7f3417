"""Progress: a bar on a terminal or in a notebook, one line per minute if the output is piped."""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from tqdm import std
from tqdm.auto import tqdm

_SECONDS = 60.0
_FIRST = 5.0
_WAITING = 0.1


def progress_bar(*, progress: bool, **options: Any) -> Any:
    """A progress bar for a long pass; if the output is piped, one line per minute with the time left."""
    if not progress or sys.stderr.isatty() or _in_notebook():
        return tqdm(disable=hidden(progress), **options)
    return _Lines(**options)


def print_speed(images: int, seconds: float, waited: float, *, progress: bool) -> None:
    """Prints the speed of a pass, and whether the model or the reading of images limited it.

    Like the bar, it appears on a terminal, and otherwise only for work of more than a minute.
    """
    if progress and images and (sys.stderr.isatty() or seconds > _SECONDS):
        limit = "reading the images" if waited > _WAITING * seconds else "the model"
        print(
            f"{images:,} images, {images / max(seconds, 1e-9):,.0f} per second; {limit} was the limit "
            f"({waited / max(seconds, 1e-9):.0%} of the time was spent waiting for images)",
            file=sys.stderr,
        )


class _Lines(std.tqdm):  # type: ignore[misc]  # tqdm has no types
    """Prints lines instead of redrawing a bar; work of less than a minute prints none.

    The first line comes after a few seconds if the whole work is expected to take over a minute.
    """

    disable: bool

    def __init__(self, **options: Any) -> None:
        self._begun: float | None = monotonic()
        self._next = self._begun + _SECONDS
        options["disable"] = False
        super().__init__(miniters=1, mininterval=min(_FIRST, _SECONDS) / 2, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = monotonic()
        if self._begun is not None and self.n and self.total and now - self._begun >= _FIRST:
            expected = (now - self._begun) * self.total / self.n
            self._next = now if expected > _SECONDS else self._next
            self._begun = None
        if now >= self._next:
            self._next = now + _SECONDS
            print(self, file=sys.stderr, flush=True)

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def hidden(progress: bool) -> bool | None:
    """The value of tqdm's option `disable`.

    With None, tqdm checks whether it writes to a terminal. Its notebook bar is always shown, but the
    text bar that replaces it without ipywidgets treats a notebook as a file.
    """
    if not progress:
        return True
    return False if _in_notebook() else None


def _in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None
