"""Plots of accuracy under corruptions."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from probekit.errors import DataError
from probekit.plot.canvas import canvas
from probekit.plot.data import NamedResults, Results, named_results, shared_labels, table
from probekit.plot.labels import name_axis, title
from probekit.plot.series import name_results, result_colors
from probekit.replicates.intervals import resampled_mean
from probekit.results.trees import Result


def corruption_accuracy(result: Results, *, relative: bool = False, ax: Axes | None = None) -> Axes:
    """Accuracy by type and severity of corruption.

    A single result is drawn as a heat map, with values in percent and the mean over types in the last
    row. Several results are drawn with one row per type: the dot is the mean over severities, and the
    line spans the lowest to the highest severity. Replicates are averaged.

    Args:
        result: A result of `robustness`; `{name: result}` compares several results over the types and
            severities that they have in common.
        relative: Divide by the accuracy on clean images.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no corruptions, or several have none in common.

    Example:
        >>> table = xr.Dataset(
        ...     {"accuracy": (("corruption", "severity"), [[0.8, 0.4]])},
        ...     {"corruption": ["fog"], "severity": [1, 5]},
        ... )
        >>> [text.get_text() for text in corruption_accuracy(table).texts]
        ['80', '40']
    """
    compared = named_results(result)
    name = "accuracy_relative" if relative else "accuracy"
    found = compared.each(lambda one: _accuracy(one, name))
    label = "accuracy / clean accuracy" if relative else "accuracy"
    if compared.single:
        return _heat_map(found[0][0], table(compared.first, "corruption"), label, ax)
    return _rows(compared, found, label, ax)


def _accuracy(result: Result, name: str) -> xr.DataArray:
    outcomes = table(result, "corruption")
    if name not in outcomes:
        raise DataError(
            f"the result has no {name} under corruptions; ask robustness for corruptions"
        )
    return outcomes[name].transpose("corruption", "severity")


def _heat_map(accuracy: xr.DataArray, outcomes: xr.Dataset, label: str, ax: Axes | None) -> Axes:
    values = accuracy.values
    names = [str(one).replace("_", " ") for one in accuracy["corruption"].values]
    if len(names) > 1:
        mean = outcomes.get("accuracy_by_severity")
        own = values.mean(0) if mean is None or "clean" in label else mean.values
        values = np.vstack([values, np.full(values.shape[1], np.nan), own])
        names = [*names, "", "mean"]
    with canvas(ax, 1.5 + 0.36 * values.shape[1], 0.8 + 0.175 * len(names)) as ax:
        most = max(1.0, float(np.nanmax(values)))
        ax.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=most)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5,
                    color="black" if value > 0.6 * most else "white",
                )  # fmt: skip
        name_axis(ax.yaxis, names, most=40)
        name_axis(ax.xaxis, accuracy["severity"].values.tolist(), most=10)
        ax.set_xlabel("severity")
        title(ax, f"{label} in %")
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return ax


def _rows(
    compared: NamedResults[Result], found: list[list[xr.DataArray]], label: str, ax: Axes | None
) -> Axes:
    every = [one for replicates in found for one in replicates]
    shared = {axis: shared_labels(every, axis) for axis in ("corruption", "severity")}
    names, levels = shared["corruption"], shared["severity"]
    colors = result_colors(compared)
    room = 0.7 / len(found)
    with canvas(ax, 3.6, 0.9 + max(0.2, 0.075 * len(found)) * len(names)) as ax:
        for number, (replicates, color) in enumerate(zip(found, colors, strict=True)):
            values = np.stack([one.sel(shared).values for one in replicates])
            rows = np.arange(len(names)) + (number - (len(found) - 1) / 2) * room
            ends = values.mean(0)[:, [0, -1]]
            ax.hlines(rows, ends.min(1), ends.max(1), color=color, lw=1, alpha=0.45)
            mean, low, high = resampled_mean(values.mean(2).T)
            ax.plot(mean, rows, "o", ms=3.5, color=color, mew=0)
            ax.hlines(rows, low, high, color=color, lw=2.2)
        for row in range(1, len(names), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#F4F4F4", lw=0, zorder=0)
        name_axis(ax.yaxis, [str(one).replace("_", " ") for one in names], most=40)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        severities = " to ".join(map(str, dict.fromkeys([levels[0], levels[-1]])))
        ax.set_xlabel(f"{label}, severity {severities}")
        dots = [Line2D([], [], marker="o", mew=0, color=color) for color in colors]
        name_results(ax, compared, colors, dots, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax
