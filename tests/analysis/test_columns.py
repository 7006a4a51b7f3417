"""Per-sample columns, and the memory they hold."""

from __future__ import annotations

import pickle
import weakref

import numpy as np
import pytest
import torch

from probekit.analysis.one_pass import Columns
from probekit.data.batches import Batch
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.feeding import Feeder


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_columns_hold_the_appended_values(dtype: torch.dtype) -> None:
    columns, parts = Columns(), [torch.arange(size).to(dtype) for size in (3, 0, 4)]
    for part in parts:
        columns.append(x=part)
    assert columns["x"].dtype == torch.zeros(0, dtype=dtype).numpy().dtype
    np.testing.assert_array_equal(columns["x"], torch.cat(parts).numpy())
    assert len(columns) == 7


def test_a_column_that_some_samples_lack_is_absent() -> None:
    columns = Columns()
    columns.append(x=torch.tensor([1, 2]))
    columns.append(y=torch.tensor([1.0]))
    assert "x" in columns
    assert "y" not in columns
    assert "z" not in columns
    assert len(Columns()) == 0


def test_parts_of_several_processes_are_joined() -> None:
    parts = [Columns(), Columns(), Columns()]
    parts[0].append(x=torch.tensor([1, 2]))
    parts[2].append(x=torch.tensor([3]))
    whole = Columns.joined(pickle.loads(pickle.dumps(parts)))
    assert whole["x"].tolist() == [1, 2, 3]


def test_a_pending_batch_does_not_keep_its_images_in_memory() -> None:
    feeder = Feeder({"relu": [ClassMeans()]})
    pixels = np.zeros((2, 3, 8, 8), np.float32)
    held = weakref.ref(pixels)
    batch = Batch(torch.from_numpy(pixels), torch.tensor([0, 1]), torch.arange(2))
    feeder.update(batch, [{"relu": torch.ones(2, 1)}])
    del pixels, batch
    assert held() is None
