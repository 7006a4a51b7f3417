"""Make the exploratory tables of selectivity from the files that the examples write.

python docs/reproduction/cifar10/selectivity.py MEASURED DATA_ROOT

MEASURED is the output folder of `cifar10_selectivity.py`, `cifar10_units.py` and `published_units.py`.
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
DEPTHS = ("early", "middle", "late")  # thirds of the layers


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
        for depth, part in zip(DEPTHS, np.array_split(np.arange(len(table)), 3), strict=True):
            mean = table.iloc[part].mean()
            across = (mean["across"] + mean["back"]) / 2
            ceiling = float(np.sqrt(max(mean["first"], 0) * max(mean["second"], 0)))
            rows.append({"first": first, "second": second, "depth": depth,
                         "correlation": across, "ceiling": ceiling})  # fmt: skip
    return rows


def rank_correlation(first: Any, second: Any) -> float:
    """Spearman's correlation over the units for which both are known."""
    return float(pd.Series(first).corr(pd.Series(second), method="spearman"))


def stability(folder: Path, name: str, labels: Any) -> list[dict[str, Any]]:
    """How well activations of units survive corruption, and whether selective units survive better."""
    found = np.load(folder / f"{name}.record.npz")
    values = by_unit(found["pooled"], labels)
    kept = np.load(folder / f"{name}.corrupted.npz")["stability"].mean(0)
    ends = np.cumsum(found["units"])[:-1]
    layers = np.array_split(np.arange(len(ends) + 1), 3)
    split = {key: np.split(one, ends) for key, one in {**values, "kept": kept}.items()}
    rows = []
    for depth, part in zip(DEPTHS, layers, strict=True):
        row = {"depth": depth, "stability": np.mean([np.nanmean(split["kept"][k]) for k in part])}
        for key in ("index", "eta_squared"):
            each = [rank_correlation(split[key][k], split["kept"][k]) for k in part]
            row[f"with_{key}"] = np.nanmean(each)
        rows.append(row)
    return rows


def ablated(folder: Path, name: str, labels: Any) -> list[dict[str, Any]]:
    """Rise of the loss while one unit is held at its mean: its preferred class and the others."""
    found = np.load(folder / f"{name}.record.npz")
    of_unit = np.repeat(found["layer"], found["units"])
    rows = []
    for layer, table in np.load(folder / f"{name}.ablated.npz").items():
        pooled = found["pooled"][:, of_unit == layer]
        preferred = class_means(pooled, labels).values.argmax(1)[:, None]
        rise = table[1:, 1] - table[0, 1]
        own = np.take_along_axis(rise, preferred, 1)[:, 0]
        others = (rise.sum(1) - own) / (rise.shape[1] - 1)
        index = by_unit(pooled, labels)["index"]
        drop = 100 * (table[0, 0] - table[1:, 0])
        own_drop = np.take_along_axis(drop, preferred, 1)[:, 0]
        rows.append({"layer": layer, "own": own.mean(), "others": others.mean(),
                     "own_points": own_drop.mean(), "points": drop.mean(),
                     "index_with_own": rank_correlation(index, own),
                     "index_with_others": rank_correlation(index, others)})  # fmt: skip
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


def place(name: str) -> dict[str, Any]:
    """Variant, alpha and seed of a network, from its name."""
    kind, _, seed = name.rpartition("_s")
    sweep = kind.startswith("a") and kind != "augmix"
    alpha = float(kind[1:]) if sweep else 0.0
    return {"variant": "sweep" if sweep else kind, "alpha": alpha, "seed": int(seed)}


def tables(folder: Path, root: str) -> None:
    """Writes the tables beside this file, as far as their files are in the folder."""
    data = pk.load_data("cifar10", root=root, split="test").labels.numpy()
    labels = data[np.random.default_rng(0).permutation(len(data))[:1000]]
    rows, added, found = [], [], {"agreement": [], "stability": [], "ablated": []}
    for file in sorted(folder.glob("*.record.npz")):
        name = file.name.removesuffix(".record.npz")
        one = place(name)
        recorded = np.load(file)
        own = recorded.get("labels", labels)  # published networks have images of their own
        if "labels" not in recorded:
            rows.append({**one, **network(folder, name, labels)})
        compared = one["variant"] == "sweep" and one["alpha"] in (-2, 0, 1)
        if one["seed"] < 4 and (compared or one["variant"] not in ("sweep", "augmix", "pgd")):
            found["agreement"] += [{**one, **row} for row in agreement(folder, name, own)]
        for part, measure in (("corrupted", stability), ("ablated", ablated)):
            if (folder / f"{name}.{part}.npz").exists():
                key = "stability" if part == "corrupted" else part
                found[key] += [{**one, **row} for row in measure(folder, name, labels)]
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
        "pwcca": pd.DataFrame([row for alpha in COMPARED for row in distances(folder, alpha)]),
        **{key: pd.DataFrame(part) for key, part in found.items()},
    }
    for name, table in write.items():
        table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    tables(Path(sys.argv[1]), sys.argv[2])
