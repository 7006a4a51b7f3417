"""Moments of gradient norms, compared with numpy and checked against the statistic contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probekit.errors import DataError
from probekit.statistics.gradient_moments import GradientMoments
from probekit.statistics.testing import check_statistic

NORMS = torch.rand(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
SQUARES = NORMS.square() * 0.9
TABLE = torch.cat([NORMS, SQUARES], 1)
LABELS = torch.arange(24) % 3


def test_satisfies_the_statistic_contract() -> None:
    check_statistic(GradientMoments(), TABLE, LABELS)


def test_satisfies_the_contract_with_unmeasured_samples() -> None:
    table = TABLE.clone()
    table[::4] = -1
    table[:, [2, 7]] = -1
    check_statistic(GradientMoments(), table, LABELS)


def test_moments_equal_those_of_numpy() -> None:
    moments = GradientMoments()
    for rows in torch.arange(24).split(7):
        moments.update(TABLE[rows], LABELS[rows])
    found = moments.to_xarray()
    for unit in range(5):
        norm, square = NORMS[:, unit].numpy(), SQUARES[:, unit].numpy()
        covariance = np.cov(norm, square)
        one = found.isel(unit=unit)
        np.testing.assert_allclose(one["norm"], norm.mean())
        np.testing.assert_allclose(one["square"], square.mean())
        np.testing.assert_allclose(one["norm_variance"], covariance[0, 0])
        np.testing.assert_allclose(one["norm_square_covariance"], covariance[0, 1])
        np.testing.assert_allclose(one["square_variance"], covariance[1, 1])


def test_unmeasured_samples_do_not_count() -> None:
    table = TABLE.clone()
    table[5:, [0, 5]] = -1
    table[:, [1, 6]] = -1
    table[1:, [2, 7]] = -1
    moments = GradientMoments()
    for rows in torch.arange(24).split(3):
        moments.update(table[rows], LABELS[rows])
    found = moments.to_xarray()
    assert found["count"].values.tolist() == [5, 0, 1, 24, 24]
    np.testing.assert_allclose(found["norm"][0], NORMS[:5, 0].mean())
    np.testing.assert_allclose(found["norm_variance"][0], NORMS[:5, 0].var())
    assert np.isnan(found["norm"][1])
    np.testing.assert_allclose(found["norm"][2], NORMS[0, 2])
    assert np.isnan(found["norm_variance"][2])


def test_a_small_spread_around_a_large_mean_is_preserved() -> None:
    norms = 1e6 + torch.tensor([0.0, 1e-3, 2e-3], dtype=torch.float64)[:, None]
    moments = GradientMoments()
    for row in norms:
        moments.update(torch.stack([row, row**2], 1), torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(moments.to_xarray()["norm_variance"], 1e-6, rtol=1e-5)


def test_an_odd_number_of_columns_is_refused() -> None:
    with pytest.raises(DataError, match="even number of columns, not 3"):
        GradientMoments().update(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
