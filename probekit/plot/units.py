"""Plots of units: the distribution of a variable in each layer, and two variables of every unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probekit.checks import one_of
from probekit.errors import DataError
from probekit.plot.canvas import canvas, most, widened
from probekit.plot.colors import shades
from probekit.plot.data import Array, At, Results, UnitValues, named_results, table, unit_values
from probekit.plot.density import density
from probekit.plot.labels import depth_bar, layer_axis, name_axis, room
from probekit.plot.series import check_same_layers, name_results, places, result_colors, union
from probekit.results.trees import Result

Kind: TypeAlias = Literal["violin", "ridge"]
# Fewer units than this are shown as single points: a density estimate would not be meaningful.
_FEW = 8
_QUARTILES = (25, 50, 75)


def unit_distribution(
    result: Results,
    variable: str = "selectivity",
    *,
    layers: str | Sequence[str] | None = None,
    kind: Kind = "violin",
    at: At = None,
    clip: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The distribution of a variable over the units of each layer.

    The outline of a layer is a kernel density estimate over its units, cut at the lowest and highest
    value. The bar is the interquartile range and the dot (or line) the median. Layers with fewer than 8
    units are shown as single points. NaN, such as the CV of a dead unit, is left out. Replicates under
    one name are pooled.

    Args:
        result: A result or its table of units; `{name: result}` draws several side by side.
        variable: Name of a unit variable of any metric.
        layers: Names or globs of layers; None for all.
        kind: `"violin"`, layers from left to right; `"ridge"`, from top to bottom.
        at: Coordinates along the variable's other dimensions, such as
            `{"corruption": "fog", "severity": 5}`.
        clip: Exclude outliers from the axis range and show their number. Outliers are farther beyond the
            1st or 99th percentile than the distance between these percentiles.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result lacks the variable; the message names the metric that computes it.
        OptionError: `kind` is unknown.

    Example:
        >>> import xarray as xr
        >>> units = xr.Dataset(
        ...     {"selectivity": ("unit", np.linspace(0, 1, 40))},
        ...     {"layer": ("unit", ["relu"] * 20 + ["relu_1"] * 20)},
        ... )
        >>> [label.get_text() for label in unit_distribution(units).get_xticklabels()]
        ['relu', 'relu_1']
    """
    one_of("kind", kind, get_args(Kind))
    compared = named_results(result)
    units = [_pooled(replicates, variable, layers, at) for replicates in compared.results.values()]
    names = union([one.layers for one in units])
    count = len(names) if names else max(len(one.layers) for one in units)
    colors = result_colors(compared)
    ridges = kind == "ridge"
    width = min(max(3.0, 0.9 + 0.26 * count * len(units) ** 0.75), 11.0)
    size = (3.6, min(0.7 + 0.2 * count, 9.0)) if ridges else (width, 1.75 + room(names))
    with canvas(ax, *size) as ax:
        (_ridges if ridges else _violins)(ax, units, names, colors)
        _limit(ax, units, clip, across=ridges)
        (ax.set_xlabel if ridges else ax.set_ylabel)(units[0].label)
        fills = [Patch(color=color, alpha=0.6, lw=0) for color in colors]
        name_results(ax, compared, colors, fills, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax


def _pooled(
    replicates: Sequence[Any], variable: str, layers: str | Sequence[str] | None, at: At
) -> UnitValues:
    parts = [unit_values(one, variable, layers, at) for one in replicates]
    check_same_layers([part.layers for part in parts])
    values = [np.concatenate(rows) for rows in zip(*(part.values for part in parts), strict=True)]
    return replace(parts[0], values=values)


def _violins(
    ax: Axes, units: Sequence[UnitValues], names: list[str] | None, colors: Sequence[str]
) -> None:
    room = 0.9 / len(units)
    for number, (one, color) in enumerate(zip(units, colors, strict=True)):
        x = places(one.layers, names)
        step = 1.0 if names else 1 / max(len(one.layers) - 1, 1)
        offset = (number - (len(units) - 1) / 2) * room * step
        for at, values in zip(x + offset, one.values, strict=True):
            _violin(ax, at, values[np.isfinite(values)], 0.47 * room * step, color)
    layer_axis(ax, names, most=45)


def _violin(ax: Axes, at: float, values: Array, half: float, color: str) -> None:
    if len(values) < _FEW:
        ax.plot(np.full(len(values), at), values, "o", ms=2, color=color, mew=0, alpha=0.8)
        return
    grid = np.linspace(values.min(), values.max(), 128)
    width = half * density(values, grid)
    ax.fill_betweenx(grid, at - width, at + width, color=color, alpha=0.4, lw=0)
    low, middle, high = np.percentile(values, _QUARTILES)
    ax.plot([at, at], [low, high], color=color, lw=1.6, solid_capstyle="butt")
    ax.plot([at], [middle], "o", ms=2.6, mfc="white", mec=color, mew=0.9)


def _ridges(
    ax: Axes, units: Sequence[UnitValues], names: list[str] | None, colors: Sequence[str]
) -> None:
    if names is None:
        raise DataError(
            "ridges of results with different layers have no common rows; use kind='violin', or "
            "choose layers that all have"
        )
    for one, color in zip(units, colors, strict=True):
        for layer, values in zip(one.layers, one.values, strict=True):
            row = names.index(layer)
            _ridge(ax, row, values[np.isfinite(values)], color, 0.45 if len(units) > 1 else 0.75)
    name_axis(ax.yaxis, names, most=60)
    ax.set_ylim(len(names) - 0.7, -1.5)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _ridge(ax: Axes, row: int, values: Array, color: str, opacity: float) -> None:
    order = 2 + 0.01 * row
    if len(values) < _FEW:
        ax.plot(values, np.full(len(values), row), "|", ms=5, color=color, zorder=order)
        return
    grid = np.linspace(values.min(), values.max(), 200)
    height = 1.35 * density(values, grid)
    ax.fill_between(grid, row - height, row, color=color, alpha=opacity, lw=0, zorder=order)
    ax.plot(grid, row - height, color="white", lw=0.7, zorder=order)
    middle = float(np.median(values))
    top = row - float(np.interp(middle, grid, height))
    ax.plot([middle, middle], [row, top], color="black", lw=0.8, zorder=order)


def _limit(ax: Axes, units: Sequence[UnitValues], clip: bool, *, across: bool) -> None:
    """Limits the value axis to the range of most values."""
    values = np.concatenate([values for one in units for values in one.values])
    values = values[np.isfinite(values)]
    if not len(values) or np.ptp(values) == 0:
        return
    low, high = most(values) if clip else (float(values.min()), float(values.max()))
    start, end = widened(low, high)
    start = 0.0 if 0 <= low < 0.1 * high else start
    (ax.set_xlim if across else ax.set_ylim)(start, end)
    beyond = int(((values < low) | (values > high)).sum())
    if beyond:
        text = f"{beyond:,} unit{'s' if beyond > 1 else ''} beyond the edge"
        ax.text(1, 1, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=6.5)


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
