"""Intervals of a mean over replicates: against scipy, manual computation, and their coverage."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import probekit as pk
from probekit.errors import OptionError
from probekit.replicates.intervals import mean_interval, resampled_mean


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


def test_missing_values_are_left_out() -> None:
    table = replicates(3, 4)
    table[0, 1] = table[1, 1:] = table[2] = np.nan
    found = pk.bootstrap_interval(table)
    assert found["count"].values.tolist() == [3, 1, 0]
    alone = pk.bootstrap_interval(table[0, [0, 2, 3]], resamples=10_000)
    assert float(found["low"][0]) == pytest.approx(float(alone["low"]), abs=0.05)
    assert np.isnan(found["low"].values).tolist() == [False, True, True]
    assert float(found["mean"][1]) == table.values[1, 0]
    assert np.isnan(found["mean"].values[2])


def test_the_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(5).normal(3.0, 1.0, (20, 3))
    mean, low, high = resampled_mean(values.T)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    for column in range(3):
        theirs = stats.bootstrap(
            (values[:, column],),
            np.mean,
            method="percentile",
            n_resamples=5000,
            random_state=np.random.default_rng(1),
        ).confidence_interval
        width = theirs.high - theirs.low
        assert low[column] == pytest.approx(theirs.low, abs=0.06 * width)
        assert high[column] == pytest.approx(theirs.high, abs=0.06 * width)


def test_arrays_of_dask_give_the_same_numbers() -> None:
    values = replicates(3, 5)
    for interval in (pk.bootstrap_interval, pk.mean_interval):
        xr.testing.assert_allclose(interval(values.chunk(seed=2)).compute(), interval(values))


def test_one_replicate_has_no_interval() -> None:
    mean, low, high = resampled_mean(np.array([[1.0], [2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan([*low, *high]).all()


def test_missing_replicates_are_left_out() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [np.nan, 7.0, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, low, high = resampled_mean(values.T)
    assert mean[:2].tolist() == [2.0, 6.0]
    assert np.isnan([mean[2], low[2], high[2]]).all()
    assert (low[:2] <= mean[:2]).all()
    assert (high[:2] >= mean[:2]).all()


def test_the_interval_is_reproducible() -> None:
    values = np.random.default_rng(0).random((5, 4))
    for one, other in zip(resampled_mean(values.T), resampled_mean(values.T), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_t_interval_equals_scipys() -> None:
    table = replicates(3, 5)
    table[1, 2] = np.nan
    found = mean_interval(table, level=0.9)
    for row in range(3):
        column = table.values[row][~np.isnan(table.values[row])]
        theirs = stats.ttest_1samp(column, 0).confidence_interval(0.9)
        assert float(found["mean"][row]) == pytest.approx(column.mean())
        assert float(found["low"][row]) == pytest.approx(theirs.low)
        assert float(found["high"][row]) == pytest.approx(theirs.high)
        assert float(found["error"][row]) == pytest.approx(stats.sem(column))
    assert found["count"].values.tolist() == [5, 4, 5]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_t_interval_covers_when_the_bootstrap_does_not(seeds: int) -> None:
    table = replicates(3000, seeds, seed=seeds)
    found = mean_interval(table)
    covered = float(((found["low"] <= 0) & (found["high"] >= 0)).mean())
    assert 0.935 < covered < 0.965
    boot = pk.bootstrap_interval(table, resamples=500)
    assert float(((boot["low"] <= 0) & (boot["high"] >= 0)).mean()) < 0.88


def test_one_replicate_has_no_t_interval() -> None:
    found = mean_interval(replicates(2, 1))
    assert np.isnan(found[["low", "high", "error"]].to_array().values).all()
    assert np.isfinite(found["mean"].values).all()


@pytest.mark.parametrize("interval", [pk.bootstrap_interval, pk.mean_interval])
def test_invalid_intervals_are_refused(interval: object) -> None:
    assert callable(interval)
    with pytest.raises(OptionError, match="no dimension 'run' of replicates"):
        interval(replicates(2, 3), "run")
    with pytest.raises(OptionError, match="level must be a number above 0"):
        interval(replicates(2, 3), level=1.5)
