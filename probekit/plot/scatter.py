"""Scatter plots of two variables of every unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from probekit.errors import DataError
from probekit.plot.canvas import canvas, most, widened
from probekit.plot.colors import shades
from probekit.plot.data import Array, At, Results, named_results, table, unit_values
from probekit.plot.labels import depth_bar
from probekit.plot.series import name_results, result_colors
from probekit.results.trees import Result


def unit_scatter(
    result: Results,
    x: str = "selectivity",
    y: str = "gradient_norm_cv",
    *,
    layers: str | Sequence[str] | None = None,
    at: At = None,
    clip: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """One variable of every unit against another, with Spearman's rank correlation.

    Points are drawn in random order; the more there are, the smaller and more transparent they are.
    Vector files contain them as a raster image. The color is the depth of the layer for a single
    result, and the result for several.

    Args:
        result: A result or its table of units; `{name: result}` compares several.
        x: Name of a unit variable of any metric.
        y: Name of another unit variable.
        layers: Names or globs of layers; None for all.
        at: Coordinates along other dimensions that either variable has.
        clip: Draw outliers as triangles at the edge and show their number, so that they do not compress
            all others. Outliers are farther beyond the 1st or 99th percentile than the distance between
            these percentiles.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result lacks a variable, or no unit has both variables.

    Example:
        >>> import xarray as xr
        >>> units = xr.Dataset(
        ...     {"selectivity": ("unit", [0.1, 0.2, 0.3]), "spread": ("unit", [3.0, 5.0, 9.0])},
        ...     {"layer": ("unit", ["relu"] * 3)},
        ... )
        >>> unit_scatter(units, y="spread").texts[0].get_text()
        'ρ = 1.00, 3 units'
    """
    compared = named_results(result)
    parts: list[tuple[Array, Array, list[str]]] = []
    names: list[str] = []
    labels: list[str] = []
    for replicates, color in zip(compared.results.values(), result_colors(compared), strict=True):
        for one in replicates:
            found = [unit_values(one, name, layers, _own(one, name, at)) for name in (x, y)]
            names, labels = found[0].layers, [one.label for one in found]
            own = shades(len(names)) if compared.single else [color] * len(names)
            for across, up, shade in zip(*(each.values for each in found), own, strict=True):
                known = np.isfinite(across) & np.isfinite(up)
                parts.append((across[known], up[known], [shade] * int(known.sum())))
    across, up = (np.concatenate([part[at_] for part in parts]) for at_ in (0, 1))
    shade = np.array([one for part in parts for one in part[2]])
    if not len(across):
        raise DataError(f"no unit has both {x!r} and {y!r}")
    order = np.random.default_rng(0).permutation(len(across))
    with canvas(ax, 3.4, 2.7) as ax:
        size, alpha = np.clip(4000 / len(up), 1.5, 9.0), np.clip(1200 / len(up), 0.25, 0.8)
        ax.scatter(
            across[order], up[order], float(size), shade[order], alpha=float(alpha), lw=0,
            rasterized=True,
        )  # fmt: skip
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
        beyond = _clip(ax, across, up, shade) if clip else 0
        _correlation(ax, across, up, beyond)
        if compared.single and len(names) > 1:
            depth_bar(ax, names)
        colors = result_colors(compared)
        handles = [Line2D([], [], ls="", marker="o", mew=0, color=color) for color in colors]
        name_results(ax, compared, colors, handles)
    return ax


def _own(result: Result, name: str, at: At) -> dict[str, str | float]:
    """The coordinates along those dimensions that a variable has."""
    units = table(result, "unit")
    dims = units[name].dims if name in units else ()
    return {dim: place for dim, place in (at or {}).items() if dim in dims}


def _clip(ax: Axes, across: Array, up: Array, shade: npt.NDArray[np.str_]) -> int:
    """Limits the axes to the range of most units, and marks the others at the edge."""
    (left, right), (low, high) = (most(values) for values in (across, up))
    ax.set_xlim(*widened(left, right))
    ax.set_ylim(*widened(low, high))
    total = 0
    sides = {"<": across < left, ">": across > right, "v": up < low, "^": up > high}
    for marker, beyond in sides.items():
        inner = beyond & (((up >= low) & (up <= high)) if marker in "<>" else True)
        x, y = across[inner].clip(left, right), up[inner].clip(low, high)
        ax.scatter(x, y, s=14, c=shade[inner], marker=marker, lw=0)
        total += int(inner.sum())
    return total


def _correlation(ax: Axes, across: Array, up: Array, beyond: int) -> None:
    from scipy.stats import rankdata

    text = f"{len(across):,} units" + (f"\n{beyond:,} beyond the edge" if beyond else "")
    if len(across) > 2 and np.ptp(across) > 0 and np.ptp(up) > 0:
        rho = float(np.corrcoef(rankdata(across), rankdata(up))[0, 1])
        text = f"ρ = {rho:.2f}, {text}".replace("-", "−")
    ax.text(0.98, 1.01, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=7)
