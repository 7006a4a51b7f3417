"""Where progress bars are shown: on a terminal and in a notebook, and nowhere else."""

from __future__ import annotations

import sys

__all__ = ["hidden"]


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
