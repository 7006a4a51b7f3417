"""Labeled images as map-style data sets that return whole batches in [0, 1]."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from probekit.data.decoding import ImageDecoder, resize
from probekit.data.items import all_names, image_tensor, pair_of, read_items, stacked
from probekit.data.labels import ClassNames, declared_labels, dense_names, label_numbers
from probekit.errors import DataError
from probekit.models.image_model import bytes_of

Size: TypeAlias = tuple[int, int, int] | None
Fetched: TypeAlias = tuple[Tensor, Tensor, Tensor]


class LabeledImages(Dataset[Any]):
    """A data set whose `data[i]` is (image in [0, 1], label), with batched access by `fetch`.

    Attributes:
        name: The name of the data set.
        classes: Names of the classes, in label order.
        labels: Label of every sample, int64.
        fingerprint: Hash of the content.
        skip_bad: Whether to skip unreadable images instead of raising an error.
        split: The split of the data set, if known.
        attributes: The meaning of labels (samples, attributes) in several columns, with the names of
            their values.
        notes: Warnings issued while it was opened, for the attribute `notes` of results.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    fingerprint: str
    skip_bad: bool = False
    split: str | None = None
    attributes: Mapping[str, ClassNames] = MappingProxyType({})
    notes: Sequence[str] = ()

    @property
    def names(self) -> ClassNames:
        """The name of each label."""
        return dict(enumerate(self.classes))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {len(self)} images, {len(self.classes)} classes)"
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, Any]:
        images, labels, _ = self.fetch([range(len(self))[number]])
        if not len(images):
            raise DataError(f"sample {number} of {self.name} is unreadable and skipped")
        return images[0], labels[0] if self.attributes else int(labels[0])

    def fetch(self, numbers: list[int]) -> Fetched:
        """Returns images, labels and indices of several samples."""
        raise NotImplementedError

    def content_of(self, numbers: Iterable[int]) -> str:
        """A hash of the whole content of several samples; the fingerprint if it is such a hash."""
        return self.fingerprint

    def stored_content_of(self, numbers: Iterable[int]) -> str:
        """A hash of several samples as they are stored, whatever the size that a model takes."""
        return self.content_of(numbers)


class TensorImages(LabeledImages):
    """Images in memory, as uint8 (n, channels, height, width) or floats in [0, 1].

    They are resized to `size`. If `scaled`, uint8 images are divided by 255.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str] = (),
        name: str = "tensors",
        size: tuple[int, int, int] | None = None,
        *,
        scaled: bool = True,
    ) -> None:
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise DataError(
                "images must be (n, channels, height, width) and labels (n,), not "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        self.images = images
        self.labels = labels.long()
        self.classes = tuple(classes)
        self.name = name
        self.size, self.scaled = size, scaled
        fitted = size or tuple(images.shape[1:])
        digest = hashlib.sha256(f"{tuple(images.shape)}|{images.dtype}|{fitted}".encode())
        for part in (images, self.labels):
            digest.update(bytes_of(part))
        self.fingerprint = f"sha256:{digest.hexdigest()}"

    def stored_content_of(self, numbers: Iterable[int]) -> str:
        if not self.scaled:  # tensors of the user, which may already be fitted to a model
            return self.fingerprint
        return f"sha256:{hashlib.sha256(bytes_of(self.images[list(numbers)])).hexdigest()}"

    def fetch(self, numbers: list[int]) -> Fetched:
        index = torch.as_tensor(numbers)
        images = self.images[index]
        if images.dtype == torch.uint8 and self.scaled:
            images = images.float().div_(255)
        return resize(images, self.size), self.labels[index], index


class PreparedImages(LabeledImages):
    """Any map-style data set of (image, label), fitted to a model.

    PIL images, and contents or paths of image files, are resized, cropped and scaled to [0, 1]; tensors
    and arrays are unchanged. `beside` are other splits of the data, whose text labels have the same numbers.
    """

    def __init__(
        self,
        dataset: Any,
        decode: ImageDecoder,
        skip_bad: bool = False,
        beside: Sequence[Any] = (),
    ) -> None:
        self.dataset, self.decode, self.skip_bad = dataset, decode, skip_bad
        self.name = type(dataset).__name__
        self._names = all_names(dataset, beside)
        self.classes = dense_names(self._names)
        self.fingerprint = (
            f"{self.name} of {len(dataset)} samples, content not hashed, fitted to {decode.size}, "
            f"{decode.crop_pct}, {decode.interpolation}, {decode.crop_mode}"
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def names(self) -> ClassNames:
        return self._names

    @property
    def targets(self) -> Tensor | None:
        """The labels that the data set declares, indexed by sample."""
        return declared_labels(self.dataset, self._names)

    def fetch(self, numbers: list[int]) -> Fetched:
        try:
            pairs = self._pairs(numbers)
        except DataError:
            if not self.skip_bad:
                raise
            read = {}
            for number in numbers:
                with suppress(DataError):
                    (read[number],) = self._pairs([number])
            numbers, pairs = list(read), list(read.values())
        if not pairs:
            nothing = torch.empty(0, dtype=torch.long)
            return torch.empty(0, *self.decode.size), nothing, nothing
        images, labels = zip(*pairs, strict=True)
        found = stacked(images, self.name)
        return found, label_numbers(list(labels), self._names), torch.tensor(numbers)

    def _pairs(self, numbers: list[int]) -> list[tuple[Tensor, Any]]:
        items = read_items(self.dataset, numbers, self.name)
        return [self._pair(item, number) for number, item in zip(numbers, items, strict=True)]

    def _pair(self, item: object, number: int) -> tuple[Tensor, Any]:
        what = f"item {number} of {self.name}"
        try:
            image, label = pair_of(item, what)
        except DataError:
            raise DataError(f"{what} is not a pair (image, label)") from None
        if not (ImageDecoder.reads(image) or isinstance(image, Tensor | np.ndarray)):
            raise DataError(f"{what} holds {type(image).__name__}, not an image")
        return image_tensor(image, what, self.decode), label
