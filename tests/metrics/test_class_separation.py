"""Eta squared and the AUC of the preferred class compared with scipy and scikit-learn."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_selection import f_classif
from sklearn.metrics import roc_auc_score
from torch import nn

from probekit.analysis.analyze import analyze
from probekit.capture.record import record
from probekit.errors import DataError
from probekit.metrics.unit_metrics import eta_squared, preferred_class_auc


def recording_of(rows: Any, labels: Any) -> xr.Dataset:
    table = xr.Dataset({"activation": (("sample", "unit"), np.asarray(rows, float))})
    return table.assign(label=("sample", np.asarray(labels)))


def draw(seed: int = 0, samples: int = 90, units: int = 4, classes: int = 3) -> xr.Dataset:
    """Rectified activations that depend on the class, with many zeros, in classes of unequal size."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(0, classes, samples))
    rows = rng.normal(size=(classes, units))[labels] + rng.normal(size=(samples, units))
    return recording_of(rows.clip(min=0), labels)


def test_eta_squared_is_the_effect_size_of_anova() -> None:
    recording = draw()
    f, _ = f_classif(recording["activation"].values, recording["label"].values)
    expected = 2 * f / (2 * f + 90 - 3)
    np.testing.assert_allclose(eta_squared(recording), expected, rtol=1e-10)
    adjusted = 1 - (1 - expected) * 89 / 87
    np.testing.assert_allclose(eta_squared(recording, corrected=True), adjusted, rtol=1e-10)


def test_the_correction_centers_uninformative_units_at_zero() -> None:
    rng = np.random.default_rng(0)
    noise = recording_of(rng.normal(size=(100, 2000)), rng.integers(0, 10, 100))
    assert eta_squared(noise).mean().item() == pytest.approx(9 / 99, rel=0.03)
    assert abs(eta_squared(noise, corrected=True).mean().item()) < 0.003


def test_the_area_equals_that_of_scikit_learn() -> None:
    recording = draw(units=6)
    labels = recording["label"].values
    for found, column in zip(
        preferred_class_auc(recording).values, recording["activation"].values.T, strict=True
    ):
        means = [column[labels == label].mean() for label in range(3)]
        best = int(np.argmax(means))
        assert found == pytest.approx(roc_auc_score(labels == best, column), abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.25, 3.0, 1024.0]),
    constant=st.sampled_from([0.0, 10.0, -1000.0]),
)
def test_constants_scale_and_order_change_nothing(seed: int, scale: float, constant: float) -> None:
    recording = draw(seed)
    order = np.random.default_rng(seed).permutation(90)
    other = recording.isel(sample=order)
    other = other.assign(activation=other["activation"] * scale + constant)
    for metric in (eta_squared, preferred_class_auc):
        np.testing.assert_allclose(metric(recording), metric(other), rtol=1e-8, atol=1e-9)


def test_constant_units_are_handled() -> None:
    rows = np.full((90, 2), 0.1)
    rows[:, 1] = 0
    constant = recording_of(rows, np.arange(90) % 7)
    assert eta_squared(constant).values.tolist() == [0.0, 0.0]
    assert eta_squared(constant, corrected=True).values.tolist() == [0.0, 0.0]
    assert preferred_class_auc(constant).values.tolist() == [0.5, 0.5]


def test_many_units_are_processed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = draw(units=7)
    whole = preferred_class_auc(recording)
    monkeypatch.setattr("probekit.metrics.unit_metrics._BLOCK_ELEMENTS", 180)
    np.testing.assert_array_equal(preferred_class_auc(recording), whole)


@pytest.mark.parametrize("metric", [eta_squared, preferred_class_auc])
def test_one_class_and_invalid_recordings_are_refused(metric: Any) -> None:
    with pytest.raises(DataError, match="two classes"):
        metric(recording_of(np.ones((4, 1)), np.zeros(4, int)))


def test_data_that_is_not_a_recording_is_refused() -> None:
    with pytest.raises(DataError, match="a recording must have activation"):
        preferred_class_auc(xr.Dataset({"activation": 1.0}))
    with pytest.raises(DataError, match=r"needs a recording .* not ndarray"):
        eta_squared(np.zeros((4, 2)))  # type: ignore[arg-type]


def test_an_analysis_by_name_equals_the_recording(
    network: nn.Module, labeled: tuple[torch.Tensor, torch.Tensor]
) -> None:
    batches = list(zip(labeled[0].split(8), labeled[1].split(8), strict=True))
    network.eval()
    corrected = partial(eta_squared, corrected=True)
    recording = record(network, batches, progress=False)
    for metrics in (["eta_squared", "preferred_class_auc"], [corrected, "preferred_class_auc"]):
        units = analyze(network, batches, metrics=metrics, progress=False)["units"]
        eta = eta_squared(recording, corrected=metrics[0] is corrected)
        np.testing.assert_allclose(units["eta_squared"], eta, rtol=1e-5, atol=1e-7)
        area = preferred_class_auc(recording)
        np.testing.assert_allclose(units["preferred_class_auc"], area, atol=1e-6)
