"""Results as data frames: one row per unit, one row per layer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probekit.errors import DataError, OptionError, close_matches
from probekit.results.labels import class_names
from probekit.results.trees import ResultOrFile, open_result

# In the table of layers, further dimensions of at most this length become columns.
_FEW = 5


def units_table(result: ResultOrFile, widen: str | Sequence[str] = ()) -> pd.DataFrame:
    """Converts the units of a result to a data frame with one row per unit.

    `to_dataframe()` of the whole dataset would repeat each unit for every class, rank and condition.
    Here, variables with further dimensions are omitted, or become one column per class (rank, ...) on
    request. Variables of attributes become one column per attribute, such as `selectivity[color]`.

    Args:
        result: A result of `analyze` or `robustness`, its file, or its table `/units`.
        widen: Variables with further dimensions to include, such as `class_mean`, as columns like
            `class_mean[cat]`.

    Returns:
        Columns `layer`, `channel` and one per variable. `preferred_class` is the class's name, or its
        label as text if the classes have no names; classes of the same name are `crane (134)` and
        `crane (517)`. It is missing (`isna()`) for a dead unit, as is its `preferred_label`.
        `attrs["left_out"]` names the omitted variables.

    Raises:
        DataError: The result has no units.
        OptionError: A variable to widen does not exist.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> table = pk.units_table(pk.analyze(model, data, "layer3.*.relu2", limit=100))
        >>> table.groupby("layer").selectivity.median().round(1).tolist()
        [0.3, 0.5, 0.7]
        >>> table.loc[table.selectivity.idxmax(), "preferred_class"]
        'Trouser'
    """
    units = _table(result, "units", "unit")
    asked = [widen] if isinstance(widen, str) else list(widen)
    if unknown := [name for name in asked if name not in units.data_vars]:
        matches = close_matches(unknown[0], map(str, units.data_vars), what="variable")
        raise OptionError(f"there is no variable {unknown[0]!r} of units to widen; {matches}")
    names = _class_names(units)
    columns: dict[str, Any] = {
        str(name): values.values
        for name, values in units.coords.items()
        if values.dims == ("unit",)
    }
    left_out = []
    for name, values in units.data_vars.items():
        if values.dims != ("unit",):
            if name in asked or {*values.dims} == {"unit", "attribute"}:
                columns |= _widened(str(name), values, names)
            else:
                left_out.append(str(name))
        elif name == "preferred_class":
            labels = np.nan_to_num(values.values, nan=-1).astype(np.int64)
            known = [names.get(label) for label in labels.tolist()]
            columns["preferred_class"] = np.array(known, dtype=object)
            columns["preferred_label"] = pd.array(
                [label if label >= 0 else None for label in labels.tolist()], dtype="Int64"
            )
        else:
            columns[str(name)] = values.values
    table = pd.DataFrame(columns, index=pd.RangeIndex(units.sizes["unit"], name="unit"))
    table.attrs["left_out"] = left_out
    return table


def layers_table(result: ResultOrFile) -> pd.DataFrame:
    """Converts the layers of a result to a data frame with one row per layer, in execution order.

    Args:
        result: A result of `analyze` or `robustness`, its file, or its table `/layers`.

    Returns:
        Columns `layer` and one per variable; a further dimension of at most five values becomes
        columns like `components[0.9]`. `attrs["left_out"]` names the omitted variables.

    Raises:
        DataError: The result has no layers.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> result = pk.analyze(model, data, "layer3.*.relu2", "dimensionality", limit=100)
        >>> pk.layers_table(result)[["layer", "components[0.9]"]].shape
        (3, 2)
    """
    layers = _table(result, "layers", "layer")
    columns: dict[str, Any] = {"layer": layers["layer"].values}
    left_out = []
    for name, values in layers.data_vars.items():
        others = [dim for dim in values.dims if dim != "layer"]
        if not others:
            columns[str(name)] = np.broadcast_to(values.values, layers.sizes["layer"])
        elif len(others) == 1 and values.sizes[others[0]] <= _FEW:
            columns |= _widened(str(name), values, {})
        else:
            left_out.append(str(name))
    table = pd.DataFrame(columns)
    table.attrs["left_out"] = left_out
    return table


def _table(result: ResultOrFile, node: str, dimension: str) -> xr.Dataset:
    table = result = open_result(result) if isinstance(result, str | os.PathLike) else result
    if isinstance(result, xr.DataTree):
        table = result[node].to_dataset() if node in result.children else result.to_dataset()
    if not isinstance(table, xr.Dataset) or dimension not in table.dims:
        raise DataError(
            f"a table of {node} is made of a result, or of its table /{node}, not of "
            f"{type(result).__name__} without {node}"
        )
    return table


def _class_names(units: xr.Dataset) -> dict[int, str]:
    """The name of each label; the label itself if classes have no names.

    With several attributes, each has its own names, which `preferred_value` contains.
    """
    if "attribute" in units.dims:
        return {}
    if "class" not in units.coords:
        known = units.get("preferred_class", xr.DataArray([]))
        return {int(label): str(int(label)) for label in np.unique(known) if label >= 0}
    names = class_names(units)
    count = Counter(names.values())
    return {
        label: name if count[name] == 1 else f"{name} ({label})" for label, name in names.items()
    }


def _widened(name: str, values: xr.DataArray, classes: dict[int, str]) -> dict[str, Any]:
    """A column for each value of the further dimensions."""
    first, *others = sorted(values.dims, key=lambda dim: dim not in ("unit", "layer"))
    stacked = values.transpose(first, *others)
    columns = {}
    for place in np.ndindex(*(values.sizes[dim] for dim in others)):
        labels = [
            _label(values, str(dim), at, classes) for dim, at in zip(others, place, strict=True)
        ]
        columns[f"{name}[{', '.join(labels)}]"] = stacked.values[(slice(None), *place)]
    return columns


def _label(values: xr.DataArray, dim: str, at: int, classes: dict[int, str]) -> str:
    if dim not in values.coords:
        return str(at)
    label = values[dim].values[at]
    if dim == "class":
        return classes.get(int(label), str(label))
    return f"{label:g}" if isinstance(label, float | np.floating) else str(label)
