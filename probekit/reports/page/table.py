"""The units of a model as compact columns that a page's script reads."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.reports.page.measures import UNIT_MEASURES, Kind, Measure, measure_of
from probekit.reports.subject import Subject

__all__ = ["MOST_CLASSES", "unit_table"]

# Of more classes a page holds, for each unit, those of the highest means and the mean of the others.
MOST_CLASSES = 40
# Variables that belong to a metric whose main number the table shows.
_FAMILIES = ("selectivity_", "preferred_", "gradient_", "corruption_", "attack_")


def unit_table(subject: Subject) -> dict[str, Any]:
    """A model's units for the script: text as text, numbers as little-endian arrays in base64.

    Returns:
        `name`, `layers`, `classes` (label, name), `units`, `layer` and `channel` of every unit,
        `columns`; where the result has them `tuning`, `top`, `drawn` and `perturbed`.
    """
    units = subject.units
    count = units.sizes.get("unit", 0)
    places = {name: number for number, name in enumerate(subject.layer_names)}
    table: dict[str, Any] = {
        "name": subject.name,
        "layers": subject.layer_names,
        "classes": [[label, name] for label, name in sorted(subject.class_names.items())],
        "units": count,
        "layer": packed([places[str(name)] for name in units["layer"].values], "<i4"),
        "channel": packed(units["channel"].values, "<i4"),
        "columns": [_column(units[one.name], one) for one in _measures(units)],
    }
    if "class_mean" in units:
        table["tuning"] = _tuning(units["class_mean"].transpose("unit", "class"))
    if "top_sample" in units:
        table["top"] = _top(units)
    if "drawn_activation" in units:
        table["drawn"] = {
            "count": units.sizes["drawn"],
            "activation": packed(units["drawn_activation"].transpose("unit", ...).values, "<f4"),
        }
    perturbed = [_perturbed(units, kind) for kind in ("corruption", "attack")]
    if any(perturbed):
        table["perturbed"] = [one for one in perturbed if one]
    return table


def packed(values: Any, kind: str) -> str:
    """Numbers as base64.

    >>> packed([1, 2], "<i4")
    'AQAAAAIAAAA='
    """
    return b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode("ascii")


def _measures(units: xr.Dataset) -> list[Measure]:
    """Every number that a unit has: the known ones first."""
    there = {
        str(name): _kind(values)
        for name, values in units.data_vars.items()
        if values.dims == ("unit",) and values.dtype.kind in "fiub"
    }
    names = [name for name in UNIT_MEASURES if name in there]
    names += [name for name in there if name not in UNIT_MEASURES]
    return [measure_of(name, there[name]) for name in names]


def _kind(values: xr.DataArray) -> Kind:
    return {"b": "flag", "f": "number"}.get(values.dtype.kind, "count")  # type: ignore[return-value]


def _column(values: xr.DataArray, measure: Measure) -> dict[str, Any]:
    numbers = values.values.astype(np.float64)
    kind = measure.kind
    known = numbers[np.isfinite(numbers)]
    if kind == "share" and len(known) and (known.min() < 0 or known.max() > 1):
        kind = "number"
    own = measure.name not in UNIT_MEASURES and not measure.name.startswith(_FAMILIES)
    return {
        "name": measure.name,
        "label": measure.label,
        "about": measure.about,
        "kind": kind,
        "shown": measure.shown or own,
        "values": packed(numbers, "<f4"),
    }


def _tuning(class_mean: xr.DataArray) -> dict[str, Any]:
    means: npt.NDArray[np.float64] = class_mean.values
    labels = class_mean["class"].values.astype(np.int64)
    order = np.argsort(-means, axis=1, kind="stable")[:, :MOST_CLASSES]
    kept = order.shape[1]
    highest = np.take_along_axis(means, order, 1)
    others = means.shape[1] - kept
    rest = (means.sum(1) - highest.sum(1)) / others if others else np.full(len(means), np.nan)
    return {
        "count": kept,
        "others": others,
        "label": packed(labels[order], "<i4"),
        "mean": packed(highest, "<f4"),
        "rest": packed(rest, "<f4"),
    }


def _top(units: xr.Dataset) -> dict[str, Any]:
    parts = {"sample": "<i4", "label": "<i4", "activation": "<f4"}
    return {
        "count": units.sizes["rank"],
        **{
            name: packed(units[f"top_{name}"].transpose("unit", "rank").values, kind)
            for name, kind in parts.items()
            if f"top_{name}" in units
        },
    }


def _perturbed(units: xr.Dataset, kind: str) -> dict[str, Any] | None:
    """How far each corruption or attack moves a unit, in the mean over its levels."""
    name = f"{kind}_change_size"
    if name not in units or kind not in units[name].dims:
        return None
    change = units[name]
    change = change.mean([dim for dim in change.dims if dim not in ("unit", kind)])
    return {
        "kind": kind,
        "names": [str(one) for one in change[kind].values],
        "change": packed(change.transpose("unit", kind).values, "<f4"),
    }
