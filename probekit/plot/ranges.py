"""Axis ranges that cover most values, so that outliers do not compress all others."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from probekit.plot.data import Array


def most(values: Array) -> tuple[float, float]:
    """The range of the values without outliers.

    An outlier is farther beyond the 1st or 99th percentile than the distance between the two.

    >>> most(np.array([*np.linspace(0, 1, 1000), 50.0]))[1] < 2.1
    True
    """
    low, high = np.percentile(values, [1, 99])
    return float(max(values.min(), 2 * low - high)), float(min(values.max(), 2 * high - low))


def widened(low: float, high: float) -> tuple[float, float]:
    """The range with a margin at both ends.

    >>> widened(0.0, 1.0)
    (-0.04, 1.04)
    """
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def from_zero(ax: Axes) -> None:
    """Starts the vertical axis at zero if no value is negative."""
    low, high = ax.dataLim.intervaly
    if 0 <= low < high and np.isfinite(high):
        ax.set_ylim(0, high * 1.06)
