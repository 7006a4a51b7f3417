"""The claims about CIFAR-10 follow from the stored tables, and the page shows them."""

from __future__ import annotations

import runpy
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import probekit as pk
from probekit.errors import ProbekitWarning

ROOT = Path(__file__).parents[2] / "docs"
FOLDER = ROOT / "reproduction" / "cifar10"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "tables.py"))


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv")


def test_the_claims_follow_from_the_tables_and_are_on_the_page(script: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProbekitWarning)
        found = script["claims"](table("networks"), table("measures"))
    kept = table("claims")
    fixed = tomllib.loads((FOLDER.parent / "claims.toml").read_text())["claim"]
    assert found["claim"].tolist() == kept["claim"].tolist() == [one["id"] for one in fixed]
    assert found["verdict"].tolist() == kept["verdict"].tolist()
    np.testing.assert_allclose(found["p_change_adjusted"], kept["p_change_adjusted"], rtol=1e-3)
    assert script["markdown"](found) in (ROOT / "reproduction.md").read_text()


def test_every_alpha_has_the_seeds_listed_on_the_page() -> None:
    sweep = table("networks").query("variant == 'sweep'")
    count = sweep.groupby("alpha")["seed"].nunique()
    assert count.loc[[-2.0, -1.0, -0.4, 0.0]].tolist() == [8] * 4
    assert count.loc[[0.4, 0.7, 1.0]].tolist() == [7] * 3
    assert count.loc[[-20.0, -5.0, 2.0]].tolist() == [3] * 3
    assert table("measures").groupby("alpha")["seed"].apply(list).tolist() == [[0, 1, 2, 3]] * 7


def test_full_trains_the_networks_of_the_table() -> None:
    example = runpy.run_path(str(ROOT.parent / "examples" / "cifar10_networks.py"))
    trained = [(name, options["epochs"]) for name, _, options in example["full"]()]
    rows = table("networks").itertuples()
    sweep = {"sweep": "a{0.alpha:g}_s{0.seed}", "zoo": "zoo_a{0.alpha:g}"}
    listed = [(sweep.get(r.variant, "{0.variant}_s{0.seed}").format(r), r.epochs) for r in rows]
    assert sorted(trained) == sorted(listed)
    assert f"{len(listed)} networks of the page" in example["__doc__"]


def test_the_index_from_class_sums_equals_that_of_the_library(script: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 20)
    values = draw.random((200, 5)) + draw.random((10, 5))[labels]
    onehot = np.eye(10)[labels].T
    moments = np.stack([onehot @ values, onehot @ values**2])
    found = script["indices"](moments, np.bincount(labels), np.array([2, 3]))
    means = moments[0] / 20
    index = np.asarray(pk.class_selectivity(xr.DataArray(means.T, dims=("unit", "class"))))
    assert found["index"] == pytest.approx((index[:2].mean() + index[2:].mean()) / 2, abs=1e-4)
    between, total = means.var(0), values.var(0)
    share = between / total
    assert found["eta_squared"] == pytest.approx((share[:2].mean() + share[2:].mean()) / 2)
    moved = script["indices"](
        np.stack([onehot @ (values + 3), onehot @ (values + 3) ** 2]),
        np.bincount(labels),
        np.array([2, 3]),
    )
    assert moved["index"] < found["index"] / 2
    assert moved["index_less_lowest"] == pytest.approx(found["index_less_lowest"])
    assert moved["eta_squared"] == pytest.approx(found["eta_squared"])
