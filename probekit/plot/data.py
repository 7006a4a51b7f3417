"""Extracts the data of a figure from one or more results, by variable name."""

from __future__ import annotations

import numbers
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import DataError, LayerError, OptionError, close_matches, some_of
from probekit.plot.labels import axis_label
from probekit.results.trees import Result, ResultOrFile, open_result

Array: TypeAlias = npt.NDArray[np.float64]
Results: TypeAlias = "ResultOrFile | Mapping[Any, ResultOrFile | Sequence[ResultOrFile]]"
At: TypeAlias = "Mapping[str, str | float] | None"
Item = TypeVar("Item")
Other = TypeVar("Other")

_NODES = {"unit": "units", "layer": "layers", "corruption": "robustness", "attack": "robustness"}
# The coordinates that identify a row of a table.
_KEYS = {"unit": ("layer", "channel")}


@dataclass(frozen=True)
class NamedResults(Generic[Item]):
    """Replicates (results, or the logs of runs) by name.

    `single` is whether one result was given, without a name; `alpha`, whether the names are values of alpha.
    """

    results: dict[Any, list[Item]]
    single: bool
    alpha: bool

    @property
    def names(self) -> list[str]:
        """The names as text; values of alpha in their shortest form."""
        return [f"{name:g}" if self.alpha else str(name) for name in self.results]

    @property
    def first(self) -> Item:
        """The first replicate of the first name."""
        return next(iter(self.results.values()))[0]

    def each(self, function: Callable[[Item], Other]) -> list[list[Other]]:
        """Calls a function with every replicate of every name."""
        return [[function(one) for one in replicates] for replicates in self.results.values()]


def named_results(given: Results) -> NamedResults[Result]:
    """Converts one result or a mapping of several results, or their files, to a common form."""
    return named_items(given, _result)


def _result(given: object, name: object = None) -> Result:
    opened = open_result(given) if isinstance(given, str | os.PathLike) else given
    if isinstance(opened, xr.DataTree | xr.Dataset):
        return opened
    kind = type(given).__name__
    if name is None:
        raise OptionError(
            f"a figure takes a result, or several of them as {{name: result}}, not {kind}"
        )
    raise OptionError(f"{name!r} must be a result or a list of results, not {kind}")


def named_items(given: object, read: Callable[..., Item]) -> NamedResults[Item]:
    """One item, or items or lists of replicates by name; values of alpha are sorted."""
    # Data sets of xarray are mappings too.
    if not isinstance(given, Mapping) or isinstance(given, xr.DataTree | xr.Dataset):
        return NamedResults({"": [read(given)]}, single=True, alpha=False)
    results = {
        name: [read(one, name) for one in (value if isinstance(value, list | tuple) else [value])]
        for name, value in given.items()
    }
    if not results or not all(results.values()):
        raise OptionError(
            "there is nothing to draw in the mapping; give at least one {name: result}"
        )
    alpha = all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in results)
    if alpha:
        results = {float(name): results[name] for name in sorted(results)}
    return NamedResults(results, single=False, alpha=alpha)


def table(result: Result, dimension: str) -> xr.Dataset:
    """The table of a result that has a given dimension: units, layers or robustness.

    Raises:
        DataError: There is no such table, or it has a row several times, as after concatenation.
    """
    found = result if isinstance(result, xr.Dataset) else _node(result, dimension)
    keys = _KEYS.get(dimension, (dimension,))
    if all(key in found.coords and found[key].dims == (dimension,) for key in keys):
        rows = list(zip(*(found[key].values.tolist() for key in keys), strict=True))
        if repeated := [row for row, count in Counter(rows).items() if count > 1]:
            raise DataError(
                f"the table has the {dimension} {', '.join(map(str, repeated[0]))} several times, as after "
                "concatenation; draw the results side by side, as {name: result}"
            )
    return found


def _node(result: xr.DataTree, dimension: str) -> xr.Dataset:
    node = _NODES[dimension]
    if node in result.children:
        return result.children[node].to_dataset()
    own = result.to_dataset()
    if dimension in own.dims:
        return own
    there = ", ".join(f"/{name}" for name in result.children) or "nothing"
    how = "robustness" if node == "robustness" else "analyze"
    raise DataError(
        f"this figure needs the table /{node}, and the result has {there}; give a result of {how}"
    )


def numbers_over(table: xr.Dataset, what: str, name: str, *dims: str) -> xr.DataArray:
    """The numbers of a sweep or survey along some dimensions, and `seed` if there are several."""
    known = [
        str(one)
        for one, values in table.data_vars.items()
        if set(values.dims) - {"seed"} == set(dims) and values.dtype.kind in "fiu"
    ]
    if name not in known:
        over = " and ".join(dims)
        raise DataError(
            f"the {what} has no number {name!r} over {over}, it has {some_of(known, 20) or 'none'}"
        )
    return table[name].transpose(..., *dims).astype(float)


def missing_variable(name: str, dimension: str, found: xr.Dataset) -> DataError:
    """The error for a missing variable; it lists those available, and the metric to add."""
    there = [str(one) for one, values in found.data_vars.items() if dimension in values.dims]
    return DataError(
        f"the result has no {dimension} variable {name!r}, it has {some_of(there, 30) or 'none'}"
        f"{_advice(name, there)}"
    )


def _advice(name: str, there: Sequence[str]) -> str:
    from probekit.metrics.metric import metric_of

    if metric := metric_of(name):
        return f"; ask analyze for the metric {metric!r}"
    if name.startswith(("attack_", "corruption_")):
        return "; robustness measures it for the layers given to it"
    near = close_matches(name, there, what="variable")
    return f"; {near}" if near.startswith("close") else ""


def match_layers(names: Sequence[str], wanted: str | Sequence[str] | None) -> list[str]:
    """The layers that match names or globs, in execution order."""
    if wanted is None:
        return list(names)
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if pattern not in names and not any(fnmatchcase(name, pattern) for name in names):
            raise LayerError(
                f"the result has no layer {pattern!r}; {close_matches(pattern, names, what='layer')}"
            )
    return [
        name for name in names if any(name == one or fnmatchcase(name, one) for one in patterns)
    ]


def shared_labels(tables: Sequence[xr.Dataset | xr.DataArray], axis: str) -> list[Any]:
    """The labels along an axis that all tables have, in the order of the first table."""
    every = [one[axis].values.tolist() for one in tables]
    shared = [
        label
        for label in every[0]
        if all(
            np.isclose(labels, label).any() if isinstance(label, float) else label in labels
            for labels in every
        )
    ]
    if not shared:
        raise DataError(f"the results have no {axis} in common")
    return shared


@dataclass(frozen=True)
class UnitValues:
    """A variable of all units: for each layer, in execution order, its values."""

    layers: list[str]
    values: list[Array]
    label: str


def unit_values(
    result: Result, name: str, layers: str | Sequence[str] | None = None, at: At = None
) -> UnitValues:
    units = table(result, "unit")
    if name not in units or "unit" not in units[name].dims:
        raise missing_variable(name, "unit", units)
    values = _numbers(_selected(units[name], "unit", at), name)
    of_layer = units["layer"].values.astype(str)
    chosen = match_layers(list(dict.fromkeys(of_layer.tolist())), layers)
    of_chosen = [values[of_layer == layer] for layer in chosen]
    return UnitValues(chosen, of_chosen, axis_label(units[name]))


def layer_values(
    result: Result, name: str, layers: str | Sequence[str] | None = None, at: At = None
) -> tuple[str, xr.DataArray]:
    """Returns a layer variable by name, or the mean over units of a unit variable.

    The values are (layer), or (layer, other) if the variable has another dimension. A stored mean is not
    used for a part of the units, as after `isel(unit=...)`: it is that of all units.
    """
    numbers_of = table(result, "layer")
    units = _units_of(result)
    outdated = [f"{one}_mean" for one in units] if has_part_of_units(result) else []
    for found in (name, f"{name}_mean"):
        if found in numbers_of and "layer" in numbers_of[found].dims and found not in outdated:
            values = _selected(numbers_of[found], "layer", at, most=2)
            names = [str(one) for one in numbers_of["layer"].values]
            chosen = match_layers(names, layers)
            rows = [names.index(one) for one in chosen]
            _numbers(values, name)
            return found, values.isel(layer=rows).astype(float).transpose("layer", ...)
    name = name.removesuffix("_mean") if name in outdated else name
    if name in units and "unit" in units[name].dims:
        own = unit_values(result, name, layers, at)
        means = [np.nanmean(one) if np.isfinite(one).any() else np.nan for one in own.values]
        attrs = dict(units[name].attrs)
        long_name = attrs.get("long_name") or name.replace("_", " ")
        prefix = "fraction of" if units[name].dtype.kind == "b" else "mean"
        attrs["long_name"] = f"{prefix} {long_name}"
        return f"{name}_mean", xr.DataArray(means, {"layer": own.layers}, "layer", name, attrs)
    raise missing_variable(name, "layer", numbers_of)


def _units_of(result: Result) -> xr.Dataset:
    """The table of units of a result; an empty one for a table."""
    has_units = isinstance(result, xr.DataTree) and "units" in result.children
    return result["units"].to_dataset() if has_units else xr.Dataset()


def has_part_of_units(result: Result) -> bool:
    """Whether a result lacks some of the units of its layers."""
    units, layers = _units_of(result), table(result, "layer")
    if "layer" not in units.coords or "n_units" not in layers:
        return False
    counts = Counter(np.atleast_1d(units["layer"].values).tolist())
    columns = (np.atleast_1d(layers[name].values).tolist() for name in ("layer", "n_units"))
    return any(counts[layer] != count for layer, count in zip(*columns, strict=True))


def _selected(values: xr.DataArray, along: str, at: At, most: int = 1) -> xr.DataArray:
    """The values at given coordinates along their other dimensions."""
    for dimension, place in (at or {}).items():
        if dimension not in values.dims:
            others = [str(dim) for dim in values.dims if dim != along]
            raise OptionError(
                f"{values.name} has no dimension {dimension!r}; it has "
                f"{', '.join(others) or 'no further dimension'}"
            )
        labels = values[dimension].values
        matches = np.flatnonzero(
            np.isclose(labels, place) if labels.dtype.kind == "f" else labels == place
        )
        if not len(matches):
            known = some_of([str(one) for one in labels.tolist()], 10)
            raise OptionError(
                f"{values.name} has no value at {dimension} {place!r}; it has {known}"
            )
        values = values.isel({dimension: int(matches[0])}, drop=True)
    others = [str(dim) for dim in values.dims if dim != along]
    if len(others) > most - 1:
        example = ", ".join(f"{dim!r}: {values[dim].values.tolist()[0]!r}" for dim in others)
        raise OptionError(
            f"{values.name} also has the dimensions {', '.join(others)}; choose coordinates along them, "
            f"such as at={{{example}}}"
        )
    return values


def _numbers(values: xr.DataArray, name: str) -> Array:
    if values.dtype.kind not in "fiub":
        raise DataError(f"{name!r} has values of type {values.dtype}; only numbers can be drawn")
    if str(values.name).endswith(("preferred_class", "top_label")):
        raise DataError(f"{name!r} has labels of classes; only numbers can be drawn")
    return np.asarray(values.values, dtype=np.float64)
