"""A robustness result as rows for a terminal, and joined to the analysis of the same model."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr

from probekit.errors import DataError

__all__ = ["join_results", "robustness_rows"]

Row = dict[str, str | float | None]


def robustness_rows(result: xr.DataTree) -> list[Row]:
    """The accuracies of a robustness result, one row a perturbation.

    Args:
        result: What `robustness` gives.

    Returns:
        Rows with `perturbation`, an accuracy for each severity (`1` to `5`) or epsilon (`4/255`),
        `mean` over these, `relative` (the mean over clean accuracy), and for attacks `fooled`, how
        many images each epsilon fooled. The first row is `clean`; `mean`, over the standard types,
        comes after the corruptions; keys that a row has no number for are left out.

    Example:
        >>> table = xr.Dataset(
        ...     {"clean_accuracy": 0.8, "accuracy": (("corruption", "severity"), [[0.6, 0.2]])},
        ...     coords={"corruption": ["fog"], "severity": [1, 5]},
        ... ).assign(accuracy_mean=0.4, accuracy_by_severity=("severity", [0.6, 0.2]))
        >>> for row in robustness_rows(xr.DataTree.from_dict({"robustness": table})):
        ...     print({key: value for key, value in row.items()})
        {'perturbation': 'clean', 'mean': 0.8, 'relative': 1.0}
        {'perturbation': 'fog', '1': 0.6, '5': 0.2, 'mean': 0.4, 'relative': 0.5}
        {'perturbation': 'mean', '1': 0.6, '5': 0.2, 'mean': 0.4, 'relative': 0.5}
    """
    table = result["robustness"].to_dataset()
    clean = float(table["clean_accuracy"])
    rows = [_row("clean", {}, clean, clean)]
    if "accuracy" in table:
        for values in table["accuracy"]:
            rows.append(_of(str(values["corruption"].item()), values, clean))
        by_severity = _cells(table["accuracy_by_severity"])
        rows.append(_row("mean", by_severity, float(table["accuracy_mean"]), clean))
    if "attack_accuracy" in table:
        for values in table["attack_accuracy"]:
            name = str(values["attack"].item())
            fooled = table["attack_fooled"].sel(attack=name).dropna("epsilon").values
            counts = " ".join(str(int(count)) for count in fooled)
            rows.append({**_of(name, values, clean), "fooled": counts})
    return rows


def join_results(analysis: xr.DataTree, robustness: xr.DataTree) -> xr.DataTree:
    """One result of both: the tables of an analysis, with what perturbations do to the same units.

    Args:
        analysis: What `analyze` gives.
        robustness: What `robustness` gives for the same model and layers.

    Returns:
        The analysis with `/robustness`, its `/units` and `/layers` with the variables of both, where
        a variable of the analysis stands before one of the same name.

    Raises:
        DataError: They are of different models or layers.
    """
    models = [
        json.loads(one.attrs["provenance"])["model"]["hash"] for one in (analysis, robustness)
    ]
    if models[0] != models[1]:
        raise DataError(
            f"the analysis is of the model {models[0][:19]} and the robustness of {models[1][:19]}; "
            "join results of one model"
        )
    joined = analysis.copy()
    for name, same in (("units", ("layer", "channel")), ("layers", ("layer",))):
        if name not in robustness.children or name not in analysis.children:
            continue
        mine, other = (
            one.children[name].to_dataset(inherit=False) for one in (analysis, robustness)
        )
        if any(mine[one].values.tolist() != other[one].values.tolist() for one in same):
            raise DataError(
                "the analysis and the robustness have different layers; measure both with the same "
                "layers"
            )
        new = other.drop_vars([variable for variable in other if variable in mine])
        joined[name] = xr.DataTree(mine.merge(new, compat="override"))
    joined["robustness"] = robustness["robustness"].copy()
    joined.attrs["provenance_robustness"] = robustness.attrs["provenance"]
    return joined


def _of(name: str, values: xr.DataArray, clean: float) -> Row:
    return _row(name, _cells(values), float(values.mean()), clean)


def _row(name: str, cells: Row, mean: float, clean: float) -> Row:
    relative = mean / clean if clean else None
    return {"perturbation": name, **cells, "mean": mean, "relative": relative}


def _cells(values: xr.DataArray) -> Row:
    (axis,) = values.dims
    known: Any = values.dropna(axis)
    return {
        _level(str(axis), level): float(value)
        for level, value in zip(known[axis].values.tolist(), known.values, strict=True)
    }


def _level(axis: str, level: float) -> str:
    """`3`, `8/255`, or `0.5` for a radius that is no whole number of steps of 255."""
    steps = level * 255
    if axis == "epsilon" and 1 <= steps < 255 and abs(steps - round(steps)) < 1e-6:
        return f"{round(steps)}/255"
    return f"{level:.4g}"
