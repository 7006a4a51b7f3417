"""The split-half index and its reliability on data with known ground truth."""

from __future__ import annotations

import numpy as np
import pytest

import probekit as pk
from probekit.metrics.selectivity.index import SelectivityIndex
from probekit.metrics.selectivity.split_half import cross_index
from selectivity_samples import evaluate, fed, noise, selective


def test_split_half_is_centered_at_zero_unlike_the_plain_index() -> None:
    half, plain = [], []
    for seed in range(12):
        sample = noise(10, 40, seed)
        half.append(evaluate(pk.SplitHalf(seed=seed), sample)[0]["selectivity_split_half"])
        plain.append(evaluate(pk.Selectivity(), sample)[0]["selectivity"])
    error = np.std([one.mean() for one in half]) / np.sqrt(12)
    assert abs(np.mean(half)) < 4 * error + 0.004
    assert np.mean(plain) > 0.2
    assert error < 0.01


def test_split_half_by_hand_for_one_direction() -> None:
    parts = np.array([[[[4.0, 1.0, 1.0]], [[3.0, 2.0, 1.0]]]])
    whole = parts.mean((0, 1))
    # Both halves choose the first class. The variances come from the differences between the halves.
    noise = ((4 - 3) ** 2 + (1 - 2) ** 2) / 2 / (3.5**2 + 1.5**2 + 1)
    a, b = 3.5, 1.25
    curvature = 2 * (b * noise * a**2 - a * noise * (1.5**2 + 1) / 4) / (a + b) ** 3
    expected = ((4 - 1) / 5 + (3 - 1.5) / 4.5) / 2 + curvature
    assert cross_index(whole, parts, SelectivityIndex(eps=0))[0] == pytest.approx(
        expected, rel=1e-12
    )


def test_split_half_of_selective_units_equals_the_true_index() -> None:
    random = np.random.default_rng(0)
    truth = np.full((40, 10), 0.4)
    truth[np.arange(40), np.arange(40) % 10] = 2.0
    found = [
        evaluate(pk.SplitHalf(seed=seed), selective(truth, 40, random))[0]["selectivity_split_half"]
        for seed in range(5)
    ]
    assert np.mean(found) == pytest.approx((2 - 0.4) / 2.4, abs=0.006)


def test_reliability_separates_reproducible_indices_from_noise() -> None:
    random = np.random.default_rng(0)
    graded = random.gamma(2, 0.5, (60, 10))
    units, good = evaluate(pk.SplitHalf(), selective(graded, 100, random))
    _, bad = evaluate(pk.SplitHalf(), noise(100, 60, 0))
    assert good["selectivity_reliability"].item() > 0.9
    assert abs(bad["selectivity_reliability"].item()) < 0.5
    assert units["preferred_class_agreement"].mean().item() > 0.7


def test_reliability_is_the_spearman_brown_corrected_correlation() -> None:
    sample = noise(30, 12, 1)
    metric = pk.SplitHalf(splits=3)
    _, halves = fed(metric, sample)
    r = [
        np.corrcoef(*[pk.class_selectivity(half).values for half in split])[0, 1]
        for split in halves["class_mean"]
    ]
    expected = 2 * np.mean(r) / (1 + np.mean(r))
    found = evaluate(metric, sample)[1]["selectivity_reliability"].item()
    assert found == pytest.approx(expected, rel=1e-9)
