"""Results as plain rows, for the terminal and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["layer_rows", "most_selective", "result_json"]


def layer_rows(result: xr.DataTree) -> list[dict[str, Any]]:
    """The layer table as plain rows: every number a layer has, quantiles and the like by name."""
    layers = result["layers"].to_dataset()
    rows: list[dict[str, Any]] = [{"layer": str(name)} for name in layers["layer"].values]
    for name, values in layers.data_vars.items():
        others = [dim for dim in values.dims if dim != "layer"]
        if len(others) > 1 or "layer" not in values.dims:
            continue
        columns: Iterable[tuple[str, Any]] = [(str(name), values.values)]
        if others:
            if values.sizes[others[0]] > 5:
                continue
            columns = [
                (f"{name}[{label:g}]", values.isel({others[0]: at}).values)
                for at, label in enumerate(values[others[0]].values)
            ]
        for column, numbers in columns:
            for row, number in zip(rows, numbers, strict=True):
                row[column] = number.item()
    return rows


def most_selective(result: xr.DataTree, most: int = 10) -> list[dict[str, Any]]:
    """The units with the highest selectivity, with the class each prefers."""
    units = result["units"].to_dataset()
    if "selectivity" not in units:
        return []
    index = units["selectivity"].values
    order = np.argsort(-np.nan_to_num(index, nan=-np.inf), kind="stable")[:most]
    names = dict(zip(units["class"].values.tolist(), _class_names(units), strict=True))
    return [
        {
            "layer": str(units["layer"].values[at]),
            "channel": int(units["channel"].values[at]),
            "selectivity": float(index[at]),
            "preferred_class": names.get(int(units["preferred_class"].values[at]), "none"),
        }
        for at in order
    ]


def _class_names(units: xr.Dataset) -> list[str]:
    named = units["class_name"] if "class_name" in units.coords else units["class"]
    return [str(name) for name in named.values]


def result_json(result: xr.DataTree) -> str:
    """Summary of a result for programs."""
    return json.dumps(
        {
            "network": {str(name): float(value) for name, value in result.data_vars.items()},
            "layers": layer_rows(result),
            "most_selective": most_selective(result),
            "provenance": json.loads(result.attrs["provenance"]),
        },
        ensure_ascii=False,
    )
