"""Streams any source of labeled images as validated batches."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Generator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from probekit.checks import integer, positive_int
from probekit.data.decoding import ImageDecoder
from probekit.data.images import LabeledImages
from probekit.data.labels import NO_LABEL, ClassNames, dense_names
from probekit.data.opening import open_source
from probekit.data.sources import Part, digest_of
from probekit.errors import DataError, remember
from probekit.models.inputs import not_finite, tensors_of, without_padding

_WORKERS = 4096


@dataclass(frozen=True)
class Batch:
    """A batch: images (batch, ...), labels (batch,) and indices (batch,) of samples in the data.

    Missing labels are -1; with several attributes, labels are (batch, attributes).

    Instead of images, `KeywordInputs` hold the keyword arguments of a model.
    """

    images: Any
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labeled(self) -> bool:
        """Whether each sample has one label."""
        return self.labels.ndim == 1 and bool((self.labels != NO_LABEL).any())

    def of(self, attribute: int | None) -> Batch:
        """The same samples, with one of several attributes as the label, or without labels."""
        if self.labels.ndim == 1:
            return self
        none = torch.full_like(self.labels[:, 0], NO_LABEL)
        labels = none if attribute is None else self.labels[:, attribute]
        return Batch(self.images, labels, self.index)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.index,
        )


class Batches:
    """Streams any labeled images as batches, with prefetching in the background.

    Samples with an index (from data sets, loaders over data sets, and arrays) are read in batches of
    `batch_size` and keep their index. A loader keeps its own batch size, `collate_fn` and worker
    processes. Streams of batches keep their batches; their samples are numbered in order.

    `docs/data.md` lists all forms of data. `limit` draws a random sample of a data set, of arrays or of a
    loader that shuffles, so data sorted by class stays representative; it uses the first samples of a
    stream, or of a loader with its own order. `fit` converts images (batch, ...) to what the model expects,
    or raises `DataError`; `decode` reads images that are not arrays. The other arguments are those of
    `analyze`.

    Attributes:
        part: The part of the data that is read, and how.
        names: The name of each label.
        classes: The names in label order if the labels are 0, 1, 2, ...; otherwise empty.
        skipped: Number of unreadable images that the last pass skipped.
        seconds: Duration of the last pass.
        waited: Seconds of the last pass that were spent waiting for images.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int = 64,
        limit: int | None = None,
        seed: int = 0,
        workers: int | None = None,
        fit: Callable[[Any], Any] | None = None,
        attributes: object = None,
        decode: ImageDecoder | None = None,
    ) -> None:
        batch_size = integer("batch_size", batch_size, least=1, most=sys.maxsize)
        limit = None if limit is None else positive_int("limit", limit)
        seed = integer("seed", seed, least=-(2**63), most=2**63 - 1)
        workers = None if workers is None else integer("workers", workers, least=0, most=_WORKERS)
        self.source = open_source(data, attributes)
        self.source.decode = decode or self.source.decode
        _remember_notes(data)
        self.part = Part(self.source.batch_size or batch_size, limit, seed, workers)
        self.fit = fit
        self.name = self.source.name
        self.names = self.source.names
        self.classes = dense_names(self.names)
        self.skipped = 0
        self.seconds = self.waited = 0.0
        self._compares = True
        self._peeked: Batch | None = None
        self._announced: Tensor | None = None
        self._first_image: str | None = None
        self._image_shape: list[int] | None = None

    @property
    def samples(self) -> int | None:
        """The number of samples; None if it is not known in advance."""
        index = self.indices()
        return None if index is None else len(index)

    @property
    def attributes(self) -> dict[str, ClassNames]:
        """The meaning of labels with several columns, with the names of values; known after `peek`."""
        return dict(self.source.attributes)

    @property
    def repeatable(self) -> bool:
        """Whether every pass yields the same samples with the same indices."""
        return self.source.repeatable

    @property
    def drawn(self) -> bool:
        """Whether a `DataLoader` drew the samples at random, so the next pass would draw others."""
        return self.source.drawn

    @property
    def skips(self) -> bool:
        """Whether unreadable images are skipped."""
        return self.source.skip_bad

    def provenance(self) -> dict[str, Any]:
        """The provenance of the data, as plain values; with a hash of the first image after `peek`."""
        split = getattr(getattr(self.source, "data", None), "split", None)
        return {
            "name": self.name,
            "split": split if isinstance(split, str) else None,
            "fingerprint": self.source.fingerprint or "unknown",
            "first_image": self._first_image,
            "image_shape": self._image_shape,
            "content": self._content_of_some(),
            "samples": self.samples,
            "limit": self.part.limit,
            "batch_size": self.part.size,
        } | ({"attributes": list(self.source.attributes)} if self.source.attributes else {})

    def identity(self) -> dict[str, Any]:
        """The identity of the data, as plain values; computing it reads all samples once.

        It includes the content of all samples, the known labels and indices, the class names, and the
        samples that `limit` draws.
        """
        labels, indices = self.source.labels(), self.indices()
        return {
            "fingerprint": self.source.fingerprint or "unknown",
            "samples": self.samples,
            "limit": self.part.limit,
            "classes": _hash(repr(sorted(self.names.items())).encode()),
            "labels": None if labels is None else _hash(digest_of(labels)),
            "index": None if indices is None else _hash(digest_of(indices)),
            "content": self._content(),
        }

    def _content_of_some(self) -> str | None:
        """A hash of 64 samples or more as they are stored, whatever their size in a batch, if known."""
        index = self.indices()
        some = None if index is None else index[:: max(1, len(index) // 64)].tolist()
        found = self.source.content_of(some, stored=True) if some else None
        return None if found == self.source.fingerprint else found  # which depends on the size

    def _content(self) -> str:
        """A hash of all samples: of the files of a data set of ours, or else of images and labels."""
        index = self.indices()
        known = None if index is None else self.source.content_of(index.tolist())
        if known is not None:
            return known
        digest = hashlib.sha256()
        for batch in self.share(0, 1):
            for at in range(len(batch)):
                one = slice(at, at + 1)
                digest.update(
                    digest_of(
                        without_padding(batch.images[one]), batch.labels[one], batch.index[one]
                    )
                )
        return f"sha256:{digest.hexdigest()}"

    def known_labels(self) -> tuple[Tensor, Tensor | None] | None:
        """The labels (samples,) and indices of all samples, if they are known in advance.

        A pass that yields a different label for a sample raises `DataError`. Indices are in increasing order,
        None if they are 0, 1, 2, ...; the result is None for streams, and for data sets without `labels` or
        `targets`.
        """
        labels, whole, index = self.source.labels(), self.source.selected(), self.indices()
        if labels is None or whole is None or index is None:
            return None
        size = int(whole.max()) + 1 if len(whole) else 0
        self._announced = torch.full((size, *labels.shape[1:]), NO_LABEL)
        self._announced[whole] = labels
        index = index.sort().values
        plain = torch.equal(index, torch.arange(len(index)))
        return self._announced[index], None if plain else index

    def read_labels(self) -> tuple[Tensor, Tensor] | None:
        """As `known_labels`, by reading the data once more; None if impossible or labels are missing."""
        if not self.repeatable:
            return None
        whole = self.share(0, 1)
        whole._compares = False  # the images may differ
        found = [(batch.labels, batch.index) for batch in whole]
        labels, index = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = index.argsort()
        return None if int(labels.min()) < 0 else (labels[order], index[order])

    def indices(self) -> Tensor | None:
        """The indices of all samples in order; None if they are not known in advance."""
        return self.source.selected(self.part.limit, self.part.seed)

    def starting(self, first: int) -> Batches:
        """The same data without the first samples, which a resumed run has already processed."""
        rest = copy(self)
        rest.part = replace(self.part, first=first)
        return rest

    def share(self, rank: int, world: int) -> Batches:
        """The part of the data for one of several processes.

        Samples with an index are distributed one by one, those of a stream by batches.
        """
        shared = copy(self)
        shared.part = replace(self.part, rank=rank, world=world)
        return shared

    def peek(self) -> Batch:
        """Returns the first samples, which the next pass yields again."""
        if self._peeked is None:
            images, labels, index = self.source.head(self.part)
            self._first_image = _hash(digest_of(without_padding(images[:1]), labels[:1]))
            self._image_shape = list(images.shape[1:]) if isinstance(images, Tensor) else None
            self._peeked = self._checked(images, labels, index)
        return self._peeked

    def __iter__(self) -> Generator[Batch]:
        self.skipped = count = 0
        for asked, (images, labels, index) in self.source.read(self.part):
            self.skipped += asked - len(index)
            if len(index):
                if not count and self._compares:
                    self.source.check_same(images, labels, index)
                count += len(index)
                yield self._checked(images, labels, index)
        if not count and self.part.world == 1 and not self.part.first:
            raise DataError(f"{self.name} has no samples that can be read")

    def _checked(self, images: Any, labels: Tensor, index: Tensor) -> Batch:
        if len(labels):
            self._check_labels(labels, index)
        images = images.detach() if self.fit is None else self.fit(images.detach())
        numbers = [one for one in tensors_of(images) if one.is_floating_point()]
        for place in not_finite(numbers):
            finite = numbers[place].reshape(len(index), -1).isfinite().all(1)
            bad = int(index[int(finite.int().argmin())])
            raise DataError(f"sample {bad} of {self.name} has NaN or infinity in its image")
        return Batch(images, labels, index)

    def _check_labels(self, labels: Tensor, index: Tensor) -> None:
        low, high = int(labels.min()), int(labels.max())
        if high == NO_LABEL:
            return
        if low < 0 or (self.classes and high >= len(self.classes)):
            beyond = f"{len(self.classes)} classes" if self.classes else "non-negative integers"
            raise DataError(f"label {low if low < 0 else high} is out of range: expected {beyond}")
        unknown = (
            set(labels.tolist()) - self.names.keys() if self.names and not self.classes else ()
        )
        if unknown:
            raise DataError(f"label {min(unknown)} is not among those that {self.name} names")
        if self._announced is None:
            return
        announced = self._announced.to(labels.device)[index.to(labels.device)]
        if not torch.equal(announced, labels):
            place = int((announced != labels).nonzero()[0, 0])
            raise DataError(
                f"sample {int(index[place])} of {self.name} has the label {labels[place].tolist()}, and its "
                f"`labels` or `targets` say {announced[place].tolist()}; make them agree, or remove them"
            )


def _hash(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _remember_notes(data: Any) -> None:
    """Adds the notes of a data set of ours, also inside a subset or a loader, to those of the result."""
    while data is not None:
        if isinstance(data, LabeledImages):
            remember(data.notes)
        data = getattr(data, "dataset", None)
