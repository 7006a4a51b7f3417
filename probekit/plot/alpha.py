"""Sweeps over alpha: the effect of lower or higher selectivity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from probekit.errors import DataError, OptionError
from probekit.plot.canvas import canvas
from probekit.plot.data import Array, match_layers, numbers_over
from probekit.plot.labels import alpha_bar, axis_label, layer_axis, room
from probekit.plot.series import alpha_colors, curve
from probekit.replicates.intervals import resampled_mean


def alpha_curve(
    sweep: xr.Dataset, variable: str = "test_accuracy", *, ax: Axes | None = None
) -> Axes:
    """A variable over alpha: the mean over seeds with its bootstrapped 95% interval.

    The alpha axis is symmetric logarithmic if alpha spans more than a factor of four. The thin line
    marks the value at alpha 0.

    Args:
        sweep: The output of `sweep`: a dataset with the dimension `alpha` and, for several seeds,
            `seed`. To draw one side only, select it, as in `sweep.sel(alpha=slice(None, 0))`.
        variable: Name of a variable (alpha, seed).
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no alpha.

    Example:
        >>> sweep = xr.Dataset({"test_accuracy": ("alpha", [0.8, 0.9, 0.7])}, {"alpha": [-1.0, 0.0, 1.0]})
        >>> alpha_curve(sweep).get_ylabel()
        'test accuracy'
    """
    values, alphas = _values(sweep, variable)
    mean, low, high = resampled_mean(values.T)
    colors = alpha_colors(alphas)
    with canvas(ax, 3.3, 2.4) as ax:
        if 0.0 in alphas:
            ax.axhline(mean[alphas.index(0.0)], color="#BBBBBB", lw=0.8, zorder=0)
        ax.plot(alphas, mean, color="#999999", lw=0.9, zorder=1)
        ax.vlines(alphas, low, high, color=colors, lw=1.6, zorder=2)
        ax.scatter(alphas, mean, s=18, c=colors, lw=0, zorder=3)
        _alpha_axis(ax, alphas)
        ax.set_ylabel(axis_label(sweep[variable]))
    return ax


def alpha_trade_off(
    sweep: xr.Dataset,
    x: str = "selectivity_mean",
    y: str = "test_accuracy",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Two variables of a sweep plotted against each other, colored by alpha.

    Small dots are runs. Large dots are means over seeds, connected in the order of alpha, with
    bootstrapped 95% intervals in both directions.

    Args:
        sweep: The output of `sweep`.
        x: Name of a variable (alpha, seed).
        y: Name of another variable (alpha, seed).
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no alpha.

    Example:
        >>> sweep = xr.Dataset(
        ...     {"test_accuracy": ("alpha", [0.8, 0.9]), "selectivity_mean": ("alpha", [0.2, 0.4])},
        ...     {"alpha": [-1.0, 0.0]},
        ... )
        >>> alpha_trade_off(sweep).get_xlabel()
        'selectivity mean'
    """
    (across, alphas), (up, _) = _values(sweep, x), _values(sweep, y)
    colors = alpha_colors(alphas)
    x_mean, x_low, x_high = resampled_mean(across.T)
    y_mean, y_low, y_high = resampled_mean(up.T)
    with canvas(ax, 3.4, 2.5) as ax:
        if len(across) > 1:
            for column, color in enumerate(colors):
                ax.scatter(across[:, column], up[:, column], s=5, color=color, alpha=0.5, lw=0)
        ax.plot(x_mean, y_mean, color="#999999", lw=0.9, zorder=1)
        ax.hlines(y_mean, x_low, x_high, color=colors, lw=1.2, zorder=2)
        ax.vlines(x_mean, y_low, y_high, color=colors, lw=1.2, zorder=2)
        ax.scatter(x_mean, y_mean, s=22, c=colors, lw=0, zorder=3)
        alpha_bar(ax, alphas, colors)
        ax.set_xlabel(axis_label(sweep[x]))
        ax.set_ylabel(axis_label(sweep[y]))
    return ax


def alpha_profile(
    sweep: xr.Dataset,
    variable: str = "selectivity",
    *,
    layers: str | Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A variable by layer, one line per alpha: the mean over seeds with its 95% interval.

    Args:
        sweep: The output of `sweep`.
        variable: Name of a variable (alpha, seed, layer).
        layers: Names or globs of layers; None for all.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no alpha.

    Example:
        >>> sweep = xr.Dataset(
        ...     {"selectivity": (("alpha", "layer"), [[0.1, 0.2], [0.3, 0.4]])},
        ...     {"alpha": [-1.0, 0.0], "layer": ["relu", "relu_1"]},
        ... )
        >>> len(alpha_profile(sweep).lines)
        2
    """
    values, alphas = _values(sweep, variable, "layer")
    names = [str(one) for one in sweep["layer"].values]
    chosen = match_layers(names, layers)
    rows = [names.index(name) for name in chosen]
    colors = alpha_colors(alphas)
    with canvas(ax, min(max(3.2, 1.2 + 0.19 * len(chosen)), 9.0), 1.7 + room(chosen)) as ax:
        x = np.arange(len(chosen), dtype=np.float64)
        for at, color in enumerate(colors):
            curve(ax, x, values[:, at][:, rows], color)
        layer_axis(ax, chosen)
        alpha_bar(ax, alphas, colors)
        ax.set_ylabel(axis_label(sweep[variable]))
    return ax


def _values(sweep: object, variable: str, *others: str) -> tuple[Array, list[float]]:
    """Values (seed, alpha, ...) and the alphas, without alphas that have no values."""
    if not isinstance(sweep, xr.Dataset):
        raise OptionError(
            f"sweep must be the dataset that pk.sweep returns, not {type(sweep).__name__}"
        )
    values = numbers_over(sweep, "sweep", variable, "alpha", *others).sortby("alpha")
    if "seed" not in values.dims:
        values = values.expand_dims("seed")
    numbers = values.transpose("seed", "alpha", *others).values.astype(np.float64)
    measured = np.isfinite(numbers).any(axis=(0, *range(2, numbers.ndim)))
    if not measured.any():
        raise DataError(f"no run of the sweep has a value of {variable!r} yet")
    return numbers[:, measured], values["alpha"].values[measured].astype(float).tolist()


def _alpha_axis(ax: Axes, alphas: list[float]) -> None:
    sizes = [abs(alpha) for alpha in alphas if alpha]
    if sizes and max(sizes) > 4 * min(sizes):
        ax.set_xscale("symlog", linthresh=min(sizes), linscale=0.6)
    ax.set_xlabel("α")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator(_apart(ax, alphas)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))


def _apart(ax: Axes, alphas: list[float]) -> list[float]:
    """The alphas to label: zero, the ends, and those between that do not overlap."""
    at = {alpha: float(ax.transData.transform((alpha, 0))[0]) for alpha in alphas}
    width = max(max(at.values()) - min(at.values()), 1e-9)
    kept: list[float] = []
    for alpha in sorted(alphas, key=lambda one: (one != 0, -abs(one))):
        if all(abs(at[alpha] - at[other]) > 0.1 * width for other in kept):
            kept.append(alpha)
    return sorted(kept)
