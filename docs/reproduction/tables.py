"""Make the tables of docs/reproduction.md, and keep figures and numbers, from what the examples left.

    python docs/reproduction/tables.py reproduction [COMMIT]

Reads `OUT/EXAMPLE/*.nc` of the examples of the papers, judges each claim by numbers alone, corrects all
p-values together (Holm), writes `docs/reproduction/claims.csv` and the tables between the marks in
`docs/reproduction.md`, and copies figures and numbers to `docs/reproduction`, with the commit at which
they were measured, by default the one that is checked out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import probekit as pk

HERE = Path(__file__).parent
PAGE = HERE.parent / "reproduction.md"
EXAMPLES = ("selectivity_considered_harmful", "linking_robustness", "ablation")
FIGURES = {
    "selectivity_considered_harmful": {
        "accuracy": "Selectivity by layer, accuracy over alpha and over selectivity: lowered, raised",
        "off_axis": "PWCCA distance ratio, bound of selectivity in any basis by layer, and over selectivity",
        "controls": "Other measures, dead units, and accuracy after the first epoch",
    },
    "linking_robustness": {
        "corruptions": "Accuracy under corruptions by type, and its mean over alpha",
        "attacks": "Accuracy under attacks over epsilon, and over the steps of PGD",
        "layers": "Share of dimensions with 95% of the variance, clean and of the change; gradients",
        "reverse": "Selectivity after training with AugMix and against PGD",
    },
    "ablation": {
        "ablation": "Accuracy while units are ablated",
        "training": "Selectivity and accuracy over epochs, by when alpha acts",
    },
}  # fmt: skip
CHANCE = 0.1  # ten classes, in Fashion-MNIST and in digits
MODEST = 2.0  # beyond this size of alpha networks collapse, in the paper and here


@dataclass(frozen=True)
class Found:
    """A number with its 95% interval over seeds, and the sign that a claim predicts for it."""

    what: str
    value: float
    low: float
    high: float
    p: float
    sign: int

    @property
    def agrees(self) -> str:
        """Whether the number has the claimed sign, by its interval alone; `sign` 0 claims that it is zero."""
        if not np.isfinite([self.low, self.high]).all():
            return "yes" if self.sign == 0 == self.value else "unknown"
        if self.low <= 0 <= self.high:
            return "open"
        return "yes" if np.sign(self.value) == self.sign else "no"


class Numbers:
    """The tables that one example left, opened when they are asked for."""

    def __init__(self, out: Path, example: str) -> None:
        self._folder = out / example

    def __getattr__(self, name: str) -> xr.Dataset:
        return xr.load_dataset(self._folder / f"{name}.nc", engine="h5netcdf")


def modest(table: xr.Dataset, side: slice | None = None) -> xr.Dataset:
    """The alphas that do not collapse, of one side or both."""
    return table.sel(alpha=side or slice(-MODEST, MODEST)).sel(alpha=slice(-MODEST, MODEST))


def trend(what: str, table: xr.Dataset, name: str, sign: int, x: str = "alpha") -> Found:
    """Spearman's correlation over networks."""
    found = pk.rank_trend(table[x], table[name])
    numbers = [float(found[key]) for key in ("correlation", "low", "high", "p")]
    return Found(f"{what}: rank correlation", *numbers, sign)


def difference(
    what: str, one: xr.DataArray, other: xr.DataArray, sign: int, scale: float = 1
) -> Found:
    """Difference of means over seeds."""
    drop = [name for name in one.coords if name not in one.dims]
    found = pk.compare_means(one.drop_vars(drop), other.drop_vars(drop, errors="ignore"))
    numbers = [scale * float(found[key]) for key in ("difference", "low", "high")]
    return Found(what, *numbers, float(found["p"]), sign)


def less(
    what: str, table: xr.Dataset, name: str, one: Any, other: Any, sign: int, scale: float = 100
) -> Found:
    """Difference of means between two alphas or variants; of shares in points, unless `scale` is 1."""
    axis = "variant" if "variant" in table.dims else "alpha"
    here, there = table[name].sel({axis: one}), table[name].sel({axis: other})
    unit = " (points)" if scale == 100 else ""
    names = [f"{end:g}" if axis == "alpha" else end for end in (one, other)]
    return difference(
        f"{what} at {names[0]} less that at {names[1]}{unit}", here, there, sign, scale
    )


def change(what: str, one: xr.DataArray, other: xr.DataArray, sign: int) -> Found:
    """Mean over seeds of a difference inside each network."""
    inside = one - other
    return difference(what, inside, xr.zeros_like(inside), sign)


def of_first_paper(numbers: Numbers) -> Iterator[tuple[str, str, Found]]:
    """Claims of Selectivity considered harmful."""
    sweep, controls = numbers.sweep, numbers.controls
    plain = sweep.sel(alpha=0)
    down, up = modest(sweep, slice(None, 0)), modest(sweep, slice(0, None))
    yield (
        "selectivity follows alpha",
        "F",
        trend("alpha and mean selectivity", modest(sweep), "selectivity_mean", 1),
    )
    yield (
        "raising selectivity lowers accuracy, in every model and data set",
        "S",
        trend("alpha from 0 up and accuracy", up, "test_accuracy", -1),
    )
    for alpha in up["alpha"].values[1:]:
        yield (
            "raising selectivity lowers accuracy",
            "F",
            less("accuracy", sweep, "test_accuracy", alpha, 0, -1),
        )
    for alpha in down["alpha"].values[:-1]:
        fold = float(
            plain["selectivity_mean"].mean() / sweep["selectivity_mean"].sel(alpha=alpha).mean()
        )
        yield (
            "selectivity can be cut 2.5-fold at no cost (ResNet20)",
            "S",
            less(
                f"accuracy, selectivity cut {fold:.1f}-fold,", sweep, "test_accuracy", alpha, 0, 1
            ),
        )
    for alpha in sweep["alpha"].values[[0, -1]]:
        reached = sweep["test_accuracy"].sel(alpha=alpha)
        yield (
            "at the largest alphas networks are near chance",
            "F",
            change(f"accuracy at {alpha:g} less chance", reached, xr.full_like(reached, CHANCE), 0),
        )
    highest = float(up["alpha"].max())
    yield (
        "raising costs more than lowering",
        "F",
        less("accuracy", sweep, "test_accuracy", -highest, highest, 1),
    )
    for alpha in (-highest, highest):
        ratio = sweep["pwcca_ratio"].sel(alpha=alpha)
        yield (
            "the representation is changed, not turned: PWCCA distance ratio above 1",
            "R",
            difference(f"ratio at {alpha:g} less 1", ratio, sweep["pwcca_ratio"].sel(alpha=0), 1),
        )
    yield (
        "selectivity does not hide off the axes: the bound in any basis falls too",
        "R",
        trend("alpha and bound", modest(sweep), "bound_mean", 1),
    )
    yield (
        "the bound of discouraged networks is below the plain networks' axes",
        "R",
        difference(
            f"bound at {-highest:g} less selectivity at 0",
            sweep["bound_mean"].sel(alpha=-highest),
            plain["selectivity_mean"],
            -1,
        ),
    )
    for name in ("precision_selectivity_mean", "class_information_mean"):
        yield (
            "another measure of selectivity follows",
            "R",
            trend(
                f"alpha and {name.removesuffix('_mean').replace('_', ' ')}", modest(sweep), name, 1
            ),
        )
    yield (
        "dead units do not explain it",
        "R",
        less("share of dead units", sweep, "dead_fraction", -highest, 0, 0, 1),
    )
    yield (
        "selective networks learn no faster",
        "R",
        trend(
            "alpha and validation accuracy after one epoch",
            modest(sweep),
            "validation_first_epoch",
            -1,
        ),
    )
    for name in controls["variant"].values:
        if str(name).endswith("to 1") or str(name).endswith("at 1"):
            yield (
                "raising it costs accuracy also with warm-up or in some layers",
                "R",
                less("accuracy", controls, "test_accuracy", name, "alpha 0", -1),
            )


def of_third_paper(numbers: Numbers) -> Iterator[tuple[str, str, Found]]:
    """Claims of Linking average- and worst-case robustness."""
    sweep, reverse = numbers.sweep, numbers.reverse
    down, both = modest(sweep, slice(None, 0)), modest(sweep)
    lowest = float(down["alpha"].min())
    yield (
        "lower selectivity is more robust to corruptions",
        "F",
        trend("alpha up to 0 and mean accuracy on corrupted images", down, "accuracy_mean", -1),
    )
    yield (
        "lower selectivity is more robust to corruptions",
        "F",
        less("mean accuracy on corrupted images", sweep, "accuracy_mean", lowest, 0, 1),
    )
    yield (
        "also relative to the clean accuracy",
        "S",
        less("relative accuracy", sweep, "accuracy_relative_mean", lowest, 0, 1),
    )
    better = (
        sweep["accuracy"].mean("severity").sel(alpha=lowest)
        > sweep["accuracy"].mean("severity").sel(alpha=0)
    ).mean("corruption") - 0.5
    interval = pk.bootstrap_interval(better)
    yield (
        "for every type of corruption",
        "F",
        Found(
            f"share of types to which networks are more robust at {lowest:g}, less a half",
            *(float(interval[key]) for key in ("mean", "low", "high")),
            float("nan"),
            1,
        ),
    )
    yield (
        "raising selectivity costs little more",
        "F",
        less("mean accuracy on corrupted images", sweep, "accuracy_mean", -lowest, 0, 0),
    )
    for attack in sweep["attack"].values:
        for epsilon in sweep["epsilon"].values[[0, 2, -1]]:
            part = both.assign(stood=both["attack_accuracy"].sel(attack=attack, epsilon=epsilon))
            yield (
                "higher selectivity is more robust to attacks",
                "S",
                trend(
                    f"alpha and accuracy under {attack} at {255 * epsilon:.0f}/255",
                    part,
                    "stood",
                    1,
                ),
            )
    yield (
        "the Jacobian's norm falls as alpha rises",
        "R",
        trend("alpha and norm", both, "jacobian_norm", -1),
    )
    for name, text in (("cv_over_samples", "samples"), ("cv_over_units", "units")):
        part = both.assign(cv=both[name].mean("layer"))
        yield (
            "gradients vary more where selectivity is higher",
            "S",
            trend(f"mean selectivity and CV over {text}", part, "cv", 1, "selectivity_mean"),
        )
    third = sweep.sizes["layer"] // 3
    early = both.assign(early=both["dimensions_clean"].isel(layer=slice(third)).mean("layer"))
    yield (
        "early layers have more dimensions where selectivity is lower",
        "S",
        trend("alpha and components for 95% in the first third of layers", early, "early", -1),
    )
    gap = (sweep["dimensions_attacked"] - sweep["dimensions_corrupted"]).mean("layer")
    yield (
        "attacks change more dimensions than corruptions do",
        "S",
        change(
            "share of dimensions, attacked less corrupted, at 0",
            gap.sel(alpha=0),
            0 * gap.sel(alpha=0),
            1,
        ),
    )
    yield (
        "the more so at low selectivity",
        "S",
        trend("alpha and that gap", modest(gap.to_dataset(name="gap")), "gap", -1),
    )
    for name, sign in (("AugMix", -1), ("PGD", 1)):
        verb = "lowers" if sign < 0 else "raises"
        yield (
            f"training with {name} {verb} selectivity",
            "S",
            less("mean selectivity", reverse, "selectivity_mean", name, "plain", sign, 1),
        )


def of_ablation(numbers: Numbers) -> Iterator[tuple[str, str, Found]]:
    """Claims of Morcos et al. and Ranadive et al."""
    curves, late = numbers.ablation, numbers.late
    for alpha in [*modest(curves)["alpha"].values[[0, -1]].tolist(), 0.0]:
        part = curves.sel(alpha=alpha)
        found = change(
            f"area under accuracy, selective first less random, at {alpha:g}",
            part["area_selective_first"],
            part["area_random"],
            1,
        )
        yield (
            "selective units are no more important than others",
            "R",
            found,
        )
    for kind in ("early", "late"):
        yield (
            f"raising selectivity {kind} in training alone costs accuracy",
            "R",
            less("accuracy", late, "test_accuracy", f"{kind} 1", "alpha 0", -1),
        )
    yield (
        "suppressing it early in training alone costs accuracy",
        "R",
        less("accuracy", late, "test_accuracy", "early -1", "alpha 0", -1),
    )
    yield (
        "suppressing it late alone costs none",
        "R",
        less("accuracy", late, "test_accuracy", "late -1", "alpha 0", 1),
    )
    training = numbers.training.sel(variant="alpha 0")["selectivity_mean"]
    yield (
        "units become selective early in training",
        "R",
        change(
            "selectivity after the first epoch less that after the last",
            training.isel(epoch=0, drop=True),
            training.isel(epoch=-1, drop=True),
            1,
        ),
    )


CLAIMS: dict[str, Callable[[Numbers], Iterator[tuple[str, str, Found]]]] = dict(
    zip(EXAMPLES, (of_first_paper, of_third_paper, of_ablation), strict=True)
)


def judged(out: Path) -> pd.DataFrame:
    """One row per claim, with p-values corrected over all of them; without significance a claim is open."""
    rows: list[dict[str, Any]] = []
    for example, claims in CLAIMS.items():
        if not (out / example).is_dir():
            continue
        for claim, grade, found in claims(Numbers(out, example)):
            rows.append({"example": example, "claim": claim, "grade": grade, **vars(found),
                         "agrees": found.agrees})  # fmt: skip
    table = pd.DataFrame(rows)
    adjusted = pk.adjust_p_values(table["p"])
    agrees = table["agrees"].mask(adjusted > 0.05, "open")
    return table.assign(p_adjusted=adjusted, agrees=agrees).drop(columns=["sign"])


def markdown(example: str, rows: pd.DataFrame) -> str:
    """The figures of one example, and its rows as a table."""
    pictures = [
        f"![{text}](reproduction/{example}/{stem}.png)\n*{text}.*\n"
        for stem, text in FIGURES[example].items()
        if (HERE / example / f"{stem}.png").is_file()
    ]
    lines = [
        *pictures,
        "| the papers say | grade | measured | value [95% interval] | p, corrected | agrees |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        p = "" if np.isnan(row.p_adjusted) else f"{row.p_adjusted:.2g}"
        value = f"{row.value:.3g}"
        if np.isfinite(row.low):
            value += f" [{row.low:.3g}, {row.high:.3g}]"
        lines.append(f"| {row.claim} | {row.grade} | {row.what} | {value} | {p} | {row.agrees} |")
    return "\n".join(lines)


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "reproduction")
    table = judged(out)
    table.to_csv(HERE / "claims.csv", index=False, float_format="%.6g")
    page = PAGE.read_text()
    for example, rows in table.groupby("example"):
        begin, end = f"<!-- {example} -->\n", f"<!-- end of {example} -->"
        shutil.copytree(out / str(example), HERE / str(example), dirs_exist_ok=True)
        before, rest = page.split(begin)
        page = (
            before + begin + "\n" + markdown(str(example), rows) + "\n\n" + end + rest.split(end)[1]
        )
    measured_at = sys.argv[2] if len(sys.argv) > 2 else "HEAD"
    commit = subprocess.run(
        ["git", "rev-parse", measured_at], capture_output=True, text=True, check=True
    )
    (HERE / "commit.txt").write_text(commit.stdout)
    PAGE.write_text(page)
    print(table[["claim", "what", "value", "low", "high", "p_adjusted", "agrees"]].to_string())


if __name__ == "__main__":
    main()
