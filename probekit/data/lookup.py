"""Looks up images by the sample indices of a result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probekit.data.batches import Batches
from probekit.data.datasets import is_loadable, load_data
from probekit.data.decoding import ImageDecoder
from probekit.data.sources import Indexed
from probekit.errors import DataError
from probekit.runtime.settings import on_own_device

_AT_A_TIME = 64


@on_own_device
def images_at(data: Any, index: npt.ArrayLike | Tensor, model: Any = None) -> tuple[Tensor, Tensor]:
    """Returns the images with the given sample indices of a result.

    Args:
        data: The analyzed data: a value that `load_data` returns or accepts, a map-style data set, a
            `DataLoader`, a list of batches, or any other repeatable iterable.
        index: Indices (n,), as in `top_sample` or in `/samples`.
        model: The model that images are fitted to, as for `load_data`.

    Returns:
        Images (n, ...) in the order of the indices, as the model receives them, and labels (n,).

    Raises:
        DataError: The data does not have an index, or can be read only once.

    Example:
        >>> import probekit as pk
        >>> data = pk.load_data("fashion-mnist")
        >>> images, labels = pk.images_at(data, [1, 1, 0])
        >>> images.shape, labels
        (torch.Size([3, 1, 28, 28]), tensor([2, 2, 9]))
    """
    wanted = np.asarray(index).ravel().tolist()
    if not wanted:
        raise DataError("no indices were given; give at least one")
    found = {number: (image, label) for number, image, label in find_images(data, wanted, model)}
    images, labels = zip(*(found[number] for number in wanted), strict=True)
    return torch.stack(images), torch.tensor(labels)


def find_images(
    data: Any, index: Iterable[int], model: Any = None
) -> Iterator[tuple[int, Tensor, int]]:
    """Yields index, image and label of some samples, each once, in increasing order."""
    if is_loadable(data):
        data = load_data(data, model)
    batches = data if isinstance(data, Batches) else Batches(data, decode=ImageDecoder.of(model))
    wanted = sorted({int(number) for number in index})
    if isinstance(batches.source, Indexed):
        yield from _fetched(batches.source, wanted)
    else:
        yield from _searched(batches, wanted)


def _fetched(source: Indexed, wanted: list[int]) -> Iterator[tuple[int, Tensor, int]]:
    """Reads samples by index, several at a time."""
    _check_range(wanted, len(source.data), source.name)
    for start in range(0, len(wanted), _AT_A_TIME):
        numbers = wanted[start : start + _AT_A_TIME]
        images, labels, kept = source.fetch(numbers)
        if kept.tolist() != numbers:
            lost = next(number for number in numbers if number not in kept.tolist())
            raise DataError(f"sample {lost} of {source.name} is unreadable now; restore its file")
        yield from zip(numbers, images, labels.tolist(), strict=True)


def _searched(batches: Batches, wanted: list[int]) -> Iterator[tuple[int, Tensor, int]]:
    """Iterates over a stream up to the last requested sample."""
    if not batches.repeatable:
        raise DataError(
            "the data can be read only once, so its images cannot be read again; give a list of "
            "batches, a data set or a DataLoader"
        )
    place, end = 0, 0
    for batch in Batches(batches.source):
        end = int(batch.index[-1]) + 1
        while place < len(wanted) and 0 <= wanted[place] < end:
            row = wanted[place] - int(batch.index[0])
            yield wanted[place], batch.images[row], int(batch.labels[row])
            place += 1
        if place == len(wanted):
            return
    _check_range(wanted, end, batches.name)


def _check_range(wanted: list[int], count: int, name: str) -> None:
    outside = [number for number in wanted if not 0 <= number < count]
    if outside:
        raise DataError(
            f"there is no sample {outside[-1]}, as {name} has {count} samples; give the data that "
            "the result was made from"
        )
