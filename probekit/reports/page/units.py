"""The units of a model as compact columns for the page's script."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.reports.model_results import ModelResults
from probekit.results.labels import heading, is_share, summary_variables

# With more classes than this, a page contains only the highest means of each unit and the mean of the rest.
MOST_CLASSES = 40


def unit_table(model: ModelResults) -> dict[str, Any]:
    """A model's units for the script; numbers are base64-encoded little-endian arrays.

    Labels may have any size, and float32 holds integers only up to 2^24.
    """
    units = model.units
    count = units.sizes.get("unit", 0)
    places = {name: number for number, name in enumerate(model.layer_names)}
    table: dict[str, Any] = {
        "name": model.name,
        "layers": model.layer_names,
        "classes": [[label, name] for label, name in sorted(model.class_names.items())],
        "units": count,
        "layer": packed([places[str(name)] for name in units["layer"].values], "<i4"),
        "channel": packed(units["channel"].values, "<i4"),
        "columns": _columns(units),
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


def packed(values: npt.ArrayLike, kind: str) -> str:
    return b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode("ascii")


def _columns(units: xr.Dataset) -> list[dict[str, Any]]:
    """The variables with one number per unit; those in summary tables come first and are shown."""
    shown = [name for names in summary_variables(units).values() for name in names]
    names = [
        str(name)
        for name, values in units.data_vars.items()
        if values.dims == ("unit",) and values.dtype.kind in "fiub"
    ]
    return [
        {
            "name": name,
            "label": heading(units[name]),
            "about": units[name].attrs.get("description", ""),
            "kind": _kind(units[name]),
            "shown": name in shown,
            "values": packed(
                units[name].values.astype(np.float64), "<f8" if name == "preferred_class" else "<f4"
            ),
        }
        for name in sorted(names, key=lambda name: name not in shown)
    ]


def _kind(values: xr.DataArray) -> str:
    """How the script shows the values: as a class, flag, count, fraction with a bar, or number."""
    if values.name == "preferred_class":
        return "class"
    if values.dtype.kind != "f":
        return "flag" if values.dtype.kind == "b" else "count"
    known = values.values[np.isfinite(values.values)]
    within = len(known) and known.min() >= 0 and known.max() <= 1
    return "share" if is_share(values) and within else "number"


def _tuning(class_mean: xr.DataArray) -> dict[str, Any]:
    means: npt.NDArray[np.float64] = class_mean.values
    order = np.argsort(-means, axis=1, kind="stable")[:, :MOST_CLASSES]
    kept = order.shape[1]
    highest = np.take_along_axis(means, order, 1)
    others = means.shape[1] - kept
    rest = (means.sum(1) - highest.sum(1)) / others if others else np.full(len(means), np.nan)
    return {
        "count": kept,
        "others": others,
        "labels": class_mean["class"].values.astype(np.int64).tolist(),
        "place": packed(order, "<i4"),
        "mean": packed(highest, "<f4"),
        "rest": packed(rest, "<f4"),
    }


def _top(units: xr.Dataset) -> dict[str, Any]:
    parts = {"sample": "<i4", "label": "<f8", "activation": "<f4"}
    return {
        "count": units.sizes["rank"],
        **{
            name: packed(units[f"top_{name}"].transpose("unit", "rank").values, kind)
            for name, kind in parts.items()
            if f"top_{name}" in units
        },
    }


def _perturbed(units: xr.Dataset, kind: str) -> dict[str, Any] | None:
    """The change of a unit under each corruption or attack, averaged over its levels."""
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
