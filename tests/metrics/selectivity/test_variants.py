"""The index without constants and without pooling, compared with loops in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.capture.record import record
from probekit.errors import OptionError
from probekit.metrics.selectivity.selectivity import (
    SelectivityPerElement,
    class_selectivity,
    selectivity_offset_free,
)
from probekit.statistics.class_means import ClassMeans


def by_hand(means: np.ndarray, eps: float = 1e-6) -> float:
    order = np.sort(means)
    highest, rest = order[-1], order[:-1].mean()
    return float((highest - rest) / (highest + rest + eps))


def table(means: np.ndarray) -> xr.DataArray:
    return xr.DataArray(means, dims=("unit", "class"))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 8),
    constant=st.sampled_from([0.0, 1.0, -30.0, 1000.0]),
)
def test_the_offset_free_index_subtracts_the_lowest_class_mean(
    seed: int, classes: int, constant: float
) -> None:
    means = np.random.default_rng(seed).random((5, classes))
    found = selectivity_offset_free(table(means + constant)).values
    expected = [by_hand(unit - unit.min()) for unit in means]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_constant_lowers_the_plain_index_but_not_the_offset_free_one() -> None:
    means = np.array([[0.4, 0.1, 0.1], [0.3, 0.2, 0.05]])
    plain = [class_selectivity(table(means + constant)).mean().item() for constant in (0, 1, 10)]
    assert plain[0] > 2 * plain[1] > 10 * plain[2]
    free = [selectivity_offset_free(table(means + constant)).values for constant in (0, 1, 10)]
    np.testing.assert_allclose(free[1:], [free[0]] * 2, rtol=1e-9)


def test_equal_class_means_have_no_offset_free_index() -> None:
    assert selectivity_offset_free(table(np.full((2, 3), 0.1) * [[1], [0]])).values.tolist() == [
        0.0,
        0.0,
    ]


def test_per_element_indices_equal_a_loop_over_the_elements(
    network: nn.Module, labeled: tuple[torch.Tensor, torch.Tensor]
) -> None:
    batches = list(zip(labeled[0].split(8), labeled[1].split(8), strict=True))
    network.eval()
    metrics = ["selectivity", "selectivity_per_element"]
    units = analyze(network, batches, metrics=metrics, progress=False)["units"].to_dataset()
    elements = record(network, batches, spatial="none", progress=False)
    labels = elements["label"].values
    for at in range(units.sizes["unit"]):
        layer, channel = units["layer"].values[at], units["channel"].values[at]
        own = (elements["layer"] == layer) & (elements["channel"] == channel)
        maps = elements["activation"].transpose("sample", "unit").values[:, own.values]
        means = np.stack([maps[labels == label].mean(0) for label in range(3)], 1)
        expected = np.mean([by_hand(element) for element in means])
        assert units["selectivity_per_element"].values[at] == pytest.approx(expected, abs=1e-5)
    flat = units["layer"].values == "7"  # a layer without positions
    np.testing.assert_allclose(
        units["selectivity_per_element"][flat], units["selectivity"][flat], atol=1e-12
    )


def test_the_pooled_index_misses_positions_that_prefer_different_classes() -> None:
    images = torch.eye(4).view(4, 1, 2, 2)
    net = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten())
    metrics = ["selectivity", "selectivity_per_element"]
    result = analyze(net, [(images, torch.arange(4))], layers=["1"], metrics=metrics)
    assert result["units"]["selectivity"].item() == pytest.approx(0, abs=1e-9)
    assert result["units"]["selectivity_per_element"].item() == pytest.approx(1, abs=1e-5)


def test_layers_that_exceed_the_memory_are_refused_before_the_pass() -> None:
    net = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten())
    batches = [(torch.rand(4, 3, 10, 10), torch.arange(4))]
    with pytest.raises(OptionError, match="300 columns of 1 layers for 4 classes needs"):
        analyze(net, batches, layers=["1"], metrics=SelectivityPerElement(memory=9000))


def test_a_stream_that_exceeds_the_memory_is_refused_during_the_pass() -> None:
    means = ClassMeans("flatten", memory=80)
    means.update(torch.rand(2, 4), torch.tensor([0, 1]))
    with pytest.raises(OptionError, match="choose fewer or smaller layers, or raise memory"):
        means.update(torch.rand(2, 4), torch.tensor([0, 3]))


@pytest.mark.parametrize("options", [{"eps": -1.0}, {"negative": "drop"}])
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        SelectivityPerElement(**options)  # type: ignore[arg-type]  # wrong on purpose
