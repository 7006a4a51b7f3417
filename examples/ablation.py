"""Morcos et al. 2018 (arXiv 1803.06959) and Ranadive et al. 2023, reproduced.

    python examples/ablation.py --out reproduction            # hours
    python examples/ablation.py --out quick --quick           # minutes

How much does accuracy depend on the selective units? All units of a network are ablated (held at zero)
one after another: most selective first, least selective first, and in random orders. When in training
do units become selective, and when does the network need this? To find out, alpha is applied only in
the first or only in the second half of training. The networks are those of the sweep of
`selectivity_considered_harmful.py`. An interrupted call resumes where it stopped. Figures and numbers
are written to `OUT/ablation`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import xarray as xr
from studies import get_study, study_parser

import probekit as pk

FRACTIONS = [0.0, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5]
COLORS = {"selective_first": "#D55E00", "selective_last": "#0072B2", "random": "0.5"}


def ablated(
    model: Any, *, data: str, data_root: str | None, images: int, random: int
) -> xr.Dataset:
    """Accuracy while units are ablated in order of selectivity and in random orders."""
    test = pk.load_data(data, model, root=data_root, split="test")
    result = pk.analyze(model, test, limit=2000, batch_size=250, progress=False)
    units = result["units"].to_dataset()
    orders = {"selective_first": units["selectivity"], "selective_last": -units["selectivity"]}
    curves = pk.ablate(
        model, test, orders, fractions=FRACTIONS, random=random, limit=images, batch_size=250,
        progress=False,
    )  # fmt: skip
    chance = curves.isel(order=slice(2, None))
    found = {
        **{f"area_{name}": curves["area"].sel(order=name, drop=True) for name in orders},
        "area_random": chance["area"].mean("order"),
        **{f"accuracy_{name}": curves["accuracy"].sel(order=name, drop=True) for name in orders},
        "accuracy_random": chance["accuracy"].mean("order"),
        "units": curves["ablated"].isel(fraction=-1, drop=True),
    }
    return xr.Dataset(found)


def variants(epochs: int) -> dict[str, dict[str, Any]]:
    """When alpha is applied: always, never, in the second half, or in the first half."""
    half = epochs // 2
    found: dict[str, dict[str, Any]] = {f"alpha {a:g}": {"alpha": a} for a in (-1.0, 0.0, 1.0)}
    for alpha in (-1.0, 1.0):
        found[f"late {alpha:g}"] = {"alpha_schedule": f"0*{half} {alpha:g}"}
        found[f"early {alpha:g}"] = {"alpha_schedule": f"{alpha:g}*{half} 0"}
    return found


def band(ax: Any, x: Any, values: xr.DataArray, color: Any, label: str, line: str = "-") -> None:
    """Plots the mean over seeds with its bootstrapped 95% interval."""
    found = pk.bootstrap_interval(values)
    ax.plot(x, found["mean"], line, color=color, label=label)
    ax.fill_between(x, found["low"], found["high"], color=color, alpha=0.2, lw=0)


def draw_ablation(table: xr.Dataset, out: Path) -> None:
    """Plots accuracy under ablation for the lowest, zero and highest alpha within ±2."""
    alphas = [alpha for alpha in table["alpha"].values if abs(alpha) <= 2]
    shown = [alphas[0], 0.0, alphas[-1]]
    with plt.rc_context(pk.plot.style()):
        figure, axes = plt.subplots(
            1, 4, figsize=(13, 3), constrained_layout=True, width_ratios=[1, 1, 1, 1.2]
        )
        for ax, alpha in zip(axes, shown, strict=False):
            part = table.sel(alpha=alpha)
            for name, color in COLORS.items():
                band(ax, part["fraction"], part[f"accuracy_{name}"], color, name.replace("_", " "))
            ax.set(title=f"α = {alpha:g}".replace("-", "−"), xlabel="units ablated", ylim=(0, 1))
        axes[0].set_ylabel("test accuracy")
        axes[0].legend()
        pk.plot.alpha_curve(table, "area_over_random", ax=axes[3])
        axes[3].set_ylabel("area, selective first − random")
        pk.save_figure(figure, out / "ablation")


def draw_training(history: xr.Dataset, out: Path) -> None:
    """Plots selectivity and accuracy after each epoch, for every period in which alpha is applied."""
    colors = {"-1": "#0072B2", "0": "k", "1": "#D55E00"}
    lines = {"alpha": "-", "late": "--", "early": ":"}
    with plt.rc_context(pk.plot.style()):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
        for name in history["variant"].values:
            part = history.sel(variant=name)
            kind, alpha = str(name).split(" ")
            for ax, variable in zip(
                axes, ("selectivity_mean", "validation_accuracy"), strict=False
            ):
                band(ax, part["epoch"] + 1, part[variable], colors[alpha], str(name), lines[kind])
                ax.set(xlabel="epoch", ylabel=variable.replace("_", " "))
        plain = history["selectivity"].sel(variant="alpha 0").mean("seed")
        image = axes[2].imshow(plain.transpose("layer", "epoch"), aspect="auto", cmap="viridis")
        axes[2].set(xlabel="epoch", title="mean class selectivity at α = 0")
        axes[2].set_xticks(range(plain.sizes["epoch"]), plain["epoch"].values + 1)
        axes[2].set_yticks(range(plain.sizes["layer"]), plain["layer"].values, fontsize=6)
        figure.colorbar(image, ax=axes[2])
        axes[1].legend(fontsize=6)
        pk.save_figure(figure, out / "training")


def main() -> None:
    parser = study_parser(__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=500, help="test images for each point")
    parser.add_argument("--random", type=int, default=3, help="random orders")
    asked = parser.parse_args()
    out = asked.out / "ablation"
    study = get_study(asked.scale, data_root=asked.data_root, device=asked.device)
    study.sweep(asked.out / "sweep")
    table = pk.measure_runs(
        asked.out / "sweep", ablated, asked.out / "measured", data=study.data,
        data_root=asked.data_root, images=asked.images, random=asked.random,
    )  # fmt: skip
    table["area_over_random"] = table["area_selective_first"] - table["area_random"]
    table["area_p"] = pk.compare_means(table["area_selective_first"], table["area_random"])[
        "p_adjusted"
    ]
    pk.save_tables(table, out / "ablation", **vars(asked))
    draw_ablation(table, out)
    wanted = variants(study.control_epochs)
    outcomes = study.vary(asked.out / "controls", wanted)
    history = pk.training_history(asked.out / "controls").sel(variant=list(wanted))
    pk.save_tables(history, out / "training", **vars(asked))
    pk.save_tables(outcomes, out / "late", **vars(asked))
    draw_training(history, out)
    print(table[[f"area_{name}" for name in COLORS]].mean("seed").to_dataframe())
    print(outcomes[["test_accuracy", "selectivity_mean"]].mean("seed").to_dataframe())


if __name__ == "__main__":
    main()
