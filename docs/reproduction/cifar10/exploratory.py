"""Put the exploratory tables on the page, from the tables beside this file and in `tiny-imagenet`.

python docs/reproduction/cifar10/exploratory.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

import probekit as pk
from probekit.perturbations.corruptions.corruption import CORRUPTIONS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "reproduction.md"
ALPHAS = (-2.0, -1.0, -0.4, 0.0, 0.4, 0.7, 1.0)
COMPARED = (-2.0, -1.0, 1.0)  # with alpha 0, by PWCCA
DEPTHS = ("early", "middle", "late")
AGREEING = {
    "offset_free": "lowest class mean subtracted",
    "eta_squared": "variance between classes",
    "auc": "AUC",
}
PUBLISHED = {
    "resnet20-published": "ResNet20, trained",
    "random": "ResNet20, random",
    "efficientnet-lite0-package": "EfficientNet-lite0, trained",
    "efficientnet-lite0-random": "EfficientNet-lite0, random",
    "vit-trained": "small ViT, trained",
    "vit-random": "small ViT, random",
    "convnext-trained": "small ConvNeXt, trained",
    "convnext-random": "small ConvNeXt, random",
}
TINY = {
    "selectivity": "index",
    "selectivity_chance": "permuted labels",
    "selectivity_offset_free": "lowest class mean subtracted",
    "eta_squared": "eta squared",
    "preferred_class_auc": "AUC",
}
MEASURES = {
    "index": "class selectivity index",
    "offset_free": "the same, lowest class mean subtracted",
    "per_element": "index of each map element",
    "axes": "index, `layer2.2.relu2` alone",
    "rotation": "highest found in a rotation of that layer",
    "eta_squared": "share of variance between classes",
    "auc": "AUC of the preferred class, less .5",
}


def array(frame: pd.DataFrame, name: str) -> xr.DataArray:
    """A column over alpha and seed."""
    return frame.set_index(["alpha", "seed"])[name].to_xarray()


def number(value: float, digits: int = 3) -> str:
    """A number of the page, with a minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def alpha_text(alpha: float) -> str:
    """An alpha of the page."""
    return number(alpha, 1 if alpha % 1 else 0)


def paired(first: xr.DataArray, second: xr.DataArray, digits: int = 1) -> str:
    """A mean paired difference with its 95% interval."""
    found = pk.compare_means(first, second, paired=True)
    low, high = (number(float(found[end]), digits) for end in ("low", "high"))
    return f"{number(float(found['difference']), digits)} [{low}, {high}]"


def fold(first: xr.DataArray, second: xr.DataArray) -> str:
    """A geometric mean ratio with its 95% interval, paired within seeds."""
    found = pk.compare_means(np.log(first), np.log(second), paired=True)
    value, low, high = (np.exp(float(found[end])) for end in ("difference", "low", "high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def interval(values: pd.Series[float]) -> str:
    """A mean over seeds with its 95% interval."""
    found = pk.mean_interval(values.to_xarray())
    mean, low, high = (number(float(found[name]), 2) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def rows(header: str, lines: list[list[str]]) -> str:
    """A table of the page."""
    columns = header.count("|") + 1
    return "\n".join(
        [f"| {header} |", "|" + "---|" * columns, *(f"| {' | '.join(line)} |" for line in lines)]
    )


def by_alpha(networks: pd.DataFrame, measures: pd.DataFrame) -> str:
    """Selectivity, accuracy and robustness at each alpha."""
    sweep = networks[networks["variant"] == "sweep"].groupby("alpha")
    mean = measures.groupby("alpha").mean()
    lines = []
    for alpha in ALPHAS:
        one, accuracy = mean.loc[alpha], 100 * sweep["accuracy"].mean()[alpha]
        parts = [
            100 * one[name] for name in ("corrupted_relative", "fgsm_relative", "pgd_relative")
        ]
        lines.append(
            [alpha_text(alpha), str(sweep.size()[alpha]), number(accuracy, 1),
             number(one["index"]), number(one["eta_squared"]), *(number(part, 1) for part in parts)]
        )  # fmt: skip
    return rows(
        "alpha | seeds | accuracy (%) | index | eta squared | corrupted (% of clean) | FGSM | PGD",
        lines,
    )


def what_falls(frame: pd.DataFrame, added: pd.DataFrame) -> str:
    """Measures of selectivity by alpha, with constants, and under permuted labels."""
    sweep = frame[(frame["variant"] == "sweep") & (frame["seed"] < 4)]
    lines = []
    for name, label in MEASURES.items():
        complete, null = sweep.dropna(subset=[name]), f"null_{name}"
        known = array(complete, name).sel(alpha=[-2, 0, 1]).dropna("seed")
        line = [label, *(number(value) for value in known.mean("seed").values)]
        line.append(fold(known.sel(alpha=0), known.sel(alpha=-2)))
        line.append(number(added[name].mean()) if name in added else "")
        if null in sweep:
            floor = array(complete, null).sel(alpha=[-2, 0, 1]).dropna("seed")
            line.append(", ".join(number(value) for value in floor.mean("seed").values))
            above = known - floor
            usable = bool((above.sel(alpha=[-2, 0]) > 0).all())
            line.append(
                fold(above.sel(alpha=0), above.sel(alpha=-2)) if usable else "below the floor"
            )
        lines.append([*line, *[""] * (8 - len(line))])
    return rows(
        "measure | \N{MINUS SIGN}2 | 0 | 1 | 0 over \N{MINUS SIGN}2 [95%] | 0 with constants | "
        "permuted labels: \N{MINUS SIGN}2, 0, 1 | 0 over \N{MINUS SIGN}2, less permuted [95%]",
        lines,
    )


def rotations(table: pd.DataFrame) -> str:
    """Ratios of PWCCA distances."""
    lines = []
    for alpha in COMPARED:
        for weights, label in (("fewer", "usual"), ("uniform", "uniform")):
            part = table[(table["alpha"] == alpha) & (table["weights"] == weights)].set_index(
                "seed"
            )
            found = [interval(part[name]) for name in ("ratio", "ratio_within")]
            lines.append(
                [
                    number(alpha, 0),
                    label,
                    *found,
                ]
            )
    return rows(
        "alpha | weights | over plain replicates [95%] | over replicates of both [95%]", lines
    )


def ablated(measures: pd.DataFrame) -> str:
    """Points of accuracy that a quarter of one layer's units costs, mean over layers."""
    of = {(order, value): array(measures, f"ablated_{order}_{value}")
          for order in ("top", "bottom", "matched", "random") for value in ("zero", "mean")}  # fmt: skip
    lines = []
    for alpha in ALPHAS:
        at = {key: one.sel(alpha=alpha) for key, one in of.items()}
        line = [alpha_text(alpha)]
        line += [
            number(float(at[order, "zero"].mean()), 1) for order in ("top", "bottom", "random")
        ]
        line += [paired(at["top", value], at["random", value]) for value in ("zero", "mean")]
        line.append(paired(at["top", "mean"], at["matched", "mean"]))
        lines.append(line)
    return rows("alpha | zeroed: most selective | least | random | most selective less random, "
                "zeroed [95%] | held at the mean [95%] | less units of like mean, held [95%]",
                lines)  # fmt: skip


TRENDS = {
    "corrupted": "accuracy under corruptions (C1)",
    "corrupted_relative": "the same, relative to clean accuracy (C2)",
    "fgsm": "accuracy under FGSM",
    "fgsm_relative": "the same, relative to clean accuracy (C3)",
    "pgd": "accuracy under PGD",
    "pgd_relative": "the same, relative to clean accuracy (C4)",
    "jacobian_norm": "norm of the Jacobian (C5)",
    "cv_over_samples": "variability of gradients over samples (B1)",
    "cv_over_units": "variability of gradients over units",
    "dimensions_clean": "dimensions of early layers (B2)",
    "excess_matched": "dimensions of the change, PGD less corruptions (B4)",
}


def sides(measures: pd.DataFrame) -> str:
    """Trends over all alphas, over those up to 0 and over those from 0 on."""
    attacks = {
        name: measures[[f"{name}_{e}" for e in (1, 2, 4)]].mean(axis=1) for name in ("fgsm", "pgd")
    }
    frame = measures.assign(**attacks)
    parts = (slice(None), slice(None, 0), slice(0, None))
    found = [
        [pk.page_trend(array(frame, name).sel(alpha=part)) for part in parts] for name in TRENDS
    ]
    p = pk.adjust_p_values([[float(one["p"]) for one in row] for row in found])
    lines = [
        [label, *(f"{number(float(one['correlation']), 2)} ({value:.2g})"
                  for one, value in zip(row, adjusted, strict=True))]
        for label, row, adjusted in zip(TRENDS.values(), found, p, strict=True)
    ]  # fmt: skip
    return rows("rank correlation with alpha within seeds (p by Holm) | \N{MINUS SIGN}2 to 1 | "
                "\N{MINUS SIGN}2 to 0 | 0 to 1", lines)  # fmt: skip


def changed(measures: pd.DataFrame) -> str:
    """Dimensions of what attacks, corruptions and random signs change in early layers."""
    pairs = [
        ("change_pgd", "change_matched"), ("change_pgd", "change_corrupted"),
        ("change_signs", "change_pgd"), ("rise_pgd", "rise_matched"),
        ("flat_pgd", "flat_matched"), ("flat_signs", "flat_pgd"),
    ]  # fmt: skip

    def values(name: str, alpha: float) -> xr.DataArray:
        return (1 if name.startswith("flat") else 100) * array(measures, name).sel(alpha=alpha)

    lines = [
        [
            alpha_text(alpha),
            *(paired(values(one, alpha), values(other, alpha)) for one, other in pairs),
        ]
        for alpha in ALPHAS
    ]
    return rows("alpha | change, pooled (% of units): PGD less rescaled corruptions [95%] | PGD less "
                "corruptions of severity 3 | random signs less PGD | rise over clean images, pooled: PGD "
                "less rescaled corruptions | change, flattened (components): PGD less rescaled corruptions | "
                "random signs less PGD", lines)  # fmt: skip


MEDIATORS = {
    "index": "index", "dimensions_clean": "dimensions of early layers",
    "jacobian_norm": "norm of the Jacobian", "linear_radius": "linear radius",
}  # fmt: skip
STEPS = ((-2.0, 0.0), (0.0, 0.4), (0.0, 1.0))
OUTCOMES = {"corrupted_relative": "corruptions", "fgsm_relative": "FGSM", "pgd_relative": "PGD"}


def centered(measures: pd.DataFrame, name: str) -> xr.DataArray:
    """A column (of which the logarithm) without its means over seeds and over alphas."""
    values = np.log(array(measures, name))
    return values - values.mean("seed") - values.mean("alpha") + values.mean()


def slope(measures: pd.DataFrame, mediator: str, outcome: str) -> tuple[float, float, int]:
    """Slope of an outcome on a mediator over networks of one alpha, its error, and the degrees of freedom."""
    x, y = (centered(measures, name) for name in (mediator, outcome))
    value = float((x * y).sum() / (x**2).sum())
    degrees = (x.sizes["alpha"] - 1) * (x.sizes["seed"] - 1) - 1
    error = float(np.sqrt(((y - value * x) ** 2).sum() / degrees / (x**2).sum()))
    return value, error, degrees


def carried(measures: pd.DataFrame) -> str:
    """Correlations with robustness over networks of one alpha, without differences between seeds."""
    found, p = {}, []
    for mediator in MEDIATORS:
        for outcome in OUTCOMES:
            value, error, degrees = slope(measures, mediator, outcome)
            t = value / error
            found[mediator, outcome] = t / np.sqrt(degrees + t**2)
            p.append(2 * stats.t.sf(abs(t), degrees))
    adjusted = dict(zip(found, pk.adjust_p_values(p), strict=True))
    lines = [
        [label, *(f"{number(found[m, o], 2)} ({adjusted[m, o]:.2g})" for o in OUTCOMES)]
        for m, label in MEDIATORS.items()
    ]
    return rows(
        "over networks of one alpha: r (p by Holm) | " + " | ".join(OUTCOMES.values()), lines
    )


def percent(value: float, error: float, degrees: float) -> str:
    """A change of a logarithm in percent, with its 95% interval."""
    ends = value + error * stats.t.ppf([0.5, 0.025, 0.975], degrees)
    mean, low, high = (number(100 * float(np.expm1(end)), 1) for end in ends)
    return f"{mean} [{low}, {high}]"


def mediated(measures: pd.DataFrame) -> str:
    """Changes of robustness from one alpha to another, and what the change of each mediator predicts.

    The prediction is the mediator's change times its slope over networks of one alpha, so that no difference
    between alphas enters the slope (the product of coefficients of mediation). Its error adds those of both
    factors, with Satterthwaite's degrees of freedom.
    """

    def change(name: str) -> tuple[float, float]:
        values = np.log(array(measures, name))
        each = values.sel(alpha=last) - values.sel(alpha=first)
        return float(each.mean()), float(each.std(ddof=1)) / np.sqrt(each.size)

    seeds, lines = measures["seed"].nunique(), []
    for outcome, label in OUTCOMES.items():
        for first, last in STEPS:
            low, high = (alpha_text(alpha) for alpha in (first, last))
            line = [label, f"{low} to {high}", percent(*change(outcome), seeds - 1)]
            for mediator in MEDIATORS:
                value, error, degrees = slope(measures, mediator, outcome)
                moved, uncertain = change(mediator)
                parts = (value * uncertain) ** 2, (moved * error) ** 2
                total = sum(parts)
                freedom = total**2 / (parts[0] ** 2 / (seeds - 1) + parts[1] ** 2 / degrees)
                line.append(percent(value * moved, np.sqrt(total), freedom))
            lines.append(line)
    return rows(
        "robustness to | alpha | change (%) [95%] | predicted by the "
        + " | by the ".join(MEDIATORS.values()),
        lines,
    )


def agreeing(table: pd.DataFrame) -> str:
    """Rank correlation of the index with other measures, over units of a layer, and its ceiling."""
    lines = []
    kinds = {"−2": ("sweep", -2), "0": ("sweep", 0), "1": ("sweep", 1), "untrained": ("random", 0)}
    for name, label in AGREEING.items():
        for kind, (variant, alpha) in kinds.items():
            part = table[(table["first"] == "index") & (table["second"] == name)
                         & (table["variant"] == variant) & (table["alpha"] == alpha)]  # fmt: skip
            mean = part.groupby("depth")[["correlation", "ceiling"]].mean()
            lines.append(
                [
                    label,
                    kind,
                    *(
                        f"{number(mean['correlation'][d], 2)} of {number(mean['ceiling'][d], 2)}"
                        for d in DEPTHS
                    ),
                ]
            )
    return rows("index with | alpha | " + " | ".join(DEPTHS), lines)


def surviving(table: pd.DataFrame) -> str:
    """How well units survive corruption, and its rank correlation with selectivity within layers."""
    lines = []
    for alpha in (-2, 0, 1):
        for depth in DEPTHS:
            part = table[(table["alpha"] == alpha) & (table["depth"] == depth)].set_index("seed")
            line = [number(alpha, 0), depth, number(part["stability"].mean(), 2)]
            line += [interval(part[f"with_{name}"]) for name in ("index", "eta_squared")]
            lines.append(line)
    return rows("alpha | layers | correlation, clean and corrupted | its rank correlation with the index "
                "[95%] | with variance between classes [95%]", lines)  # fmt: skip


def by_class(table: pd.DataFrame) -> str:
    """What holding one unit at its mean does to its preferred class and to the others."""
    lines = []
    for alpha in (-2, 0, 1):
        for layer in table["layer"].unique():
            part = table[(table["alpha"] == alpha) & (table["layer"] == layer)].set_index("seed")
            line = [number(alpha, 0), f"`{layer}`"]
            line += [number(1000 * part[name].mean(), 1) for name in ("own", "others")]
            line += [interval(part[name]) for name in ("index_with_own", "index_with_others")]
            lines.append(line)
    return rows("alpha | layer | rise of the loss (0.001): preferred class | other classes | rank "
                "correlation with the index: preferred class [95%] | other classes [95%]", lines)  # fmt: skip


def published(table: pd.DataFrame) -> str:
    """Agreement of the index with other measures in published networks and in random ones."""
    lines = []
    for name, label in AGREEING.items():
        for variant, network in PUBLISHED.items():
            part = table[(table["first"] == "index") & (table["second"] == name)]
            part = part[part["variant"] == variant].groupby("depth").mean(numeric_only=True)
            each = [
                f"{number(part['correlation'][d], 2)} of {number(part['ceiling'][d], 2)}"
                for d in DEPTHS
            ]
            lines.append([label, network, *each])
    return rows("index with | network | " + " | ".join(DEPTHS), lines)


def reverse(frame: pd.DataFrame) -> str:
    """Measures of selectivity after training for robustness, less plain training of the same seed."""
    plain = frame[(frame["variant"] == "sweep") & (frame["alpha"] == 0)].set_index("seed")
    lines = []
    for name in ("index", "offset_free", "eta_squared", "auc"):
        line = [MEASURES[name], number(plain[name].mean())]
        for variant in ("augmix", "pgd"):
            own = frame[frame["variant"] == variant].set_index("seed")[name].to_xarray()
            line.append(paired(own, plain[name].to_xarray(), 4))
        lines.append(line)
    return rows("measure | plain | AugMix less plain [95%] | PGD less plain [95%]", lines)


def tiny_imagenet(table: pd.DataFrame) -> str:
    """Every network of Tiny ImageNet: accuracy, selectivity and robustness."""
    attacks = {name: [c for c in table if str(c).startswith(name)] for name in ("fgsm", "pgd")}
    lines = []
    for _, one in table.sort_values(["seed", "alpha"]).iterrows():
        parts = [one[list(CORRUPTIONS)].mean(), *(one[names].mean() for names in attacks.values())]
        lines.append(
            [number(one["alpha"], 0), str(int(one["seed"])), number(100 * one["accuracy"], 1),
             *(number(one[name]) for name in TINY),
             *(number(100 * part / one["clean"], 1) for part in parts)]
        )  # fmt: skip
    return rows(
        "alpha | seed | accuracy (%) | "
        + " | ".join(TINY.values())
        + " | corrupted (% of clean) | "
        "FGSM | PGD",
        lines,
    )


def page_tables() -> dict[str, str]:
    """All tables of the page, by the name of their mark."""
    networks = pd.read_csv(HERE / "networks.csv")
    read = {name: pd.read_csv(HERE / f"{name}.csv")
            for name in ("selectivity", "constants", "agreement", "pwcca", "measures",
                         "stability", "ablated")}  # fmt: skip
    return {
        "by alpha": by_alpha(networks, read["measures"]),
        "trends by side": sides(read["measures"]),
        "dimensions of the change": changed(read["measures"]),
        "what falls": what_falls(read["selectivity"], read["constants"]),
        "rotations": rotations(read["pwcca"]),
        "ablation within layers": ablated(read["measures"]),
        "what carries robustness": carried(read["measures"]),
        "mediation": mediated(read["measures"]),
        "agreement": agreeing(read["agreement"]),
        "other direction": reverse(read["selectivity"]),
        "ablation by class": by_class(read["ablated"]),
        "stability": surviving(read["stability"]),
        "published networks": published(read["agreement"]),
        "tiny imagenet": tiny_imagenet(pd.read_csv(HERE.parent / "tiny-imagenet" / "networks.csv")),
    }


def write_page() -> None:
    """Puts the tables into the page, each between its mark and the next empty line."""
    text = PAGE.read_text()
    for name, table in page_tables().items():
        before, rest = text.split(f"<!-- table: {name} -->\n\n")
        text = f"{before}<!-- table: {name} -->\n\n{table}\n\n{rest.split(chr(10) * 2, 1)[1]}"
    PAGE.write_text(text)


if __name__ == "__main__":
    write_page()
