"""Trends over ordered conditions: against scipy, enumeration, and the null."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import probekit as pk
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.replicates.trends import page_trend, trend_power


def table(*shape: int, seed: int = 0, slope: float = 0.0) -> xr.DataArray:
    draws = np.random.default_rng(seed)
    values = draws.normal(size=shape) + slope * np.arange(shape[-1])
    return xr.DataArray(
        values,
        dims=("study", "seed", "alpha")[-len(shape) :],
        coords={"alpha": np.arange(shape[-1]) - 2.0},
    )


def test_rank_trends_equal_spearmans_correlation() -> None:
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
    assert np.isnan(pk.rank_trend(x * 0, y)["p"])


@pytest.mark.parametrize(("seeds", "conditions"), [(2, 3), (3, 5), (8, 6), (4, 8)])
def test_pages_test_equals_scipys_exact_test(seeds: int, conditions: int) -> None:
    values = table(seeds, conditions, slope=0.4, seed=seeds)
    theirs = stats.page_trend_test(values.values, method="exact")
    up = page_trend(values, alternative="increasing")
    assert float(up["statistic"]) == theirs.statistic
    assert float(up["p"]) == pytest.approx(theirs.pvalue, rel=1e-9)
    down = page_trend(values, alternative="decreasing")
    mirrored = stats.page_trend_test(values.values[:, ::-1], method="exact")
    assert float(down["p"]) == pytest.approx(mirrored.pvalue, rel=1e-9)
    both = page_trend(values)
    assert float(both["p"]) == pytest.approx(min(1, 2 * min(theirs.pvalue, mirrored.pvalue)))


def test_ties_have_exact_p_values() -> None:
    rows = [[1.0, 1.0, 2.0, 3.0], [2.0, 1.0, 1.0, 1.0], [0.0, 4.0, 4.0, 5.0]]
    ranks = [stats.rankdata(row) for row in rows]
    observed = sum(float(np.arange(1, 5) @ row) for row in ranks)
    sums = [[float(np.arange(1, 5) @ np.array(order)) for order in permutations(r)] for r in ranks]
    every = np.array([sum(some) for some in product(*sums)])
    found = page_trend(xr.DataArray(rows, dims=("seed", "alpha")), alternative="increasing")
    assert float(found["statistic"]) == observed
    assert float(found["p"]) == pytest.approx((every >= observed - 1e-9).mean(), rel=1e-9)


def test_the_correlation_is_the_mean_spearman_correlation_within_seeds() -> None:
    values = table(4, 6, slope=0.3)
    within = [stats.spearmanr(np.arange(6), row).statistic for row in values.values]
    found = page_trend(values)
    np.testing.assert_allclose(found["correlation_each"], within)
    assert float(found["correlation"]) == pytest.approx(np.mean(within))


def test_conditions_are_sorted_and_other_dimensions_preserved() -> None:
    values = table(3, 4, 5, slope=0.5)
    shuffled = values.isel(alpha=[3, 1, 4, 0, 2])
    found, again = page_trend(values), page_trend(shuffled)
    np.testing.assert_array_equal(found["p"], again["p"])
    assert found["p"].dims == ("study",)
    np.testing.assert_allclose(found["p_adjusted"], pk.adjust_p_values(found["p"]))
    alone = page_trend(values.isel(study=1))
    assert float(alone["p"]) == float(found["p"][1])


def test_an_incomplete_seed_is_left_out_with_a_warning() -> None:
    values = table(4, 5, slope=0.5)
    values[2, 1] = np.nan
    with pytest.warns(ProbekitWarning, match="leaves out 1 of 4 replicates .* alpha -1.0"):
        found = page_trend(values)
    assert int(found["count"]) == 3
    assert float(found["p"]) == float(page_trend(values.isel(seed=[0, 1, 3]))["p"])


def test_fully_tied_data_has_no_trend_and_no_p_value() -> None:
    found = page_trend(xr.DataArray(np.ones((3, 4)), dims=("seed", "alpha")))
    assert np.isnan(found["p"])
    assert np.isnan(found["correlation"])


@pytest.mark.parametrize("seeds", [3, 8])
def test_false_trends_occur_at_most_at_the_nominal_rate(seeds: int) -> None:
    draws = np.random.default_rng(seeds)
    between = draws.normal(0, 5, (2000, seeds, 1))  # offsets shared within a seed do not count
    values = table(2000, seeds, 5, seed=seeds) + between
    p = page_trend(values)["p"]
    assert 0.025 < float((p <= 0.05).mean()) < 0.06
    assert 0.12 < float((p <= 0.2).mean()) < 0.225


def test_power_equals_the_fraction_of_simulated_studies_that_detect_the_trend() -> None:
    draws = np.random.default_rng(5)
    places = (np.arange(5) - 2) / np.arange(5).std()
    values = 0.5 * places + np.sqrt(0.75) * draws.normal(size=(1500, 4, 5))
    p = page_trend(xr.DataArray(values, dims=("study", "seed", "alpha")))["p"].values
    assert trend_power(4, 5, 0.5, "two-sided", 0.05) == pytest.approx((p <= 0.05).mean(), abs=0.05)
    assert trend_power(4, 5, 0.5, "decreasing", 0.05) > trend_power(4, 5, 0.5, "two-sided", 0.05)
    assert trend_power(8, 5, 0.5, "two-sided", 0.05) > 0.85


NO_SEED = xr.DataArray([[np.nan, 1, 2], [0, np.nan, 2]], dims=("seed", "alpha"))
LEVELS = xr.DataArray([[1.0, 2, 3]], dims=("seed", "level"))
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: page_trend(table(3, 4), "epsilon"), OptionError, "no dimension 'epsilon'"),
    (lambda: page_trend(table(3, 2)), OptionError, "3 to 12 conditions"),
    (lambda: page_trend(table(3, 13)), OptionError, "'alpha' has 13"),
    (lambda: page_trend(table(3, 4), alternative="up"), OptionError, "alternative must be"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: page_trend(table(3, 4), effect=1.0), OptionError, "size of effect must be"),
    (
        lambda: page_trend(LEVELS.assign_coords(level=["low", "medium", "high"]), "level"),
        OptionError,
        r"'level' has no order.*drop_vars\('level'\)",
    ),
    (lambda: page_trend(LEVELS.assign_coords(level=[0, 1, 1]), "level"), OptionError, "twice"),
    (lambda: page_trend(NO_SEED), DataError, "no replicate along 'seed' has a value at every"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_invalid_trends_are_refused(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()
