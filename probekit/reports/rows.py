"""Results as plain rows, for the terminal and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["layer_rows", "most_selective", "result_json", "robustness_rows"]

Row = dict[str, str | float | None]


def layer_rows(result: xr.DataTree) -> list[dict[str, Any]]:
    """The layer table as plain rows: all that a layer has, quantiles and the like by name."""
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
            for row, value in zip(rows, numbers.tolist(), strict=True):
                row[column] = value
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


def robustness_rows(result: xr.DataTree) -> list[Row]:
    """The accuracies of a robustness result, one row a perturbation.

    Args:
        result: What `robustness` gives.

    Returns:
        Rows with `perturbation`, an accuracy for each severity (`1` to `5`) or epsilon (`4/255`),
        `mean` over these, `relative` (the mean over clean accuracy), and for attacks `newly wrong`:
        how many images that were right without the attack are wrong under each epsilon; for a targeted
        attack `target reached` instead: how many images got the class asked for. The first row is
        `clean`; `mean`, over the standard types, comes after the corruptions; keys that a row has no
        number for are left out.

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
        rows += [_of(str(row["corruption"].item()), row, clean) for row in table["accuracy"]]
        by_severity = _cells(table["accuracy_by_severity"])
        rows.append(_row("mean", by_severity, float(table["accuracy_mean"]), clean))
    if "attack_accuracy" in table:
        for values in table["attack_accuracy"]:
            name = str(values["attack"].item())
            rows.append({**_of(name, values, clean), **_counts(table.sel(attack=name), clean)})
    return rows


def _counts(attacked: xr.Dataset, clean: float) -> Row:
    """How many images each epsilon turned, without those that were wrong before."""
    fooled = attacked["attack_fooled"].dropna("epsilon")
    samples = int(attacked["n_samples"])
    right = attacked["attack_accuracy"].sel(epsilon=fooled["epsilon"]).values * samples
    # An untargeted attack has fooled exactly the images that are wrong under it.
    untargeted = bool(np.allclose(right + fooled.values, samples, atol=0.5))
    counts = fooled.values - round((1 - clean) * samples) if untargeted else fooled.values
    text = " ".join(str(int(count)) for count in counts)
    return {"newly wrong" if untargeted else "target reached": text}


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
