"""Counter-based random numbers: what they depend on, and their statistical quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probekit.runtime import randomness as streams
from probekit.runtime.randomness import RandomStreams

LEVEL = 1e-3


def splitmix64(state: int) -> int:
    """The reference of Steele, Lea & Flood, with unbounded integers."""
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


def test_words_depend_only_on_name_replicate_and_sample() -> None:
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


def test_replicates_and_neighbors_are_uncorrelated() -> None:
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
def test_permutations_send_every_position_everywhere_equally_often(size: int) -> None:
    found = streams.permuted("a", 10_000, torch.arange(min(size, 3)), size)
    p = [stats.chisquare(places.bincount(minlength=size)).pvalue for places in found.T]
    assert min(p) * len(p) > LEVEL


@pytest.mark.parametrize("size", [3, 5])
def test_all_orders_of_a_few_positions_are_equally_frequent(size: int) -> None:
    found = streams.permuted("a", 10_000, torch.arange(size), size)
    weights = size ** torch.arange(size)
    orders = (found * weights).sum(1).unique(return_counts=True)[1].numpy()
    assert len(orders) == np.prod(range(1, size + 1))
    assert stats.chisquare(orders).pvalue > LEVEL


def test_two_positions_of_a_permutation_are_nearly_independent() -> None:
    size, found = 20, streams.permuted("b", 20_000, torch.tensor([3, 4]), 20)
    pairs = (found[:, 0] * size + found[:, 1]).bincount(minlength=size**2).numpy()
    off = ~np.eye(size, dtype=bool).flatten()
    assert pairs[~off].sum() == 0
    assert stats.chisquare(pairs[off]).pvalue > LEVEL


def test_shuffled_gives_every_permutation_equally_often() -> None:
    orders = torch.stack([streams.shuffled(f"order {seed}", 4) for seed in range(5000)])
    assert torch.equal(orders.sort(1).values, torch.arange(4).expand(5000, -1))
    counts = (orders * 4 ** torch.arange(4)).sum(1).unique(return_counts=True)[1].numpy()
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEVEL


def test_a_stream_is_splitmix64_from_its_key() -> None:
    start = streams.keyed("stream", torch.tensor([7])).item()
    golden = 0x9E3779B97F4A7C15
    expected = [splitmix64(start + position * golden) for position in range(1, 6)]
    found = RandomStreams("stream", [3, 7]).words(5)[1].tolist()
    assert [word % 2**64 for word in found] == expected


def largest_correlation(rows: torch.Tensor) -> float:
    """The largest absolute correlation between two rows, in standard errors."""
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    correlation = rows @ rows.T / rows.shape[1]
    return correlation.fill_diagonal_(0).abs().max().item() * rows.shape[1] ** 0.5


@pytest.mark.parametrize(
    ("draw", "law"), [("uniform", "uniform"), ("normal", "norm")], ids=["uniform", "normal"]
)
def test_values_follow_their_distribution(draw: str, law: str) -> None:
    values = getattr(RandomStreams("law", range(300)), draw)(3, 32, 32).flatten().numpy()
    assert stats.kstest(values, law).pvalue > 1e-4


def test_normal_values_have_the_moments_and_tails_of_the_normal_distribution() -> None:
    values = RandomStreams("tails", range(400)).normal(3, 64, 64).double()
    n = values.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        error = (stats.norm.moment(2 * power) - moment**2) ** 0.5 / n**0.5
        assert abs((values**power).mean().item() - moment) < 5 * error
    for limit in (3, 4):
        expected = 2 * stats.norm.sf(limit) * n
        assert abs((values.abs() > limit).sum().item() - expected) < 5 * expected**0.5


def test_extreme_words_give_values_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([[0, -1, 2**31 - 1, 2**31, 2**63 - 1, -(2**63)]])
    monkeypatch.setattr(RandomStreams, "words", lambda self, count, field=0: words[:, :count])
    one = RandomStreams("extremes", [0])
    assert one.uniform(12).min() == 0
    assert one.uniform(12).max() == 1 - 2**-24
    assert 5 < one.normal(12).max() == -one.normal(12).min() < 6
    assert (one.integers(torch.arange(1, 13), 12) < torch.arange(1, 13)).all()


def test_all_bits_of_words_are_fair_and_independent() -> None:
    words = RandomStreams("bits", range(200)).words(1000).flatten().numpy().view(np.uint64)
    bits = torch.from_numpy((words[:, None] >> np.arange(64, dtype=np.uint64) & 1).astype("f4"))
    assert ((bits.mean(0) - 0.5).abs() * 2 * len(bits) ** 0.5).max() < 5
    assert largest_correlation(bits.T) < 5.5


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_images_and_positions_are_uncorrelated(draw: str) -> None:
    values = getattr(RandomStreams("pairs", range(1500)), draw)(1500)
    assert largest_correlation(values) < 6.5
    assert largest_correlation(values.T) < 6.5


def test_names_and_fields_are_uncorrelated() -> None:
    rows = [
        RandomStreams(f"seed {s}", range(20)).normal(5000, field=f).flatten()
        for s in range(5)
        for f in range(3)
    ]
    assert largest_correlation(torch.stack(rows)) < 5


def test_neighboring_pixels_are_uncorrelated() -> None:
    field = RandomStreams("lags", range(300)).normal(64, 64)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (32, 0), (0, 32)):
        product = field[:, dy:, dx:] * field[:, : 64 - dy, : 64 - dx]
        assert abs(product.mean().item()) * product.numel() ** 0.5 < 5


def test_a_stream_depends_only_on_its_name_and_index() -> None:
    together = RandomStreams("name", range(10))
    for index in (0, 7):
        alone = RandomStreams("name", [index])
        assert torch.equal(alone.words(33)[0], together.words(33)[index])
        assert torch.equal(alone.normal(5, 5)[0], together.normal(5, 5)[index])
        assert torch.equal(together[index : index + 1].words(33), alone.words(33))
    assert not torch.equal(RandomStreams("name", [1]).words(9), RandomStreams("eman", [1]).words(9))


def test_streams_do_not_change_between_versions() -> None:
    # Stored results must be reproducible with later versions.
    words = RandomStreams("seed 0, fog, severity 3", [0, 12345]).words(2, field=1)
    assert words.tolist() == [
        [8622331825540698985, 3349490748819650839],
        [-3119382920806659653, -6629200881163744100],
    ]


def test_integers_are_uniform_over_their_range() -> None:
    numbers = RandomStreams("dice", range(100)).integers(6, 500).flatten()
    assert stats.chisquare(torch.bincount(numbers, minlength=6).numpy()).pvalue > 1e-4
    bounds = torch.tensor([[1, 5]]).expand(100, 2)
    assert (RandomStreams("dice", range(100)).integers(bounds, 2) < bounds).all()
