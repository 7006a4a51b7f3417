"""Class means compared with numpy, one class at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from probekit.errors import DataError
from probekit.statistics.class_means import ClassMeans


def means_of(activations: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([activations[labels == label].mean(0) for label in np.unique(labels)], 1)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), size=st.integers(1, 9))
def test_class_means_equal_numpy_in_any_batches_and_merge_order(
    data: st.DataObject, size: int
) -> None:
    rows = data.draw(st.integers(1, 30))
    activations = data.draw(
        hnp.arrays(np.float32, (rows, 3), elements=st.floats(-1e4, 1e4, width=32))
    )
    labels = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 6)))
    order = data.draw(st.permutations(range(0, rows, size)))
    merged = ClassMeans()
    for start in order:
        part = ClassMeans()
        stop = start + size
        part.update(torch.tensor(activations[start:stop]), torch.tensor(labels[start:stop]))
        merged.merge(part)
    found = merged.to_xarray()
    expected = means_of(activations.astype(np.float64), labels)
    np.testing.assert_allclose(found.values, expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(found["class"], np.unique(labels))
    np.testing.assert_array_equal(found["count"], np.unique(labels, return_counts=True)[1])


def test_absent_classes_are_left_out() -> None:
    means = ClassMeans()
    means.update(torch.tensor([[1.0], [2.0]]), torch.tensor([5, 2]))
    assert means.to_xarray()["class"].values.tolist() == [2, 5]
    assert means.to_xarray().values.tolist() == [[2.0, 1.0]]


def test_sums_of_half_precision_do_not_overflow() -> None:
    means = ClassMeans()
    for _ in range(4):
        means.update(torch.full((100, 1), 6e4, dtype=torch.float16), torch.zeros(100).long())
    assert means.to_xarray().item() == float(torch.tensor(6e4, dtype=torch.float16))


@pytest.mark.parametrize(
    ("labels", "words"), [([-1, 0], "label -1 is below 0"), ([0], "one label per row")]
)
def test_invalid_labels_are_refused(labels: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ClassMeans().update(torch.ones(2, 3), torch.tensor(labels))


@pytest.mark.parametrize(
    ("activations", "labels", "words"),
    [
        (np.zeros((2, 3)), torch.tensor([0, 1]), "activations must be a tensor, not ndarray"),
        (torch.zeros(2, 3), [0, 1], "labels must be a tensor, not list"),
        (torch.zeros(2, 3), torch.tensor([0.2, 1.7]), "labels must be integers, not torch.float32"),
    ],
)
def test_other_types_are_refused(activations: Any, labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        ClassMeans().update(activations, labels)


def test_no_samples_give_no_means() -> None:
    with pytest.raises(DataError, match="no samples"):
        ClassMeans().to_xarray()
