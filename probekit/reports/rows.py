"""Results as rows of plain values, for the terminal and for other programs."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probekit.analysis.robustness.tables import mean_over_types
from probekit.results.labels import ends
from probekit.results.tables import layers_table, units_table

Row = dict[str, str | float | None]
_MOST_SELECTIVE = 10


def most_selective(result: xr.DataTree) -> list[dict[str, Any]]:
    """The units with the highest selectivity, with their preferred classes; of all attributes."""
    if "selectivity" not in result["units"]:
        return []
    columns = ["layer", "channel", "selectivity", "preferred_class"]
    units = pd.concat(
        [
            units_table(part)[columns].assign(**({"attribute": name} if name else {}))
            for name, part in by_attribute(result).items()
        ]
    )
    known = units[units["selectivity"].notna()]  # a merged result may lack others
    highest = known.sort_values("selectivity", ascending=False, kind="stable").head(_MOST_SELECTIVE)
    return highest.fillna({"preferred_class": "none"}).to_dict("records")  # type: ignore[no-any-return]  # pandas is untyped


def by_attribute(result: xr.DataTree) -> dict[str, xr.DataTree]:
    """The result of each attribute by name; the whole result under `""` if there are no attributes."""
    if "units" not in result.children or "attribute" not in result["units"].dims:
        return {"": result}
    names = [str(name) for name in result["units"].to_dataset()["attribute"].values]
    return {name: result.sel(attribute=name) for name in names}


def result_json(result: xr.DataTree) -> str:
    return to_json(
        {
            "network": {
                str(name): value.values.tolist() for name, value in result.data_vars.items()
            },
            "layers": layers_table(result).to_dict("records"),
            "most_selective": most_selective(result),
            "provenance": json.loads(result.attrs["provenance"]),
        }
    )


def to_json(value: object) -> str:
    """Formats plain values as JSON, which has no NaN and no infinity: they are null.

    >>> to_json([{"layer": "relu", "selectivity": float("nan")}])
    '[{"layer": "relu", "selectivity": null}]'
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def robustness_rows(result: xr.DataTree) -> list[Row]:
    """The accuracies of a robustness result, one row per perturbation.

    They have `perturbation`, the accuracy at each severity (`1` to `5`) or epsilon (`4/255`), their `mean`,
    and `relative` (the mean divided by the clean accuracy). Attacks also have `newly wrong`, the number of
    images at each epsilon that are misclassified only under the attack; targeted attacks have `target
    reached` instead, the number of images classified as the target. The first row is `clean`. The row
    `mean`, over the standard types, follows the corruptions. Keys without a value are omitted.

    Example:
        >>> table = xr.Dataset(
        ...     {"clean_accuracy": 0.8, "accuracy": (("corruption", "severity"), [[0.6, 0.2]])},
        ...     coords={"corruption": ["fog"], "severity": [1, 5]},
        ... )
        >>> for row in robustness_rows(xr.DataTree.from_dict({"robustness": table})):
        ...     print(row)
        {'perturbation': 'clean', 'mean': 0.8, 'relative': 1.0}
        {'perturbation': 'fog', '1': 0.6, '5': 0.2, 'mean': 0.4, 'relative': 0.5}
        {'perturbation': 'mean', '1': 0.6, '5': 0.2, 'mean': 0.4, 'relative': 0.5}
    """
    table = result["robustness"].to_dataset()
    clean = float(table["clean_accuracy"])
    rows = [_row("clean", {}, clean, clean)]
    if "accuracy" in table:
        for values in table["accuracy"].transpose("corruption", ...):
            name = str(values["corruption"].item())
            rows.append(_row(name, _cells(values), float(values.mean()), clean))
        by_severity = mean_over_types(table["accuracy"])
        rows.append(_row("mean", _cells(by_severity), float(by_severity.mean()), clean))
    if "attack_accuracy" in table:
        for values in table["attack_accuracy"].transpose("attack", ...):
            name = str(values["attack"].item())
            row = _row(name, _cells(values), float(values.mean()), clean)
            rows.append(row | _counts(table.sel(attack=name), clean))
    return rows


def _counts(attacked: xr.Dataset, clean: float) -> Row:
    """Number of images misclassified at each epsilon, excluding those misclassified when clean."""
    fooled = attacked["attack_fooled"].dropna("epsilon")
    samples = int(attacked["n_samples"])
    right = attacked["attack_accuracy"].sel(epsilon=fooled["epsilon"]).values * samples
    # An untargeted attack fools exactly the images that are misclassified under it.
    untargeted = bool(np.allclose(right + fooled.values, samples, atol=0.5))
    counts = fooled.values - round((1 - clean) * samples) if untargeted else fooled.values
    text = " ".join(str(int(count)) for count in counts)
    return {"newly wrong" if untargeted else "target reached": text}


def _row(name: str, cells: Row, mean: float, clean: float) -> Row:
    relative = mean / clean if clean else None
    return {"perturbation": name, **cells, "mean": mean, "relative": relative}


def _cells(values: xr.DataArray) -> Row:
    (axis,) = values.dims
    known: Any = values.dropna(axis)
    return {
        radius(level) if axis == "epsilon" else f"{level:.4g}": float(value)
        for level, value in zip(known[axis].values.tolist(), known.values, strict=True)
    }


def radius(epsilon: float) -> str:
    """The radius of an attack as text; multiples of 1/255 are shown as fractions."""
    steps = epsilon * 255
    if 1 <= steps < 255 and abs(steps - round(steps)) < 1e-6:
        return f"{round(steps)}/255"
    return f"{epsilon:.4g}"


def interval_note(layers: xr.Dataset) -> str:
    """Explains intervals that do not contain the mean they are shown with; empty if there are none."""
    interval = ends(layers.data_vars, "selectivity_mean")
    if interval is None or "selectivity_mean" not in layers.data_vars:
        return ""
    mean, (low, high) = layers["selectivity_mean"].values, (end.values for end in interval)
    outside = int(((mean < low) | (mean > high)).sum())
    if not outside:
        return ""
    return (
        f"in {outside} of {len(mean)} layers the interval leaves out the plain mean: it is for the index "
        "without noise in the class means, as the options of selectivity_interval define it"
    )
