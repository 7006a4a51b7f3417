"""Bootstrap intervals over replicates."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from probekit.replicates import resampled_mean


def test_it_agrees_with_scipy() -> None:
    values = np.random.default_rng(5).normal(3.0, 1.0, (20, 3))
    mean, low, high = resampled_mean(values.T)
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-12)
    for column in range(3):
        theirs = stats.bootstrap(
            (values[:, column],), np.mean, method="percentile", n_resamples=5000, rng=1
        ).confidence_interval
        width = theirs.high - theirs.low
        assert low[column] == pytest.approx(theirs.low, abs=0.06 * width)
        assert high[column] == pytest.approx(theirs.high, abs=0.06 * width)


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


def test_it_is_the_same_each_time() -> None:
    values = np.random.default_rng(0).random((5, 4))
    for one, other in zip(resampled_mean(values.T), resampled_mean(values.T), strict=True):
        np.testing.assert_array_equal(one, other)
