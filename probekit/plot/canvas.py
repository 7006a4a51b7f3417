"""The style of figures, applied only while they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from probekit.errors import OptionError


def style() -> dict[Any, Any]:
    """The matplotlib settings of the figures, for your own panels.

    The text size is 8 points, as journals require. The font is that of your settings (`font.family`).

    Example:
        >>> with mpl.rc_context(style()):
        ...     plt.rcParams["axes.spines.top"]
        False
    """
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": "#333333",
        "axes.labelcolor": "#111111",
        "axes.labelpad": 3.0,
        "axes.labelsize": 8.0,
        "axes.linewidth": 0.7,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlepad": 5.0,
        "axes.titlesize": 8.5,
        "figure.dpi": 150.0,
        "font.size": 8.0,
        "hatch.linewidth": 0.6,
        "legend.borderaxespad": 0.3,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.handletextpad": 0.5,
        "legend.title_fontsize": 7.5,
        "lines.linewidth": 1.3,
        "lines.markersize": 3.5,
        "xtick.color": "#333333",
        "xtick.labelsize": 7.0,
        "xtick.major.size": 2.5,
        "xtick.major.width": 0.7,
        "xtick.minor.visible": False,
        "ytick.color": "#333333",
        "ytick.labelsize": 7.0,
        "ytick.major.size": 2.5,
        "ytick.major.width": 0.7,
        "ytick.minor.visible": False,
    }


@contextmanager
def canvas(ax: Axes | None, width: float = 3.5, height: float = 2.4) -> Iterator[Axes]:
    """The axes to draw on, with the style active until the end of the block."""
    if ax is not None and not isinstance(ax, Axes):
        raise OptionError(
            f"ax must be one matplotlib Axes, such as `fig, ax = plt.subplots()` makes, not "
            f"{type(ax).__name__}"
        )
    settings = style()
    if ax is not None:
        with mpl.rc_context(settings):
            yield ax
        return
    # Not inside rc_context: the first figure enables the inline display of notebooks.
    figure = plt.figure(figsize=(width, height), dpi=settings["figure.dpi"], layout="constrained")
    with ExitStack() as own:
        own.callback(plt.close, figure)
        with mpl.rc_context(settings):
            yield _styled(figure.subplots(), settings)
        own.pop_all()


def _styled(ax: Axes, settings: dict[Any, Any]) -> Axes:
    """Applies tick settings now, because ticks are created after the settings are reset."""
    for axis in ("x", "y"):
        ax.tick_params(
            axis=axis,
            which="major",
            labelsize=settings[f"{axis}tick.labelsize"],
            length=settings[f"{axis}tick.major.size"],
            width=settings[f"{axis}tick.major.width"],
            color=settings[f"{axis}tick.color"],
            labelcolor=settings[f"{axis}tick.color"],
        )
    return ax
