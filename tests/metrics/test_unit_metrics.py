"""The small unit metrics compared with loops in plain numpy, scikit-learn and scipy."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.capture.record import record
from probekit.errors import DataError, OptionError
from probekit.metrics.unit_metrics import (
    class_information,
    class_rank,
    lifetime_sparsity,
    precision_selectivity,
    silent_fraction,
)

METRICS = (
    lifetime_sparsity,
    class_information,
    precision_selectivity,
    class_rank,
    silent_fraction,
)
OF_RECORDINGS = tuple(metric for metric in METRICS if metric is not class_rank)


def recording_of(rows: Any, labels: Any) -> xr.Dataset:
    return xr.Dataset(
        {"activation": (("sample", "unit"), np.asarray(rows, float))},
    ).assign(label=("sample", np.asarray(labels)))


def draw(seed: int = 0, samples: int = 90, units: int = 4, classes: int = 3) -> xr.Dataset:
    """Rectified activations that depend on the class, with many zeros."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    rows = rng.normal(size=(classes, units))[labels] + rng.normal(size=(samples, units))
    return recording_of(rows.clip(min=0), labels)


def test_lifetime_sparsity_equals_its_formula() -> None:
    recording = draw()
    sparsity = lifetime_sparsity(recording).values
    for found, r in zip(sparsity, recording["activation"].T.values, strict=True):
        a = (r.sum() / 90) ** 2 / ((r**2).sum() / 90)
        assert found == pytest.approx((1 - a) / (1 - 1 / 90), rel=1e-12)


def test_lifetime_sparsity_at_its_extremes() -> None:
    rows = np.zeros((10, 3))
    rows[3, 0], rows[:, 1] = 7.0, 2.0
    found = lifetime_sparsity(recording_of(rows, np.arange(10) % 2)).values
    assert found[:2] == pytest.approx([1, 0], abs=1e-12)
    assert np.isnan(found[2])


@pytest.mark.parametrize("bins", [2, 5, 20])
def test_class_information_equals_that_of_scikit_learn(bins: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    rows = rng.normal(size=(400, 3)) + labels[:, None] * [0.0, 0.5, 3.0]
    found = class_information(recording_of(rows, labels), bins=bins, corrected=False).values
    for value, column in zip(found, rows.T, strict=True):
        places = column.argsort().argsort() * bins // 400
        assert value == pytest.approx(mutual_info_score(labels, places) / np.log(2), abs=0.02)


def test_class_information_of_discrete_activations_is_exact() -> None:
    rng = np.random.default_rng(1)
    labels, rows = rng.integers(0, 3, 200), rng.integers(0, 4, (200, 5))
    rows[:, 0], rows[:, 1] = labels, 1
    found = class_information(recording_of(rows, labels), bins=200, corrected=False).values
    expected = [mutual_info_score(labels, column) / np.log(2) for column in rows.T]
    assert found == pytest.approx(expected, abs=1e-12)
    shares = np.bincount(labels) / 200
    assert found[:2] == pytest.approx([-(shares * np.log2(shares)).sum(), 0], abs=1e-12)


def test_correction_removes_the_information_of_noise() -> None:
    rng = np.random.default_rng(0)
    noise = recording_of(rng.normal(size=(4000, 50)), rng.integers(0, 10, 4000))
    plain, corrected = class_information(noise, corrected=False), class_information(noise)
    expected = (20 - 1) * (10 - 1) / (2 * 4000 * np.log(2))
    assert plain.mean().item() == pytest.approx(expected, rel=0.1)
    assert abs(corrected.mean().item()) < 0.1 * expected


@pytest.mark.parametrize("top", [1, 7, 60, 1000])
def test_precision_equals_a_manual_count(top: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    rows = rng.permuted(np.tile(np.arange(90.0), (4, 1)), axis=1).T
    for found, column in zip(
        precision_selectivity(recording_of(rows, labels), top=top).values, rows.T, strict=True
    ):
        best = labels[np.argsort(-column)][:top]
        assert found == pytest.approx(max(Counter(best.tolist()).values()) / len(best))


def test_precision_splits_ranks_among_ties() -> None:
    """One of three ranks goes to class 0; one sample of class 0 and three of class 1 share the other two."""
    found = precision_selectivity(recording_of([[5], [1], [1], [1], [1]], [0, 0, 1, 1, 1]), top=3)
    assert found.item() == pytest.approx((1 + 2 / 4) / 3)
    dead = precision_selectivity(recording_of(np.zeros((10, 1)), [0] * 7 + [1] * 3), top=4)
    assert dead.item() == pytest.approx(0.7)


def test_class_rank_orders_classes() -> None:
    means = xr.DataArray([[0.1, 0.7, 0.3], [0.0, 0.0, 0.0]], dims=("unit", "class"))
    assert class_rank(means).values.tolist() == [[3, 1, 2], [2, 2, 2]]
    assert class_rank(means.T).dims == ("unit", "class")


def test_silent_fraction_counts_samples() -> None:
    recording = draw()
    expected = (recording["activation"].values <= 0).mean(0)
    np.testing.assert_allclose(silent_fraction(recording), expected)
    assert 0.2 < expected.mean() < 0.8


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.25, 0.5, 4.0, 1024.0]))
def test_order_of_samples_and_scale_change_nothing(seed: int, scale: float) -> None:
    recording = draw(seed)
    order = np.random.default_rng(seed).permutation(recording.sizes["sample"])
    other = recording.isel(sample=order).assign(activation=recording["activation"][order] * scale)
    for metric in METRICS:
        np.testing.assert_allclose(metric(recording), metric(other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", OF_RECORDINGS, ids=lambda metric: metric.__name__)
def test_values_stay_within_zero_and_one_or_the_entropy(metric: Any) -> None:
    plain = {"corrected": False} if metric is class_information else {}
    for seed in range(5):
        values = metric(draw(seed), **plain).values
        assert (values >= -1e-12).all()
        assert (values <= (np.log2(3) if metric is class_information else 1 + 1e-12)).all()


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (class_information, {"bins": 1}),
        (class_information, {"bins": 2.5}),
        (precision_selectivity, {"top": 0}),
    ],
)
def test_invalid_options_are_refused(metric: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"must be a(n| positive) integer"):
        metric(draw(), **options)


def test_data_that_is_not_a_recording_is_refused() -> None:
    with pytest.raises(DataError, match="a recording must have activation"):
        class_information(xr.Dataset({"activation": 1.0}))


def test_all_metrics_by_name_in_one_analysis_equal_those_of_the_recording(
    network: nn.Module, labeled: tuple[torch.Tensor, torch.Tensor]
) -> None:
    batches = list(zip(labeled[0].split(8), labeled[1].split(8), strict=True))
    network.eval()
    names = [metric.__name__ for metric in METRICS]
    few_bins = partial(class_information, bins=3)
    metrics = [few_bins if name == "class_information" else name for name in names]
    units = analyze(network, batches, metrics=metrics, progress=False)["units"].to_dataset()
    recording = record(network, batches, progress=False)
    for metric in METRICS:
        expected = few_bins(recording) if metric is class_information else metric(recording)
        found = units[metric.__name__]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert units["class_rank"].dims == ("unit", "class")
