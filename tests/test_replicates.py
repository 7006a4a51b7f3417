"""Intervals and corrections against scipy and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import probekit as pk
from probekit.errors import OptionError
from probekit.replicates import compare_means, rank_trend


def replicates(*shape: int, seed: int = 0) -> xr.DataArray:
    values = np.random.default_rng(seed).normal(size=shape)
    return xr.DataArray(values, dims=("alpha", "seed"), coords={"alpha": np.arange(shape[0])})


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    table = replicates(3, 12)
    found = pk.bootstrap_interval(table, resamples=20_000)
    for row in range(3):
        theirs = stats.bootstrap(
            (table.values[row],), np.mean, n_resamples=20_000, method="percentile",
            random_state=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        assert float(found["mean"][row]) == pytest.approx(table.values[row].mean())
        assert float(found["low"][row]) == pytest.approx(theirs.low, abs=0.02)
        assert float(found["high"][row]) == pytest.approx(theirs.high, abs=0.02)
    assert found["mean"].dims == ("alpha",)


def test_what_is_missing_is_left_out() -> None:
    table = replicates(3, 4)
    table[0, 1] = table[1, 1:] = table[2] = np.nan
    found = pk.bootstrap_interval(table)
    assert found["count"].values.tolist() == [3, 1, 0]
    alone = pk.bootstrap_interval(table[0, [0, 2, 3]], resamples=10_000)
    assert float(found["low"][0]) == pytest.approx(float(alone["low"]), abs=0.05)
    assert np.isnan(found["low"].values).tolist() == [False, True, True]
    assert float(found["mean"][1]) == table.values[1, 0]
    assert np.isnan(found["mean"].values[2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_bh_is_scipys_and_holm_is_the_step_down_test(p: list[float]) -> None:
    np.testing.assert_allclose(
        pk.adjust_p_values(p, "bh"), stats.false_discovery_control(p), atol=1e-12
    )
    holm = pk.adjust_p_values(p)
    for level in (0.01, 0.05, 0.3):
        rejected = np.zeros(len(p), bool)
        for step, place in enumerate(np.argsort(p, kind="stable")):
            if p[place] * (len(p) - step) > level:
                break
            rejected[place] = True
        assert ((holm <= level) == rejected).all()


def test_no_test_stays_none_and_does_not_count() -> None:
    found = pk.adjust_p_values(np.array([[0.01, np.nan], [0.02, 0.5]]))
    np.testing.assert_allclose(found, [[0.03, np.nan], [0.04, 0.5]])


def test_differences_are_welchs_test_corrected() -> None:
    table, base = replicates(4, 3), replicates(1, 5, seed=1)[0] + 1
    found = pk.compare_means(table, base)
    for row in range(4):
        theirs = stats.ttest_ind(table.values[row], base.values, equal_var=False)
        assert float(found["p"][row]) == pytest.approx(theirs.pvalue)
        expected = table.values[row].mean() - base.values.mean()
        assert float(found["difference"][row]) == pytest.approx(expected)
    np.testing.assert_allclose(found["p_adjusted"], pk.adjust_p_values(found["p"]))
    assert ((found["low"] <= found["difference"]) & (found["difference"] <= found["high"])).all()
    assert found["alpha"].values.tolist() == [0, 1, 2, 3]


def test_intervals_of_differences_cover() -> None:
    draws = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        one, two = (xr.DataArray(draws.normal(size=20), dims="seed") for _ in range(2))
        found = compare_means(one + 1, two, resamples=400)
        hits += bool(found["low"] <= 1 <= found["high"])
    assert 0.87 <= hits / 200 <= 0.99


def test_a_single_replicate_has_no_p_value() -> None:
    found = compare_means(replicates(2, 1), replicates(1, 3)[0])
    assert np.isnan(found["p"].values).all()


def test_trends_are_spearmans() -> None:
    draws = np.random.default_rng(0)
    x = xr.DataArray(draws.normal(size=(5, 4)), dims=("alpha", "seed"))
    y = x + draws.normal(size=(5, 4))
    y[0, 0] = np.nan
    keep = ~np.isnan(y.values)
    theirs = stats.spearmanr(x.values[keep], y.values[keep])
    found = pk.rank_trend(x, y)
    assert float(found["correlation"]) == pytest.approx(theirs.statistic)
    assert float(found["p"]) == pytest.approx(theirs.pvalue)
    assert int(found["count"]) == 19
    assert float(found["low"]) < theirs.statistic < float(found["high"])
    assert np.isnan(rank_trend(x * 0, y)["p"])


BAD: list[tuple[Any, str]] = [
    (lambda: pk.bootstrap_interval(replicates(2, 3), "run"), "no dimension 'run' to resample"),
    (lambda: pk.bootstrap_interval(replicates(2, 3), level=1.5), "level is above 0"),
    (lambda: pk.adjust_p_values([0.1], "bonferroni"), "'holm' or 'bh'"),
    (lambda: pk.adjust_p_values([1.1]), "between 0 and 1"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_means_nothing_is_refused(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
