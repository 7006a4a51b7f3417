"""Data sources that know their labels in advance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import probekit as pk
from probekit.data.batches import Batches

LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2])
IMAGES = torch.rand(7, 1, 4, 4)


class WithTargets(Dataset[Any]):
    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return 7

    def __getitem__(self, number: int) -> Any:
        return IMAGES[number], int(LABELS[number])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(IMAGES, LABELS, strict=True)


TENSORS = TensorDataset(IMAGES, LABELS)
KNOWN = {
    "two tensors": (IMAGES, LABELS),
    "targets": WithTargets(LABELS.tolist()),
    "tensor data set": TENSORS,
    "loader": DataLoader(TENSORS, batch_size=2),
    "shuffled loader": DataLoader(WithTargets(LABELS), batch_size=2, shuffle=True),
    "list of mappings": [(IMAGES[:4], LABELS[:4]), {"image": IMAGES[4:], "label": LABELS[4:]}],
    "list of batches": [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])],
}
UNKNOWN = {
    "stream": DataLoader(Stream(), batch_size=2),
    "iterator": iter([(IMAGES, LABELS)]),
    "batches without labels": [{"image": IMAGES, "label": None}],
    "float targets": WithTargets(LABELS.double()),
    "no targets": WithTargets(None),
    "targets of another length": WithTargets([1, 2]),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_declared_labels_equal_the_labels_that_are_read(kind: str) -> None:
    batches = Batches(KNOWN[kind], batch_size=3)
    found = batches.known_labels()
    assert found is not None
    labels = torch.cat([batch.labels for batch in batches])
    index = torch.cat([batch.index for batch in batches])
    assert index.sort().values.tolist() == list(range(7))
    assert found[1] is None
    assert torch.equal(found[0].sort().values, labels.sort().values)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_sources_without_labels_in_advance_return_none(kind: str) -> None:
    assert Batches(UNKNOWN[kind]).known_labels() is None


def test_limits_are_respected() -> None:
    digits = Batches(pk.load_data("digits"), limit=20)
    found = digits.known_labels()
    assert found is not None
    assert found[1] is not None
    labels, index = found
    pairs = dict(zip(index.tolist(), labels.tolist(), strict=True))
    for batch in digits:
        for number, label in zip(batch.index.tolist(), batch.labels.tolist(), strict=True):
            assert pairs.pop(number) == label
    assert not pairs
    first = Batches([(IMAGES, LABELS)], limit=3).known_labels()
    assert first is not None
    assert torch.equal(first[0], LABELS[:3])


def test_subsets_and_limited_foreign_data_sets() -> None:
    found = Batches(Subset(TENSORS, [1, 3, 5])).known_labels()
    assert found is not None
    assert found[0].tolist() == [0, 1, 2]
    limited = Batches(WithTargets(LABELS), limit=4, batch_size=2)
    found = limited.known_labels()
    assert found is not None
    assert torch.equal(found[0], torch.cat([batch.labels for batch in limited]))
    assert found[1] is not None
    assert torch.equal(found[1], torch.cat([batch.index for batch in limited]))


def test_a_sampler_of_keys_is_read_in_its_order() -> None:
    class ByPair(Dataset[Any]):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, key: Any) -> Any:
            return torch.full((1, 2, 2), float(key[1])), key[1] % 2

    loader = DataLoader(ByPair(), 4, sampler=[("key", number) for number in (5, 3, 1, 0, 2, 4)])  # type: ignore[arg-type]
    batches = list(Batches(loader))
    assert torch.cat([batch.images[:, 0, 0, 0] for batch in batches]).tolist() == [5, 3, 1, 0, 2, 4]


@pytest.mark.parametrize(
    "made", [iter, lambda batches: zip(*zip(*batches, strict=True), strict=True)]
)
def test_an_iterator_loses_nothing_to_a_refused_call(made: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
    batches = made([(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])])
    for _ in range(2):
        with pytest.raises(pk.ProbekitError, match="no layer is named"):
            pk.record(network, batches, "nothing", progress=False)
    found = pk.record(network, batches, "1", progress=False)
    assert found["label"].values.tolist() == LABELS.tolist()
    with pytest.raises(pk.ProbekitError, match="is empty"):
        pk.record(network, batches, "1", progress=False)


@pytest.mark.parametrize("kind", ["batches", "loader", "items", "stream"])
def test_the_identity_of_data_depends_on_every_image_and_label(kind: str) -> None:
    class Items(Dataset[Any]):
        def __init__(self, images: Tensor, labels: Tensor) -> None:
            self.images, self.numbers = images, labels

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, number: int) -> Any:
            return self.images[number], int(self.numbers[number])

    class Streamed(IterableDataset[Any]):
        def __init__(self, items: Items) -> None:
            self.items = items

        def __iter__(self) -> Any:
            return (self.items[number] for number in range(len(self.items)))

    def identity(images: Tensor, labels: Tensor) -> dict[str, Any]:
        items = Items(images, labels)
        forms = {
            "batches": list(zip(images.split(10), labels.split(10), strict=True)),
            "loader": DataLoader(items, 10),
            "items": items,
            "stream": Streamed(items),
        }
        return Batches(forms[kind]).identity()

    images = torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    known = identity(images, labels)
    assert known == identity(images.clone(), labels.clone())
    for place in (1, 30, 59):
        other, others = images.clone(), labels.clone()
        other[place, 0, 1, 1] += 0.5
        others[place] = 0 if others[place] else 1
        for found in (identity(other, labels), identity(images, others)):
            assert found["content"] != known["content"]
