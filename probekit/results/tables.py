"""Results as data frames, with one row per unit or layer, and as data sets of rsatoolbox."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probekit.errors import DataError, OptionError, close_matches, optional
from probekit.results.labels import class_names, with_sample_names
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
    return class_names(units)


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


def to_rsatoolbox(source: xr.Dataset | xr.DataTree) -> dict[str, Any]:
    """Converts a recording or a result to data sets of rsatoolbox, for representational similarity.

    Args:
        source: A recording, whose samples become the observations, or a result with class means, whose
            classes become the observations.

    Returns:
        One `rsatoolbox.data.Dataset` per layer, in execution order. `measurements` are (observations,
        units) in activation units. Units have the descriptor `channel`, and `y` and `x` or `token` where
        elements were recorded; observations have `class` where labels are known, `sample` in a
        recording, and `class_name` where classes have names.

    Raises:
        DataError: The source has neither activations nor class means, or has several attributes.
        MissingPackageError: rsatoolbox is not installed.

    Source:
        Nili et al. 2014 (doi:10.1371/journal.pcbi.1003553).

    Example:
        >>> from probekit import analyze, load_data, load_model
        >>> model = load_model("probekit:resnet20-fashion-mnist")
        >>> data = load_data("fashion-mnist", model)
        >>> result = analyze(model, data, "layer3.2.relu2", limit=200, progress=False)
        >>> found = to_rsatoolbox(result)["layer3.2.relu2"]  # doctest: +SKIP
        >>> found.measurements.shape, found.obs_descriptors["class_name"][0]  # doctest: +SKIP
        ((10, 64), 'T-shirt/top')
    """
    with optional("rsatoolbox", "to_rsatoolbox"):
        import rsatoolbox
    table = source
    if isinstance(table, xr.DataTree):
        table = table.children.get("units", table).to_dataset()
    if "attribute" in table.dims:
        raise DataError(
            "the result has several attributes; choose one with result.sel(attribute=...)"
        )
    values = table.get("activation", table.get("class_mean"))
    if values is None or "unit" not in values.dims:
        raise DataError(
            "to_rsatoolbox takes a recording, or a result of the metric selectivity (with class_mean), "
            f"and this has {', '.join(map(str, table.data_vars)) or 'no variables'}"
        )
    (axis,) = (dim for dim in values.dims if dim != "unit")
    observations = _observations(with_sample_names(table) if axis == "sample" else table, str(axis))
    layers = table["layer"].values
    found = {}
    for layer in dict.fromkeys(layers.tolist()):
        units = np.flatnonzero(layers == layer)
        places = ("channel", "y", "x", "token")
        found[str(layer)] = rsatoolbox.data.Dataset(
            np.asarray(values.isel(unit=units).transpose(axis, "unit").values, dtype=np.float64),
            descriptors={"layer": str(layer)},
            obs_descriptors=observations,
            channel_descriptors={
                name: table[name].values[units].tolist() for name in places if name in table.coords
            },
        )
    return found


def _observations(table: xr.Dataset, axis: str) -> dict[str, list[Any]]:
    names = (
        {"class_name": table["class_name"].values.tolist()} if "class_name" in table.coords else {}
    )
    if axis == "class":
        return {"class": table["class"].values.tolist()} | names
    found = {"sample": table["sample"].values.tolist()}
    if "label" in table.variables:
        found["class"] = table["label"].values.tolist()
    return found | names
