"""Draw the figures of CIFAR-10 from the tables beside this file.

python docs/reproduction/cifar10/figures.py [a] [b] [c] [d]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from exploratory import centered

import probekit as pk

HERE = Path(__file__).parent
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def seeds(
    ax: Any, table: pd.DataFrame, column: str, color: str, label: str, scale: float = 1
) -> None:
    """Every seed as a dot, and their mean as a line, over alpha."""
    places = {alpha: place for place, alpha in enumerate(sorted(table["alpha"].unique()))}
    x = table["alpha"].map(places)
    shift = (table["seed"] - table["seed"].mean()) * 0.03
    ax.plot(x + shift, scale * table[column], "o", color=color, ms=2.5, alpha=0.5, mew=0)
    mean = scale * table.groupby("alpha")[column].mean()
    ax.plot([places[alpha] for alpha in mean.index], mean, "-", color=color, lw=1.4, label=label)
    ax.set_xticks(list(places.values()), [f"{alpha:g}" for alpha in places])
    ax.set_xlabel("alpha")


def relative(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Columns over their mean at alpha 0."""
    return table.assign(
        **{name: table[name] / table[table["alpha"] == 0][name].mean() for name in columns}
    )


def four_panels() -> tuple[Any, Any]:
    """A figure that is readable at the width of the page, and its four axes."""
    figure, axes = plt.subplots(2, 2, figsize=(8.5, 6), constrained_layout=True)
    return figure, axes.ravel()


def paper_a(networks: pd.DataFrame, table: pd.DataFrame) -> Any:
    """Accuracy over selectivity and alpha; what falls when the index falls."""
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.1), constrained_layout=True)
    sweep = networks[networks["variant"] == "sweep"]
    zoo = networks[networks["variant"] == "zoo"]
    for part, epochs, marker in ((sweep, 10, "o"), (zoo, 36, "D")):
        shade = np.sign(part["alpha"]) * np.abs(part["alpha"]).clip(0, 5) ** 0.5
        axes[0].scatter(
            part["selectivity_mean"],
            100 * part["accuracy"],
            c=shade,
            cmap="coolwarm",
            vmin=-2.3,
            vmax=2.3,
            s=14,
            marker=marker,
            edgecolors="0.3",
            linewidths=0.3,
            label=f"{epochs} epochs",
        )
    for alpha, part in sweep[sweep["alpha"] != 2].groupby("alpha"):
        x, y = part["selectivity_mean"].mean(), 100 * part["accuracy"].min()
        axes[0].annotate(f"{alpha:g}", (x, y), (0, -4), textcoords="offset points",
                         ha="center", va="top", fontsize=7)  # fmt: skip
    axes[0].set(xlabel="mean class selectivity index", ylabel="test accuracy (%)", ylim=(67, 89))
    axes[0].legend()
    plain = sweep[sweep["alpha"] == 0].set_index("seed")["accuracy"]
    paired = sweep.assign(difference=100 * (sweep["accuracy"] - sweep["seed"].map(plain)))
    seeds(axes[1], paired[paired["alpha"] != 2], "difference", "0.25", "")
    axes[1].axhline(0, color="0.6", lw=0.8)
    axes[1].axhline(-0.5, color="0.6", lw=0.8, ls=":")
    axes[1].set_ylabel("accuracy less that at alpha 0,\nsame seed (points)")
    names = {
        "index": "index",
        "index_less_lowest": "index, lowest class mean subtracted",
        "eta_squared": "variance between classes",
    }
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        seeds(axes[2], relative(table, [name]), name, color, label)
    axes[2].set(ylabel="relative to alpha 0", ylim=(0, 3.9))
    axes[2].legend()
    return figure


def paper_b(networks: pd.DataFrame, table: pd.DataFrame) -> Any:
    """Gradient variability and dimensionality."""
    figure, axes = four_panels()
    for name, label, color in (
        ("cv_over_samples", "over samples", COLORS[0]),
        ("cv_over_active_samples", "over active samples", COLORS[2]),
        ("cv_over_units", "over units", COLORS[1]),
    ):
        seeds(axes[0], table, name, color, label)
    axes[0].set(yscale="log", ylabel="coefficient of variation\nof gradient norms")
    axes[0].set_yticks(ticks := [0.3, 0.5, 1, 2, 5], [f"{tick:g}" for tick in ticks])
    axes[0].minorticks_off()
    seeds(axes[1], table, "dimensions_clean", "0.25", "")
    axes[1].set_ylabel("stem and stage 1, clean:\ncomponents for 95% / units")
    rows = (
        ("pgd", "PGD, 4/255", COLORS[1]),
        ("matched", "corruptions rescaled to its norm", COLORS[0]),
        ("signs", "random signs, 4/255", "0.6"),
    )
    for name, label, color in rows:
        seeds(axes[2], table, f"change_{name}", color, label)
        seeds(axes[3], table, f"flat_{name}", color, label)
    axes[2].set_ylabel("change, pooled:\ncomponents for 95% / units")
    axes[3].set_ylabel("change of the stem, flattened:\ncomponents for 95% (of 499)")
    for ax in (axes[0], axes[2]):
        ax.legend()
    return figure


def paper_c(networks: pd.DataFrame, table: pd.DataFrame) -> Any:
    """Robustness on average and at worst, the Jacobian, and the other direction."""
    figure, axes = four_panels()
    for family, color in zip(("noise", "blur", "weather", "digital"), COLORS, strict=True):
        seeds(axes[0], table, f"{family}_relative", color, family, 100)
    axes[0].set_ylabel("accuracy under corruptions\n(% of clean)")
    for attack, color in zip(("fgsm", "pgd"), COLORS, strict=False):
        seeds(axes[1], table, f"{attack}_relative", color, attack.upper(), 100)
    axes[1].set_ylabel("accuracy under attack, 1 to 4/255\n(% of clean)")
    seeds(axes[2], table, "jacobian_norm", "0.25", "")
    axes[2].set_ylabel("norm of the Jacobian\nof the logits")
    index = networks.set_index(["variant", "alpha", "seed"])["selectivity_mean"].sort_index()
    plain = index["sweep", 0]
    for place, (name, color) in enumerate((("augmix", COLORS[0]), ("pgd", COLORS[1]))):
        part = index[name, 0]
        for seed, value in part.items():
            axes[3].plot(
                [2 * place, 2 * place + 1], [plain[seed], value], "o-", color=color, ms=3, lw=0.8
            )
    axes[3].set_xticks(range(4), ["plain", "AugMix", "plain", "PGD"])
    axes[3].set_ylabel("mean class selectivity index")
    for ax in axes[:2]:
        ax.legend()
    return figure


def exploratory(networks: pd.DataFrame, table: pd.DataFrame) -> Any:
    """What low selectivity is, which units matter, what goes with robustness, and agreement by depth."""
    figure, axes = four_panels()
    frame, agreement = (pd.read_csv(HERE / f"{name}.csv") for name in ("selectivity", "agreement"))
    sweep = frame[(frame["variant"] == "sweep") & (frame["seed"] < 4)]
    for (name, label), color in zip(
        {"index": "index", "eta_squared": "variance between classes",
         "auc": "AUC, less .5", "offset_free": "index, lowest class mean subtracted"}.items(),
        COLORS, strict=True,
    ):  # fmt: skip
        seeds(axes[0], relative(sweep, [name]), name, color, label)
    axes[0].set(ylabel="relative to alpha 0", ylim=(0, 4.2))
    for value, label, color in (
        ("zero", "zeroed", COLORS[1]),
        ("mean", "held at the mean", COLORS[0]),
    ):
        gap = table[f"ablated_top_{value}"] - table[f"ablated_random_{value}"]
        seeds(axes[1], table.assign(gap=gap), "gap", color, label)
    axes[1].axhline(0, color="0.6", lw=0.8)
    axes[1].set_ylabel("cost of the most selective quarter,\nless a random quarter (points)")
    for name, label, color in (
        ("pgd_relative", "PGD", COLORS[1]),
        ("corrupted_relative", "corruptions", COLORS[0]),
    ):
        x, y = (centered(table, key).values for key in ("linear_radius", name))
        axes[2].plot(x.ravel(), y.ravel(), "o", color=color, ms=3, alpha=0.7, label=label)
    axes[2].set(
        xlabel="log linear radius, less means of alpha and seed",
        ylabel="log relative accuracy,\nless means of alpha and seed",
    )
    part = agreement[(agreement["first"] == "index") & (agreement["second"] == "eta_squared")]
    kinds = (("sweep", -2), ("sweep", 0), ("sweep", 1), ("random", 0))
    for (variant, alpha), color in zip(kinds, COLORS, strict=True):
        one = part[(part["variant"] == variant) & (part["alpha"] == alpha)]
        mean = one.groupby("depth", sort=False)[["correlation", "ceiling"]].mean()
        label = f"alpha {alpha}" if variant == "sweep" else "untrained"
        axes[3].plot(mean.index, mean["correlation"], "o-", color=color, ms=3, label=label)
        axes[3].plot(mean.index, mean["ceiling"], ":", color=color, lw=1)
    axes[3].axhline(0, color="0.6", lw=0.8)
    axes[3].set_ylim(-1.3, 1)
    axes[3].set_ylabel("index and variance between classes:\nrank correlation over units")
    for ax in axes:
        ax.legend()
    return figure


def main() -> None:
    networks, table = (pd.read_csv(HERE / f"{name}.csv") for name in ("networks", "measures"))
    figures = {"a": paper_a, "b": paper_b, "c": paper_c, "d": exploratory}
    with plt.rc_context(pk.plot.style()):
        for name, draw in figures.items():
            if len(sys.argv) > 1 and name not in sys.argv[1:]:
                continue
            figure = draw(networks, table)
            figure.savefig(HERE / f"{name}.png", dpi=110)
            plt.close(figure)


if __name__ == "__main__":
    main()
