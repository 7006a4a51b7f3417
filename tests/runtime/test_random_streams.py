"""The random streams are of the right distribution, independent, and the same anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from probekit.runtime.random_streams import RandomStreams


def largest_correlation(rows):
    """The largest |correlation| of two rows, in standard errors."""
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
    correlation = rows @ rows.T / rows.shape[1]
    return correlation.fill_diagonal_(0).abs().max().item() * rows.shape[1] ** 0.5


@pytest.mark.parametrize(
    ("draw", "law"), [("uniform", "uniform"), ("normal", "norm")], ids=["uniform", "normal"]
)
def test_values_have_their_distribution(draw, law):
    values = getattr(RandomStreams("law", range(300)), draw)(3, 32, 32).flatten().numpy()
    assert stats.kstest(values, law).pvalue > 1e-4


def test_normal_values_have_the_moments_and_tails_of_a_normal_one():
    values = RandomStreams("tails", range(400)).normal(3, 64, 64).double()
    n = values.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        error = (stats.norm.moment(2 * power) - moment**2) ** 0.5 / n**0.5
        assert abs((values**power).mean().item() - moment) < 5 * error
    for limit in (3, 4):
        expected = 2 * stats.norm.sf(limit) * n
        assert abs((values.abs() > limit).sum().item() - expected) < 5 * expected**0.5


def test_normal_values_are_box_and_mullers(monkeypatch):
    # Half a turn, the axes, no radius and the longest one, among others.
    edges = [-(2**31), 2**31 - 1, 0, -1, 2**23 - 1, -(2**23), 2**30, -(2**30), -(2**31) + 2**23 - 1]
    words = RandomStreams("words", range(2)).words(5000)
    words[:, : len(edges)] = torch.tensor(edges, dtype=torch.int32)
    monkeypatch.setattr(RandomStreams, "words", lambda self, *a, **k: words.clone())
    values = RandomStreams("words", range(2)).normal(2, 50, 100).view(2, 2, 5000).double().numpy()
    words = words.numpy()
    radius = np.sqrt(-2 * np.log(1 - (words & 0x7FFFFF) / 2**23))
    angle = words * (np.pi / 2**31)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(values, radius[:, None] * circle, atol=3e-6)


def test_all_bits_of_words_are_fair_coins_that_do_not_know_of_each_other():
    words = RandomStreams("bits", range(200)).words(1000).flatten().numpy().view(np.uint32)
    bits = torch.from_numpy((words[:, None] >> np.arange(32, dtype=np.uint32) & 1).astype("f4"))
    assert ((bits.mean(0) - 0.5).abs() * 2 * len(bits) ** 0.5).max() < 5
    assert largest_correlation(bits.T) < 5.5


@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_images_and_positions_are_uncorrelated(draw):
    values = getattr(RandomStreams("pairs", range(1500)), draw)(1500)
    assert largest_correlation(values) < 6.5
    assert largest_correlation(values.T) < 6.5


def test_names_and_fields_are_uncorrelated():
    rows = [
        RandomStreams(f"seed {s}", range(20)).normal(5000, field=f).flatten()
        for s in range(5)
        for f in range(3)
    ]
    assert largest_correlation(torch.stack(rows)) < 5


def test_neighbouring_pixels_are_uncorrelated():
    field = RandomStreams("lags", range(300)).normal(64, 64)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (32, 0), (0, 32)):
        product = field[:, dy:, dx:] * field[:, : 64 - dy, : 64 - dx]
        assert abs(product.mean().item()) * product.numel() ** 0.5 < 5


def test_a_stream_depends_on_its_name_and_index_alone():
    together = RandomStreams("name", range(10))
    for index in (0, 7):
        alone = RandomStreams("name", [index])
        assert torch.equal(alone.words(33)[0], together.words(33)[index])
        assert torch.equal(alone.normal(5, 5)[0], together.normal(5, 5)[index])
        assert torch.equal(together.part(index, index + 1).words(33), alone.words(33))
    assert not torch.equal(RandomStreams("name", [1]).words(9), RandomStreams("eman", [1]).words(9))


def test_streams_stay_what_they_are():
    # Results written down with one version must be made again by the next.
    words = RandomStreams("seed 0, fog, severity 3", [0, 12345]).words(3, field=1)
    assert words.tolist() == [
        [-1569085106, -255754372, 1404516535],
        [2120566452, 2112124689, -1469516975],
    ]


def test_whole_numbers_fill_their_range_evenly():
    numbers = RandomStreams("dice", range(100)).below(6, 500).flatten()
    assert stats.chisquare(torch.bincount(numbers, minlength=6).numpy()).pvalue > 1e-4
    bounds = torch.tensor([[1, 5]]).expand(100, 2)
    assert (RandomStreams("dice", range(100)).below(bounds, 2) < bounds).all()
