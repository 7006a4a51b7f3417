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
from probekit.data.items import stacked
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
        Images (n, ...) in the order of the indices, as the model receives them, and labels (n,), or
        (n, attributes) if samples have several.

    Raises:
        DataError: The data does not have an index, or can be read only once; an index is no integer.

    Example:
        >>> import probekit as pk
        >>> data = pk.load_data("fashion-mnist")
        >>> images, labels = pk.images_at(data, [1, 1, 0])
        >>> images.shape, labels
        (torch.Size([3, 1, 28, 28]), tensor([2, 2, 9]))
    """
    wanted = _integers(index)
    if not wanted:
        raise DataError("no indices were given; give at least one")
    found = {number: (image, label) for number, image, label in find_images(data, wanted, model)}
    images, labels = zip(*(found[number] for number in wanted), strict=True)
    return stacked(images, "the data"), torch.tensor(labels)


def _integers(index: npt.ArrayLike | Tensor) -> list[int]:
    """Checks indices; whole numbers in floats are allowed, as merged results contain them."""
    given = np.asarray(index)
    numbers = given.ravel().tolist()
    if numbers and given.dtype.kind not in "iuf":
        raise DataError(
            f"indices must be integers, not {numbers[:3]}; for a mask, give the indices at which it is "
            "true"
        )
    fraction = next((number for number in numbers if not float(number).is_integer()), None)
    if fraction is not None:
        raise DataError(f"indices must be integers, not {fraction}")
    return [int(number) for number in numbers]


def find_images(data: Any, index: Iterable[int], model: Any) -> Iterator[tuple[int, Tensor, Any]]:
    """Yields index, image and label of some samples, each once, in increasing order."""
    if is_loadable(data):
        data = load_data(data, model)
    batches = data if isinstance(data, Batches) else Batches(data, decode=ImageDecoder.of(model))
    wanted = sorted({int(number) for number in index})
    if isinstance(batches.source, Indexed):
        yield from _fetched(batches.source, wanted)
    else:
        yield from _searched(batches, wanted)


def _fetched(source: Indexed, wanted: list[int]) -> Iterator[tuple[int, Tensor, Any]]:
    """Reads samples by index, several at a time."""
    _check_range(wanted, len(source.data), source.name)
    for start in range(0, len(wanted), _AT_A_TIME):
        numbers = wanted[start : start + _AT_A_TIME]
        images, labels, kept = source.fetch(numbers)
        if kept.tolist() != numbers:
            lost = next(number for number in numbers if number not in kept.tolist())
            raise DataError(f"sample {lost} of {source.name} is unreadable now; restore its file")
        yield from zip(numbers, _images(images), labels.tolist(), strict=True)


def _searched(batches: Batches, wanted: list[int]) -> Iterator[tuple[int, Tensor, Any]]:
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
            images = _images(batch.images)
            yield wanted[place], images[row], batch.labels[row].tolist()
            place += 1
        if place == len(wanted):
            return
    _check_range(wanted, end, batches.name)


def _images(inputs: object) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs
    raise DataError(f"the data contains {inputs!r}, not images, so no images can be read from it")


def _check_range(wanted: list[int], count: int, name: str) -> None:
    outside = [number for number in wanted if not 0 <= number < count]
    if outside:
        raise DataError(
            f"there is no sample {outside[-1]}, as {name} has {count} samples; give the data that "
            "the result was made from"
        )
