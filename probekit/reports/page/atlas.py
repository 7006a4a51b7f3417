"""The layers at a glance: a row a layer, in execution order, with a ridge of its units and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from markupsafe import Markup

from probekit.reports.page.figures import axis, element, ridge, shorten
from probekit.reports.page.measures import (
    LAYER_COLUMNS,
    PARTICIPATION_RATIOS,
    Measure,
    measure_of,
    number,
)
from probekit.reports.subject import Subject

__all__ = [
    "Atlas",
    "Cell",
    "Column",
    "Row",
    "atlas",
    "column_names",
    "main_measure",
    "span_of",
]

_HEIGHT = 34
_DENSE = 20
_NAME = 29
_MANY = 40
_MOST_COLUMNS = 4
# Shares that stay below this are drawn on the scale of the highest, as bars of a few percent are invisible.
_SMALL = 0.3


@dataclass(frozen=True)
class Cell:
    """A number of a layer: as text, and as a bar where its column has a range."""

    text: str
    bar: Markup


@dataclass(frozen=True)
class Column:
    """A number that layers have; `high` is the length of a full bar."""

    measure: Measure
    high: float


@dataclass(frozen=True)
class Row:
    """One layer: its units as a ridge, their mean in words, and its other numbers."""

    number: int
    name: str
    short: str
    units: int
    ridge: Markup
    mean: str
    sure: str
    words: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Atlas:
    """A table of layers, ready to be drawn."""

    measure: Measure | None
    axis: Markup
    columns: Sequence[Column]
    rows: Sequence[Row]
    dense: bool


def atlas(subject: Subject, span: tuple[float, float] | None = None) -> Atlas:
    """The layers of a model.

    Args:
        subject: The model.
        span: Range of the ridges; by default that of their measure.
    """
    measure = main_measure(subject)
    low, high = span or span_of([subject], measure)
    columns = _columns(subject)
    rows = [
        _row(subject, at, measure, low, high, columns) for at in range(len(subject.layer_names))
    ]
    return Atlas(measure, axis(low, high), columns, rows, len(rows) > _MANY)


def main_measure(subject: Subject) -> Measure | None:
    """What the ridges show: selectivity, or else the first number that the units have."""
    if "selectivity" in subject.units:
        return measure_of("selectivity")
    for name, values in subject.units.data_vars.items():
        if values.dims == ("unit",) and values.dtype.kind == "f":
            return measure_of(str(name))
    return None


def span_of(every: Sequence[Subject], measure: Measure | None) -> tuple[float, float]:
    """The range of a measure over some models: [0, 1] for shares that stay in it."""
    tables = [
        one.units[measure.name].values for one in every if measure and measure.name in one.units
    ]
    found = np.concatenate(tables) if tables else np.empty(0)
    found = found[np.isfinite(found)]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    if measure and measure.kind == "share" and low >= 0 and high <= 1:
        return 0.0, 1.0
    low = min(low, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def column_names(layers: xr.Dataset) -> list[str]:
    """The numbers of layers that a page shows: known ones first, then the means of other metrics."""
    names = [name for name in LAYER_COLUMNS if name in layers]
    # The corrected ratio where it is known; results of former versions have it by another name.
    ratios = [name for name in names if name in PARTICIPATION_RATIOS]
    known = [name for name in ratios if layers[name].notnull().all()] or ratios
    names = [name for name in names if name not in ratios or name in known[:1]]
    families = ("selectivity_", "gradient_", "corruption_", "attack_", "participation_")
    names += [
        str(name)
        for name, values in layers.data_vars.items()
        if str(name).endswith("_mean")
        and values.dims == ("layer",)
        and not str(name).startswith(families)
        and name not in names
    ]
    known = [name for name in ("selectivity_mean", *names) if name in layers]
    return [name for name in known if layers[name].notnull().any()]


def _columns(subject: Subject) -> list[Column]:
    names = [name for name in column_names(subject.layers) if name != "selectivity_mean"]
    return [_column(subject.layers[name], name) for name in names[:_MOST_COLUMNS]]


def _column(values: xr.DataArray, name: str) -> Column:
    measure = LAYER_COLUMNS.get(name) or measure_of(name.removesuffix("_mean"))
    highest = float(values.max()) if values.notnull().any() else 1.0
    if measure.kind == "share" and _SMALL <= highest <= 1:
        highest = 1.0
    return Column(measure, max(highest, 1e-12))


def _row(
    subject: Subject,
    at: int,
    measure: Measure | None,
    low: float,
    high: float,
    columns: Sequence[Column],
) -> Row:
    units = subject.units.isel(unit=subject.of_layer(at))
    layer = subject.layers.isel(layer=at)
    values = units[measure.name].values.astype(np.float64) if measure else np.empty(0)
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else np.nan
    ends = _interval(layer) if measure and measure.name == "selectivity" else None
    sure = f"{number(ends[0])} to {number(ends[1])}" if ends else ""
    height = _DENSE if len(subject.layer_names) > _MANY else _HEIGHT
    name = subject.layer_names[at]
    words = f"{name}: {units.sizes['unit']} units"
    if measure:
        words += f", mean {measure.label} {number(mean)}" + (f" ({sure})" if sure else "")
    return Row(
        number=at,
        name=name,
        short=shorten(name, _NAME),
        units=units.sizes["unit"],
        ridge=ridge(values, low, high, mean, ends, height),
        mean=number(mean),
        sure=sure,
        words=words,
        cells=[_cell(layer[_variable(layer, column)], column) for column in columns],
    )


def _variable(layer: xr.Dataset, column: Column) -> str:
    name = column.measure.name
    return name if name in layer else f"{name}_mean"


def _cell(value: xr.DataArray, column: Column) -> Cell:
    found = float(value)
    share = max(0.0, min(found / column.high, 1.0)) if np.isfinite(found) else 0.0
    bar = element(
        "svg",
        element("rect", class_="trough", width="100%", height=4, rx=2),
        element("rect", class_="fill", width=f"{100 * share:.1f}%", height=4, rx=2),
        class_="minibar",
        width="100%",
        height=4,
        aria_hidden="true",
    )
    return Cell(number(found), bar)


def _interval(layer: xr.Dataset) -> tuple[float, float] | None:
    names = ("selectivity_mean_low", "selectivity_mean_high")
    if not all(name in layer for name in names):
        return None
    low, high = (float(layer[name]) for name in names)
    return (low, high) if np.isfinite(low) and np.isfinite(high) else None
