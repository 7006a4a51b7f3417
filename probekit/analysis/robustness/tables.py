"""The labeled tables of a robustness run, from the results of each condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import rankdata

from probekit.analysis.robustness.conditions import CLEAN, Condition
from probekit.data.labels import ClassNames
from probekit.errors import OptionError, warn
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.perturbations.corruptions.corruption import CORRUPTIONS
from probekit.results.labels import attributes, in_context, strings

Results: TypeAlias = Mapping[Condition, xr.DataTree]
Array: TypeAlias = npt.NDArray[np.float64]
Scale: TypeAlias = Callable[[Array], Array]
Summary: TypeAlias = Callable[[xr.DataArray, xr.Dataset], xr.DataArray]

_AXES = {"corruption": "severity", "attack": "epsilon"}
_OF_ACTIVATIONS = ("n_units", "n_samples", "n_dimensions", "too_few_samples")
_MEAN_SELECTIVITY = attributes(
    "mean class selectivity index", "Mean over the units of the layer.", share=True
)
_OUTCOMES = {
    "clean_accuracy": "accuracy on clean images",
    "accuracy": "accuracy under corruption",
    "accuracy_relative": "accuracy under corruption / clean accuracy",
    "accuracy_by_corruption": "accuracy under corruption, mean over severities",
    "accuracy_by_severity": "accuracy under corruption, mean over types",
    "accuracy_mean": "mean accuracy under corruption",
    "accuracy_relative_mean": "mean accuracy under corruption / clean accuracy",
    "attack_accuracy": "accuracy under attack",
    "attack_accuracy_relative": "accuracy under attack / clean accuracy",
    "attack_accuracy_by_step": "accuracy after each step of the attack",
}


def outcome_tables(results: Results, classes: ClassNames) -> xr.Dataset:
    """The table `/robustness`: accuracy on clean, corrupted and attacked images."""
    clean = _node(results[CLEAN], "/")
    table = xr.Dataset(
        {
            "clean_accuracy": clean["accuracy"],
            "clean_accuracy_by_class": clean["accuracy_by_class"],
            "samples_by_class": clean["samples_by_class"],
            "n_samples": clean["samples_by_class"].sum(),
        }
    )
    grids = {kind: _grid(results, kind, "/") for kind in _AXES}
    for kind, grid in grids.items():
        if grid:
            relative = _quotient(grid["accuracy"], clean["accuracy"])
            grids[kind] = grid.drop_vars("samples_by_class").assign(accuracy_relative=relative)
    if corrupted := grids["corruption"]:
        by_severity = mean_over_types(corrupted["accuracy"])
        corrupted = corrupted.assign(
            accuracy_by_corruption=corrupted["accuracy"].mean("severity"),
            accuracy_by_severity=by_severity,
            accuracy_mean=by_severity.mean(),
            accuracy_relative_mean=mean_over_types(corrupted["accuracy_relative"]).mean(),
        )
    attacked = grids["attack"].rename({name: f"attack_{name}" for name in grids["attack"]})
    for grid in (corrupted, attacked):  # whose classes may differ
        table = table.merge(grid, join="outer", compat="override")
    if classes:
        names = strings([classes[label] for label in table["class"].values.tolist()])
        table = table.assign_coords(class_name=("class", names))
    for name in table.data_vars:
        known = str(name) in _OUTCOMES
        table[name].attrs = attributes(_OUTCOMES[str(name)], share=True) if known else {}
    return table


def unit_tables(results: Results) -> xr.Dataset:
    """The table `/units`: every unit on clean images, and under each condition."""
    clean = _node(results[CLEAN], "units")
    table = clean.copy()
    for kind in _AXES:
        grid = _grid(results, kind, "units")
        if not grid:
            continue
        if "selectivity" in clean:
            same = grid["preferred_class"] == clean["preferred_class"]
            known = grid["preferred_class"].notnull()
            grid["selectivity_difference"] = grid["selectivity"] - clean["selectivity"]
            grid["preferred_class_kept"] = same if known.all() else same.where(known)
            grid["selectivity_difference"].attrs = attributes("change of the selectivity index")
            grid["preferred_class_kept"].attrs = attributes(
                "same preferred class", "Whether the preferred class is that on clean images."
            )
        table = table.merge(_named(grid, kind, f"under {kind}"), compat="override")
    return table


def layer_tables(results: Results, units: xr.Dataset) -> xr.Dataset:
    """The table `/layers`: every layer on clean images, its change, and summaries of its units."""
    table = _node(results[CLEAN], "layers")
    if "selectivity" in units:
        table["selectivity_mean"] = _by_layer(units, table, "selectivity", _mean)
        table["selectivity_mean"].attrs = _MEAN_SELECTIVITY
        for name, flag in (("dead_units", "dead"), ("negative_units", "negative_class_mean")):
            table[name] = _by_layer(units, table, flag, _count)
            table[name].attrs = Selectivity.variables[name]
    for kind in _AXES:
        grid = _grid(results, kind, "layers")
        if not grid:
            continue
        change = grid.drop_vars(_OF_ACTIVATIONS, errors="ignore")
        context = f"of the change under {kind}"
        table = table.merge(_named(change, f"{kind}_change", context), compat="override")
        for name, variable, function, long_name in _SUMMARIES:
            if (own := f"{kind}_{variable}") in units:
                table[f"{kind}_{name}"] = _by_layer(units, table, own, function)
                table[f"{kind}_{name}"].attrs = attributes(f"{long_name} under {kind}")
    return table.transpose("layer", ...)


def corruption_errors(outcomes: xr.Dataset, reference: xr.Dataset) -> xr.Dataset:
    """Computes errors under corruption relative to those of a reference model (Hendrycks & Dietterich 2019).

    CE_c = sum_s E_(s,c) / sum_s E*_(s,c), where E is the error (1 - accuracy) at severity s and E* is
    the error of the reference. The relative CE_c subtracts the clean error from each E. The means
    over types, mCE and relative mCE, are over the standard types that were measured, or over the
    other types if there are no standard ones.

    All are fractions, 1 for the reference itself. They are NaN where the reference makes no errors or,
    for relative errors, no more than on clean images. The reference has at least the same types and
    severities.
    """
    accuracy = outcomes["accuracy"]
    axes = {axis: accuracy[axis].values.tolist() for axis in ("corruption", "severity")}
    check_reference(reference, *axes.values())
    theirs = reference["accuracy"].sel(axes)
    counts = [
        one["samples_by_class"].to_series()
        for one in (outcomes, reference)
        if "samples_by_class" in one
    ]
    if len(counts) == 2 and not counts[0][counts[0] > 0].equals(counts[1][counts[1] > 0]):
        warn(
            "the reference was measured on other images, which makes mCE meaningless: it has other numbers "
            "of samples per class"
        )
    error = _quotient((1 - accuracy).sum("severity"), (1 - theirs).sum("severity"))
    relative = _quotient(
        (outcomes["clean_accuracy"] - accuracy).sum("severity"),
        (reference["clean_accuracy"] - theirs).sum("severity"),
    )
    return xr.Dataset(
        {
            "corruption_error": error,
            "relative_corruption_error": relative,
            "mce": mean_over_types(error),
            "relative_mce": mean_over_types(relative),
        }
    )


def averaged_types(values: xr.DataArray) -> xr.DataArray:
    """The values of the types in a mean: the standard corruptions, or the others if there are none."""
    standard = np.isin(values["corruption"].values, CORRUPTIONS)
    return values.isel(corruption=standard) if standard.any() else values


def mean_over_types(values: xr.DataArray) -> xr.DataArray:
    """The mean over the types of `averaged_types`."""
    return averaged_types(values).mean("corruption")


def check_reference(
    reference: xr.Dataset, corruptions: Sequence[str], severities: Sequence[int]
) -> None:
    """Checks that a reference has all types and severities of a comparison."""
    if "accuracy" not in reference or "clean_accuracy" not in reference:
        raise OptionError(
            "reference must have accuracy(corruption, severity) and clean_accuracy, as the table "
            f"/robustness has, and it has {', '.join(map(str, reference)) or 'nothing'}"
        )
    for axis, wanted in (("corruption", corruptions), ("severity", severities)):
        there = reference[axis].values.tolist() if axis in reference.coords else []
        missing = [one for one in wanted if one not in there]
        if missing:
            raise OptionError(
                f"the reference lacks the {axis} {', '.join(map(str, missing))}; measure it there "
                "too, or exclude it"
            )


def _quotient(over: xr.DataArray, under: xr.DataArray) -> xr.DataArray:
    return over / under.where(under != 0)


def _grid(results: Results, kind: str, node: str) -> xr.Dataset:
    """One node of all conditions of a kind, along (corruption, severity) or (attack, epsilon)."""
    chosen = [one for one in results if one.kind == kind]
    along = {"join": "outer", "coords": "minimal", "compat": "override", "data_vars": "all"}
    rows = []
    names = list(dict.fromkeys(one.name for one in chosen))
    by_name = {name: [one for one in chosen if one.name == name] for name in names}
    ragged = len({tuple(one.level for one in levels) for levels in by_name.values()}) > 1
    for levels in by_name.values():
        parts = [_node(results[one], node) for one in levels]
        if ragged:  # booleans cannot be missing
            parts = [
                part.map(lambda x: x.astype(float) if x.dtype == bool else x) for part in parts
            ]
        axis = xr.DataArray([one.level for one in levels], dims=_AXES[kind], name=_AXES[kind])
        rows.append(_concat(parts, axis, along))
    if not rows or not rows[0].data_vars:
        return xr.Dataset()
    return _concat(rows, xr.DataArray(strings(names), dims=kind, name=kind), along)


def _node(tree: xr.DataTree, name: str) -> xr.Dataset:
    return (tree if name == "/" else tree.children[name]).to_dataset(inherit=False)


def _concat(parts: Sequence[xr.Dataset], axis: xr.DataArray, along: Any) -> xr.Dataset:
    joined: xr.Dataset = xr.concat(parts, axis, **along)
    return joined.transpose("unit", "layer", axis.name, ..., missing_dims="ignore")


def _named(grid: xr.Dataset, prefix: str, context: str) -> xr.Dataset:
    """Adds a prefix to the name of every variable, and the context to its label."""
    labeled = {name: in_context(values, context) for name, values in grid.data_vars.items()}
    return grid.assign(labeled).rename({name: f"{prefix}_{name}" for name in labeled})


def _by_layer(
    units: xr.Dataset, layers: xr.Dataset, variable: str, function: Summary
) -> xr.DataArray:
    """Applies a function to the units of each layer (unit, ...); the result is along the layer axis."""
    needed = [name for name in {variable, "dead", "selectivity"} if name in units]
    units, parts = units[needed], []
    for name in layers["layer"].values:
        own = units.isel(unit=np.flatnonzero(units["layer"].values == name))
        parts.append(function(own[variable], own))
    joined: xr.DataArray = xr.concat(
        parts, layers["layer"].drop_vars("layer"), coords="minimal", compat="override"
    )
    return joined.assign_coords(layer=layers["layer"])


def _compare(values: xr.DataArray, units: xr.Dataset, scale: Scale) -> xr.DataArray:
    """The correlation of a variable with clean selectivity, over units alive on clean images.

    It is NaN for fewer than 3 units, if either does not vary, or if there is no selectivity.
    """
    if "selectivity" not in units:
        return xr.full_like(values.isel(unit=0, drop=True), np.nan)
    alive = ~units["dead"].values
    index = units["selectivity"].values[alive]

    def correlate(column: Array) -> float:
        own = column[alive]
        if len(own) < 3 or not (np.isfinite(own).all() and np.ptp(own) > 0 and np.ptp(index) > 0):
            return float("nan")
        return float(np.corrcoef(scale(own), scale(index))[0, 1])

    result: xr.DataArray = xr.apply_ufunc(
        correlate, values.astype(np.float64), input_core_dims=[["unit"]], vectorize=True
    )
    return result


def _mean(values: xr.DataArray, units: xr.Dataset) -> xr.DataArray:
    return values.mean("unit")


def _count(values: xr.DataArray, units: xr.Dataset) -> xr.DataArray:
    return values.sum("unit")


# Summaries over the units of a layer: name, variable of the units, function and label.
_SUMMARIES: tuple[tuple[str, str, Summary, str], ...] = (
    ("change_size_mean", "change_size", _mean, "mean size of the change in activation"),
    ("selectivity_mean", "selectivity", _mean, "mean class selectivity index"),
    (
        "selectivity_correlation", "selectivity",
        partial(_compare, scale=np.asarray), "correlation of selectivity",
    ),
    (
        "preferred_class_kept_fraction", "preferred_class_kept",
        lambda kept, units: kept.isel(unit=~units["dead"].values).mean("unit"),
        "fraction of units with the same preferred class",
    ),
    (
        "change_size_by_selectivity", "change_size",
        partial(_compare, scale=rankdata), "rank correlation of selectivity and change",
    ),
    ("negative_units", "negative_class_mean", _count, "units with negative class means"),
)  # fmt: skip
