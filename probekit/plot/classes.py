"""Plots of the responses of units to classes."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from probekit.errors import DataError, LayerError, OptionError, close_matches
from probekit.plot.canvas import canvas
from probekit.plot.data import Array, Results, missing_variable, named_results, table
from probekit.plot.labels import Handle, color_bar, name_axis, plain, room, shown, title
from probekit.plot.series import name_results, result_colors
from probekit.results.labels import class_names
from probekit.results.trees import Result

# More classes than this are drawn as a line, and only its ends are labeled.
_BARS = 40


def unit_tuning(result: Results, layer: str, channel: int, *, ax: Axes | None = None) -> Axes:
    """The class means of one unit, highest first: its tuning curve.

    The dashed line is the mean of all classes except the preferred class; the selectivity index compares
    it with the highest class mean. More than 40 classes are drawn as a line.

    Args:
        result: A result with the metric `selectivity`; `{name: result}` draws the same unit of several
            results, with the classes in the order of the first.
        layer: The unit's layer.
        channel: The unit's channel.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no class means.
        LayerError: There is no such layer or channel.

    Example:
        >>> units = xr.Dataset(
        ...     {"class_mean": (("unit", "class"), [[1.0, 4.0, 2.0]])},
        ...     {"layer": ("unit", ["relu"]), "channel": ("unit", [0]), "class": [0, 1, 2]},
        ... )
        >>> [label.get_text() for label in unit_tuning(units, "relu", 0).get_xticklabels()]
        ['1', '2', '0']
    """
    compared = named_results(result)
    rows = compared.each(lambda one: _unit(one, layer, channel))
    first = rows[0][0]
    known = list(class_names(first).values())
    if any(
        list(class_names(one).values()) != known or not np.array_equal(one["class"], first["class"])
        for each in rows
        for one in each
    ):
        raise DataError("the results have different classes; compare tuning on the same data")
    order = np.argsort(-first["class_mean"].values, kind="stable")
    names = [known[at] for at in order]
    colors = result_colors(compared)
    with canvas(ax, min(max(2.6, 1.0 + 0.2 * len(names)), 5.0), 1.6 + room(names)) as ax:
        handles: list[Handle] = []
        for number, (replicates, color) in enumerate(zip(rows, colors, strict=True)):
            means = np.stack([one["class_mean"].values for one in replicates]).mean(0)[order]
            handles.append(_draw_tuning(ax, means, color, number, len(rows)))
        if compared.single and len(names) > 1:
            rest = float(first["class_mean"].values[order][1:].mean())
            ax.axhline(rest, color="#333333", lw=0.8, ls="--")
            ax.text(
                1, rest, "mean of the others", transform=ax.get_yaxis_transform(),
                ha="right", va="bottom", fontsize=6.5,
            )  # fmt: skip
            ax.set_xlim(-0.7, len(names) - 0.3)
        name_axis(ax.xaxis, names, most=_BARS, rotation=90)
        ax.axhline(0, color="#333333", lw=0.7)
        ax.set_ylabel("class mean activation")
        heading = f"{layer}, unit {channel}"
        if compared.single and "selectivity" in first and "channel" in first.coords:
            heading = f"{plain(layer)}, unit {channel}: SI {float(first['selectivity']):.2f}"
        title(ax, heading)
        name_results(ax, compared, colors, handles)
    return ax


def class_means(
    result: Results, layer: str, *, scale: bool = True, labels: int = 24, ax: Axes | None = None
) -> Axes:
    """Heat map of units by classes: the class means of all units of a layer.

    Units are sorted by preferred class, and within a class from the most to the least selective, so
    that a selective layer shows a diagonal. Dead units come last.

    Args:
        result: A result with the metric `selectivity`, or its table of units; `{name: result}` draws the
            maps of several results side by side, each with its own order of units.
        layer: The layer.
        scale: Divide each unit's means by the largest absolute value, so that weakly active units are
            visible too.
        labels: Maximum number of classes per map for which each class is labeled.
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: The result has no class means.
        LayerError: There is no such layer.
        OptionError: A name has several results.

    Example:
        >>> units = xr.Dataset(
        ...     {"class_mean": (("unit", "class"), [[1.0, 4.0], [3.0, 1.0]])},
        ...     {"layer": ("unit", ["relu", "relu"]), "class": [0, 1]},
        ... )
        >>> class_means(units, "relu").get_images()[0].get_array().shape
        (2, 2)
    """
    compared = named_results(result)
    if any(len(replicates) > 1 for replicates in compared.results.values()):
        raise OptionError(
            "the units of replicates do not correspond; give each result its own name: {name: result}"
        )
    tables = [
        _of_layer(one, layer)["class_mean"].transpose("unit", "class")
        for (one,) in compared.results.values()
    ]
    maps = [_ordered(means.values, scale) for means in tables]
    values, starts = _side_by_side(maps)
    low, high = float(np.nanmin(values)), float(np.nanmax(np.abs(values)))
    width = 1.2 + max(1.3, 0.15 * min(tables[0].shape[1], 24)) * len(maps)
    with canvas(ax, min(width, 7.5), 2.2 + room([*class_names(tables[0]).values()])) as ax:
        image = ax.imshow(
            values,
            aspect="auto",
            interpolation="nearest" if len(values) <= 600 else "antialiased",
            cmap="PuOr_r" if low < 0 else "viridis",
            vmin=-high if low < 0 else 0.0,
            vmax=high or 1.0,
            rasterized=True,
        )
        bar = color_bar(ax, image, 0.06)
        bar.set_label("class mean / unit's largest" if scale else "class mean activation")
        _name_classes(ax, tables, starts, labels)
        units = " or ".join(f"{count:,}" for count in dict.fromkeys(map(len, maps)))
        ax.set_ylabel(f"{units} units, by preferred class")
        ax.set_yticks([])
        if compared.single:
            title(ax, layer)
        for start, name in zip(starts, compared.names, strict=True):
            ax.text(
                start - 0.5, 1.01, plain(name), transform=ax.get_xaxis_transform(), fontsize=7.5,
                va="bottom", parse_math=False,
            )  # fmt: skip
    return ax


def _ordered(means: Array, scale: bool) -> Array:
    """Class means (unit, class) with the units sorted by preferred class, and within it by selectivity."""
    size = np.abs(means).max(1, initial=0.0)
    highest = means.max(1)
    rest = (means.sum(1) - highest) / max(means.shape[1] - 1, 1)
    total = np.abs(highest) + np.abs(rest)
    contrast = (highest - rest) / np.where(total > 0, total, 1)
    order = np.lexsort((-contrast, means.argmax(1), size == 0))
    values = means / np.where(size > 0, size, 1)[:, None] if scale else means
    return np.asarray(values[order])


def _side_by_side(maps: list[Array]) -> tuple[Array, list[int]]:
    """Maps side by side, separated by gaps, and the first column of each."""
    gap = max(1, maps[0].shape[1] // 12)
    rows = max(map(len, maps))
    columns: list[Array] = []
    starts: list[int] = []
    for number, values in enumerate(maps):
        if number:
            columns.append(np.full((rows, gap), np.nan))
        starts.append(sum(one.shape[1] for one in columns))
        columns.append(np.pad(values, ((0, rows - len(values)), (0, 0)), constant_values=np.nan))
    return np.concatenate(columns, axis=1), starts


def _name_classes(ax: Axes, tables: list[xr.DataArray], starts: list[int], most: int) -> None:
    ticks, texts = [], []
    for means, start in zip(tables, starts, strict=True):
        names = list(class_names(means).values())
        for at in shown(len(names), most):
            ticks.append(start + at)
            texts.append(plain(names[at]))
    ax.set_xticks(ticks, texts, rotation=90, parse_math=False)


def _of_layer(result: Result, layer: str) -> xr.Dataset:
    units = table(result, "unit")
    if "class_mean" not in units:
        raise missing_variable("class_mean", "unit", units)
    names = units["layer"].values.astype(str)
    if layer not in names:
        known = list(dict.fromkeys(names.tolist()))
        raise LayerError(
            f"the result has no layer {layer!r}; {close_matches(layer, known, what='layer')}"
        )
    own = units.isel(unit=np.flatnonzero(names == layer))
    if others := [str(dim) for dim in own["class_mean"].dims if dim not in ("unit", "class")]:
        raise DataError(
            f"class_mean also has the dimension {others[0]!r}; choose one with result.sel({others[0]}=...)"
        )
    # Joined results lack the classes of the others.
    own = own.sel({"class": own["class_mean"].notnull().any("unit")})
    if not np.isfinite(own["class_mean"].values).all():
        raise DataError(f"some class means of layer {layer!r} are missing or infinite")
    return own


def _unit(result: Result, layer: str, channel: int) -> xr.Dataset:
    units = _of_layer(result, layer)
    channels = (
        units["channel"].values if "channel" in units.coords else np.arange(units.sizes["unit"])
    )
    found = np.flatnonzero(channels == channel)
    if not len(found):
        raise LayerError(
            f"layer {layer!r} has no unit {channel!r}; its channels go from {channels.min()} to "
            f"{channels.max()}"
        )
    return units.isel(unit=int(found[0]))


def _draw_tuning(ax: Axes, means: Array, color: str, number: int, several: int) -> Handle:
    x = np.arange(len(means))
    if len(means) > _BARS:
        return ax.plot(x, means, color=color, lw=1)[0]
    if several > 1:
        offset = (number - (several - 1) / 2) * 0.8 / several
        return ax.bar(x + offset, means, 0.8 / several, color=color)
    return ax.bar(x, means, 0.75, color=[color, *["#9AA5AE"] * (len(means) - 1)])
