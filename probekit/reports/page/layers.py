"""The table of layers: one row per layer, with the distribution of its units and its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from probekit.reports.model_results import ModelResults
from probekit.reports.page.svg import axis, element, number, ridge
from probekit.results.labels import ends, heading, is_share, shorten, summary_variables

_HEIGHT = 34
_DENSE_HEIGHT = 20
_NAME_LENGTH = 29
_DENSE_FROM = 40
_MOST_COLUMNS = 4
# If all fractions are below this, bars are relative to the highest; bars of a few percent are invisible.
_SMALL = 0.3


@dataclass(frozen=True)
class LayerColumn:
    """A variable of the layers; `high` is the value of a full bar."""

    name: str
    heading: str
    description: str
    high: float


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model, ready for the template; `heading` names the variable of the ridges."""

    heading: str
    axis: Markup
    columns: Sequence[LayerColumn]
    rows: Sequence[Mapping[str, Any]]
    dense: bool


def layer_table(model: ModelResults, limits: tuple[float, float] | None = None) -> LayerTable:
    """The table of the layers of a model."""
    name = main_variable(model)
    low, high = limits or range_of([model], name)
    shown = [one for one in column_names(model.layers) if one != "selectivity_mean"]
    columns = [_column(model.layers[one]) for one in shown[:_MOST_COLUMNS]]
    count = len(model.layer_names)
    rows = [_row(model, at, name, (low, high), columns) for at in range(count)]
    title = heading(model.units[name]) if name else ""
    return LayerTable(title, axis(low, high), columns, rows, count > _DENSE_FROM)


def main_variable(model: ModelResults) -> str:
    """The variable of the ridges: selectivity, or the first unit variable, or none."""
    if "selectivity" in model.units:
        return "selectivity"
    names = (
        str(name)
        for name, values in model.units.data_vars.items()
        if values.dims == ("unit",) and values.dtype.kind == "f"
    )
    return next(names, "")


def range_of(models: Sequence[ModelResults], name: str) -> tuple[float, float]:
    """The range of a unit variable over models; [0, 1] for fractions within this range."""
    variables = [one.units[name] for one in models if name in one.units]
    values = np.concatenate([one.values for one in variables]) if variables else np.empty(0)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if variables and is_share(variables[0]) and low >= 0 and high <= 1:
        return 0.0, 1.0
    low = min(low, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def column_names(layers: xr.Dataset) -> list[str]:
    """The layer variables that a page shows: means, fractions, and layer metrics."""
    return [
        name
        for metric, names in summary_variables(layers).items()
        for name in names
        if (name.endswith(("_mean", "_fraction")) or name == metric)
        and layers[name].dims == ("layer",)
        and layers[name].dtype.kind in "fiu"
        and bool(layers[name].notnull().any())
    ]


def _column(values: xr.DataArray) -> LayerColumn:
    highest = float(values.max())
    if is_share(values) and _SMALL <= highest <= 1:
        highest = 1.0
    description = str(values.attrs.get("description", ""))
    return LayerColumn(str(values.name), heading(values), description, max(highest, 1e-12))


def _row(
    model: ModelResults,
    at: int,
    variable: str,
    limits: tuple[float, float],
    columns: Sequence[LayerColumn],
) -> dict[str, Any]:
    units = model.units.isel(unit=model.of_layer(at))
    layer = model.layers.isel(layer=at)
    values = units[variable].values.astype(np.float64) if variable else np.empty(0)
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else np.nan
    found = ends(layer, "selectivity_mean") if variable == "selectivity" else None
    sure = (float(found[0]), float(found[1])) if found else None
    sure = sure if np.isfinite(sure or np.nan).all() else None
    interval = f"{number(sure[0])} to {number(sure[1])}" if sure else ""
    height = _DENSE_HEIGHT if len(model.layer_names) > _DENSE_FROM else _HEIGHT
    name = model.layer_names[at]
    summary = f"{name}: {units.sizes['unit']} units"
    if variable:
        summary += f", mean {heading(units[variable])} {number(mean)}"
        summary += f" ({interval})" if interval else ""
    return {
        "number": at,
        "name": name,
        "short": shorten(name, _NAME_LENGTH),
        "units": units.sizes["unit"],
        "ridge": ridge(values, *limits, mean, sure, height),
        "mean": number(mean),
        "interval": interval,
        "summary": summary,
        "cells": [_cell(float(layer[column.name]), column.high) for column in columns],
    }


def _cell(value: float, high: float) -> dict[str, str]:
    share = float(np.clip(value / high, 0.0, 1.0)) if np.isfinite(value) else 0.0
    bar = element(
        "svg",
        element("rect", class_="trough", width="100%", height=4, rx=2),
        element("rect", class_="fill", width=f"{100 * share:.1f}%", height=4, rx=2),
        class_="minibar",
        width="100%",
        height=4,
        aria_hidden="true",
    )
    return {"text": number(value), "bar": bar}
