"""Counter-based random numbers: what they depend on, and that they are as random as they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probekit.runtime import randomness as streams

LEVEL = 1e-3


def splitmix64(state: int) -> int:
    """The reference of Steele, Lea & Flood in whole numbers of any size."""
    mask = 2**64 - 1
    state &= mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_mix_is_the_finalizer_of_splitmix64(counters: list[int]) -> None:
    found = streams.mix(torch.tensor(counters)).tolist()
    assert [word % 2**64 for word in found] == [splitmix64(counter) for counter in counters]


def test_first_words_of_splitmix64_for_a_known_seed() -> None:
    golden = 0x9E3779B97F4A7C15
    state = torch.tensor([(1234567 + golden) % 2**64 - 2**64 * ((1234567 + golden) >> 63)])
    assert streams.mix(state).item() % 2**64 == 6457827717110365317


def test_words_depend_on_name_replicate_and_sample_alone() -> None:
    index = torch.tensor([9, 2, 2**40, 0])
    whole = streams.words("a", 5, index)
    assert torch.equal(streams.words("a", 3, index.flip(0)).flip(1), whole[:3])
    assert torch.equal(streams.words("a", 5, index[2:3])[:, 0], whole[:, 2])
    assert not (streams.words("b", 5, index) == whole).any()
    assert len(whole.unique()) == whole.numel()


@pytest.mark.parametrize("name", ["poisson 0", "poisson 1", "halves 0"])
def test_uniform_numbers_are_uniform_over_samples_and_over_replicates(name: str) -> None:
    table = streams.uniform(streams.words(name, 200, torch.arange(300))).numpy()
    assert table.min() >= 0
    assert table.max() < 1
    for axis in (0, 1):
        spread = [stats.kstest(row, "uniform").pvalue for row in np.moveaxis(table, axis, 0)]
        assert stats.kstest(spread, "uniform").pvalue > LEVEL
    low = (streams.words(name, 200, torch.arange(300)) & 255).flatten().bincount().numpy()
    assert stats.chisquare(low).pvalue > LEVEL


def test_replicates_and_neighbours_are_uncorrelated() -> None:
    table = streams.uniform(streams.words("a", 300, torch.arange(1000))).numpy()
    for rows in (table, table.T):
        r = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
        assert abs(r).max() < 5.5 / np.sqrt(rows.shape[1])
        assert r.std() == pytest.approx(1 / np.sqrt(rows.shape[1]), rel=0.05)


def test_coins_are_fair() -> None:
    heads = streams.coins(streams.words("a", 200, torch.arange(500)))
    assert stats.binomtest(int(heads.sum()), heads.numel()).pvalue > LEVEL


def test_poisson_numbers_have_the_poisson_distribution() -> None:
    found = streams.poisson(streams.words("a", 200, torch.arange(2000))).flatten()
    counts = found.bincount(minlength=8).numpy()
    expected = stats.poisson.pmf(np.arange(7), 1) * found.numel()
    grouped = np.append(counts[:7], counts[7:].sum())
    assert (
        stats.chisquare(grouped, np.append(expected, found.numel() - expected.sum())).pvalue > LEVEL
    )


def test_poisson_inverts_the_distribution_function() -> None:
    uniforms = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    words = (uniforms * 2.0**53).long() << 11
    expected = stats.poisson.ppf(streams.uniform(words).numpy(), 1).clip(0)
    assert np.array_equal(streams.poisson(words).numpy(), expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 4))
def test_permuted_is_a_permutation(size: int, replicates: int) -> None:
    found = streams.permuted("a", replicates, torch.arange(size), size)
    assert torch.equal(found.sort(1).values, torch.arange(size).expand(replicates, -1))
    place = size // 2
    alone = streams.permuted("a", replicates, torch.tensor([place]), size)
    assert torch.equal(alone[:, 0], found[:, place])


@pytest.mark.parametrize("size", [3, 10, 50, 257])
def test_permutations_send_every_place_everywhere_alike(size: int) -> None:
    found = streams.permuted("a", 10_000, torch.arange(min(size, 3)), size)
    p = [stats.chisquare(places.bincount(minlength=size)).pvalue for places in found.T]
    assert min(p) * len(p) > LEVEL


@pytest.mark.parametrize("size", [3, 5])
def test_all_orders_of_a_few_places_come_alike(size: int) -> None:
    found = streams.permuted("a", 10_000, torch.arange(size), size)
    weights = size ** torch.arange(size)
    orders = (found * weights).sum(1).unique(return_counts=True)[1].numpy()
    assert len(orders) == np.prod(range(1, size + 1))
    assert stats.chisquare(orders).pvalue > LEVEL


def test_two_places_of_a_permutation_are_as_good_as_independent() -> None:
    size, found = 20, streams.permuted("b", 20_000, torch.tensor([3, 4]), 20)
    pairs = (found[:, 0] * size + found[:, 1]).bincount(minlength=size**2).numpy()
    off = ~np.eye(size, dtype=bool).flatten()
    assert pairs[~off].sum() == 0
    assert stats.chisquare(pairs[off]).pvalue > LEVEL
