"""Plots of the eigenvalue spectra of layer covariances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from probekit.errors import DataError, OptionError
from probekit.plot.canvas import canvas
from probekit.plot.colors import shades
from probekit.plot.data import Array, Results, match_layers, missing_variable, named_results, table
from probekit.plot.labels import Handle, depth_bar, key
from probekit.plot.series import name_results, result_colors
from probekit.results.trees import Result

_FEW = 6


def eigenspectrum(
    result: Results, *, layers: str | Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """The eigenvalues of each layer's covariance, with the participation ratio marked.

    Both axes are logarithmic. Eigenvalues are divided by the largest of their layer. The dot on a curve
    marks the participation ratio, (sum of eigenvalues)^2 / sum of their squares: the number of
    dimensions of equal variance that would have the same ratio. A curve ends at the last eigenvalue
    stored in the result (`Dimensionality(spectrum=...)`).

    Args:
        result: A result with the metric `dimensionality` or its table of layers, or a recording, whose
            covariance is computed. `{name: result}` compares several results, preferably for one layer.
        layers: Names or globs of layers; None for all.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no eigenvalues.
        LayerError: There is no such layer.

    Example:
        >>> layers = xr.Dataset(
        ...     {"eigenvalue": (("layer", "component"), [[4.0, 2.0, 1.0]]),
        ...      "participation_ratio": ("layer", [49 / 21])},
        ...     {"layer": ["relu"], "component": [0, 1, 2]},
        ... )
        >>> eigenspectrum(layers).lines[0].get_ydata()
        array([1.  , 0.5 , 0.25])
    """
    compared = named_results(result)
    spectra = compared.each(lambda one: _spectra(one, layers))
    names = list(spectra[0][0])
    colors = result_colors(compared)
    with canvas(ax, 3.5, 2.7) as ax:
        handles: list[Handle] = []
        if compared.single:
            for values, color in zip(spectra[0][0].values(), shades(len(names)), strict=True):
                handles.append(_draw(ax, *values, color))
            if len(names) <= _FEW:
                key(ax, handles, names, loc="lower left")
            else:
                depth_bar(ax, names)
        else:
            for replicates, color in zip(spectra, colors, strict=True):
                drawn = [_draw(ax, *one, color) for each in replicates for one in each.values()]
                handles.append(drawn[0])
            name_results(ax, compared, colors, handles, loc="lower left")
        _logarithmic(ax, spectra)
    return ax


def _spectra(result: Result, layers: str | Sequence[str] | None) -> dict[str, tuple[Array, float]]:
    """The positive eigenvalues in descending order, and the participation ratio of each layer."""
    numbers = _measured(result)
    names = [str(name) for name in np.atleast_1d(numbers["layer"].values)]
    chosen = match_layers(names, layers)
    found = {}
    for name in chosen:
        row = numbers.isel(layer=names.index(name))
        values = row["eigenvalue"].values.astype(np.float64)
        values = values[np.isfinite(values) & (values > 1e-12 * np.nanmax(values, initial=0.0))]
        if len(values):
            found[name] = (values, float(row["participation_ratio"]))
    if not found:
        raise DataError("nothing varies in these layers, so they have no positive eigenvalues")
    return found


def _measured(result: Result) -> xr.Dataset:
    if isinstance(result, xr.Dataset) and "activation" in result:
        return _of_recording(result)
    numbers = table(result, "layer")
    if "eigenvalue" not in numbers or not numbers.sizes.get("component", 0):
        raise missing_variable("eigenvalue", "layer", numbers)
    return numbers


def _of_recording(recording: xr.Dataset) -> xr.Dataset:
    from probekit.metrics.dimensionality import eigenvalues, participation_ratio
    from probekit.statistics.covariance import Covariance
    from probekit.statistics.feeding import feed

    if "layer" not in recording.coords:
        raise OptionError("the recording has no coordinate layer of its units")
    of_layer = recording["layer"].values.astype(str)
    tables = []
    for name in dict.fromkeys(of_layer.tolist()):
        part = recording.isel(unit=np.flatnonzero(of_layer == name))
        covariance = feed(part, Covariance("flatten"))
        values = xr.Dataset({"eigenvalue": eigenvalues(covariance)}).assign_coords(layer=name)
        tables.append(values.assign(participation_ratio=participation_ratio(covariance)))
    return xr.concat(tables, "layer", join="outer")


def _logarithmic(ax: Axes, spectra: Sequence[Sequence[dict[str, tuple[Array, float]]]]) -> None:
    """Sets logarithmic axes; the vertical axis covers nearly all eigenvalues."""
    relative = np.concatenate(
        [values / values[0] for each in spectra for one in each for values, _ in one.values()]
    )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(0.5 * float(np.quantile(relative, 0.03)), 1.5)
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.set_xlabel("principal component")
    ax.set_ylabel("eigenvalue / highest")


def _draw(ax: Axes, values: Array, ratio: float, color: str) -> Line2D:
    rank = np.arange(1, len(values) + 1)
    relative = values / values[0]
    (line,) = ax.plot(rank, relative, color=color, lw=1.1)
    if 1 <= ratio <= len(values):
        height = float(np.exp(np.interp(np.log(ratio), np.log(rank), np.log(relative))))
        ax.plot([ratio], [height], "o", ms=4, mfc=color, mec="white", mew=0.7, zorder=3)
    return line
