"""Published corrupted images as what the models see: in place of computed ones, or on their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from probekit.analysis.robustness.conditions import Condition, Outcomes
from probekit.data.batches import Batch, Batches
from probekit.data.decoding import resize
from probekit.data.images import Fetched, LabelledImages
from probekit.errors import DataError, ProbekitWarning
from probekit.perturbations.corruptions.published import PublishedCorruptions

__all__ = ["FittedImages", "PublishedImages", "PublishedSet", "one_to_one"]


class FittedImages(LabelledImages):
    """One type and severity of published files, in the size that a model takes.

    Args:
        published: The files.
        corruption: The type.
        severity: From 1 to 5.
        size: (channels, height, width); None takes images as they are.
    """

    def __init__(
        self,
        published: PublishedCorruptions,
        corruption: str,
        severity: int,
        size: tuple[int, int, int] | None,
    ) -> None:
        images: Any = published.dataset(corruption, severity)
        self._images = images
        self._size = size
        self.labels = torch.as_tensor(images.targets)
        self.classes = tuple(published.classes or ())
        self.name = f"{published.root} {corruption} {severity}"
        self.fingerprint = f"{self.name}, {len(self.labels)} images"

    def fetch(self, numbers: list[int]) -> Fetched:
        images = torch.stack([self._images[number][0] for number in numbers])
        index = torch.tensor(numbers)
        return resize(images, self._size), self.labels[index], index


@dataclass(frozen=True)
class PublishedImages:
    """One corruption type from published files whose images match the data's one to one.

    Args:
        published: The files.
        name: The type.
        severities: Each from 1 to 5.
    """

    published: PublishedCorruptions
    name: str
    severities: tuple[int, ...]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """One for each severity."""
        return _conditions(self.published, self.name, self.severities)

    def apply(self, model: Any, batch: Batch) -> Iterator[tuple[Tensor, Outcomes]]:
        """The published images of the same numbers.

        Raises:
            DataError: An image has another label there, or is not there at all.
        """
        index = batch.index.tolist()
        channels, height, width = batch.images.shape[1:]
        for severity in self.severities:
            data = FittedImages(self.published, self.name, severity, (channels, height, width))
            if max(index) >= len(data):
                raise DataError(
                    f"{self.published.root} holds {len(data)} images of {self.name!r}, and the data "
                    f"has a sample {max(index)}; give the test set that the files were made from"
                )
            fetched = data.fetch(index)
            if isinstance(fetched, DataError):
                raise fetched
            images, labels, _ = fetched
            if not torch.equal(labels, batch.labels.cpu()):
                raise DataError(
                    f"{self.published.root} labels samples from {min(index)} to {max(index)} "
                    "otherwise than the data does, so that they are not the same images; give the "
                    "test set that the files were made from, in its order"
                )
            yield images.to(batch.images), {}

    def only(self, conditions: Sequence[Condition]) -> Self:
        """The same at some severities."""
        return replace(self, severities=tuple(int(one.level) for one in conditions))


@dataclass(frozen=True)
class PublishedSet:
    """One type and severity from published files, as data of its own: nothing is left to perturb.

    Args:
        published: The files.
        name: The type.
        severity: From 1 to 5.
    """

    published: PublishedCorruptions
    name: str
    severity: int

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """One."""
        return _conditions(self.published, self.name, (self.severity,))

    def apply(self, model: Any, batch: Batch) -> Iterator[tuple[Tensor, Outcomes]]:
        """The images as they were read."""
        yield batch.images, {}

    def only(self, conditions: Sequence[Condition]) -> Self:
        """The same: there is one condition alone."""
        return self


def one_to_one(published: PublishedCorruptions, batches: Batches) -> bool:
    """Whether published images are those of the data, in its order, as far as labels tell.

    Warns:
        ProbekitWarning: They might have been, by their layout, and are not.
    """
    if published.layout != "npy":
        return False
    labels = FittedImages(published, published.corruptions[0], 1, None).labels
    found = batches.known_labels()
    if found is None:
        return True
    mine, index = found
    index = torch.arange(len(mine)) if index is None else index
    whole = batches.samples if batches.limit is None else None
    same_size = whole is None or whole == len(labels)
    if same_size and int(index.max()) < len(labels) and torch.equal(labels[index], mine):
        return True
    warnings.warn(
        f"{published.root} has other labels than the data, or another number of them, so that its "
        "images are not those of the data: accuracy is measured, the change of activations is not",
        ProbekitWarning,
        stacklevel=3,
    )
    return False


def _conditions(
    published: PublishedCorruptions, name: str, severities: tuple[int, ...]
) -> tuple[Condition, ...]:
    return tuple(
        Condition("corruption", name, severity, f"published in {published.root}")
        for severity in severities
    )
