"""Loaders and streams give every sample once under a fixed index, or are refused."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

import probekit as pk
from probekit.data.batches import Batches
from probekit.errors import DataError, ProbekitWarning

N = 23
IMAGES = torch.arange(N).float().view(N, 1, 1, 1) / N
LABELS = torch.arange(N)
DATA = TensorDataset(IMAGES, LABELS)


class Samples(IterableDataset[Any]):
    """Every sample once, whichever process reads."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(IMAGES, LABELS.tolist(), strict=True))


class Shared(IterableDataset[Any]):
    """Samples that worker processes divide among themselves."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return iter(list(zip(IMAGES, LABELS.tolist(), strict=True))[first::step])


class Once(IterableDataset[Any]):
    """A stream that can be read only once."""

    def __init__(self) -> None:
        self.iterator = iter(zip(IMAGES, LABELS.tolist(), strict=True))

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


class Queue:
    """An iterable whose iterators share one queue."""

    def __init__(self) -> None:
        self.left = list(zip(IMAGES.split(4), LABELS.split(4), strict=True))

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            yield self.left.pop(0)


def indices_and_labels(batches: Batches) -> tuple[list[int], list[int]]:
    seen = list(batches)
    for batch in seen:
        torch.testing.assert_close(batch.images.flatten() * N, batch.labels.float())
    index = torch.cat([batch.index for batch in seen])
    return index.tolist(), torch.cat([batch.labels for batch in seen]).tolist()


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "shuffle": lambda: DataLoader(DATA, 4, shuffle=True),
    "batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 5, False)
    ),
    "random batch sampler": lambda: DataLoader(
        DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 5, False)
    ),
    "own generator": lambda: DataLoader(
        DATA, 4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "reading process": lambda: DataLoader(DATA, 4, num_workers=1, shuffle=True),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_gives_samples_under_their_own_index(kind: str) -> None:
    batches = Batches(LOADERS[kind]())
    assert batches.samples == N
    batches.peek()
    for _ in range(2):
        index, labels = indices_and_labels(batches)
        assert index == labels == list(range(N))
    rest, labels = indices_and_labels(batches.starting(10))
    assert rest == labels == list(range(10, N))
    assert indices_and_labels(Batches(LOADERS[kind]()))[0] == index


def test_a_user_defined_order_is_kept() -> None:
    order = [5, 3, 19, 0]
    batches = Batches(DataLoader(DATA, 3, sampler=order))
    assert indices_and_labels(batches)[0] == order
    assert indices_and_labels(Batches(DataLoader(DATA, 3, sampler=order), limit=2))[0] == [5, 3]
    found = batches.known_labels()
    assert found is not None
    assert found[1] is not None
    assert found[0].tolist() == found[1].tolist() == sorted(order)


def test_dropped_and_selected_samples() -> None:
    assert indices_and_labels(Batches(DataLoader(DATA, 5, drop_last=True)))[0] == list(range(20))
    few = DataLoader(DATA, 4, sampler=SubsetRandomSampler(range(21, 0, -2)))
    assert indices_and_labels(Batches(few))[0] == list(range(1, 22, 2))
    assert not Batches(few).drawn
    drawn = Batches(DataLoader(DATA, 5, shuffle=True, drop_last=True))
    assert drawn.drawn
    index = indices_and_labels(drawn)[0]
    assert len(set(index)) == 20
    assert indices_and_labels(drawn)[0] == index


@pytest.mark.parametrize(
    "sampler",
    [
        WeightedRandomSampler([1.0] * N, 4 * N),
        RandomSampler(DATA, replacement=True, num_samples=4 * N),
        [0, 1, 1],
    ],
)
def test_loaders_that_repeat_samples_are_refused(sampler: Any) -> None:
    with pytest.raises(DataError, match=r"yields sample \d+ more than once"):
        Batches(DataLoader(DATA, 4, sampler=sampler))


def test_random_states_are_unchanged() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state(), torch.get_rng_state()
    Batches(DataLoader(DATA, 4, shuffle=True, generator=generator))
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_collate_function_that_drops_samples_is_refused() -> None:
    def some(items: list[Any]) -> Any:
        return default_collate(items[:2])

    with pytest.raises(DataError, match="a batch of 2 from 4 samples"):
        list(Batches(DataLoader(DATA, 4, collate_fn=some)))
    mapped = DataLoader(DATA, 4, collate_fn=lambda items: dict(zip(
        ("pixel_values", "labels"), default_collate(items), strict=True)))  # fmt: skip
    assert indices_and_labels(Batches(mapped))[0] == list(range(N))


STREAMS: dict[str, Callable[[], Any]] = {
    "samples": Samples,
    "loader of samples": lambda: DataLoader(Samples(), 4),
    "loader with processes": lambda: DataLoader(Samples(), 4, num_workers=2),
    "loader whose processes share": lambda: DataLoader(Shared(), 4, num_workers=2),
    "once": Once,
    "loader of once": lambda: DataLoader(Once(), 4),
    "queue": Queue,
    "generator": lambda: (pair for pair in zip(IMAGES.split(4), LABELS.split(4), strict=True)),
    "generator of samples": lambda: iter(zip(IMAGES, LABELS.tolist(), strict=True)),
    "generator of mappings": lambda: (
        {"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)
    ),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("workers", [None, 2])
def test_a_stream_gives_every_sample_once(kind: str, workers: int | None) -> None:
    batches = Batches(STREAMS[kind](), batch_size=4, workers=workers)
    peeked = batches.peek()
    assert torch.equal(batches.peek().images, peeked.images)
    index, labels = indices_and_labels(batches)
    assert index == labels == list(range(N))


@pytest.mark.parametrize("kind", ["once", "loader of once", "queue", "generator"])
def test_data_that_can_be_read_once_is_not_read_twice(kind: str) -> None:
    batches = Batches(STREAMS[kind]())
    list(batches)
    with pytest.raises(DataError, match=r"read only once|no samples|different samples"):
        list(batches)
    assert kind == "queue" or not Batches(STREAMS[kind]()).repeatable


def test_a_stream_that_changes_is_detected() -> None:
    class Noise:
        def __iter__(self) -> Iterator[Any]:
            yield torch.rand(4, 1), torch.arange(4)

    batches = Batches(Noise())
    list(batches)
    with pytest.raises(DataError, match="yields different samples each time"):
        list(batches)


class Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.rand(3, 8, 8), number % 2


@pytest.mark.parametrize("loader", [False, True])
def test_random_augmentation_is_refused_where_images_are_read_again(loader: bool) -> None:
    data: Any = DataLoader(Augmented(), 6) if loader else Augmented()
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    ).eval()
    by = pk.analyze(network, data, "1")["units"]["selectivity"]
    with pytest.raises(DataError, match=r"different samples each time .* without random augment"):
        pk.robustness(network, data, "contrast", 1, layers="1", table=32)
    with pytest.raises(DataError, match="different samples each time"):
        pk.ablate(network, data, by, "1")
    assert "selectivity_p" in pk.analyze(network, data, "1", "selectivity_chance")["units"]


def test_a_run_can_start_in_the_middle_with_batches_of_any_size() -> None:
    parts = list(zip(IMAGES.split([3, 7, 13]), LABELS.split([3, 7, 13]), strict=True))
    index, labels = indices_and_labels(Batches(parts).starting(5))
    assert index == labels == list(range(5, N))


def test_nested_subsets_and_concatenated_data_are_read() -> None:
    inner = Subset(Subset(DATA, list(range(10, N))), [0, 2, 4])
    batches = Batches(inner)
    assert [int(label) for batch in batches for label in batch.labels] == [10, 12, 14]
    found = batches.known_labels()
    assert found is not None
    assert found[0].tolist() == [10, 12, 14]
    joined = Batches(ConcatDataset([Subset(DATA, [1, 2]), Subset(DATA, [0])]))
    assert [int(label) for batch in joined for label in batch.labels] == [1, 2, 0]


@pytest.mark.parametrize("shape", [(1,), (1, 5), (1, 2, 3), (1, 2, 3, 4)])
def test_two_tensors_of_any_shape_are_read_in_batches(shape: tuple[int, ...]) -> None:
    images, labels = torch.rand(30, *shape), (torch.arange(30) >= 15).long()
    assert [len(batch) for batch in Batches((images, labels), batch_size=8)] == [8, 8, 8, 6]
    limited = torch.cat([batch.labels for batch in Batches((images, labels), limit=14)])
    assert 0 < int(limited.sum()) < 14


class Targets(Dataset[Any]):
    """Declares labels but returns different ones."""

    def __init__(self, change: Callable[[int], int]) -> None:
        self.targets = list(range(6)) * 10
        self.change = change

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return torch.zeros(1, 2, 2), self.change(self.targets[number])


def test_declared_labels_that_differ_are_ignored() -> None:
    assert Batches(Targets(lambda label: label)).known_labels() is not None
    assert Batches(Targets(lambda label: label % 3)).known_labels() is None
    assert Batches(Targets(lambda label: 0 if label == 4 else label)).known_labels() is None
    torchvision = Targets(lambda label: label % 3)
    torchvision.target_transform = lambda label: label % 3  # type: ignore[attr-defined]
    found = Batches(torchvision).known_labels()
    assert found is not None
    assert found[0].tolist() == [0, 1, 2] * 20


def test_a_label_that_changes_later_is_detected() -> None:
    data = Targets(lambda label: label)
    batches = Batches(data)
    assert batches.known_labels() is not None
    data.change = lambda label: 5 - label
    with pytest.raises(DataError, match=r"sample 0 .* has the label 5, and its .* say 0"):
        list(batches)


def test_thread_bound_data_is_read_in_its_thread() -> None:
    class Table(Dataset[Any]):
        def __init__(self) -> None:
            self.rows = sqlite3.connect(":memory:")
            self.threads: set[str] = set()

        def __len__(self) -> int:
            return N

        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            label = self.rows.execute(f"select {number}").fetchone()[0]
            self.threads.add(threading.current_thread().name)
            return IMAGES[label], label

    data = Table()
    index, labels = indices_and_labels(Batches(data, batch_size=4))
    assert index == labels == list(range(N))
    assert data.threads == {threading.current_thread().name}
    data.rows.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cause_of_an_unreadable_item_is_reported(workers: int) -> None:
    with pytest.raises(
        DataError, match="item 2 of Broken cannot be read: KeyError: 'crop'"
    ) as told:
        list(Batches(Broken(), batch_size=2, workers=workers))
    assert workers or isinstance(told.value.__cause__, KeyError)


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number == 2:
            raise KeyError("crop")
        return torch.zeros(1), 0


def test_a_collate_function_that_changes_the_order_is_refused() -> None:
    for sort in (lambda item: -item[1], lambda item: (item[1] % 5, item[1])):
        loader = DataLoader(
            DATA, 8, collate_fn=lambda items, sort=sort: default_collate(sorted(items, key=sort))
        )
        with pytest.raises(DataError, match="changes the order of the samples"):
            list(Batches(loader))
    loader = DataLoader(DATA, 8, collate_fn=lambda items: default_collate(sorted(items, key=len)))
    assert torch.cat([batch.labels for batch in Batches(loader)]).tolist() == LABELS.tolist()


def test_negative_indices_count_from_the_end() -> None:
    loader = DataLoader(DATA, 2, sampler=[-1, 0, -3])  # type: ignore[arg-type]  # any iterable works
    batches = list(Batches(loader))
    assert torch.cat([batch.index for batch in batches]).tolist() == [N - 1, 0, N - 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == [N - 1, 0, N - 3]
    with pytest.raises(DataError, match=f"yields sample {N - 1} more than once"):
        Batches(DataLoader(DATA, 2, sampler=[-1, N - 1]))  # type: ignore[arg-type]


def test_columns_from_getitems_are_not_taken_for_samples() -> None:
    class Columns(Dataset[Any]):
        def __len__(self) -> int:
            return N

        def __getitem__(self, number: int) -> Any:
            return {"image": IMAGES[number], "label": number}

        def __getitems__(self, numbers: list[int]) -> Any:
            return {"image": IMAGES[numbers], "label": LABELS[numbers]}

    batches = list(Batches(Columns(), batch_size=2))
    assert torch.cat([batch.labels for batch in batches]).tolist() == LABELS.tolist()


def test_an_enumerated_loader_is_refused() -> None:
    loader = DataLoader(TensorDataset(torch.rand(7, 1, 4, 4), torch.arange(7)), 4)
    with pytest.raises(DataError, match="must be tensors, not int"):
        list(Batches(enumerate(loader)))


def test_the_share_of_one_process_is_reported() -> None:
    data = TensorDataset(torch.rand(7, 1, 4, 4), torch.arange(7))
    loader = DataLoader(data, sampler=DistributedSampler(data, 2, 1, shuffle=False))
    with pytest.warns(ProbekitWarning, match="one of 2 processes: 4 of 7 samples"):
        assert Batches(loader).samples == 4
