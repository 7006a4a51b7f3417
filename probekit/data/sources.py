"""Sources of samples: data with items by index, and streams of batches."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, Subset, TensorDataset

from probekit.data.decoding import ImageDecoder
from probekit.data.images import Fetched, LabeledImages, PreparedImages
from probekit.data.items import all_names, image_tensor, is_sample, pair_of, read_items, stacked
from probekit.data.labels import (
    ClassNames,
    declared_labels,
    label_table,
    names_of_text,
    some_places,
)
from probekit.data.prefetch import fetched
from probekit.errors import DataError, first_line
from probekit.models.image_model import bytes_of
from probekit.models.inputs import KeywordInputs, tensors_of

_FIRST = 32
_PEEKED = 8
_COMPARED_VALUES = 1024  # of an image


@dataclass(frozen=True)
class Part:
    """The part of the data that one process reads: of at most `limit` samples, those from `first` on, and of
    these every `world`-th, or for a stream every `world`-th batch, in batches of `size`.
    """

    size: int
    limit: int | None
    seed: int
    workers: int | None
    first: int = 0
    rank: int = 0
    world: int = 1


def draw(count: int, most: int, seed: int) -> Tensor:
    """Draws at most `most` of the integers below `count` at random, in increasing order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


class Source:
    """What sources of samples by index and of streams have in common.

    Attributes:
        name: The name of the data.
        names: The name of each label; empty if labels have none.
        fingerprint: Hash of the content, or None.
        batch_size: The batch size that the data itself defines, or None.
        skip_bad: Whether to skip unreadable images instead of raising an error.
        drawn: Whether the samples are a random draw, which differs the next time.
        decode: Reads images that are not arrays; None refuses them.
        attributes: The meaning of labels with several columns, with the names of their values; known
            after the first samples at the latest.
    """

    name: str
    names: ClassNames
    attributes: Mapping[str, ClassNames] = MappingProxyType({})
    fingerprint: str | None = None
    batch_size: int | None = None
    skip_bad: bool = False
    drawn: bool = False
    decode: ImageDecoder | None = None
    # Hashes of the content of first batches of passes, by hashes of their indices.
    _seen: dict[bytes, bytes]

    def check_same(self, images: Any, labels: Tensor, index: Tensor) -> None:
        """Raises `DataError` if the first batch of a pass differs from that of an earlier pass."""
        values = [one.reshape(len(one), -1) for one in tensors_of(images)]
        some = [one[:, :: max(1, one.shape[1] // _COMPARED_VALUES)] for one in values]
        found = digest_of(*some, labels)
        if self._seen.setdefault(digest_of(index), found) != found:
            raise DataError(
                f"{self.name} yields different samples each time it is read; give data that stays the "
                "same, without random augmentation: a list of batches, a DataLoader or a data set"
            )

    def content_of(self, numbers: Sequence[int], *, stored: bool = False) -> str | None:
        """A hash of some samples that needs no decoding; None if there is none.

        If `stored`, it is one that does not depend on the size of the images that a model takes, if known.
        """
        return None

    def _pair(self, raw: object, what: str = "a batch") -> tuple[Any, Any]:
        return pair_of(raw, what, list(self.attributes))

    def _batch(self, raw: object) -> tuple[Any, Tensor]:
        """Images and labels of a batch of the data."""
        images, labels = self._pair(raw)
        images = image_tensor(images, self.name, self.decode)
        if isinstance(images, Mapping):
            images = KeywordInputs(images)
        elif not images.ndim:
            raise DataError("the images of a batch must be a tensor of at least one axis")
        return images, self._labels(labels, len(images))

    def _stacked(self, samples: list[Any]) -> tuple[Any, Tensor]:
        """Images and labels of single samples."""
        pairs = [self._pair(sample, f"a sample of {self.name}") for sample in samples]
        images = [image_tensor(image, self.name, self.decode) for image, _ in pairs]
        return stacked(images, self.name), self._labels([label for _, label in pairs], len(pairs))

    def _labels(self, labels: object, count: int) -> Tensor:
        if not self.attributes:
            first = labels[0] if isinstance(labels, list) and labels else labels
            if isinstance(first, Mapping):
                self.attributes = {name: {} for name in sorted(map(str, first))}
        found = label_table(labels, count, self.names, self.attributes)
        self._check_count(found, count)
        return found

    def _check_count(self, labels: Tensor, count: int) -> None:
        """Raises `DataError` if there is not one label per image, or one per image and attribute."""
        if labels.ndim != (2 if self.attributes else 1) or len(labels) != count:
            raise DataError(
                f"a batch of {self.name} has {count} images and labels of shape {tuple(labels.shape)}; "
                "give one label per image"
            )


class Indexed(Source):
    """Samples that can be read by index, each once, in the order of `indices`.

    Args:
        data: A map-style data set.
        indices: The indices to use, in order; None for all.
        collate: Converts a list of items to a batch; None stacks images and labels.
        loader_options: Options of the `DataLoader` that reads in worker processes.
        drawn: Whether `indices` are a random draw.
        ordered: Whether a limit takes the first of `indices` instead of a random subset.
    """

    def __init__(
        self,
        data: Any,
        indices: Tensor | None = None,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        loader_options: Mapping[str, Any] | None = None,
        drawn: bool = False,
        ordered: bool = False,
    ) -> None:
        self.data = data
        self.repeatable = True
        self.drawn = drawn
        self.ordered = ordered
        self.batch_size = batch_size
        self.loader_options = dict(loader_options or {})
        self._seen = {}
        self._collate = collate
        own = isinstance(data, LabeledImages)
        _check_subsets(data)
        self.name = str(getattr(data, "name", None) or type(data).__name__)
        self.names = data.names if own else all_names(data)
        self.fingerprint = getattr(data, "fingerprint", None)
        self.skip_bad = bool(getattr(data, "skip_bad", False))
        self.indices = torch.arange(len(data)) if indices is None else indices

    def selected(self, limit: int | None = None, seed: int = 0) -> Tensor:
        """The indices of at most `limit` samples, in order."""
        if limit is None or limit >= len(self.indices):
            return self.indices
        if self.ordered:
            return self.indices[:limit]
        return self.indices[draw(len(self.indices), limit, seed)]

    def head(self, part: Part) -> Fetched:
        """Images, labels and indices of the first samples, which the next pass yields again."""
        order = self.selected(part.limit, part.seed)
        for numbers in _chunks(order, min(part.size, _FIRST)):
            found = self.fetch(numbers)
            if len(found[2]):
                return found
        raise DataError(f"{self.name} has no samples that can be read")

    def read(self, part: Part) -> Iterator[tuple[int, Fetched]]:
        """Yields batches: the number of samples that were to be read, and those that could be read."""
        order = self.selected(part.limit, part.seed)[part.first :]
        chunks = _chunks(order[part.rank :: part.world], part.size)
        options = dict(self.loader_options)
        own = options.pop("num_workers", 0)
        workers = own if part.workers is None else part.workers
        found = fetched(self.fetch, chunks, workers, options)
        yield from zip(map(len, chunks), found, strict=True)

    def fetch(self, numbers: Sequence[int]) -> Fetched:
        """Returns images, labels and indices of some samples."""
        numbers = list(numbers)
        if isinstance(self.data, LabeledImages) and self._collate is None:
            images, labels, index = self.data.fetch(numbers)
            if len(index):
                self._check_count(labels, len(images))
            return images, labels, index
        items = read_items(self.data, numbers, self.name)
        images, labels = self._collated(items)
        if len(images) != len(numbers):
            raise DataError(
                f"collate_fn of the DataLoader of {self.name} makes a batch of {len(images)} from "
                f"{len(numbers)} samples, so samples and labels cannot be matched; leave samples out in "
                "the data set instead"
            )
        if self._collate is not None and self._is_reordered(items, labels):
            raise DataError(
                f"collate_fn of the DataLoader of {self.name} changes the order of the samples, so "
                "images and results cannot be matched; keep their order"
            )
        return images, labels, torch.tensor(numbers)

    def _is_reordered(self, items: list[Any], labels: Tensor) -> bool:
        """Whether the labels of a batch are those of its items in another order."""
        try:
            own = self._labels([self._pair(item)[1] for item in items], len(items))
        except DataError:  # collate_fn makes the labels from something else
            return False
        if own.shape != labels.shape or torch.equal(own, labels):
            return False
        return bool((own.sort(0).values == labels.sort(0).values).all())

    def _collated(self, items: list[Any]) -> tuple[Any, Tensor]:
        if self._collate is None:
            return self._stacked(items)
        try:
            batch = self._collate(items)
        except Exception as error:
            raise DataError(
                f"the samples of {self.name} cannot be put into one batch: {first_line(error)}"
            ) from error
        return self._batch(batch)

    def content_of(self, numbers: Sequence[int], *, stored: bool = False) -> str | None:
        """A hash of some samples without decoding them, also inside subsets; None for other data."""
        data = self.data
        while isinstance(data, Subset):
            numbers = [int(data.indices[number]) for number in numbers]
            data = data.dataset
        if not isinstance(data, LabeledImages) or isinstance(data, PreparedImages) or self._collate:
            return None
        return data.stored_content_of(numbers) if stored else data.content_of(numbers)

    def labels(self) -> Tensor | None:
        """The label of every sample, in the order of `indices`, if the data set declares them.

        Labels that a data set declares separately from its items are compared with the labels of some
        items: the first of each of the most common labels, and some items between the first and the
        last.
        """
        known = getattr(self.data, "labels", None) if isinstance(self.data, LabeledImages) else None
        if isinstance(known, Tensor):
            known = known[self.indices]
            return None if len(known) and int(known.min()) < 0 else known
        in_memory = type(self.data) is TensorDataset and self._collate is None
        if self.attributes:
            if not in_memory:
                return None
            rows = self.data.tensors[1][self.indices]
            return label_table(rows, len(rows), self.names, self.attributes)
        labels = declared_labels(self.data, self.names)
        labels = None if labels is None else labels[self.indices]
        if labels is None or in_memory:
            return labels
        for place in some_places(labels):
            try:
                _, (found, *_), _ = self.fetch([int(self.indices[place])])
            except DataError:
                return None
            if int(found) != int(labels[place]):
                return None
        return labels


def _check_subsets(data: Any) -> None:
    """Raises `DataError` for a mask in place of indices, which reads the samples 0 and 1 many times."""
    while data is not None:
        if isinstance(data, Subset) and len(data) and np.asarray(data.indices[0]).dtype == bool:
            raise DataError(
                f"the Subset of {type(data.dataset).__name__} has a mask of booleans as its indices, which "
                "read its samples 0 and 1 again and again; give indices, as in mask.nonzero()[:, 0]"
            )
        data = getattr(data, "dataset", None)


def _chunks(order: Tensor, size: int) -> list[list[int]]:
    return [chunk.tolist() for chunk in torch.split(order, size)] if len(order) else []


class Stream(Source):
    """Batches, or single samples that are grouped into batches, in their original order.

    The first pass includes items that were inspected before it, also by an earlier call that was
    refused, so data that can be read only once loses nothing.
    """

    # The last iterator that was inspected and not yet read, with its first items.
    _inspected: ClassVar[tuple[object, list[Any]]] = (None, [])

    def __init__(self, data: Iterable[Any], name: str, names: ClassNames) -> None:
        self.data = data
        self.name = name
        self.names = names
        self._head: list[Any] = Stream._inspected[1] if data is Stream._inspected[0] else []
        if isinstance(data, Iterator):
            Stream._inspected = (data, self._head)
        self._begun: Iterator[Any] | None = None
        self._used: Iterator[Any] | None = None
        self._seen = {}
        if isinstance(data, list | tuple) and not names:
            found = [self._text_labels(batch) for batch in data]
            self.names = names_of_text(chain.from_iterable(found))

    @staticmethod
    def _text_labels(batch: object) -> list[Any]:
        labels = None
        with suppress(DataError):
            labels = pair_of(batch)[1]
        if isinstance(labels, str):
            return [labels]
        return list(labels) if isinstance(labels, list | tuple | np.ndarray) else []

    def labels(self) -> Tensor | None:
        """The label of every sample, in order; None if they are not known in advance."""
        if not isinstance(self.data, list | tuple):
            return None
        try:
            found = [self._labels_of(raw) for raw in self.data]
        except DataError:
            return None
        axes = {part.ndim for part in found}
        whole = torch.cat(found) if len(axes) == 1 else None
        return None if whole is None or (len(whole) and int(whole.min()) < 0) else whole

    def _labels_of(self, raw: object) -> Tensor:
        images, labels = self._pair(raw)
        single = is_sample(raw)
        return self._labels([labels] if single else labels, 1 if single else len(images))

    @property
    def repeatable(self) -> bool:
        """Whether the data can be read several times."""
        if isinstance(self.data, Iterator):
            return False
        if isinstance(self.data, DataLoader) and isinstance(self.data.sampler, RandomSampler):
            return False
        inner = self.data.dataset if isinstance(self.data, DataLoader) else self.data
        return isinstance(inner, list | tuple) or iter(inner) is not iter(inner)

    def selected(self, limit: int | None = None, seed: int = 0) -> Tensor | None:
        """The indices of at most `limit` samples; None if they are not known in advance."""
        labels = self.labels()
        return None if labels is None else torch.arange(len(labels))[:limit]

    def head(self, part: Part) -> Fetched:
        self._look(1)
        if is_sample(self._head[0]):
            self._look(min(part.size, _PEEKED))
            images, labels = self._stacked(self._head)
        else:
            images, labels = self._batch(self._head[0])
        return images, labels, torch.arange(len(images))

    def _look(self, count: int) -> None:
        """Reads the first items, unless already done, and keeps them for the next pass."""
        if self._used is None:
            self._begun = self._open()
        if self._begun is not None:
            self._head += islice(self._begun, max(count - len(self._head), 0))
        if not self._head:
            raise DataError(f"{self.name} is empty: it has no samples")

    def _open(self) -> Iterator[Any]:
        iterator = iter(self.data)
        if self._used is iterator:
            raise DataError(
                f"{self.name} can be read only once and has been read; give a list of batches, a "
                "DataLoader or a data set"
            )
        self._used = iterator
        return iterator

    def __iter__(self) -> Iterator[Any]:
        if self._begun is None:
            yield from self._open()
            return
        rest, self._begun = self._begun, None
        if self.data is Stream._inspected[0]:
            Stream._inspected = (None, [])
        yield from self._head
        yield from rest

    def read(self, part: Part) -> Iterator[tuple[int, Fetched]]:
        place = 0
        for number, (images, labels) in enumerate(self._batches(part.size)):
            index = torch.arange(place, place + len(images))
            new = slice(*(max(end - place, 0) for end in (part.first, part.limit or sys.maxsize)))
            if number % part.world == part.rank:
                yield len(index[new]), (images[new], labels[new], index[new])
            place += len(images)
            if part.limit is not None and place >= part.limit:
                return

    def _batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """Yields images and labels of every batch; single samples are grouped into batches of `size`."""
        self._look(1)
        single = is_sample(self._head[0])
        items = iter(self)
        groups = iter(lambda: list(islice(items, size)), []) if single else items
        for group in groups:
            yield self._stacked(group) if single else self._batch(group)


def digest_of(*inputs: Any) -> bytes:
    """A hash of the types, shapes and values of tensors, and of those in `KeywordInputs`."""
    digest = hashlib.sha256()
    for tensor in chain.from_iterable(map(tensors_of, inputs)):
        digest.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(bytes_of(tensor))
    return digest.digest()
