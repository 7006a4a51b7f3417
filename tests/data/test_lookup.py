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
