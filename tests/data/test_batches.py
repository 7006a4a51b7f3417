"""Iteration over data: order, indices, prefetching, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from probekit.data.batches import Batches
from probekit.data.images import TensorImages
from probekit.errors import DataError


def pairs(n: int, size: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = torch.arange(n).float()[:, None], torch.arange(n) % 3
    return list(zip(images.split(size), labels.split(size), strict=True))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 15), limit=st.none() | st.integers(1, 50))
def test_every_sample_is_read_once_in_order(n: int, size: int, limit: int | None) -> None:
    seen = list(Batches(pairs(n, size), limit=limit))
    expected = list(range(n if limit is None else min(n, limit)))
    assert torch.cat([batch.index for batch in seen]).tolist() == expected
    assert torch.cat([batch.images for batch in seen])[:, 0].tolist() == expected


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 15), limit=st.none() | st.integers(1, 50))
def test_indices_of_a_random_sample_are_those_of_the_data(
    n: int, size: int, limit: int | None
) -> None:
    data = TensorImages(torch.arange(n).float().view(n, 1, 1, 1), torch.zeros(n))
    for source in (data, TensorDataset(data.images, data.labels)):
        seen = list(Batches(source, batch_size=size, limit=limit, seed=3))
        index = torch.cat([batch.index for batch in seen])
        assert torch.equal(torch.cat([batch.images for batch in seen]).flatten(), index.float())
        assert len(index.unique()) == len(index) == (n if limit is None else min(n, limit))


def test_a_run_can_start_in_the_middle() -> None:
    data = TensorImages(torch.arange(20).float().view(20, 1, 1, 1), torch.zeros(20))
    for source in (data, DataLoader(TensorDataset(data.images, data.labels), batch_size=4)):
        whole = Batches(source, batch_size=4)
        rest = torch.cat([batch.index for batch in whole.starting(8)])
        assert rest.tolist() == list(range(8, 20))
        assert len(torch.cat([batch.index for batch in whole])) == 20


def test_peeking_does_not_consume_samples() -> None:
    batches = Batches(pair for pair in pairs(10, 4))
    assert batches.peek().index.tolist() == [0, 1, 2, 3]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))


def test_peeking_reads_a_few_samples_once() -> None:
    data = Counted(samples=100)
    batches = Batches(data, batch_size=64)
    before = len(data.read)
    assert len(batches.peek()) == len(batches.peek()) == 32
    assert len(data.read) - before == 32


class Counted(Dataset[Any]):
    """Records which items were read, and in which thread."""

    def __init__(self, samples: int = 12) -> None:
        self.samples = samples
        self.read: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        self.read.append((number, threading.current_thread().name))
        return torch.tensor([float(number)]), number % 3


def test_the_next_batch_is_read_while_this_one_is_used() -> None:
    data = Counted()
    stream = iter(Batches(data, batch_size=3))
    next(stream)
    deadline = time.time() + 5
    while len(data.read) < 6 and time.time() < deadline:
        time.sleep(0.01)
    assert len(data.read) >= 6
    stream.close()  # type: ignore[attr-defined]


def test_no_thread_remains_after_leaving_the_loop() -> None:
    for _ in Batches(Counted(100), batch_size=1):
        break
    deadline = time.time() + 5
    while time.time() < deadline:
        if not [t for t in threading.enumerate() if t.name.startswith("probekit-read-ahead")]:
            return
        time.sleep(0.02)
    raise AssertionError("the reading thread is still there")


def test_an_error_in_the_source_is_raised_in_the_loop() -> None:
    def broken() -> Iterator[Any]:
        yield pairs(3, 3)[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(Batches(broken()))


class Pictures(Dataset[Any]):
    classes = ("a", "b")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return Image.new("RGB", (4, 4)), index % 2


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        number = 0
        while True:
            yield torch.tensor([float(number)]), number % 2
            number += 1


def test_iterable_data_sets_are_batched() -> None:
    seen = list(Batches(Endless(), batch_size=4, limit=10))
    assert [len(batch) for batch in seen] == [4, 4, 2]


def test_items_that_are_not_tensors_are_refused() -> None:
    with pytest.raises(DataError, match="wrap the model in an ImageModel"):
        list(Batches(Pictures()))


def test_labels_beyond_the_known_classes_are_refused() -> None:
    data = TensorImages(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 2]), ["a", "b"])
    with pytest.raises(DataError, match="label 2 is out of range: expected 2 classes"):
        list(Batches(data))


def test_workers_give_the_same_batches() -> None:
    data = TensorImages(torch.arange(30).float().view(30, 1, 1, 1), torch.zeros(30))
    seen = torch.cat([batch.index for batch in Batches(data, batch_size=4, workers=2)])
    assert seen.tolist() == list(range(30))


def test_data_without_samples_is_refused_with_one_sentence() -> None:
    with pytest.raises(DataError, match="has no samples that can be read"):
        Batches(TensorDataset(torch.rand(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))).peek()


def test_numpy_numbers_are_accepted() -> None:
    data = TensorDataset(torch.rand(9, 1, 4, 4), torch.arange(9))
    batches = Batches(data, batch_size=np.int64(2), limit=np.int32(5))  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [2, 2, 1]


@pytest.mark.parametrize("limit", [None, 5])
def test_a_batch_with_fewer_labels_is_refused_also_beyond_the_limit(limit: int | None) -> None:
    batches = [(torch.rand(4, 1, 2, 2), torch.arange(4)), (torch.rand(4, 1, 2, 2), torch.arange(3))]
    with pytest.raises(DataError, match=r"4 images and labels of shape \(3,\)"):
        list(Batches(batches, limit=limit))
