"""Reweighted class means: manual values, the statistic contract, and memory checks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from probekit.capture.layers import Layer
from probekit.errors import DataError, OptionError
from probekit.runtime import randomness as streams
from probekit.statistics.resampled import CachedDraw, ResampledClassMeans, Weights
from probekit.statistics.testing import check_statistic

LAYER = Layer("a", "a", 0, "ReLU", (50,), 1, 50)


def sample(rows: int = 40, units: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(rows, units, generator=generator)
    return table, torch.randint(0, 3, (rows,), generator=generator), torch.arange(rows) * 7


@pytest.mark.parametrize("weights", ["poisson", "halves"])
def test_satisfies_the_statistic_contract(weights: Weights) -> None:
    check_statistic(ResampledClassMeans(6, weights))


def test_poisson_means_equal_weighted_means_by_hand() -> None:
    table, labels, index = sample()
    means = ResampledClassMeans(5, "poisson", seed=3)
    means.update(table, labels, index)
    weights = streams.poisson(streams.words("poisson 3", 5, index)).numpy()
    found = means.to_xarray()
    for replicate in range(5):
        for label in range(3):
            rows = labels.numpy() == label
            w = weights[replicate, rows]
            expected = np.average(table.numpy()[rows].astype(np.float64), axis=0, weights=w)
            got = found["class_mean"].sel({"class": label}).isel(replicate=replicate)
            np.testing.assert_allclose(got, expected, rtol=1e-12)
            assert found["weight"].sel({"class": label}).values[replicate] == w.sum()
    assert found["count"].values.tolist() == labels.bincount().tolist()


def test_halves_are_complementary() -> None:
    table, labels, index = sample()
    means = ResampledClassMeans(4, "halves")
    means.update(table, labels, index)
    found = means.to_xarray()
    whole = (found["class_mean"] * found["weight"]).sum("half") / found["weight"].sum("half")
    for label in range(3):
        rows = (labels == label).numpy()
        expected = table.numpy()[rows].astype(np.float64).mean(0)
        for split in range(4):
            np.testing.assert_allclose(whole.sel({"class": label})[split], expected, rtol=1e-12)
    assert (found["weight"].sum("half") == found["count"]).all()
    assert (abs(found["weight"].isel(half=0) - found["count"] / 2) < found["count"] / 2).all()


def test_bootstrap_spread_is_the_standard_error_of_a_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(400, 1, generator=generator)
    means = ResampledClassMeans(2000)
    means.update(table, torch.zeros(400, dtype=torch.int64), torch.arange(400))
    spread = means.to_xarray()["class_mean"].std("replicate").item()
    assert spread == pytest.approx(table.std().item() / 20, rel=0.06)


def test_seeds_and_methods_give_different_results() -> None:
    table, labels, index = sample()
    found = []
    for options in ({}, {"seed": 1}):
        means = ResampledClassMeans(3, **options)
        means.update(table, labels, index)
        found.append(means.to_xarray()["class_mean"].values)
    assert not np.allclose(*found)


def test_a_class_without_weight_is_nan_and_an_absent_class_is_omitted() -> None:
    means = ResampledClassMeans(40)
    means.update(torch.ones(2, 1), torch.tensor([0, 3]), torch.tensor([0, 1]))
    found = means.to_xarray()
    assert found["class"].values.tolist() == [0, 3]
    unweighted = (found["weight"] == 0).values
    assert unweighted.any()
    assert np.array_equal(np.isnan(found["class_mean"].values[:, 0]), unweighted)


def test_memory_is_checked_before_and_during_the_pass() -> None:
    means = ResampledClassMeans(200, memory=8 * 50 * 10 * 150)
    labels = torch.arange(10)
    means.expect(labels[:7], None, [LAYER])
    with pytest.raises(OptionError, match=r"replicates=200 for 50 units and 10 classes.*to 150"):
        means.expect(labels, None, [LAYER])
    with pytest.raises(OptionError, match=r"lower replicates to 75"):
        replace(means, weights="halves").expect(labels, None, [LAYER])
    means.expect(None, None, [LAYER])
    with pytest.raises(OptionError, match="lower replicates to 150"):
        means.update(torch.rand(10, 50), labels, labels)
    with pytest.raises(OptionError, match=r"one alone needs 3\.9 KiB.*record fewer layers"):
        ResampledClassMeans(memory=1000).expect(labels, None, [LAYER])


@pytest.mark.parametrize(
    ("labels", "index", "message"),
    [
        (torch.tensor([0, 1]), None, "batch has none"),
        (torch.tensor([0]), torch.tensor([0]), "one label per row"),
        (torch.tensor([0, 1]), torch.tensor([0]), "one index per row"),
        (torch.tensor([0, -1]), torch.tensor([0, 1]), "label -1 is below 0"),
    ],
)
def test_invalid_batches_are_refused(
    labels: torch.Tensor, index: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ResampledClassMeans(3).update(torch.rand(2, 4), labels, index)


@pytest.mark.parametrize("options", [{"replicates": 0}, {"replicates": 2.5}, {"weights": "gamma"}])
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        ResampledClassMeans(**options)  # type: ignore[arg-type]


def test_layers_of_a_pass_share_one_draw() -> None:
    made = []

    def make(index: torch.Tensor) -> torch.Tensor:
        made.append(len(index))
        return index * 2

    draw = CachedDraw()
    index = torch.arange(4)
    for _ in range(3):
        assert torch.equal(draw.of(index.clone(), make), index * 2)
    assert made == [4]
    index[0] = 9
    assert torch.equal(draw.of(index, make), index * 2)
    first = ResampledClassMeans(3)
    assert first.fresh().draw is first.fresh().draw
