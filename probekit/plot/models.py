"""Plots of many models: the table of a survey, and the similarity of layers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator

from probekit.errors import DataError, OptionError
from probekit.plot.canvas import canvas, from_zero
from probekit.plot.colors import palette
from probekit.plot.data import numbers_over
from probekit.plot.labels import (
    Handle,
    axis_label,
    color_bar,
    key,
    layer_axis,
    name_axis,
    plain,
    room,
)
from probekit.plot.series import curve
from probekit.results.provenance import facts_of

_MOST_NAMES = 12


def model_profile(
    survey: xr.DataTree, variable: str = "selectivity_mean", *, ax: Axes | None = None
) -> Axes:
    """A layer variable over relative depth, one line per model.

    Up to seven models have colors of their own; more are colored from the lowest to the highest
    accuracy, or mean of the variable if the accuracy is not known.

    Args:
        survey: The output of `survey`.
        variable: Name of a variable (model, layer).
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no model has it.

    Example:
        >>> layers = xr.Dataset(
        ...     {"depth": (("model", "layer"), [[0.0, 1.0]]), "dead": (("model", "layer"), [[0.1, 0.2]])},
        ...     {"model": ["resnet18"]})
        >>> len(model_profile(xr.DataTree.from_dict({"layers": layers}), "dead").lines)
        1
    """
    layers = _survey(survey)["layers"].to_dataset().transpose("model", ...)
    values = numbers_over(layers, "survey", variable, "model", "layer")
    with canvas(ax, _width(_names(values)), 2.6) as ax:
        lines = []
        for at, color in enumerate(_colors(survey, values.mean("layer"))):
            known = np.isfinite(values.values[at]) & np.isfinite(layers["depth"].values[at])
            if known.any():
                x, y = layers["depth"].values[at][known], values.values[at][known]
                lines.append((curve(ax, x, y[None], color, number=at), _names(values)[at]))
        layer_axis(ax, None)
        ax.set_ylabel(axis_label(values))
        from_zero(ax)
        _model_key(ax, [line for line, _ in lines], [name for _, name in lines])
    return ax


def model_scatter(
    survey: xr.DataTree, x: str = "accuracy", y: str = "selectivity_mean", *, ax: Axes | None = None
) -> Axes:
    """Two numbers of every model against each other, with Spearman's rank correlation.

    The colors are those of `model_profile`; the correlation is shown for at least four models.

    Args:
        survey: The output of `survey`.
        x: Name of a variable (model); the axis is logarithmic for `parameters` that differ by
            more than a factor of 5.
        y: Name of another variable (model).
        ax: Axes to draw on; None creates a figure.

    Raises:
        DataError: There is no such variable, or no model has both.

    Example:
        >>> table = xr.Dataset({"accuracy": ("model", [0.7]), "selectivity_mean": ("model", [0.3])},
        ...                    {"model": ["resnet18"]})
        >>> model_scatter(xr.DataTree(table)).get_xlabel()
        'accuracy'
    """
    from scipy import stats

    models = _survey(survey).to_dataset()
    across, up = (numbers_over(models, "survey", name, "model") for name in (x, y))
    known = np.isfinite(across.values) & np.isfinite(up.values)
    if not known.any():
        raise DataError(f"no model of the survey has both {x!r} and {y!r}")
    colors = [one for one, is_known in zip(_colors(survey, up), known, strict=True) if is_known]
    across, up = across[known], up[known]
    with canvas(ax, _width(_names(across)), 2.6) as ax:
        ax.scatter(across, up, s=18, c=colors, lw=0)
        if x == "parameters" and across.max() > 5 * across.min():
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.minorticks_off()
        else:
            ax.locator_params(axis="x", nbins=4)
        if x == "parameters":
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_xlabel(axis_label(across))
        ax.set_ylabel(axis_label(up))
        if int(known.sum()) > 3:
            rho = stats.spearmanr(across, up).statistic
            ax.set_title(f"ρ = {rho:.2f}, {int(known.sum())} models", fontsize=7)
        dots = [Line2D([], [], ls="", marker="o", mew=0, color=one) for one in colors]
        _model_key(ax, dots, _names(across))
    return ax


def layer_similarity(cka: xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """Similarity of every layer of one model with every layer of another, as a heat map.

    Args:
        cka: The output of `cka`.
        ax: Axes to draw on; None creates a figure.

    Raises:
        OptionError: The input is not the output of `cka`.

    Example:
        >>> table = xr.Dataset({"cka": (("layer", "other_layer"), [[1.0, 0.3]])},
        ...                    {"layer": ["relu"], "other_layer": ["relu", "relu_1"]})
        >>> layer_similarity(table).images[0].get_array().shape
        (1, 2)
    """
    if not isinstance(cka, xr.Dataset) or "cka" not in cka or "other_layer" not in cka.dims:
        raise OptionError(f"layer_similarity takes the output of pk.cka, not {type(cka).__name__}")
    values = cka["cka"].transpose("layer", "other_layer")
    names = [[str(name) for name in values[dim].values] for dim in ("layer", "other_layer")]
    pairs = zip(names, names[::-1], strict=True)
    height, width = (min(max(0.14 * len(one), 1.6) + room(other), 9.0) for one, other in pairs)
    with canvas(ax, width + 1.1, height + 0.2) as ax:
        image = ax.imshow(values.values, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
        name_axis(ax.yaxis, names[0], most=40)
        name_axis(ax.xaxis, names[1], most=40, rotation=90)
        ax.set_ylabel(_side(cka, "model", "layer"), parse_math=False)
        ax.set_xlabel(_side(cka, "other", "other layer"), parse_math=False)
        color_bar(ax, image, 0.05).set_label(axis_label(values))
    return ax


def _side(cka: xr.Dataset, side: str, otherwise: str) -> str:
    """The name of one of the two models."""
    about = facts_of(cka.attrs).get(side, {})
    return plain(about.get("name") or about.get("type") or otherwise, 40)


def _survey(survey: object) -> xr.DataTree:
    if not isinstance(survey, xr.DataTree):
        raise OptionError(
            f"survey must be the tree that pk.survey returns, not {type(survey).__name__}"
        )
    return survey


def _names(values: xr.DataArray | xr.Dataset) -> list[str]:
    return [str(name) for name in values["model"].values]


def _shortened(names: Sequence[str]) -> tuple[str, list[str]]:
    """What all names begin with, and the rest of each; cut after a separator, so that words stay whole."""
    shared = os.path.commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 (not paths)
    same = re.sub(r"[^-_:/.]*$", "", shared)
    short = [plain(name.removeprefix(same)) for name in names]
    return (f"{plain(same)}…", short) if same and all(short) else ("", [*map(plain, names)])


def _width(names: Sequence[str]) -> float:
    """The width in inches of axes with the names of models next to them."""
    heading, short = _shortened(names)
    longest = max(len(heading), *(len(name) + 4 for name in short), 0)
    return 3.4 + (0.062 * longest if len(names) <= _MOST_NAMES else 0.0)


def _model_key(ax: Axes, handles: Sequence[Handle], names: Sequence[str]) -> None:
    """Adds a legend of few models next to the axes."""
    if len(names) <= _MOST_NAMES:
        heading, short = _shortened(names)
        place: Any = {"loc": "upper left", "bbox_to_anchor": (1, 1), "alignment": "left"}
        key(ax, handles, short, heading=heading, **place)


def _colors(survey: xr.DataTree, otherwise: xr.DataArray) -> list[str]:
    """One color per model, in the order of their accuracy if there are more than seven."""
    models = survey.to_dataset()
    known = "accuracy" in models and models["accuracy"].notnull().any()
    order = np.argsort((models["accuracy"] if known else otherwise).values, kind="stable")
    own = palette(len(order))
    return own if len(order) <= 7 else [own[rank] for rank in order.argsort()]
