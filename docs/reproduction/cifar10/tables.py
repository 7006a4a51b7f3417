"""Make the tables, claims and figures of CIFAR-10 from what `examples/cifar10_measures.py` left.

python docs/reproduction/cifar10/tables.py MEASURED DATA_ROOT   # tables from measured networks
python docs/reproduction/cifar10/tables.py                      # claims and figures from the tables
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probekit as pk

HERE = Path(__file__).parent
EPSILONS = (1, 2, 4, 8, 16)
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
TYPES = tuple(name for family in FAMILIES.values() for name in family)
EARLY = 7  # the stem and stage 1
PAGE = HERE.parents[1] / "reproduction.md"
MARK = "<!-- claims of cifar10 -->"
TRENDS = ("A3", "C1", "C2", "C3", "C4", "C5", "B1", "B2", "B4")
THEIRS = {
    "A1": "2.5-fold, no cost",
    "A2": "about 2 points",
    "A3": "51.6% to 49.3% (Tiny ImageNet, alpha 0 to 1)",
    "C1": "17.0% to 13.2% (Tiny ImageNet-C, alpha -2 to 1)",
}
INNER = (-2.0, -1.0, -0.4, 0.0, 0.4, 0.7, 1.0)


def split(values: Any, units: Any) -> list[Any]:
    """Columns of all units, layer by layer."""
    return np.split(values, np.cumsum(units)[:-1], axis=-1)


def by_layer(values: Any, units: Any) -> float:
    """The mean over layers of the mean over units."""
    return float(np.mean([np.nanmean(part) for part in split(values, units)]))


def indices(moments: Any, count: Any, units: Any) -> dict[str, float]:
    """The index and measures of selectivity beside it, from class sums of the test split."""
    means = moments[0] / count[:, None]
    total = moments[0].sum(0) / count.sum()
    variance = moments[1].sum(0) / count.sum() - total**2
    between = (count[:, None] * (means - total) ** 2).sum(0) / count.sum()

    def index(table: Any) -> Any:
        highest = table.max(0)
        rest = (table.sum(0) - highest) / (len(table) - 1)
        with np.errstate(invalid="ignore"):
            return np.where(highest + rest > 0, (highest - rest) / (highest + rest), 0)

    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "index": by_layer(index(means), units),
            "index_less_lowest": by_layer(index(means - means.min(0)), units),
            "eta_squared": by_layer(np.where(variance > 0, between / variance, np.nan), units),
            "unit_cv": by_layer(np.sqrt(np.maximum(variance, 0)) / total, units),
        }


def gradients(found: Any, units: Any) -> dict[str, float]:
    """Variability of input-unit gradients over samples, among active samples, and over units."""
    norm = found["norm"].astype(np.float64) * found["norm_largest"]
    active = np.unpackbits(found["active"], axis=1)[:, : norm.shape[1]].astype(bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        means, spread = norm.mean(0), norm.std(0, ddof=1)
        over_samples = np.where(means > 0, spread / means, np.nan)
        kept = np.ma.masked_array(norm, ~active)
        among = (kept.std(0, ddof=1) / kept.mean(0)).filled(np.nan)
    over_units = [part.std(ddof=1) / part.mean() for part in split(means, units)]
    return {
        "cv_over_samples": by_layer(over_samples, units),
        "cv_over_active_samples": by_layer(among, units),
        "cv_over_units": float(np.mean(over_units)),
    }


def dimensions(found: Any, units: Any) -> dict[str, float]:
    """Components for 95% of the variance, over units, in the stem and stage 1; flattened in the stem."""
    conditions = found["condition"].tolist()
    fact = found["fact"].tolist()
    n95 = found["pooled"][..., fact.index("n95")] / units[:, None]
    share, change = n95[:, :EARLY, 0].mean(1), n95[:, :EARLY, 1].mean(1)
    flat = found["flat"][:, 0, 1, fact.index("n95")]

    def mean(values: Any, suffix: str) -> float:
        return float(np.mean([values[conditions.index(f"{name}-{suffix}")] for name in TYPES]))

    pgd = conditions.index("pgd-4")
    return {
        "dimensions_clean": float(share[0]),
        "change_pgd": float(change[pgd]),
        "change_corrupted": mean(change, "3"),
        "change_matched": mean(change, "matched-4"),
        "change_signs": float(change[conditions.index("signs-4")]),
        "excess_matched": float(change[pgd]) - mean(change, "matched-4"),
        "rise_pgd": float(share[pgd] - share[0]),
        "rise_corrupted": mean(share, "3") - float(share[0]),
        "rise_matched": mean(share, "matched-4") - float(share[0]),
        "flat_pgd": float(flat[pgd]),
        "flat_matched": mean(flat, "matched-4"),
        "flat_signs": float(flat[conditions.index("signs-4")]),
    }


def ablation(found: Any) -> dict[str, float]:
    """Points of accuracy lost by a quarter of one layer's units, mean over layers."""
    clean = np.unpackbits(found["right"][0])[:500].mean()
    right = np.unpackbits(found["ablated_right"], axis=-1)[..., :500].mean(-1)
    loss = 100 * (clean - right).mean(0)
    rows = {"top": loss[0], "bottom": loss[1], "matched": loss[2], "random": loss[3:].mean(0)}
    return {
        f"ablated_{k}_{v}": row[i]
        for k, row in rows.items()
        for i, v in enumerate(("zero", "mean"))
    }


def measured(folder: Path, name: str, labels: Any, index: Any) -> dict[str, float]:
    """All numbers of one network."""
    one, two = np.load(folder / f"{name}.a.npz"), np.load(folder / f"{name}.b.npz")
    units = one["units"]
    right = one["clean_predicted"] == labels
    clean = right[index].mean()
    corrupted = np.unpackbits(one["corrupted_right"], axis=-1)[..., :1000].mean(-1)
    row = {"accuracy_clean": clean, "corrupted": corrupted.mean()}
    row["corrupted_relative"] = corrupted.mean() / clean
    for family, types in FAMILIES.items():
        rows = [TYPES.index(name) for name in types]
        row[f"{family}_relative"] = corrupted[rows].mean() / clean
    for severity in range(5):
        row[f"severity_{severity + 1}_relative"] = corrupted[:, severity].mean() / clean
    for attack in ("fgsm", "pgd"):
        stand = np.unpackbits(one[f"{attack}_right"], axis=-1)[:, :1000].mean(-1)
        row |= {f"{attack}_{e}": a for e, a in zip(EPSILONS, stand, strict=True)}
        row[f"{attack}_relative"] = stand[:3].mean() / clean
    few = np.unpackbits(one["pgd_margin_right"], axis=-1)[:, :500].mean(-1)
    row |= {"pgd_margin_2": few[0], "pgd_margin_8": few[1]}
    sure = one["margin"] > 0
    row["linear_radius"] = float(np.median((one["margin"] / one["margin_gradient_l1"])[sure]) * 255)
    row["vanishing_gradients"] = float((one["loss_gradient_zeros"] == 1).mean())
    row["jacobian_norm"] = float(one["jacobian_norm"].mean())
    count = np.bincount(labels, minlength=10)
    row |= indices(one["class_moments"].astype(np.float64), count, units)
    return row | gradients(two, units) | dimensions(two, units) | ablation(two)


def tables(folder: Path, root: str) -> None:
    """Writes measures.csv, one row per network."""
    from probekit.data.sources import draw

    labels = pk.load_data("cifar10", root=root, split="test").labels.numpy()
    index = draw(len(labels), 1000, 0).numpy()
    rows = []
    for alpha in INNER:
        for seed in range(4):
            name = f"a{alpha:g}_s{seed}"
            rows.append({"alpha": alpha, "seed": seed, **measured(folder, name, labels, index)})
    pd.DataFrame(rows).to_csv(HERE / "measures.csv", index=False, float_format="%.5g")


def array(frame: pd.DataFrame, name: str) -> xr.DataArray:
    """A column over alpha and seed."""
    return frame.set_index(["alpha", "seed"])[name].to_xarray()


def claims(networks: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The primary claims of claims.toml, tested and corrected together."""
    fixed = tomllib.loads((HERE.parent / "claims.toml").read_text())["claim"]
    sweep = networks[networks["variant"] == "sweep"]
    accuracy, index = 100 * array(sweep, "accuracy"), array(sweep, "selectivity_mean")
    plain, base = accuracy.sel(alpha=0), float(index.sel(alpha=0).mean())
    below = index.sel(alpha=slice(None, 0)).mean("seed")

    def cut(fold: float, margin: float) -> tuple[str, Any]:
        alpha = float(below["alpha"][below.values <= base / fold].max())
        return f"alpha {alpha:g}", pk.equivalence(
            accuracy.sel(alpha=alpha).dropna("seed"), plain, (-margin, np.inf), paired=True
        )

    def of(variant: str) -> Any:
        part = (
            networks[networks["variant"] == variant]
            .set_index("seed")["selectivity_mean"]
            .to_xarray()
        )
        return pk.compare_means(part, index.sel(alpha=0, seed=part["seed"]), paired=True)

    columns = {
        "C1": "corrupted", "C2": "corrupted_relative", "C3": "fgsm_relative", "C4": "pgd_relative",
        "C5": "jacobian_norm", "B1": "cv_over_samples", "B2": "dimensions_clean", "B4": "excess_matched",
    }  # fmt: skip
    judged, shown = [], {}
    for one in fixed:
        name, says = one["id"], f"{one.get('direction', '')[:-3]}e"
        if one["test"] == "non-inferiority":
            shown[name], found = cut({"A1": 2.5, "A2": 10}[name], one["margin"])
            judged.append(pk.Claim(name, "no change", equivalence=found))
            continue
        if name == "A3":
            found = pk.page_trend(accuracy.sel(alpha=slice(0, 1)))
        elif name == "B3":
            excess = array(table, "excess_matched").sel(alpha=0)
            found = pk.compare_means(excess, xr.zeros_like(excess), paired=True)
        elif name in ("C6", "C7"):
            found = of({"C6": "augmix", "C7": "pgd"}[name])
        else:
            found = pk.page_trend(array(table, columns[name]))
        judged.append(pk.Claim(name, says, found))
    result = pk.verdicts(judged).to_dataframe().reset_index()
    result.insert(1, "sentence", [one["sentence"] for one in fixed])
    result.insert(2, "at", [shown.get(one["id"], "") for one in fixed])
    return result


def markdown(found: pd.DataFrame) -> str:
    """The table of the page."""
    lines = [
        "| | the papers say | their number | ours | p, corrected | seeds | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found.itertuples():
        ours = f"{row.estimate:.3g}"
        if row.claim in TRENDS:
            ours = f"rank correlation within seeds {ours}"
        elif row.claim in ("A1", "A2"):
            ours = f"{row.at}: {ours} points [{row.low:.3g}, {row.high:.3g}], margin {row.margin_low:g}"
        else:
            what = f"{ours} of the units" if row.claim == "B3" else f"index: {ours}"
            ours = f"{what} [{row.low:.3g}, {row.high:.3g}]"
        lines.append(
            f"| {row.claim} | {row.sentence} | {THEIRS.get(row.claim, '')} | {ours} | "
            f"{row.p_change_adjusted:.2g} | {row.count} | **{row.verdict}** |"
        )
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) > 2:
        tables(Path(sys.argv[1]), sys.argv[2])
    networks, table = (pd.read_csv(HERE / f"{name}.csv") for name in ("networks", "measures"))
    found = claims(networks, table)
    found.to_csv(HERE / "claims.csv", index=False, float_format="%.4g")
    before, rest = PAGE.read_text().split(f"{MARK}\n\n")
    after = rest.split("\n\n", 1)[1]
    PAGE.write_text(f"{before}{MARK}\n\n{markdown(found)}\n\n{after}")
    print(
        found[["claim", "verdict", "at", "estimate", "low", "high", "p_change_adjusted", "count"]]
    )


if __name__ == "__main__":
    main()
