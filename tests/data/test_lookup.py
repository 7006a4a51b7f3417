"""Images are retrieved by the index from a pass, for any kind of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import probekit as pk
from probekit.data.batches import Batches
from probekit.data.images import TensorImages
from probekit.errors import DataError

IMAGES = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3


class Endless(IterableDataset[Any]):
    """Rows read one at a time."""

    def __iter__(self) -> Any:
        return iter(zip(IMAGES, LABELS, strict=True))


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES.split(6), LABELS.split(6), strict=True))


SOURCES: dict[str, Callable[[], Any]] = {
    "tensors": lambda: (IMAGES, LABELS),
    "labeled images": lambda: TensorImages(IMAGES, LABELS),
    "map-style": lambda: TensorDataset(IMAGES, LABELS),
    "loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 3),
    "shuffled loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 3, shuffle=True),
    "loader of a stream": lambda: DataLoader(Endless(), 3),
    "stream": Endless,
    "list of batches": batches,
    "list of mappings": lambda: [{"image": x, "label": y} for x, y in batches()],
    "batches": lambda: Batches(batches()),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("limit", [None, 11])
def test_every_index_of_a_pass_returns_its_image(source: str, limit: int | None) -> None:
    data = SOURCES[source]()
    seen = data if isinstance(data, Batches) else Batches(data, batch_size=4, limit=limit)
    passed = list(seen)
    index = torch.cat([batch.index for batch in passed]).flip(0)
    images, labels = pk.images_at(SOURCES[source](), index)
    assert torch.equal(images, torch.cat([batch.images for batch in passed]).flip(0))
    assert torch.equal(labels, torch.cat([batch.labels for batch in passed]).flip(0))


def test_a_folder_returns_its_files(folder: Path, model: Any) -> None:
    data = pk.load_data(folder, model)
    images, labels = pk.images_at(folder, [7, 2, 7], model)
    assert torch.equal(images[1], data[2][0])
    assert torch.equal(images[0], images[2])
    assert labels.tolist() == [data[7][1], data[2][1], data[7][1]]


def test_unreadable_files_do_not_shift_the_indices_of_others(folder: Path) -> None:
    victim = sorted(folder.rglob("*.png"))[3]
    expected = pk.load_data(folder)[4][0]
    victim.write_bytes(b"no image")
    data = pk.load_data(folder, skip_bad=True)
    index = torch.cat([batch.index for batch in Batches(data)])
    assert 3 not in index.tolist()
    assert torch.equal(pk.images_at(data, [4])[0][0], expected)
    with pytest.raises(DataError, match=r"sample 3 .* unreadable"):
        pk.images_at(data, [2, 3])


@pytest.mark.parametrize("source", ["tensors", "list of batches", "stream", "loader"])
@pytest.mark.parametrize("number", [20, -1])
def test_an_index_outside_the_data_is_refused(source: str, number: int) -> None:
    with pytest.raises(DataError, match=rf"no sample {number}, as .* 20 samples"):
        pk.images_at(SOURCES[source](), [3, number])


def test_data_that_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(DataError, match="only once"):
        pk.images_at(iter(batches()), [0])


@pytest.mark.parametrize("index", [[True, False], LABELS == 1, ["3"], [0.5], [3, float("nan")]])
def test_an_index_that_is_no_integer_is_refused(index: Any) -> None:
    with pytest.raises(DataError, match="indices must be integers, not"):
        pk.images_at((IMAGES, LABELS), index)


def test_whole_numbers_in_floats_are_indices() -> None:
    assert pk.images_at((IMAGES, LABELS), [4.0, 1.0])[1].tolist() == [1, 1]


@pytest.mark.parametrize("in_batches", [False, True])
def test_images_with_several_attributes_return_all_of_them(in_batches: bool) -> None:
    size = torch.arange(20) % 5
    parts = zip(*(column.split(6) for column in (IMAGES, LABELS, size)), strict=True)
    data: Any = [(x, {"shape": shape, "size": size}) for x, shape, size in parts]
    if not in_batches:
        data = (IMAGES, {"shape": LABELS, "size": size})
    images, labels = pk.images_at(data, [13, 4])
    assert torch.equal(images, IMAGES[[13, 4]])
    assert labels.tolist() == [[1, 3], [1, 4]]


@pytest.mark.parametrize("in_batches", [False, True])
def test_samples_that_are_no_images_are_refused(in_batches: bool) -> None:
    tokens = {"input_ids": LABELS[:, None], "attention_mask": torch.ones(20, 1)}
    data: Any = [(tokens, LABELS)] if in_batches else {**tokens, "label": LABELS}
    with pytest.raises(DataError, match=r"contains .*input_ids.*, not images"):
        pk.images_at(data, [1, 2])


def test_images_of_different_sizes_are_refused() -> None:
    data = [(torch.rand(2, 1, size, size), torch.arange(2)) for size in (8, 9)]
    assert pk.images_at(data, [2])[0].shape == (1, 1, 9, 9)
    with pytest.raises(DataError, match=r"different shapes, such as \(1, 8, 8\) and \(1, 9, 9\)"):
        pk.images_at(data, [0, 3])
