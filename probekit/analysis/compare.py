"""Differences between the layers and units of two results, with intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probekit.errors import DataError, OptionError, some_of, warn
from probekit.metrics.metric import FunctionMetric, get_metric
from probekit.replicates.comparisons import compare_means
from probekit.results.provenance import differences, facts_of, provenance, same_images
from probekit.results.trees import as_tree


def compare(
    first: xr.DataTree | str | Path,
    second: xr.DataTree | str | Path,
    *,
    paired: bool = False,
    level: float = 0.95,
) -> xr.DataTree:
    """Compares two results of `analyze`, the second minus the first, in the layers of both.

    The intervals are over the units of a layer. They show whether the means of these two networks
    differ, given the variation between units. To test whether a training method makes a difference,
    use several seeds and `compare_means`.

    Args:
        first: A result, or its file.
        second: A result of another model, or its file.
        paired: Whether a channel of a layer is the same unit in both results, as in checkpoints of one
            run. If True, differences are computed per unit.
        level: Coverage of the intervals.

    Returns:
        A tree. For every measure per unit that both results have, such as `selectivity` (not flags or
        classes), `/layers` has `selectivity_first` and `selectivity_second`, the means over units, and
        `selectivity_difference` with `_low` and `_high`, the ends of its t interval (Welch's, or that of
        the pairs). For every measure per layer, such as `participation_ratio` (not counts), it has
        `_first`, `_second` and `_difference`. With `paired`, `/units` has the `_difference` of every
        unit. The root's attributes include the provenance.

    Warns:
        ProbekitWarning: The images, or options of the metrics, differ, or only one result has a layer.

    Raises:
        DataError: The results have no layer or no variable in common, or, with `paired`, layers have
            different units.
        OutputError: A file is missing or does not hold a result.

    Example:
        >>> import probekit as pk
        >>> names = [f"probekit:resnet20-fashion-mnist-a{alpha}" for alpha in (0, 1)]
        >>> plain, high = (
        ...     pk.analyze(name, "fashion-mnist", "layer3.*.relu2", limit=100) for name in names)
        >>> pk.compare(plain, high)["layers"]["selectivity_difference"].values.round(1)
        array([0.6, 0.4, 0.2])
    """
    trees = [as_tree(first), as_tree(second)]
    for tree in trees:
        if not {"units", "layers"} <= tree.children.keys():
            raise DataError(
                "a comparison needs results with units and layers, as returned by analyze"
            )
    units = [tree["units"].to_dataset() for tree in trees]
    layers = [tree["layers"].to_dataset() for tree in trees]
    names = [one["layer"].values.tolist() for one in layers]
    common = [name for name in names[0] if name in names[1]]
    if not common:
        raise DataError(
            f"the results have no layer in common: {some_of(names[0], 3)}, and {some_of(names[1], 3)}; "
            "use pk.cka for networks with other layers"
        )
    if left_out := [name for name in dict.fromkeys(names[0] + names[1]) if name not in common]:
        warn(f"layers that only one result has are left out: {some_of(left_out, 3)}")
    if not same_images(*trees):
        warn("the results are of different images, which may be what makes the difference")
    if differing := option_differences(*trees):
        warn(
            "the results were measured with different options, which may be what makes the difference: "
            + "; ".join(differing)
        )
    if paired:
        units = _same_order(units, common)
    table = _layer_differences(*(one.sel(layer=common) for one in layers))
    by_unit = [name for name in units[0] if _is_number(units[0], units[1], name, ("unit",))]
    for name in by_unit:
        table.update(_unit_means(str(name), units, common, paired, level))
    if len(table.data_vars) == 0:
        raise DataError("the results have no number in common; analyze both with the same metrics")
    nodes = {"layers": table}
    if paired:
        nodes["units"] = _unit_differences(units, [str(name) for name in by_unit])
    result = xr.DataTree.from_dict(nodes)
    facts = [facts_of(tree.attrs) for tree in trees]
    result.attrs["provenance"] = provenance(
        first=facts[0], second=facts[1], paired=paired, level=level
    )
    return result


def option_differences(first: xr.DataTree, second: xr.DataTree) -> list[str]:
    """The options of two results, and of the metrics of both, that differ."""
    facts = [facts_of(tree.attrs) for tree in (first, second)]
    metrics = [
        {
            f"metrics.{name}": {
                key: value for key, value in options.items() if key in _fields(name, options)
            }
            for name, options in (one.get("metrics") or {}).items()
        }
        for one in facts
    ]
    asked = [
        {name: one[name] for name in ("tokens", "output", "precision") if name in one} | options
        for one, options in zip(facts, metrics, strict=True)
    ]
    both = asked[0].keys() & asked[1].keys()
    return differences(*({name: one[name] for name in both} for one in asked))


def _fields(name: str, options: Mapping[str, Any]) -> set[str]:
    """The options of a metric, without what its provenance describes of the layers."""
    try:
        metric = get_metric(name)
    except OptionError:  # not registered
        return set(options)
    if isinstance(metric, FunctionMetric) or not is_dataclass(metric):
        return set(options)
    return {one.name for one in fields(metric)} | {"code"}


def _is_number(one: xr.Dataset, other: xr.Dataset, name: Hashable, dims: tuple[str, ...]) -> bool:
    # Labels of merged results are floats, and have no mean.
    return (
        name != "preferred_class"
        and name in other
        and all(
            table[name].dims == dims and table[name].dtype.kind == "f" for table in (one, other)
        )
    )


def _layer_differences(one: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    table = xr.Dataset(coords={"layer": one["layer"]})
    table["n_units_first"], table["n_units_second"] = one["n_units"], other["n_units"]
    for name in one:
        if _is_number(one, other, name, ("layer",)) and not str(name).endswith("_mean"):
            about = one[name].attrs.get("long_name", name)
            table[f"{name}_first"], table[f"{name}_second"] = one[name], other[name]
            difference = (other[name] - one[name]).assign_attrs(long_name=f"difference of {about}")
            table[f"{name}_difference"] = difference
    return table


def _unit_means(
    name: str, units: list[xr.Dataset], layers: list[str], paired: bool, level: float
) -> dict[str, xr.DataArray]:
    """The means of a variable over the units of each layer, and their difference with its interval."""
    rows: dict[str, list[float]] = {}
    for layer in layers:
        one, other = (
            xr.DataArray(table[name].values[table["layer"].values == layer], dims="unit")
            for table in units
        )
        known = bool(one.notnull().any() and other.notnull().any())
        found = compare_means(other, one, "unit", paired=paired, level=level) if known else None
        numbers = {"first": float(one.mean()), "second": float(other.mean())} | {
            end: np.nan if found is None else float(found[end])
            for end in ("difference", "low", "high")
        }
        for end, value in numbers.items():
            rows.setdefault(end, []).append(value)
    about = units[0][name].attrs.get("long_name", name)
    described = {
        "first": f"mean {about} of the first result",
        "second": f"mean {about} of the second result",
        "difference": f"difference of mean {about}",
        "low": f"lower end of the interval of the difference of mean {about}",
        "high": f"upper end of the interval of the difference of mean {about}",
    }
    return {
        f"{name}_{end}": xr.DataArray(values, dims="layer", attrs={"long_name": described[end]})
        for end, values in rows.items()
    }


def _same_order(units: list[xr.Dataset], layers: list[str]) -> list[xr.Dataset]:
    """The units of the layers, those of the second result in the order of the first."""
    one, other = (table.isel(unit=np.isin(table["layer"].values, layers)) for table in units)
    keys = [
        list(zip(table["layer"].values.tolist(), table["channel"].values.tolist(), strict=True))
        for table in (one, other)
    ]
    if alone := sorted(set(keys[0]) ^ set(keys[1])):
        layer = alone[0][0]
        counts = [sum(name == layer for name, _ in known) for known in keys]
        raise DataError(
            f"layer {layer!r} has {counts[0]} and {counts[1]} units, which cannot be paired, as some "
            "channels are in only one result; compare without paired"
        )
    place = {key: number for number, key in enumerate(keys[1])}
    return [one, other.isel(unit=[place[key] for key in keys[0]])]


def _unit_differences(units: list[xr.Dataset], names: list[str]) -> xr.Dataset:
    one, other = units
    return xr.Dataset(
        {f"{name}_difference": ("unit", other[name].values - one[name].values) for name in names},
        coords={name: ("unit", one[name].values) for name in ("layer", "channel")},
    )
