"""The index expected by chance: values computed by hand, and noise with known ground truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import probekit as pk
from probekit.errors import OptionError
from probekit.models.image_model import ImageModel
from selectivity_samples import evaluate, fed, noise


def test_chance_by_hand() -> None:
    sample = noise(6, 3, seed=0, classes=4)
    metric = pk.SelectivityChance(permutations=30, seed=5)
    units, _ = evaluate(metric, sample)
    class_mean, permuted = fed(metric, sample)
    index = pk.class_selectivity(class_mean).values
    null = np.stack([pk.class_selectivity(one).values for one in permuted])
    np.testing.assert_allclose(units["selectivity_chance"], null.mean(0), rtol=1e-12)
    z = (index - null.mean(0)) / null.std(0, ddof=1)
    np.testing.assert_allclose(units["selectivity_z"], z, rtol=1e-9)
    p = (1 + (null >= index).sum(0)) / 31
    np.testing.assert_allclose(units["selectivity_p"], p, rtol=1e-12)
    highest = ((null - null.mean(0)) / null.std(0, ddof=1)).max(1)
    corrected = [(1 + (highest >= one).sum()) / 31 for one in z]
    np.testing.assert_allclose(units["selectivity_p_corrected"], corrected, rtol=1e-12)


def test_noise_is_at_chance_with_uniform_p_values() -> None:
    p, z, plain = [], [], []
    for seed in range(12):
        sample = noise(8, 40, seed)
        units, _ = evaluate(pk.SelectivityChance(permutations=99, seed=seed), sample)
        p.append(units["selectivity_p"].values)
        z.append(units["selectivity_z"].values)
        plain.append(
            evaluate(pk.Selectivity(), sample)[0]["selectivity"] - units["selectivity_chance"]
        )
    # A discrete p-value is uniform on its lattice. Uniform jitter of up to one step makes it continuous.
    jitter = np.random.default_rng(0).uniform(0, 0.01, np.concatenate(p).shape)
    assert stats.kstest(np.concatenate(p) - jitter, "uniform").pvalue > 1e-3
    assert abs(np.mean(plain)) < 0.004
    assert abs(np.mean(z)) < 0.15
    assert np.mean(np.concatenate(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_corrected_p_values_control_the_false_positive_rate() -> None:
    families = [
        evaluate(pk.SelectivityChance(permutations=99, seed=seed), noise(5, 15, 100 + seed))[0]
        for seed in range(40)
    ]
    alarms = sum(bool((one["selectivity_p_corrected"] <= 0.05).any()) for one in families)
    assert stats.binomtest(alarms, 40, 0.05, "greater").pvalue > 1e-3
    uncorrected = sum(bool((one["selectivity_p"] <= 0.05).any()) for one in families)
    assert uncorrected > 13


def test_selective_units_are_far_above_chance_and_dead_ones_are_not() -> None:
    table, labels, index = noise(10, 6, 0)
    table[:, 0] += 5 * (labels == 3)
    table[:, 1] = 0
    table[:, 2] = 0.3
    units, layers = evaluate(pk.SelectivityChance(), (table, labels, index))
    assert units["selectivity_p"].values[0] == pytest.approx(1 / 201)
    assert units["selectivity_q"].values[0] == pytest.approx(6 / 201)
    assert (units["selectivity_p"].values[1:3] == 1).all()
    assert (units["selectivity_z"].values[1:3] == 0).all()
    assert layers["units_above_chance"].item() == 1


def test_drawn_and_permuted_labels_give_nearly_the_same_chance() -> None:
    sample = noise(20, 30, 0)
    exact, _ = evaluate(pk.SelectivityChance(), sample)
    metric = pk.SelectivityChance(class_counts=(20,) * 10)
    class_mean, permuted = metric.needs
    class_mean.update(*sample)
    permuted.update(*sample)
    drawn, _ = metric.evaluate(class_mean.to_xarray(), permuted.to_xarray())
    ratio = drawn["selectivity_chance"].mean() / exact["selectivity_chance"].mean()
    assert ratio.item() == pytest.approx(1, abs=0.05)


def test_a_limited_sample_is_permuted_exactly(model: ImageModel) -> None:
    data = pk.load_data("digits")
    with pytest.raises(OptionError, match=r"lower permutations to \d+"):
        pk.analyze(model, data, metrics=pk.SelectivityChance(memory=10_000), progress=False)
    result = pk.analyze(
        model, data, metrics=["selectivity", pk.SelectivityChance(19)], limit=200, progress=False
    )
    assert bool((result["units"]["selectivity_p"] >= 0.05).all())
