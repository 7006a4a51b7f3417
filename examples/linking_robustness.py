"""Leavitt & Morcos 2020, Linking average- and worst-case robustness (arXiv 2010.07693), reproduced.

    python examples/linking_robustness.py --out reproduction            # hours
    python examples/linking_robustness.py --out quick --quick           # minutes

Measures the networks of the sweep of `selectivity_considered_harmful.py`: accuracy under corruptions and
attacks, gradients, and the dimensionality of layers. Conversely, it measures the effect of AugMix and
PGD training on selectivity. A second call resumes. Figures and numbers go to `OUT/linking_robustness`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from studies import get_study, study_parser

import probekit as pk

DIGITIZED = Path(__file__).parents[1] / "docs" / "reproduction" / "digitized.csv"
EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
SHARE = "components_fraction"
REVERSE: dict[str, Any] = {"plain": {}, "AugMix": {"augmix": 3}, "PGD": {"pgd": (8 / 255, 3)}}


def corrupted(
    model: Any, *, data: str, root: str | None, images: int, types: str, severities: list[int]
) -> xr.Dataset:
    """Accuracy by type and severity, and the dimensionality of the change in each layer."""
    test = pk.load_data(data, model, root=root, split="test")
    result = pk.robustness(
        model, test, types.split(","), severities, limit=images, batch_size=250, table=32,
        selectivity=False, progress=False,
    )  # fmt: skip
    kept = ["accuracy", "accuracy_mean", "accuracy_relative_mean", "clean_accuracy"]
    layers = result["layers"].to_dataset().sel(variance=0.95, drop=True)
    change = layers[f"corruption_change_{SHARE}"].mean(["corruption", "severity"])
    table = result["robustness"].to_dataset()[kept]
    return table.assign(
        dimensions_clean=layers[SHARE], dimensions_corrupted=change, n_units=layers["n_units"]
    )


def attacked(model: Any, *, data: str, root: str | None, images: int, steps: int) -> xr.Dataset:
    """Accuracy under FGSM and PGD over epsilon and steps, and the dimensionality of the change."""
    test = pk.load_data(data, model, root=root, split="test")
    result = pk.robustness(
        model, test, None, attacks=[pk.FGSM(), pk.PGD(steps=steps, keep="last")],
        epsilons=EPSILONS, limit=images, batch_size=250, selectivity=False, progress=False,
    )  # fmt: skip
    layers = result["layers"].to_dataset().sel(variance=0.95, drop=True)
    change = layers[f"attack_change_{SHARE}"].isel(attack=-1, drop=True).mean("epsilon")
    kept = ["attack_accuracy", "attack_accuracy_by_step", "clean_accuracy"]
    table = result["robustness"].to_dataset()[kept]
    return table.assign(dimensions_attacked=change).assign_coords(attack=["fgsm", "pgd"])


def gradients(model: Any, *, data: str, root: str | None, images: int, probes: int) -> xr.Dataset:
    """Norm of the Jacobian of the logits, and variability of input-unit gradients."""
    test = pk.load_data(data, model, root=root, split="test")
    metric = pk.GradientVariability(method="probes", probes=probes)
    result = pk.analyze(model, test, metrics=metric, limit=images, progress=False)
    layers = result["layers"].to_dataset()
    norm = pk.jacobian_norm(model, test, limit=images, progress=False)["mean"]
    found = {"cv_over_samples": layers["gradient_norm_cv_mean"], "jacobian_norm": norm}
    return xr.Dataset({**found, "cv_over_units": layers["gradient_norm_cv_across_units"]})


def draw(table: xr.Dataset, reverse: xr.Dataset, out: Path) -> None:
    """Plots the figures of the papers."""
    by_alpha = {
        alpha: [table.sel(alpha=alpha, seed=seed) for seed in table["seed"].values]
        for alpha in table["alpha"].values.tolist()
    }
    gray = pd.read_csv(DIGITIZED).query("paper == 'C'").set_index("alpha")["corrupted_accuracy"]
    with plt.rc_context(pk.plot.style()):
        figure, axes = plt.subplots(1, 3, figsize=(13, 5), constrained_layout=True)
        mild = [alpha for alpha in by_alpha if abs(alpha) <= 2]
        ends = {alpha: by_alpha[alpha] for alpha in (mild[0], 0.0, mild[-1])}
        pk.plot.corruption_accuracy(ends, ax=axes[0])
        pk.plot.alpha_curve(table, "corrupted_over_baseline", ax=axes[1])
        gray = gray[gray.index.isin(table["alpha"].values)]
        axes[1].plot(gray.index, gray / gray[0], "o", color="0.7", ms=4, zorder=0)
        axes[1].set_title("gray: Tiny ImageNet-C, digitized")
        pk.plot.alpha_curve(table, "accuracy_relative_mean", ax=axes[2])
        pk.save_figure(figure, out / "corruptions")
        figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), constrained_layout=True)
        for ax, attack in zip(axes, ("fgsm", "pgd"), strict=False):
            pk.plot.attack_accuracy(by_alpha, attack=attack, ax=ax).set_title(attack.upper())
        some: Any = {"over": "step", "attack": "pgd", "epsilon": EPSILONS[2]}
        pk.plot.attack_accuracy(by_alpha, **some, ax=axes[2]).set_title("PGD, 4/255")
        pk.save_figure(figure, out / "attacks")
        names = ("dimensions_clean", "dimensions_corrupted", "dimensions_attacked")
        figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), constrained_layout=True)
        for ax, name in zip(axes.flat, (*names, "cv_over_samples", "cv_over_units"), strict=False):
            pk.plot.alpha_profile(table, name, ax=ax)
        pk.plot.alpha_curve(table, "jacobian_norm", ax=axes[1, 2])
        pk.save_figure(figure, out / "layers")
        figure, ax = plt.subplots(figsize=(3.2, 2.6), constrained_layout=True)
        ax.plot(reverse["variant"], reverse["selectivity_mean"], "o", color="0.3", ms=4)
        ax.set_ylabel("mean class selectivity")
        pk.save_figure(figure, out / "reverse")


def main() -> None:
    parser = study_parser(__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=500, help="test images under corruptions")
    parser.add_argument("--corruptions", default="all", help="types, with commas between")
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--attacked", type=int, default=200, help="test images under attacks")
    parser.add_argument("--steps", type=int, default=10, help="of PGD")
    parser.add_argument("--probed", type=int, default=100, help="test images for gradients")
    parser.add_argument("--probes", type=int, default=16, help="random directions an image")
    asked = parser.parse_args()
    out = asked.out / "linking_robustness"
    study = get_study(asked.scale, data_root=asked.data_root, device=asked.device)
    data = {"data": study.data, "root": asked.data_root}
    corruptions = {"types": asked.corruptions, "severities": asked.severities}
    measures: list[tuple[Any, dict[str, Any]]] = [
        (corrupted, {"images": asked.images, **corruptions}),
        (attacked, {"images": asked.attacked, "steps": asked.steps}),
        (gradients, {"images": asked.probed, "probes": asked.probes}),
    ]
    table = study.sweep(asked.out / "sweep").drop_vars("failure")
    reverse = study.vary(asked.out / "reverse", REVERSE)
    for measure, options in measures:
        parts = [
            pk.measure_runs(folder, measure, asked.out / "measured", **data, **options)
            for folder in (asked.out / "sweep", asked.out / "reverse")
        ]
        table = table.merge(parts[0], compat="override", join="left")
        reverse = reverse.merge(parts[1], compat="override", join="left")
    baseline = table["accuracy_mean"].sel(alpha=0, drop=True)
    table["corrupted_over_baseline"] = table["accuracy_mean"] / baseline.mean("seed")
    table["corrupted_p"] = pk.compare_means(table["accuracy_mean"], baseline)["p_adjusted"]
    pk.save_tables(table, out / "sweep", **vars(asked))
    pk.save_tables(reverse, out / "reverse", **vars(asked))
    draw(table, reverse, out)
    shown = ["clean_accuracy", "accuracy_mean", "jacobian_norm"]
    print(table[shown].mean("seed").to_dataframe())
    print(reverse[[*shown, "selectivity_mean"]].mean("seed").to_dataframe())


if __name__ == "__main__":
    main()
