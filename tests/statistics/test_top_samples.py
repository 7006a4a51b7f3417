"""The top samples of each unit: manual sorting, ties, and the statistic contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import DataError, OptionError
from probekit.runtime import randomness as streams
from probekit.statistics.testing import check_statistic
from probekit.statistics.top_samples import TopSamples


def best_by_hand(table: np.ndarray, index: np.ndarray, top: int) -> list[list[int]]:
    """For each unit, indices by decreasing activation, and ties by increasing index."""
    return [
        [number for _, number in sorted(zip(-column, index, strict=True))][:top]
        for column in table.T.astype(np.float64)
    ]


@pytest.mark.parametrize("top", [1, 3, 40])
@pytest.mark.parametrize("drawn", [1, 7, 40])
def test_satisfies_the_statistic_contract(top: int, drawn: int) -> None:
    check_statistic(TopSamples(top, drawn))


def test_satisfies_the_contract_with_tied_activations() -> None:
    table = torch.randint(0, 3, (24, 5), generator=torch.Generator().manual_seed(0)).float()
    check_statistic(TopSamples(4, 5), table)
    check_statistic(TopSamples(4, 5), torch.zeros(24, 5))


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=1, max_size=20),
    top=st.integers(1, 6),
    batch=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_returns_the_highest_activations_and_the_first_of_ties(
    values: list[list[int]], top: int, batch: int, seed: int
) -> None:
    table = torch.tensor(values, dtype=torch.float32)
    index = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[: len(table)]
    best = TopSamples(top, 2)
    for rows in torch.arange(len(table)).split(batch):
        best.update(table[rows], index[rows] % 3, index[rows])
    found = best.to_xarray()
    expected = best_by_hand(table.numpy(), index.numpy(), top)
    assert found["top_sample"].values.tolist() == expected
    assert (found["top_label"].values == found["top_sample"].values % 3).all()
    where = {int(number): row for row, number in enumerate(index)}
    for unit, numbers in enumerate(expected):
        activations = [float(table[where[number], unit]) for number in numbers]
        assert found["top_activation"].values[unit].tolist() == activations
    assert found["rank"].values.tolist() == list(range(1, len(expected[0]) + 1))


def test_the_random_samples_have_the_lowest_hashes_and_their_activations() -> None:
    table = torch.rand(60, 4, generator=torch.Generator().manual_seed(1))
    index, labels = torch.arange(60) * 3, torch.arange(60) % 4
    best = TopSamples(2, 8, seed=5)
    best.update(table, labels, index)
    found = best.to_xarray()
    order = streams.words("top samples 5", 1, index)[0]
    rows = order.argsort()[:8].sort().values
    assert found["drawn"].values.tolist() == index[rows].tolist()
    assert found["drawn_label"].values.tolist() == labels[rows].tolist()
    np.testing.assert_array_equal(found["drawn_activation"].values, table[rows].double().numpy().T)


def test_every_sample_is_drawn_equally_often() -> None:
    """Each of 20 samples is one of the 5 drawn with probability 1/4: chi-square over 600 draws."""
    counts = np.zeros(20)
    index = torch.arange(20)
    for seed in range(600):
        best = TopSamples(1, 5, seed)
        best.update(torch.zeros(20, 1), torch.zeros(20, dtype=torch.int64), index)
        counts[best.to_xarray()["drawn"].values] += 1
    statistic = ((counts - 150) ** 2 / (150 * 0.75)).sum()
    assert statistic < 43.8  # 99.9% quantile of chi-square with 19 degrees of freedom


def test_memory_does_not_grow_with_samples() -> None:
    best = TopSamples(3, 4)
    sizes = []
    for start in range(0, 500, 100):
        table = torch.rand(100, 6, generator=torch.Generator().manual_seed(start))
        best.update(table, torch.zeros(100, dtype=torch.int64), torch.arange(start, start + 100))
        sizes.append(sum(values.untyped_storage().nbytes() for values in best.state.values()))
    assert len(set(sizes)) == 1
    assert sizes[0] == 8 * ((3 * 3 + 4) * 6 + 3 * 4)


@pytest.mark.parametrize("options", [{"top": 0}, {"drawn": 0}, {"top": 2.5}])
def test_invalid_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="must be a positive integer"):
        TopSamples(**options)


def test_samples_without_indices_are_refused() -> None:
    with pytest.raises(DataError, match="indices"):
        TopSamples().update(torch.rand(2, 3), torch.tensor([0, 1]))
