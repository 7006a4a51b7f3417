"""Several results on the same axes: positions, colors, lines and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from probekit.errors import DataError, warn
from probekit.plot.colors import alpha_map, alpha_norm, palette
from probekit.plot.data import Array, NamedResults
from probekit.plot.labels import Handle, alpha_bar, key
from probekit.replicates.intervals import resampled_mean

_MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")


def alpha_colors(alphas: Sequence[float]) -> list[str]:
    """The color of each alpha on the diverging colormap."""
    norm, colors = alpha_norm(alphas), alpha_map()
    return [to_hex(colors(norm(alpha))) for alpha in alphas]


def result_colors(compared: NamedResults[Any]) -> list[str]:
    if compared.alpha:
        return alpha_colors(list(compared.results))
    return palette(len(compared.results))


def union(layers: Sequence[Sequence[str]]) -> list[str] | None:
    """The layers of several results in a common order; None if the results are of different networks.

    Results belong to the same network if one of them has all layers of the others, in the same order.
    """
    longest = max(layers, key=len)
    for names in layers:
        remaining = iter(longest)
        if not all(name in remaining for name in names):
            return None
    return list(longest)


def check_same_layers(replicates: Sequence[Sequence[str]]) -> None:
    """Raises `DataError` unless the replicates under one name have the same layers."""
    if any(layers != replicates[0] for layers in replicates):
        raise DataError(
            "replicates under one name must have the same layers; give each its own name"
        )


def places(layers: Sequence[str], names: Sequence[str] | None) -> Array:
    """Positions of layers on the horizontal axis: their index, or their relative depth."""
    if names is None:
        return np.linspace(0.0, 1.0, len(layers)) if len(layers) > 1 else np.zeros(1)
    return np.array([names.index(layer) for layer in layers], dtype=np.float64)


def curve(
    ax: Axes,
    x: Array,
    replicates: Array,
    color: str,
    *,
    number: int = 0,
    markers: bool = True,
    dashes: str = "-",
) -> Line2D:
    """Draws the mean of replicates (replicate, place) as a line, with its interval as a band."""
    mean, low, high = replicate_means(replicates)
    if np.isfinite(low).any():
        ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    marker = _MARKERS[number % len(_MARKERS)] if markers else ""
    (line,) = ax.plot(x, mean, dashes, color=color, marker=marker, mew=0)
    return line


def replicate_means(replicates: Array) -> tuple[Array, Array, Array]:
    """The means over replicates (replicate, place) with their intervals, each (place,).

    Warns:
        ProbekitWarning: Some places are means over fewer replicates than others.
    """
    count = (~np.isnan(replicates)).sum(0)
    fewer = (count > 0) & (count < count.max(initial=0))
    if fewer.any():
        warn(
            f"{fewer.sum()} of {(count > 0).sum()} means are over fewer replicates (down to "
            f"{count[fewer].min()}) than the others ({count.max()}), so they are not of the same networks; "
            "draw only what all replicates have"
        )
    return resampled_mean(np.moveaxis(replicates, 0, -1))


def name_results(
    ax: Axes,
    compared: NamedResults[Any],
    colors: Sequence[str],
    handles: Sequence[Handle],
    **options: Any,
) -> None:
    """Adds a color bar of alphas, or a legend of names; nothing for a single result."""
    if compared.alpha:
        alpha_bar(ax, list(compared.results), colors)
    elif not compared.single:
        key(ax, handles, compared.names, **options)


def name_dashes(ax: Axes, names: Sequence[str], **options: Any) -> None:
    """Adds a second legend with the line style of each name, if there are several."""
    if len(names) < 2:
        return
    first = ax.get_legend()
    lines = [
        Line2D([], [], color="#333333", ls=DASHES[at % len(DASHES)]) for at in range(len(names))
    ]
    key(ax, lines, names, **options)
    if first is not None:
        ax.add_artist(first)
