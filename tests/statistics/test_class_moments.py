"""Class moments compared with numpy, one class at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from probekit.errors import DataError
from probekit.statistics.class_means import ClassMoments


@settings(deadline=None, max_examples=40)
@given(data=st.data(), size=st.integers(1, 9))
def test_equals_numpy_in_any_batches_and_merge_order(data: st.DataObject, size: int) -> None:
    rows = data.draw(st.integers(1, 30))
    activations = data.draw(
        hnp.arrays(np.float32, (rows, 3), elements=st.floats(-1e3, 1e3, width=32))
    )
    labels = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, 6)))
    merged = ClassMoments()
    for start in data.draw(st.permutations(range(0, rows, size))):
        part = ClassMoments()
        stop = start + size
        part.update(torch.tensor(activations[start:stop]), torch.tensor(labels[start:stop]))
        merged.merge(part)
    found = merged.to_xarray()
    assert found["class"].values.tolist() == np.unique(labels).tolist()
    for label in np.unique(labels):
        own = activations[labels == label].astype(np.float64)
        one = found.sel({"class": label})
        np.testing.assert_allclose(one["class_mean"], own.mean(0), rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(one["squares"], own.var(0) * len(own), rtol=1e-9, atol=1e-6)
        assert int(one["count"]) == len(own)


def test_a_large_constant_does_not_hide_the_variance() -> None:
    rows = torch.tensor([[1.0], [2.0], [3.0], [5.0]], dtype=torch.float64)
    moments = ClassMoments()
    for row, label in zip(rows + 1e8, (0, 0, 1, 1), strict=True):
        moments.update(row[None], torch.tensor([label]))
    assert moments.to_xarray()["squares"].values.tolist() == [[0.5, 2.0]]


@pytest.mark.parametrize(
    ("labels", "words"), [([-1, 0], "label -1 is below 0"), ([0], "one label per row")]
)
def test_invalid_labels_are_refused(labels: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ClassMoments().update(torch.zeros(2, 1), torch.tensor(labels))
