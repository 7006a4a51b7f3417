"""Labels of figures: names are shown literally, and only as many as are readable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap

from probekit.plot.colors import DEPTH
from probekit.results.labels import label, shorten

Handle: TypeAlias = "Artist | tuple[Artist, ...]"


def axis_label(variable: xr.DataArray | str) -> str:
    """The axis label of a variable: its `long_name` and units, or its name.

    >>> axis_label("my_metric")
    'my metric'
    >>> axis_label(xr.DataArray(0, attrs={"long_name": "firing rate", "units": "Hz"}))
    'firing rate [Hz]'
    """
    text = label(variable) if isinstance(variable, xr.DataArray) else variable.replace("_", " ")
    return plain(text, 60)


def plain(name: object, most: int = 32) -> str:
    """A name on one line, shortened in the middle if it is long."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(name))
    return shorten(text, most)


def room(names: Sequence[object] | None) -> float:
    """The space in inches that vertical names need below the axes; None for a title only."""
    if names is None:
        return 0.3
    return 0.06 * max((len(plain(name)) for name in names), default=0)


def shown(number: int, most: int) -> list[int]:
    """The indices of the items to label: all, or a regular subset that starts with the first.

    >>> shown(3, 10), shown(10, 4)
    ([0, 1, 2], [0, 3, 6, 9])
    """
    return list(range(0, number, max(1, -(-number // most))))


def name_axis(axis: Axis, names: Sequence[object], *, most: int, **options: Any) -> None:
    """Labels the positions along an axis with names, which are shown literally."""
    which = shown(len(names), most)
    # A dollar sign in the name of a layer or class does not start a formula.
    axis.set_ticks(which, [plain(names[at]) for at in which], parse_math=False, **options)


def layer_axis(ax: Axes, layers: Sequence[str] | None, *, most: int = 40) -> None:
    """Labels the horizontal axis with the layers, in execution order."""
    if layers is None:
        ax.set_xlabel("relative depth (first to last layer)")
        ax.set_xlim(-0.03, 1.03)
        return
    name_axis(ax.xaxis, layers, most=most, rotation=90)
    ax.set_xlim(-0.7, len(layers) - 0.3)


def title(ax: Axes, text: str) -> None:
    """Sets a title, in which names are shown literally."""
    ax.set_title(plain(text, 36)).set_parse_math(False)


def key(
    ax: Axes, handles: Sequence[Handle], names: Sequence[str], *, heading: str = "", **options: Any
) -> None:
    """Adds a legend, in which names are shown literally."""
    texts = [plain(name) for name in names]
    if "ncols" in options:
        longest = max(map(len, texts), default=0)
        options["ncols"] = max(1, min(options["ncols"], 44 // (longest + 4)))
    # matplotlib omits labels that start with an underscore.
    legend = ax.legend(handles, ["."] * len(names), title=heading or None, **options)
    legend.get_title().set_parse_math(False)
    for text, name in zip(legend.get_texts(), texts, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def color_bar(ax: Axes, colors: ScalarMappable, fraction: float, **options: Any) -> Any:
    """Adds a color bar without a frame next to the axes."""
    aspect = 24 if fraction > 0.05 else 28
    bar = ax.figure.colorbar(colors, ax=ax, fraction=fraction, aspect=aspect, pad=0.02, **options)
    bar.outline.set_visible(False)
    return bar


def alpha_bar(ax: Axes, alphas: Sequence[float], colors: Sequence[str]) -> None:
    """Adds a color bar next to the axes, with one field per value of alpha."""
    norm = BoundaryNorm(np.arange(len(alphas) + 1) - 0.5, len(alphas))
    fields = ScalarMappable(norm, ListedColormap(list(colors)))
    bar = color_bar(ax, fields, 0.06, ticks=range(len(alphas)))
    bar.ax.set_yticklabels([f"{alpha:g}".replace("-", "−") for alpha in alphas])
    bar.ax.tick_params(which="both", length=0, labelsize=7)
    bar.ax.set_title("α", fontsize=8, loc="center")


def depth_bar(ax: Axes, layers: Sequence[str]) -> None:
    """Adds a color bar next to the axes, from the first to the last layer."""
    bar = color_bar(ax, ScalarMappable(cmap=DEPTH), 0.05, ticks=[0, 1])
    ends = [plain(layers[at], 20) for at in (0, -1)]
    bar.ax.set_yticklabels(ends, parse_math=False, fontsize=7)
    bar.ax.tick_params(length=0)
    bar.ax.invert_yaxis()
