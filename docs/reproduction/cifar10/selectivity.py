"""Make the tables of what low selectivity is, from what `examples/cifar10_selectivity.py` left.

python docs/reproduction/cifar10/selectivity.py MEASURED DATA_ROOT
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probekit as pk

HERE = Path(__file__).parent
COMPARED = (-2.0, -1.0, 1.0)  # with alpha 0, by PWCCA
DEPTHS = {"early": slice(0, 7), "middle": slice(7, 13), "late": slice(13, 19)}


def recording(table: Any, labels: Any) -> xr.Dataset:
    """What the library's unit metrics take."""
    return xr.Dataset({"activation": (("sample", "unit"), table), "label": ("sample", labels)})


def class_means(table: Any, labels: Any) -> xr.DataArray:
    """(unit, class) of a recording."""
    means = [table[labels == label].mean(0, dtype=np.float64) for label in np.unique(labels)]
    return xr.DataArray(np.stack(means, 1), dims=("unit", "class"))


def by_unit(table: Any, labels: Any) -> dict[str, Any]:
    """Each unit's measures of selectivity."""
    means, recorded = class_means(table, labels), recording(table, labels)
    return {
        "index": pk.class_selectivity(means).values,
        "offset_free": pk.selectivity_offset_free(means).values,
        "eta_squared": pk.eta_squared(recorded).values,
        "auc": pk.preferred_class_auc(recorded).values - 0.5,
    }


def by_layer(values: Any, units: Any) -> float:
    """The mean over layers of the mean over units."""
    return float(np.mean([part.mean() for part in np.split(values, np.cumsum(units)[:-1])]))


def network(folder: Path, name: str, labels: Any) -> dict[str, float]:
    """All measures of one network, and under permuted labels (`null_`)."""
    found = np.load(folder / f"{name}.record.npz")
    units, table = found["units"], found["pooled"]
    permuted = np.random.default_rng(1).permutation(labels)
    row = {"accuracy": found["right"].mean()}
    for prefix, classes in (("", labels), ("null_", permuted)):
        for key, values in by_unit(table, classes).items():
            row[prefix + key] = by_layer(values, units)
    file = folder / f"{name}.elements.npz"
    if file.exists():
        each = np.load(file)["index"]
        row |= {
            "per_element": by_layer(each[0], units),
            "null_per_element": by_layer(each[1], units),
        }
    file = folder / f"{name}.bases.npz"
    if file.exists():
        one = np.load(file)
        row |= {
            "axes": one["selectivity_axes_held_out"],
            "rotation": one["selectivity_held_out"],
            "null_rotation": one["selectivity_floor"],
            "rotation_converged": one["converged"],
            "rotation_steps": one["steps_taken"],
        }
    return row


def with_constants(folder: Path, seed: int, labels: Any, target: float) -> dict[str, float]:
    """The plain network of a seed, each unit with `times` its mean added so that the index is `target`."""
    found = np.load(folder / f"a0_s{seed}.record.npz")
    table, units = found["pooled"].astype(np.float64), found["units"]
    mean = table.mean(0)
    means = class_means(table, labels)
    low, high = 0.0, 100.0
    for _ in range(50):
        times = (low + high) / 2
        added = means + xr.DataArray(times * mean, dims="unit")
        value = by_layer(pk.class_selectivity(added).values, units)
        low, high = (times, high) if value > target else (low, times)
    values = by_unit(table + times * mean, labels)
    return {"times": times, **{key: by_layer(one, units) for key, one in values.items()}}


def agreement(folder: Path, name: str, labels: Any) -> list[dict[str, Any]]:
    """Rank correlation of measures over units within layers, across halves of the images."""
    found = np.load(folder / f"{name}.record.npz")
    half = np.arange(len(labels)) % 2 == 0
    sides = [by_unit(found["pooled"][side], labels[side]) for side in (half, ~half)]
    ranks = [pd.DataFrame(side) for side in sides]
    layer = np.repeat(np.arange(len(found["units"])), found["units"])
    rows = []
    for first, second in itertools.combinations(sides[0], 2):
        pairs = {"across": ((0, first), (1, second)), "back": ((1, first), (0, second)),
                 "first": ((0, first), (1, first)), "second": ((0, second), (1, second))}  # fmt: skip
        table = pd.DataFrame(
            {
                key: [
                    ranks[a][x][layer == one].corr(ranks[b][y][layer == one], method="spearman")
                    for one in range(layer[-1] + 1)
                ]
                for key, ((a, x), (b, y)) in pairs.items()
            }
        )
        for depth, part in DEPTHS.items():
            mean = table.iloc[part].mean()
            across = (mean["across"] + mean["back"]) / 2
            ceiling = float(np.sqrt(max(mean["first"], 0) * max(mean["second"], 0)))
            rows.append({"first": first, "second": second, "depth": depth,
                         "correlation": across, "ceiling": ceiling})  # fmt: skip
    return rows


def distances(folder: Path, alpha: float) -> list[dict[str, Any]]:
    """PWCCA from plain networks over that within plain ones, and within both; mean over layers."""

    def load(name: str) -> xr.Dataset:
        found = np.load(folder / f"{name}.record.npz")
        layers = np.repeat(found["layer"], found["units"])
        return xr.Dataset(
            {"activation": (("sample", "unit"), found["pooled"])}, {"layer": ("unit", layers)}
        )

    some, plain = ([load(f"a{a:g}_s{seed}") for seed in range(4)] for a in (alpha, 0))
    found = pk.pwcca_ratio(some, plain, weights=("fewer", "uniform")).mean("layer")
    return [
        {"alpha": alpha, "seed": seed, "weights": weights,
         "ratio": float(found["ratio_by_replicate"].sel(weights=weights)[seed]),
         "ratio_within": float(found["ratio_within_by_replicate"].sel(weights=weights)[seed])}
        for weights in ("fewer", "uniform") for seed in range(4)
    ]  # fmt: skip


def tables(folder: Path, root: str) -> None:
    """Writes selectivity.csv, constants.csv, agreement.csv and pwcca.csv."""
    data = pk.load_data("cifar10", root=root, split="test").labels.numpy()
    rows, agreed, added = [], [], []
    labels = data[np.random.default_rng(0).permutation(len(data))[:1000]]
    for file in sorted(folder.glob("*.record.npz")):
        name = file.name.removesuffix(".record.npz")
        kind, _, seed = name.rpartition("_s")
        sweep = kind.startswith("a") and kind != "augmix"
        alpha = float(kind[1:]) if sweep else 0.0
        variant = "sweep" if sweep else kind
        place = {"variant": variant, "alpha": alpha, "seed": int(seed)}
        rows.append({**place, **network(folder, name, labels)})
        if (
            int(seed) < 4
            and (variant == "random" or alpha in (-2, 0, 1))
            and variant in ("sweep", "random")
        ):
            agreed += [{**place, **one} for one in agreement(folder, name, labels)]
    frame = pd.DataFrame(rows).sort_values(["variant", "alpha", "seed"])
    low = frame.query("variant == 'sweep' and alpha == -2").set_index("seed")["index"]
    for seed, target in low.items():
        check = np.load(folder / f"a0_s{seed}.constants.npz")
        checked = {
            key: float(check[key]) for key in ("predictions_changed", "largest_logit_change")
        }
        added.append({"seed": seed, **with_constants(folder, int(seed), labels, target), **checked})
    write = {
        "selectivity": frame,
        "constants": pd.DataFrame(added),
        "agreement": pd.DataFrame(agreed),
        "pwcca": pd.DataFrame([row for alpha in COMPARED for row in distances(folder, alpha)]),
    }
    for name, table in write.items():
        table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    tables(Path(sys.argv[1]), sys.argv[2])
