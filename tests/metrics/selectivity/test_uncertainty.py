"""Uncertainty of the index on data with known ground truth; values compared with manual formulas."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch import nn

import probekit as pk
from probekit.errors import DataError, OptionError, ProbekitWarning
from probekit.metrics.selectivity.index import SelectivityIndex
from probekit.metrics.selectivity.interval import bounds_of_highest
from probekit.metrics.selectivity.split_half import cross_index
from probekit.models.image_model import ImageModel

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def noise(size: int, units: int, seed: int, classes: int = 10) -> Sample:
    """Exponential activations that are independent of their balanced labels."""
    random = np.random.default_rng(seed)
    labels = torch.arange(classes * size) % classes
    table = torch.from_numpy(random.exponential(size=(len(labels), units)))
    return table, labels, torch.arange(len(labels))


def selective(means: np.ndarray, size: int, random: np.random.Generator) -> Sample:
    """Gamma activations, of coefficient of variation 0.7, with given class means (unit, class)."""
    units, classes = means.shape
    labels = torch.arange(classes * size) % classes
    table = random.gamma(2, 0.5, size=(len(labels), units)) * means.T[labels.numpy()]
    return torch.from_numpy(table), labels, torch.arange(len(labels))


def fed(metric: Any, sample: Sample) -> list[Any]:
    """The statistics of a metric after an update with a sample."""
    needs = [need.fresh() for need in metric.needs]
    for need in needs:
        if hasattr(need, "expect"):
            need.expect(sample[1])
        need.update(*sample)
    return [need.to_xarray() for need in needs]


def evaluate(metric: Any, sample: Sample) -> tuple[xr.Dataset, xr.Dataset]:
    """The results of a metric for one layer."""
    units, layers = metric.evaluate(*fed(metric, sample))
    if hasattr(metric, "conclude"):
        layers = layers.expand_dims(layer=["a"])
        units = units.assign_coords(layer=("unit", ["a"] * units.sizes["unit"]))
        for table, more in zip((units, layers), metric.conclude(units, layers), strict=False):
            table.update(more)
    return units, layers


means = arrays(np.float64, (4, 5), elements=st.floats(-2, 8, width=32))


@settings(deadline=None, max_examples=50)
@given(means, st.sampled_from(["clip", "shift", "nan"]))
def test_the_highest_index_over_all_classes_is_the_index(table: np.ndarray, negative: Any) -> None:
    expected = pk.class_selectivity(xr.DataArray(table, dims=("unit", "class")), negative=negative)
    formula = SelectivityIndex(negative=negative)
    every = formula.of_classes(table)
    np.testing.assert_allclose(formula.at(table), expected, atol=1e-9)
    np.testing.assert_allclose(every.max(1), expected, atol=1e-9)


@pytest.fixture(autouse=True)
def _warnings_about_negative_means() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*below zero", ProbekitWarning)
        yield


def test_absent_classes_are_ignored() -> None:
    table = np.array([[3.0, np.nan, 1.0], [np.nan, np.nan, 1.0]])
    assert SelectivityIndex(eps=0).at(table).tolist()[0] == 0.5
    assert np.isnan(SelectivityIndex().at(table)[1])


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


POPULATIONS = {
    "none": lambda random: np.ones((30, 10)),
    "one class": lambda random: np.where(
        np.arange(10) == random.integers(0, 10, (30, 1)), 1.5, 0.3
    ),
    "graded": lambda random: random.gamma(4, 0.25, (30, 10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", POPULATIONS)
def test_coverage_of_intervals_is_between_92_and_98_percent(kind: str) -> None:
    random = np.random.default_rng(1)
    units, layers = [], []
    for seed in range(30):
        table = POPULATIONS[kind](random)
        truth = SelectivityIndex().at(table)
        found, layer = evaluate(
            pk.SelectivityInterval(replicates=100, splits=10, seed=seed),
            selective(table, 40, random),
        )
        low, high = found["selectivity_low"].values, found["selectivity_high"].values
        units.append(np.mean((low <= truth + 1e-9) & (truth <= high + 1e-9)))
        low, high = (layer[f"selectivity_mean_{end}"].item() for end in ("low", "high"))
        layers.append(low <= truth.mean() <= high)
    error = 3 * np.std(units) / np.sqrt(30)
    assert 0.92 - error < np.mean(units) < 0.98 + error
    assert sum(layers) >= stats.binom.ppf(1e-3, 30, 0.92)


def sparse(chance: np.ndarray, size: int, random: np.random.Generator) -> Any:
    """Units (unit, class) that are active with a given probability per class, with variable responses."""
    labels = np.arange(chance.shape[1] * size) % chance.shape[1]
    active = random.random((len(labels), len(chance))) < chance.T[labels]
    rows = active * random.lognormal(0, 1, active.shape)
    return torch.tensor(rows), torch.tensor(labels), torch.arange(len(labels))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "chance"), [(20, 0.3), (50, 0.1), (100, 0.1)])
def test_intervals_of_sparse_units_cover_when_units_are_active_for_five_samples(
    size: int, chance: float
) -> None:
    """docs/uncertainty.md: at least 75% of layer means, at least 90% of units."""
    random = np.random.default_rng(size)
    units, layers = [], []
    for seed in range(16):
        best = np.arange(10) == random.integers(0, 10, (30, 1))
        table = np.where(best, 1.0, 0.1) * chance
        truth = SelectivityIndex(eps=0).at(table)
        found, layer = evaluate(
            pk.SelectivityInterval(replicates=60, splits=8, seed=seed), sparse(table, size, random)
        )
        low, high = found["selectivity_low"].values, found["selectivity_high"].values
        units.append(np.mean((low <= truth + 1e-5) & (truth <= high + 1e-5)))
        low, high = (layer[f"selectivity_mean_{end}"].item() for end in ("low", "high"))
        layers.append(low <= truth.mean() <= high)
    assert np.mean(units) > 0.88
    assert sum(layers) >= stats.binom.ppf(1e-3, 16, 0.75)


def test_units_that_are_active_for_too_few_samples_warn() -> None:
    random = np.random.default_rng(0)
    metric = pk.SelectivityInterval(replicates=20, splits=2)
    for chance, warned in ((0.005, True), (0.3, False)):
        units, layers = evaluate(metric, sparse(np.full((30, 10), chance), 20, random))
        layers = layers.assign(n_units=("layer", [30])).assign_coords(layer=["relu"])
        sentences = metric.review(units, layers)
        assert any("active for fewer than 5 samples, in relu" in one for one in sentences) == warned


def test_interval_of_the_highest_by_hand_when_one_class_leads() -> None:
    random = np.random.default_rng(0)
    centre = np.array([[5.0, 1.0, 1.0]])
    replicates = centre + random.normal(size=(500, 1, 3)) * 0.1
    low, high = bounds_of_highest(centre, replicates, np.array([50.0, 50, 50]), 0.9)
    margin = stats.t.ppf(0.95, 98) * replicates[:, 0, 0].std(ddof=1) * np.sqrt(50 / 49)
    np.testing.assert_allclose([low[0], high[0]], [5 - margin, 5 + margin], rtol=1e-12)


def test_interval_of_the_highest_allows_for_ties() -> None:
    random = np.random.default_rng(0)
    replicates = random.normal(size=(500, 1, 4)) * 0.1
    low, _ = bounds_of_highest(np.zeros((1, 4)), replicates, np.full(4, 50.0), 0.95)
    least = replicates[:, 0].std(0, ddof=1).min()
    expected = -stats.t.ppf(1 - 0.025 / 4, 98) * least * np.sqrt(50 / 49)
    assert low[0] == pytest.approx(expected, rel=1e-12)


def test_bootstrap_percentiles_miss_values_that_the_interval_covers() -> None:
    sample = noise(20, 30, 3)
    metric = pk.SelectivityInterval()
    _, bootstrap, *_ = fed(metric, sample)
    percentile = np.quantile(SelectivityIndex().at(bootstrap["class_mean"].values), 0.025, axis=0)
    assert (percentile > 0).all()
    assert (evaluate(metric, sample)[0]["selectivity_low"] == 0).mean() > 0.9


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pk.SelectivityChance, {"permutations": 1}),
        (pk.SelectivityChance, {"eps": -1}),
        (pk.SplitHalf, {"splits": 1}),
        (pk.SplitHalf, {"negative": "drop"}),
        (pk.SelectivityInterval, {"level": 95}),
        (pk.SelectivityInterval, {"replicates": 3}),
        (pk.SelectivityInterval, {"splits": 1}),
    ],
)
def test_invalid_options_are_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        kind(**options)


@pytest.mark.parametrize("kind", [pk.SelectivityChance, pk.SplitHalf, pk.SelectivityInterval])
def test_a_single_class_is_refused(kind: Any) -> None:
    labels = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(DataError, match="at least two"):
        evaluate(kind(), (torch.rand(8, 3), labels, torch.arange(8)))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten())


METRICS = [
    "selectivity",
    pk.SelectivityChance(permutations=19),
    pk.SplitHalf(splits=5),
    pk.SelectivityInterval(replicates=30, splits=5),
]


def test_one_pass_gives_all_metrics_and_batches_and_order_do_not_matter(
    network: nn.Sequential,
) -> None:
    images = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(90) % 3
    results = [
        pk.analyze(network, (images, labels), metrics=METRICS, batch_size=size, progress=False)
        for size in (90, 16)
    ]
    for group in ("units", "layers"):
        first, second = (result[group].to_dataset() for result in results)
        xr.testing.assert_allclose(first, second, rtol=1e-5)
    whole = results[0]
    assert set(whole["units"].data_vars) >= {
        "selectivity", "selectivity_chance", "selectivity_z", "selectivity_p", "selectivity_q",
        "selectivity_p_corrected", "selectivity_split_half", "preferred_class_agreement",
        "selectivity_low", "selectivity_high",
    }  # fmt: skip
    low, high = whole["selectivity_mean_low"].item(), whole["selectivity_mean_high"].item()
    assert low < whole["selectivity_split_half_mean"].item() < high
    drawn = whole["layers"]["selectivity_mean_replicate"].mean("layer").std(ddof=1).item()
    ends = (whole["layers"][f"selectivity_mean_{end}"].mean() for end in ("floor", "ceiling"))
    floor, ceiling = (end.item() for end in ends)
    margin = stats.t.ppf(0.975, 58) * drawn
    assert low == pytest.approx(min(floor, ceiling) - margin, rel=1e-9)
    assert high == pytest.approx(max(floor, ceiling) + margin, rel=1e-9)
    q = stats.false_discovery_control(whole["units"]["selectivity_p"].values)
    np.testing.assert_array_equal(whole["units"]["selectivity_q"], q)


def test_a_limited_sample_is_permuted_exactly(model: ImageModel) -> None:
    data = pk.load_data("digits")
    with pytest.raises(OptionError, match=r"lower permutations to \d+"):
        pk.analyze(model, data, metrics=pk.SelectivityChance(memory=10_000), progress=False)
    result = pk.analyze(
        model, data, metrics=["selectivity", pk.SelectivityChance(19)], limit=200, progress=False
    )
    assert bool((result["units"]["selectivity_p"] >= 0.05).all())


@pytest.mark.filterwarnings("ignore:.*active for fewer than 5 samples")
def test_few_samples_are_reported(network: nn.Sequential) -> None:
    batch = (torch.rand(6, 1, 8, 8), torch.arange(6) % 2)
    metric = pk.SelectivityInterval(replicates=20)
    with pytest.warns(ProbekitWarning, match="a class has 3 samples"):
        pk.analyze(network, [batch], metrics=metric, progress=False)


@pytest.mark.filterwarnings("ignore:.*active for fewer than 5 samples")
def test_results_are_saved_and_reopened(network: nn.Sequential, tmp_path: Any) -> None:
    images, labels = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    result = pk.analyze(network, (images, labels), metrics=METRICS, progress=False)
    again = pk.open_result(pk.save_result(result, tmp_path / "r.nc"))
    for group in ("units", "layers"):
        assert again[group].to_dataset().equals(result[group].to_dataset())
