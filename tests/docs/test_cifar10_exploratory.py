"""The exploratory tables and the numbers in the page's text follow from the tables of measured networks."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probekit as pk
from probekit.errors import ProbekitWarning

ROOT = Path(__file__).parents[2] / "docs"
FOLDER = ROOT / "reproduction" / "cifar10"


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "reproduction.md").read_text()


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")


def by_alpha(frame: pd.DataFrame, name: str) -> pd.Series[float]:
    return frame.groupby("alpha")[name].mean()


def test_the_exploratory_tables_are_on_the_page(page: str) -> None:
    script = runpy.run_path(str(FOLDER / "exploratory.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        tables = script["page_tables"]()
    assert len(tables) == page.count("<!-- table: ") == 7
    for name, text in tables.items():
        assert f"<!-- table: {name} -->\n\n{text}\n\n" in page, name


def first_screen() -> list[str]:
    """The numbers of the page's first screen, from the tables."""
    networks = table("networks")
    sweep = networks[networks["variant"] == "sweep"]
    zoo = networks[networks["variant"] == "zoo"].set_index("alpha")
    index, accuracy = by_alpha(sweep, "selectivity_mean"), 100 * by_alpha(sweep, "accuracy")
    plain = sweep[sweep["alpha"] == 0].set_index("seed")["accuracy"]
    loss = by_alpha(sweep.assign(loss=100 * (sweep["seed"].map(plain) - sweep["accuracy"])), "loss")
    fold = index[0] / index
    return [
        f"{fold[-5]:.1f}-fold, the first of our alphas beyond 2.5-fold, costs {loss[-5]:.1f} points",
        f"it costs {loss[-20]:.1f}.",
        f"{fold[-2]:.1f}-fold (alpha \N{MINUS SIGN}2) costs {loss[-2]:.1f} points",
        f"{fold[-1]:.1f}-fold (alpha \N{MINUS SIGN}1) {loss[-1]:.1f};",
        f"Ten epochs reach {accuracy[0]:.1f}% at alpha 0, 36 epochs {100 * zoo['accuracy'][0]:.1f}%",
        "after 36 epochs, with one seed, "
        + " and ".join(f"{100 * (zoo['accuracy'][0] - zoo['accuracy'][a]):.1f}" for a in (-2, -1)),
    ]


def later() -> list[str]:
    """The numbers of the exploratory sections, from the tables."""
    measures, constants = table("measures"), table("constants")
    cv = by_alpha(measures, "cv_over_active_samples")
    trend = {
        name: float(
            pk.page_trend(measures.set_index(["alpha", "seed"])[name].to_xarray())["correlation"]
        )
        for name in ("cv_over_active_samples", "cv_over_samples")
    }
    times, late = constants["times"], table("bases").query("layer == 'layer3.2.relu2'")
    found, axes = by_alpha(late, "found"), by_alpha(late, "axes")
    return [
        f"rotations reach {found[-2]:.2f} at alpha \N{MINUS SIGN}2 and {found[0]:.2f} at 0, "
        f"where the axes have {axes[-2]:.2f} and {axes[0]:.2f}",
        f"Constants of {times.min():.1f} to {times.max():.1f} times each",
        f"(rank correlation within seeds {trend['cv_over_active_samples']:.2f}, over all samples "
        f"{trend['cv_over_samples']:.2f}), from {cv[0]:.2f} at alpha 0 to {cv[1]:.2f} at 1",
        f"over all samples it is {by_alpha(measures, 'cv_over_samples')[1]:.2f}",
    ]


@pytest.mark.parametrize("sentence", [*first_screen(), *later()])
def test_the_numbers_in_the_text_follow_from_the_tables(page: str, sentence: str) -> None:
    assert " ".join(sentence.split()) in re.sub(r"\s+", " ", page)


def test_the_searches_converged_and_the_constants_changed_no_prediction() -> None:
    searched = table("selectivity").dropna(subset=["rotation"])
    assert len(searched) == 12
    assert searched["rotation_converged"].all()
    assert table("bases")["converged"].all()
    constants = table("constants")
    assert (constants["predictions_changed"] == 0).all()
    low = (
        table("selectivity").query("variant == 'sweep' and alpha == -2").set_index("seed")["index"]
    )
    np.testing.assert_allclose(constants.set_index("seed")["index"], low, rtol=1e-3)


def test_measures_of_a_recording_equal_those_of_the_library() -> None:
    script = runpy.run_path(str(FOLDER / "selectivity.py"))
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 10
    values = draw.random((200, 5)) + draw.random((10, 5))[labels]
    before, after = (script["by_unit"](one, labels) for one in (values, values + 3))
    assert (after["index"] < before["index"] / 2).all()
    for name in ("offset_free", "eta_squared", "auc"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    first = [values[labels == label, 0].mean() for label in range(10)]
    rest = (sum(first) - max(first)) / 9
    assert before["index"][0] == pytest.approx((max(first) - rest) / (max(first) + rest), abs=1e-5)
