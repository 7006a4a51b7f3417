"""Intervals of the index: coverage on data with known ground truth, and bounds computed by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import probekit as pk
from probekit.metrics.selectivity.index import SelectivityIndex
from probekit.metrics.selectivity.interval import bounds_of_highest
from selectivity_samples import evaluate, fed, noise, selective, sparse

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
    center = np.array([[5.0, 1.0, 1.0]])
    replicates = center + random.normal(size=(500, 1, 3)) * 0.1
    low, high = bounds_of_highest(center, replicates, np.array([50.0, 50, 50]), 0.9)
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


@pytest.mark.filterwarnings("ignore::probekit.ProbekitWarning")
@pytest.mark.parametrize("per_class", [1, 2, 5])
@pytest.mark.parametrize("kind", ["constant", "exponential", "heavy"])
def test_intervals_contain_the_index_of_sparse_units_with_few_samples(
    per_class: int, kind: str
) -> None:
    labels = torch.arange(6 * per_class) % 6
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
    for seed in range(5):
        random = np.random.default_rng(seed)
        size = (len(labels), 20)
        drawn = {
            "constant": np.ones(size),
            "exponential": random.exponential(size=size),
            "heavy": random.pareto(0.7, size),
        }[kind] * (random.random(size) < [0.01, 0.05, 0.3, 0.9, 1][seed])
        data = (torch.from_numpy(drawn).float()[:, :, None, None], labels)
        metrics = ["selectivity", pk.SelectivityInterval(replicates=20, splits=4)]
        result = pk.analyze(network, data, "1", metrics, progress=False)
        for node, name in (("units", ""), ("layers", "_mean"), ("/", "_mean")):
            table = result[node].to_dataset()
            index, low, high = (table[f"selectivity{name}{end}"] for end in ("", "_low", "_high"))
            assert bool(((low <= index) & (index <= high)).all()), (node, seed)


@pytest.mark.filterwarnings("ignore::probekit.ProbekitWarning")
def test_an_interval_of_another_index_than_the_one_beside_it_is_reported() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity())
    images = torch.linspace(-2, 1, 240).reshape(80, 3, 1, 1)
    data = (images, torch.arange(80) % 4)
    metrics = "negative differs between metrics .* selectivity has 'shift', selectivity_interval has 'clip'"
    with pytest.warns(pk.ProbekitWarning, match=metrics):
        found = pk.analyze(
            network, data, "1", [pk.Selectivity(negative="shift"), "selectivity_interval"]
        )
    assert "negative differs" in found.attrs["notes"]
    same = [pk.Selectivity(negative="shift"), pk.SelectivityInterval(negative="shift")]
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        pk.analyze(network, data, "1", [*same, "eta_squared"])
    assert not [one for one in given if "differs between metrics" in str(one.message)]
