"""The style of figures, applied only while they are drawn, and the ranges of their axes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from probekit.errors import OptionError
from probekit.plot.data import Array

_STYLE = Path(__file__).with_name("probekit.mplstyle")


def style() -> dict[Any, Any]:
    """The matplotlib settings of the figures, for your own panels.

    The text size is 8 points, as journals require. The font is that of your settings (`font.family`).

    Example:
        >>> with mpl.rc_context(style()):
        ...     plt.rcParams["axes.spines.top"]
        False
    """
    return dict(mpl.rc_params_from_file(_STYLE, use_default_template=False))


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


def most(values: Array) -> tuple[float, float]:
    """The range of the values without outliers.

    An outlier is farther beyond the 1st or 99th percentile than the distance between the two.
    """
    low, high = np.percentile(values, [1, 99])
    return float(max(values.min(), 2 * low - high)), float(min(values.max(), 2 * high - low))


def widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def from_zero(ax: Axes) -> None:
    """Starts the vertical axis at zero if no value is negative."""
    low, high = ax.dataLim.intervaly
    if 0 <= low < high and np.isfinite(high):
        ax.set_ylim(0, high * 1.06)
