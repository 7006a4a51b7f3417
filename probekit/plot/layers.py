"""Plots of layers, from the first to the last: variables, and eigenvalues of their covariances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from probekit.checks import one_of
from probekit.errors import DataError, OptionError
from probekit.plot.canvas import canvas, from_zero
from probekit.plot.colors import shades
from probekit.plot.data import (
    Array,
    At,
    Results,
    has_part_of_units,
    layer_values,
    match_layers,
    missing_variable,
    named_results,
    table,
    unit_values,
)
from probekit.plot.labels import Handle, axis_label, depth_bar, key, layer_axis, plain, room
from probekit.plot.series import (
    check_same_layers,
    curve,
    name_results,
    places,
    result_colors,
    union,
)
from probekit.results.trees import Result

Interval: TypeAlias = Literal["auto", "confidence", "quartiles", "none"]
_BAND = "band: middle half of the units"
_FEW = 6


def layer_profile(
    result: Results,
    variable: str = "selectivity",
    *,
    layers: str | Sequence[str] | None = None,
    interval: Interval = "auto",
    at: At = None,
    ax: Axes | None = None,
) -> Axes:
    """One value per layer, in execution order.

    Args:
        result: A result or its table of layers; `{name: result}` draws one line per result, and
            `{name: [result, ...]}` the mean over replicates with its bootstrapped 95% interval. Results
            with different layers are drawn over relative depth.
        variable: Name of a layer or unit variable of any metric. A unit variable is averaged over the
            units of each layer. A variable with another dimension, such as `components` (variance), is
            drawn as one line per coordinate.
        layers: Names or globs of layers; None for all.
        interval: The interval around a single result. `"quartiles"`: the interquartile range of a
            layer's units as a band; `"confidence"`: error bars from variables with the suffixes `_low`
            and `_high`, such as those of the metric `selectivity_interval`; `"auto"`: both if
            available; `"none"`.
        at: Coordinates along the variable's other dimensions.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result lacks the variable or the interval.
        OptionError: `interval` is unknown.

    Example:
        >>> layers = xr.Dataset({"n_units": ("layer", [8, 16])}, {"layer": ["relu", "relu_1"]})
        >>> layer_profile(layers, "n_units").lines[0].get_ydata()
        array([ 8., 16.])
    """
    one_of("interval", interval, get_args(Interval))
    compared = named_results(result)
    found = compared.each(lambda one: layer_values(one, variable, layers, at))
    names = union([_names(values) for replicates in found for _, values in replicates])
    several = next((dim for _, one in found[0] for dim in one.dims if dim != "layer"), None)
    if several and not compared.single:
        raise OptionError(
            f"{variable} also has the dimension {several!r}; choose a coordinate along it, such "
            f"as at={{{several!r}: {found[0][0][1][several].values.tolist()[0]!r}}}"
        )
    count = len(names or _names(found[0][0][1]))
    colors = result_colors(compared)
    with canvas(ax, min(max(3.0, 0.9 + 0.19 * count), 9.0), 1.7 + room(names)) as ax:
        if several:
            _lines(ax, found[0][0][1], str(several))
        else:
            handles = []
            for number, (replicates, color) in enumerate(zip(found, colors, strict=True)):
                x, stacked = _stacked([values for _, values in replicates], names)
                handles.append(curve(ax, x, stacked, color, number=number))
            if len(found) == 1 and len(found[0]) == 1 and interval != "none":
                _around(ax, compared.first, found[0][0], variable, layers, interval, at, colors[0])
            name_results(ax, compared, colors, handles)
        layer_axis(ax, names)
        name, values = found[0][0]
        ax.set_ylabel(axis_label(values.rename(name)))
        from_zero(ax)
    return ax


def gradient_cv(
    result: Results, *, layers: str | Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Variability of the input-unit gradient by layer: over samples, and over units.

    The solid line is the coefficient of variation of a unit's gradient norm over samples, averaged over
    the units of the layer; a single result also shows the interquartile range of the units. The dashed
    line is the coefficient of variation, over units, of their mean gradient norms.

    Args:
        result: A result with the metric `gradient_variability`; `{name: result}` compares several.
        layers: Names or globs of layers; None for all measured layers.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no gradient variability.

    Source:
        The two quantities are our interpretation of Leavitt & Morcos 2020 (arXiv 2010.07693).

    Example:
        >>> layers = xr.Dataset(
        ...     {name: ("layer", [0.4, 0.6]) for name in
        ...      ("gradient_norm_cv_mean", "gradient_norm_cv_across_units")},
        ...     {"layer": ["relu", "relu_1"]},
        ... )
        >>> len(gradient_cv(layers).lines)
        2
    """
    compared = named_results(result)
    kinds = {"gradient_norm_cv_mean": "-", "gradient_norm_cv_across_units": "--"}
    found = {kind: compared.each(partial(_known, kind=kind, layers=layers)) for kind in kinds}
    everything = [values for kind in found.values() for one in kind for values in one]
    names = union([_names(values) for values in everything])
    count = len(names or _names(everything[0]))
    colors = result_colors(compared)
    with canvas(ax, min(max(3.0, 0.9 + 0.19 * count), 9.0), 1.7 + room(names)) as ax:
        handles = []
        for kind, dashes in kinds.items():
            for number, (replicates, color) in enumerate(zip(found[kind], colors, strict=True)):
                x, stacked = _stacked(replicates, names)
                line = curve(ax, x, stacked, color, number=number, dashes=dashes)
                handles += [line] if dashes == "-" else []
        if compared.single and _has_units(compared.first, "gradient_norm_cv"):
            own = _names(everything[0])
            x = places(own, names)
            _quartile_band(ax, compared.first, "gradient_norm_cv", own, colors[0], x)
            _note(ax, _BAND)
        styles = [Line2D([], [], color="#333333", ls=dashes) for dashes in kinds.values()]
        texts = ["over samples", "over units"]
        if compared.single or compared.alpha:
            key(ax, styles, texts)
            name_results(ax, compared, colors, handles)
        else:
            key(ax, [*handles, *styles], [*compared.names, *texts])
        layer_axis(ax, names)
        ax.set_ylabel("CV of the gradient norm")
        from_zero(ax)
    return ax


def _names(values: xr.DataArray) -> list[str]:
    return [str(one) for one in values["layer"].values]


def _known(result: Result, kind: str, layers: str | Sequence[str] | None) -> xr.DataArray:
    """The values of a variable without the layers that were not measured."""
    _, values = layer_values(result, kind, layers)
    known = np.isfinite(values.values)
    return values.isel(layer=known) if known.any() else values


def _stacked(replicates: Sequence[xr.DataArray], names: list[str] | None) -> tuple[Array, Array]:
    """The positions of the layers, and the values (replicate, layer) at these positions."""
    layers = [_names(one) for one in replicates]
    check_same_layers(layers)
    return places(layers[0], names), np.stack([one.values for one in replicates])


def _lines(ax: Axes, values: xr.DataArray, along: str) -> None:
    """Draws one line per coordinate along another dimension."""
    labels = values[along].values.tolist()
    if len(labels) > 8:
        raise OptionError(
            f"{values.name} has {len(labels)} values along {along!r}, too many for lines; choose one, "
            f"such as at={{{along!r}: {labels[0]!r}}}"
        )
    x = np.arange(values.sizes["layer"], dtype=np.float64)
    handles = [
        curve(ax, x, values.isel({along: at}).values[None], color, number=at)
        for at, color in enumerate(shades(len(labels)))
    ]
    texts = [f"{label:g}" if isinstance(label, float) else str(label) for label in labels]
    key(ax, handles, texts, heading=plain(along))


def _around(
    ax: Axes,
    result: Result,
    found: tuple[str, xr.DataArray],
    variable: str,
    layers: str | Sequence[str] | None,
    interval: Interval,
    at: At,
    color: str,
) -> None:
    """Draws the intervals around a single line, with a legend."""
    name, values = found
    measured = table(result, "layer")
    notes = []
    if interval in ("auto", "quartiles") and _has_units(result, variable, at):
        x = np.arange(values.sizes["layer"], dtype=np.float64)
        _quartile_band(ax, result, variable, _names(values), color, x, at)
        notes.append(_BAND)
    ends = set() if has_part_of_units(result) else set(measured)  # those of all units
    if interval in ("auto", "confidence") and {f"{name}_low", f"{name}_high"} <= ends:
        low, high = (layer_values(result, f"{name}_{x}", layers, at)[1] for x in ("low", "high"))
        ax.vlines(np.arange(len(low)), low, high, color="black", lw=1.1, zorder=3)
        notes.append("bars: confidence interval of the mean")
    if not notes and interval == "confidence":
        raise DataError(
            f"the result has no {name}_low and {name}_high; ask analyze for the metric "
            "selectivity_interval, or choose interval='quartiles'"
        )
    if not notes and interval == "quartiles":
        raise DataError(
            f"{variable!r} is not a variable of units, so it has no quartiles over units"
        )
    if notes:
        _note(ax, *notes)


def _note(ax: Axes, *lines: str) -> None:
    ax.set_title("\n".join(lines), fontsize=6.5, color="#555555")


def _has_units(result: Result, variable: str, at: At = None) -> bool:
    if not isinstance(result, xr.DataTree) or "units" not in result.children:
        return False
    units = result.children["units"].to_dataset()
    return (
        variable in units
        and set(units[variable].dims) == {"unit", *(at or {})}
        and units[variable].dtype.kind == "f"
    )


def _quartile_band(
    ax: Axes, result: Result, variable: str, layers: list[str], color: str, x: Array, at: At = None
) -> None:
    units = unit_values(result, variable, layers, at)
    ends = [
        np.nanpercentile(one, [25, 75]) if np.isfinite(one).any() else [np.nan, np.nan]
        for one in units.values
    ]
    low, high = np.array(ends, dtype=np.float64).T
    ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)


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
            found[name] = (np.sort(values)[::-1], float(row["participation_ratio"]))
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
