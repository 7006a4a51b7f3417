"""Leavitt & Morcos 2020, Selectivity considered harmful (arXiv 2003.01262), reproduced.

    python examples/selectivity_considered_harmful.py --out reproduction            # hours
    python examples/selectivity_considered_harmful.py --out quick --quick           # minutes

Trains networks with lowered (alpha < 0) or raised (alpha > 0) class selectivity, and measures the effect on
accuracy. It also tests whether selectivity only moves away from the units' axes, and whether warm-up, dead
units, the measure, the choice of layers or the speed of learning explain the effect. A second call
resumes. Figures and numbers are written to `OUT/selectivity_considered_harmful`.
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
MEASURES = ("precision_selectivity", "class_information")
LABELS = {
    "accuracy_relative": "test accuracy / that at α = 0",
    "pwcca_ratio": "PWCCA distance / that of replicates",
    "bound_mean": "mean selectivity bound",
    "validation_first_epoch": "validation accuracy, first epoch",
}


def recording(model: Any, *, data: str, data_root: str | None, images: int) -> xr.Dataset:
    """Pooled activations on test images, the same for all networks."""
    test = pk.load_data(data, model, root=data_root, split="test")
    table = pk.record(model, test, limit=images, batch_size=250, progress=False)
    return table.set_coords("label")[["activation"]].drop_attrs().load()


def measures(model: Any, *, data: str, data_root: str | None, images: int) -> xr.Dataset:
    """Other measures of class selectivity, mean over the units of each layer."""
    test = pk.load_data(data, model, root=data_root, split="test")
    result = pk.analyze(
        model, test, metrics=[*MEASURES, "silent_fraction"], limit=images, batch_size=250,
        progress=False,
    )  # fmt: skip
    names = [f"{name}_mean" for name in (*MEASURES, "silent_fraction")]
    return result["layers"].to_dataset()[[*names, "n_units"]]


def any_basis(model: Any, *, steps: int, **given: Any) -> xr.Dataset:
    """The highest selectivity found in any linear basis, for absolute values of projections."""
    return pk.linear_basis_selectivity(recording(model, **given), steps=steps)


def off_axis_distance(recorded: xr.Dataset) -> xr.Dataset:
    """PWCCA distance to unregularized networks relative to that between them, by alpha and layer."""
    networks = {
        alpha: [recorded.sel(alpha=alpha, seed=seed) for seed in recorded["seed"].values]
        for alpha in recorded["alpha"].values.tolist()
        if recorded["activation"].sel(alpha=alpha).notnull().all()  # skip alphas with failed runs
    }
    found = [pk.pwcca_ratio(some, networks[0.0]) for some in networks.values()]
    return xr.concat(found, pd.Index(list(networks), name="alpha")).rename(replicate="seed")


def variants(epochs: int) -> dict[str, dict[str, Any]]:
    """The control runs: constant alpha, alpha with warm-up, and alpha on some layers only."""
    found: dict[str, dict[str, Any]] = {f"alpha {a:g}": {"alpha": a} for a in (-1.0, 0.0, 1.0)}
    for alpha in (-1.0, 1.0):
        schedule = str(pk.AlphaSchedule.warm_up(alpha, epochs // 2))
        found[f"warm-up to {alpha:g}"] = {"alpha_schedule": schedule}
        for layers in ("first:3", "last:3"):
            found[f"{layers.replace(':', ' ')} at {alpha:g}"] = {"alpha": alpha, "layers": layers}
    return found


def draw(table: xr.Dataset, out: Path) -> None:
    """Plots the figures of the paper: selectivity by layer, accuracy over alpha and selectivity."""
    published = pd.read_csv(DIGITIZED).query("paper == 'A'").set_index("alpha")
    with plt.rc_context(pk.plot.style()):
        figure, axes = plt.subplots(2, 3, figsize=(11, 6), constrained_layout=True)
        for row, side in enumerate((slice(None, 0), slice(0, None))):
            part = table.sel(alpha=side)
            pk.plot.alpha_profile(part, "selectivity", ax=axes[row, 0])
            pk.plot.alpha_curve(part, "accuracy_relative", ax=axes[row, 1])
            pk.plot.alpha_trade_off(part, "selectivity_mean", "accuracy_relative", ax=axes[row, 2])
            gray = published.loc[published.index <= 0 if row == 0 else published.index >= 0]
            gray = gray.loc[gray.index.isin(part["alpha"].values)]
            relative = gray["accuracy"] / published.loc[0, "accuracy"]
            axes[row, 1].plot(gray.index, relative, "o", color="0.7", ms=4, zorder=0)
            axes[row, 2].plot(gray["selectivity"], relative, "o", color="0.7", ms=4, zorder=0)
        figure.suptitle("gray: ResNet18 on Tiny ImageNet, digitized from the paper", fontsize=8)
        pk.save_figure(figure, out / "accuracy")
        figure, axes = plt.subplots(1, 3, figsize=(11, 3), constrained_layout=True)
        pk.plot.alpha_curve(table, "pwcca_ratio", ax=axes[0])
        pk.plot.alpha_profile(table, "selectivity_bound", ax=axes[1])
        pk.plot.alpha_trade_off(table, "selectivity_mean", "bound_mean", ax=axes[2])
        axes[2].axline((0, 0), slope=1, color="0.7", lw=0.8)
        pk.save_figure(figure, out / "off_axis")
        figure, axes = plt.subplots(1, 4, figsize=(13, 3), constrained_layout=True)
        names = (*(f"{m}_mean" for m in MEASURES), "dead_fraction", "validation_first_epoch")
        for ax, name in zip(axes, names, strict=True):
            pk.plot.alpha_curve(table, name, ax=ax)
        pk.save_figure(figure, out / "controls")


def main() -> None:
    parser = study_parser(__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000, help="test images for each analysis")
    parser.add_argument("--basis-steps", type=int, default=4000, help="most steps of the search")
    asked = parser.parse_args()
    out = asked.out / "selectivity_considered_harmful"
    study = get_study(asked.scale, data_root=asked.data_root, device=asked.device)
    given = {"data": study.data, "data_root": asked.data_root, "images": asked.images}
    folder, store = asked.out / "sweep", asked.out / "measured"
    table = study.sweep(folder)
    table = table.merge(pk.measure_runs(folder, measures, store, **given).mean("layer"))
    basis = pk.measure_runs(folder, any_basis, store, **given, steps=asked.basis_steps)
    distance = off_axis_distance(pk.measure_runs(folder, recording, store, **given))
    history = pk.training_history(folder)
    table = table.assign(
        selectivity_bound=basis["selectivity_bound"],
        bound_mean=basis["selectivity_bound"].mean("layer"),
        pwcca_ratio=distance["ratio_by_replicate"].mean("layer"),
        accuracy_relative=table["test_accuracy"] / table["test_accuracy"].sel(alpha=0).mean("seed"),
        dead_fraction=table["dead_units"].mean("layer") / table["n_units"],
        validation_first_epoch=history["validation_accuracy"].isel(epoch=0, drop=True),
        accuracy_change_p=pk.compare_means(
            table["test_accuracy"], table["test_accuracy"].sel(alpha=0, drop=True)
        )["p_adjusted"],
    )
    for name, label in LABELS.items():
        table[name].attrs["long_name"] = label
    pk.save_tables(table.drop_vars("failure"), out / "sweep", **vars(asked))
    draw(table, out)
    pk.save_tables(distance.drop_vars("baseline"), out / "pwcca", **vars(asked))
    controls = study.vary(asked.out / "controls", variants(study.control_epochs))
    pk.save_tables(controls, out / "controls", **vars(asked))
    print(table[["test_accuracy", "selectivity_mean", "bound_mean"]].mean("seed").to_dataframe())
    print(controls[["test_accuracy", "selectivity_mean"]].mean("seed").to_dataframe())


if __name__ == "__main__":
    main()
