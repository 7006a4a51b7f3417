"""Measure the robustness of the bundled networks, and write the tables in docs/zoo.md.

    python examples/zoo_robustness.py --out docs/zoo --store STORE

Accuracy under all 19 corruptions at five severities, FGSM and PGD (20 steps, one random start) is measured
on all 10,000 test images. Changes inside the network (dimensionality of the change, selectivity) are
measured on a random sample of 500 of them. Finished results are stored in STORE, and a second call
resumes. To distribute the networks among processes, use `--only NAME` to measure one network, and make
the tables with a final call without it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import xarray as xr

import probekit as pk
from probekit.perturbations.corruptions.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/zoo"),
        help="folder of the tables; the page is beside it",
    )
    parser.add_argument("--store", type=Path, default=Path("zoo-robustness"))
    parser.add_argument("--limit", type=int, help="test images for accuracies; all by default")
    parser.add_argument(
        "--sample", type=int, default=500, help="test images for what happens inside"
    )
    parser.add_argument("--only", nargs="*", metavar="NAME", help="measure these, make no tables")
    options = parser.parse_args()
    for name in options.only or []:
        measure(name, options)
    if not options.only:
        tabulate(options)


def tabulate(options: argparse.Namespace) -> None:
    """Measures the remaining networks, and writes the tables."""
    options.out.mkdir(parents=True, exist_ok=True)
    rows, panels = {}, {}
    for name in pk.list_models("resnet20-fashion-mnist-a*"):
        found = measure(name, options)
        rows[name] = summary(name, *found)
        panels[name] = found[0]["robustness"]["accuracy"]
    table = pd.DataFrame(rows).T.sort_values("alpha")
    panel = xr.concat(
        [panels[name] for name in table.index], pd.Index(table["alpha"], name="alpha")
    )
    table.to_csv(options.out / "summary.csv")
    panel.to_dataframe()["accuracy"].unstack("severity").to_csv(options.out / "accuracy.csv")
    page = options.out.with_suffix(".md")
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(
        before + BEGIN + "\n\n" + markdown(table, panel) + "\n" + END + rest.partition(END)[2]
    )
    print(table.round(3).to_string())


def measure(name: str, options: argparse.Namespace) -> tuple[xr.DataTree, ...]:
    """Accuracy under corruptions, internal changes under corruptions, and accuracy under attacks."""
    model = pk.load_model(f"probekit:{name}")
    data = pk.load_data("fashion-mnist", model)

    def run(what: str, **more: object) -> xr.DataTree:
        store = options.store / f"{name}-{what}"
        return pk.robustness(model, data, batch_size=250, table=32, store=store, **more)

    every = [*CORRUPTIONS, *EXTRA_CORRUPTIONS]
    attacks = ["fgsm", pk.PGD(steps=20)]
    few = min(options.sample, options.limit or options.sample)
    outside = {"limit": options.limit, "dimensionality": False, "selectivity": False}
    return (
        run("accuracy", corruptions=every, **outside),
        run("inside", corruptions=every, limit=few),
        run("attacks", corruptions=None, attacks=attacks, epsilons=EPSILONS, **outside),
    )


def summary(
    name: str, corrupted: xr.DataTree, inside: xr.DataTree, attacked: xr.DataTree
) -> dict[str, float]:
    """One row of the table."""
    card = pk.load_model(f"probekit:{name}").provenance
    found = corrupted["robustness"].to_dataset()
    under = attacked["robustness"]["attack_accuracy"]
    standard = found["accuracy"].sel(corruption=list(CORRUPTIONS))
    row = {
        "alpha": float(card["alpha"]),
        "selectivity": float(card["selectivity_mean"]),
        "clean": float(found["clean_accuracy"]),
        "corrupted (15)": float(standard.mean()),
        "relative": float(standard.mean() / found["clean_accuracy"]),
        "extra (4)": float(found["accuracy"].sel(corruption=list(EXTRA_CORRUPTIONS)).mean()),
    }
    layers = inside["layers"].to_dataset().sel(corruption=list(CORRUPTIONS)).mean()
    row["preferred class kept"] = float(layers["corruption_preferred_class_kept_fraction"])
    row["dimensions, clean"] = float(layers["participation_ratio_fraction"])
    row["dimensions, change"] = float(layers["corruption_change_participation_ratio_fraction"])
    for attack in under["attack"].values:
        for epsilon in EPSILONS:
            value = under.sel(attack=attack).sel(epsilon=epsilon, method="nearest")
            row[f"{attack} {round(epsilon * 255)}/255"] = float(value)
    return row


def markdown(table: pd.DataFrame, panel: xr.DataArray) -> str:
    """The two tables of the documentation page, as Markdown."""
    by_type = panel.mean("severity").to_dataframe()["accuracy"].unstack("alpha")
    return f"{in_percent(table.T)}\n\n{in_percent(by_type)}\n"


def in_percent(table: pd.DataFrame) -> str:
    """A Markdown table with fractions as percentages; alpha and selectivity are unchanged."""
    lines = [
        "| | " + " | ".join(map(str, table.columns)) + " |",
        "|---" * (len(table.columns) + 1) + "|",
    ]
    for name, values in table.iterrows():
        plain = name in ("alpha", "selectivity")
        cells = (f"{x:.3g}" if plain else f"{100 * x:.1f}" for x in values)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
