"""The random sample of rows: its size, its independence of batches, and its uniformity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probekit.errors import DataError, OptionError
from probekit.statistics.sampled_rows import SampledRows
from probekit.statistics.testing import check_statistic


@pytest.mark.parametrize("rows", [3, 24, 100])
def test_satisfies_the_statistic_contract(rows: int) -> None:
    check_statistic(SampledRows(rows))


def test_rows_include_their_samples_and_labels() -> None:
    sampled = SampledRows(rows=10)
    table = torch.arange(200.0).view(100, 2)
    for rows in torch.randperm(100, generator=torch.Generator().manual_seed(0)).split(7):
        sampled.update(table[rows], rows % 3, rows)
    found = sampled.to_xarray()
    index = found["sample"].values
    assert len(index) == 10
    assert (np.diff(index) > 0).all()
    np.testing.assert_array_equal(found["activation"], table[index])
    np.testing.assert_array_equal(found["label"], index % 3)


def test_every_sample_is_equally_likely_to_be_stored() -> None:
    counts = np.zeros(40)
    index = torch.arange(40)
    for seed in range(400):
        sampled = SampledRows(rows=10, seed=seed)
        sampled.update(torch.zeros(40, 1), index, index)
        counts[sampled.to_xarray()["sample"].values] += 1
    assert counts.sum() == 4000
    assert abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


def test_invalid_input_is_refused() -> None:
    with pytest.raises(OptionError, match="rows must be a positive integer"):
        SampledRows(0)
    with pytest.raises(DataError, match="no samples"):
        SampledRows().to_xarray()
    with pytest.raises(DataError, match="indices"):
        SampledRows().update(torch.zeros(2, 1), torch.tensor([0, 1]))
