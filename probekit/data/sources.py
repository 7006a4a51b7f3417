"""Sources of samples: data with items by index, and streams of batches.

Each source knows its name and the names of its labels and, if available before reading, the number of
samples and their labels. An `Indexed` source returns the samples at given indices. A `Stream` yields
batches in their original order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    default_collate,
)

from probekit.data.decoding import ImageDecoder
from probekit.data.images import Fetched, LabeledImages, TensorImages
from probekit.data.items import (
    image_tensor,
    pair_of,
    read_items,
    stacked,
)
from probekit.data.labels import (
    ClassNames,
    all_names,
    class_names,
    declared_attributes,
    declared_labels,
    label_numbers,
    label_table,
    names_of_text,
)
from probekit.errors import DataError, first_line
from probekit.models.inputs import KeywordInputs, tensors_of
from probekit.runtime.processes import processes

_CHECKED_CLASSES = 32
_CHECKED_PLACES = 8
_PEEKED = 8
_IMAGE_AXES = 3


class Source:
    """The base class of all sources.

    Attributes:
        name: The name of the data.
        names: The name of each label; empty if labels have none.
        fingerprint: Hash of the content, or None.
        batch_size: The batch size that the data itself defines, or None.
        skip_bad: Whether to skip unreadable images instead of raising an error.
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
    decode: ImageDecoder | None = None

    @property
    def samples(self) -> int | None:
        """The number of samples; None if it is not known in advance."""
        raise NotImplementedError

    def labels(self) -> Tensor | None:
        """The label of every sample, in order; None if they are not known in advance."""
        raise NotImplementedError

    @property
    def repeatable(self) -> bool:
        """Whether the data can be read several times."""
        raise NotImplementedError

    def _pair(self, raw: Any, what: str = "a batch") -> tuple[Any, Any]:
        return pair_of(raw, what, list(self.attributes))

    def _batch(self, raw: Any) -> tuple[Any, Tensor]:
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

    def _labels(self, labels: Any, count: int) -> Tensor:
        if not self.attributes:
            first = labels[0] if isinstance(labels, list) and labels else labels
            if isinstance(first, Mapping):
                self.attributes = {name: {} for name in sorted(map(str, first))}
        return label_table(labels, count, self.names, self.attributes)


class Indexed(Source):
    """Samples that can be read by index, each once, in the order of `indices`.

    Args:
        data: A map-style data set.
        indices: The indices to use, in order; None for all.
        collate: Converts a list of items to a batch; None stacks images and labels.
        reading: Options of the `DataLoader` that reads in worker processes.
        drawn: Whether `indices` are a random draw, which differs the next time.
        ordered: Whether a limit takes the first of `indices` instead of a random subset.
    """

    def __init__(
        self,
        data: Any,
        indices: Tensor | None = None,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        batch_size: int | None = None,
        reading: Mapping[str, Any] | None = None,
        drawn: bool = False,
        ordered: bool = False,
    ) -> None:
        self.data = data
        self.drawn = drawn
        self.ordered = ordered
        self.batch_size = batch_size
        self.reading = dict(reading or {})
        self._collate = collate
        own = isinstance(data, LabeledImages)
        self.name = str(getattr(data, "name", None) or type(data).__name__)
        self.names = data.names if own else all_names(data)
        self.fingerprint = getattr(data, "fingerprint", None)
        self.skip_bad = bool(getattr(data, "skip_bad", False))
        self.indices = torch.arange(len(data)) if indices is None else indices

    @property
    def samples(self) -> int:
        return len(self.indices)

    @property
    def repeatable(self) -> bool:
        return True

    def fetch(self, numbers: Sequence[int]) -> Fetched:
        """Returns images, labels and indices of some samples, or a description of the failure."""
        numbers = list(numbers)
        try:
            if isinstance(self.data, LabeledImages) and self._collate is None:
                return self.data.fetch(numbers)
            items = read_items(self.data, numbers, self.name)
            images, labels = self._collated(items)
        except DataError as error:
            return error
        if len(images) != len(numbers):
            return DataError(
                f"collate_fn of the DataLoader of {self.name} makes a batch of {len(images)} from "
                f"{len(numbers)} samples, so samples and labels cannot be matched; leave samples out in "
                "the data set instead"
            )
        return images, labels, torch.tensor(numbers)

    def _collated(self, items: list[Any]) -> tuple[Any, Tensor]:
        if self._collate is not None:
            try:
                batch = self._collate(items)
            except Exception as error:
                raise DataError(
                    f"the samples of {self.name} cannot be put into one batch: {first_line(error)}"
                ) from error
            return self._batch(batch)
        return self._stacked(items)

    def labels(self) -> Tensor | None:
        """The label of every sample, in the order of `indices`, if the data set declares them.

        Labels that a data set declares separately from its items are compared with the labels of some
        items: the first of each of the most common labels, and some items between the first and the
        last.
        """
        if isinstance(self.data, LabeledImages) and isinstance(
            getattr(self.data, "labels", None), Tensor
        ):
            known = self.data.labels[self.indices]
            return None if len(known) and int(known.min()) < 0 else known
        if self.attributes:
            if type(self.data) is not TensorDataset or self._collate is not None:
                return None
            rows = self.data.tensors[1][self.indices]
            return label_table(rows, len(rows), self.names, self.attributes)
        labels = declared_labels(self.data, self.names)
        if labels is None or (type(self.data) is TensorDataset and self._collate is None):
            return None if labels is None else labels[self.indices]
        labels = labels[self.indices]
        for place in _some_places(labels):
            fetched = self.fetch([int(self.indices[place])])
            if isinstance(fetched, DataError) or int(fetched[1][0]) != int(labels[place]):
                return None
        return labels


def _some_places(labels: Tensor) -> list[int]:
    """Positions of the first sample of some labels, and some evenly spaced ones including the last."""
    even = spread(len(labels), _CHECKED_PLACES)
    if not even:
        return []
    _, inverse = torch.unique(labels, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(labels))
    first.scatter_reduce_(0, inverse, torch.arange(len(labels)), "amin")
    return sorted({*even, *first[:_CHECKED_CLASSES].tolist()})


class Stream(Source):
    """Batches, or single samples that are grouped into batches, in their original order.

    The first pass includes items that were inspected before it, so data that can be read only once
    loses nothing.
    """

    def __init__(self, data: Iterable[Any], name: str, names: ClassNames) -> None:
        self.data = data
        self.name = name
        self.names = names
        self._head: list[Any] = []
        self._begun: Iterator[Any] | None = None
        self._used: Iterator[Any] | None = None
        self._digest: bytes | None = None
        if isinstance(data, list | tuple) and not names:
            found = [self._text_labels(batch) for batch in data]
            self.names = names_of_text(chain.from_iterable(found))

    @staticmethod
    def _text_labels(batch: Any) -> list[Any]:
        try:
            labels = pair_of(batch)[1]
        except DataError:
            return []
        if isinstance(labels, str):
            return [labels]
        return list(labels) if isinstance(labels, list | tuple | np.ndarray) else []

    @property
    def samples(self) -> int | None:
        labels = self.labels()
        return None if labels is None else len(labels)

    def labels(self) -> Tensor | None:
        if not isinstance(self.data, list | tuple):
            return None
        try:
            found = [self._labels_of(raw) for raw in self.data]
        except DataError:
            return None
        axes = {part.ndim for part in found}
        whole = torch.cat(found) if len(axes) == 1 else None
        return None if whole is None or (len(whole) and int(whole.min()) < 0) else whole

    def _labels_of(self, raw: Any) -> Tensor:
        images, labels = self._pair(raw)
        single = is_sample(raw)
        return self._labels([labels] if single else labels, 1 if single else len(images))

    @property
    def repeatable(self) -> bool:
        if isinstance(self.data, Iterator):
            return False
        if isinstance(self.data, DataLoader) and isinstance(self.data.sampler, RandomSampler):
            return False
        inner = self.data.dataset if isinstance(self.data, DataLoader) else self.data
        return isinstance(inner, list | tuple) or iter(inner) is not iter(inner)

    def head(self, size: int) -> tuple[Any, Tensor]:
        """Returns images and labels of the first batch, which the next pass yields again.

        Raises:
            DataError: The data is empty, or has no batches of labeled images.
        """
        self._look(1)
        if not is_sample(self._head[0]):
            return self._batch(self._head[0])
        self._look(min(size, _PEEKED))
        return self._stacked(self._head)

    def some(self, size: int, most: int) -> tuple[Any, ...]:
        """Images and labels of some samples: of a list, up to the last; otherwise, of the first ones."""
        if not isinstance(self.data, list | tuple) or not self.data:
            return self.head(size)
        found: list[Any] = []
        for place in spread(len(self.data), most):
            images, labels = self._batch(self.data[place])
            rows = spread(len(labels), most)
            found += [images[rows], labels[rows]]
        return tuple(found)

    def _look(self, count: int) -> None:
        """Reads the first items, unless already done, and keeps them for the next pass."""
        if not self._head:
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
        yield from self._head
        yield from rest

    def batches(self, size: int) -> Iterator[tuple[Any, Tensor]]:
        """Yields images and labels of every batch; single samples are grouped into batches of `size`.

        Raises:
            DataError: An item is not a batch of labeled images, or differs from the first pass.
        """
        self._look(1)
        single = is_sample(self._head[0])
        items = iter(self)
        groups = iter(lambda: list(islice(items, size)), []) if single else items
        for number, group in enumerate(groups):
            batch = self._stacked(group) if single else self._batch(group)
            if not number:
                self._compare(*batch)
            yield batch

    def _compare(self, images: Any, labels: Tensor) -> None:
        """Raises `DataError` if the first batch differs from that of the first pass."""
        digest = digest_of(images, labels)
        if self._digest not in (None, digest):
            raise DataError(
                f"{self.name} yields different samples each time it is read; give data that stays the "
                "same: a list of batches, a DataLoader or a data set"
            )
        self._digest = digest


def digest_of(*inputs: Any) -> bytes:
    """A hash of the types, shapes and values of tensors, and of those in `KeywordInputs`."""
    digest = hashlib.sha256()
    for tensor in chain.from_iterable(map(tensors_of, inputs)):
        digest.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.digest()


def spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced integers below `count`, with the first and the last."""
    return sorted(set(torch.linspace(0, count - 1, min(most, count)).long().tolist()))


def is_sample(raw: Any) -> bool:
    """Whether an item is one sample rather than a batch: its label is a single value.

    Without a label, or with a one-hot label of another length than the image, an image with three axes
    or a PIL image is one sample. With several attributes, each is a single value.
    """
    try:
        image, label = pair_of(raw)
    except DataError:
        return False
    if label is None:
        return (
            not isinstance(image, Mapping | list)
            and getattr(image, "ndim", _IMAGE_AXES) == _IMAGE_AXES
        )
    if _has_one_hot_label(image, label):
        return not hasattr(image, "shape") or len(image) != len(label)
    values = list(label.values()) if isinstance(label, Mapping) else [label]
    return all(isinstance(value, str) or np.ndim(value) == 0 for value in values)


def _has_one_hot_label(image: Any, label: Any) -> bool:
    """Whether an item may be one image with a one-hot label."""
    if isinstance(image, Mapping | list) or getattr(image, "ndim", _IMAGE_AXES) != _IMAGE_AXES:
        return False
    if not isinstance(label, Tensor | np.ndarray | list | tuple) or np.ndim(label) != 1:
        return False
    values = np.asarray(label)
    return values.dtype.kind in "biuf" and sorted(values) == [0] * (len(values) - 1) + [1]


def open_source(data: Any, attributes: Any = None) -> Source:
    """Opens data as a source.

    Raises:
        DataError: The data is none of these.
    """
    source = data if isinstance(data, Source) else _opened(data, attributes)
    inner = getattr(source, "data", None)
    inner = inner.dataset if isinstance(inner, DataLoader) else inner
    found = declared_attributes(inner, attributes)
    if found:
        source.attributes = found
    return source


def _opened(data: Any, attributes: Any) -> Source:
    if isinstance(data, Tensor | np.ndarray):
        return _of_images(data)
    if isinstance(data, Mapping):
        what = f"the mapping {type(data).__name__}"
        images, labels = pair_of(data, what, list(declared_attributes(None, attributes)))
        if isinstance(images, Mapping | list):
            return Stream([(images, labels)], type(data).__name__, {})
        if labels is None:
            return _of_images(images)
        data = images, labels
    if arrays := _two_arrays(data):
        return arrays
    if isinstance(data, DataLoader):
        return _of_loader(data)
    name = str(getattr(data, "name", None) or type(data).__name__)
    if isinstance(data, list | tuple):
        if data and is_sample(data[0]):
            samples = Indexed(data)
            samples.names = names_of_text(pair_of(sample)[1] for sample in data)
            return samples
        if len(data) > 2 and all(_has_one_hot_label(*pair_of(item)) for item in data):
            raise DataError(
                f"the items of {name} may be images with one-hot labels, or batches of "
                f"{len(pair_of(data[0])[1])}; give the labels as integers, or all images and all labels "
                "as two arrays"
            )
        return Stream(data, name, {})
    if _is_map_style(data):
        return Indexed(data)
    if isinstance(data, Iterable):
        return Stream(data, name, class_names(data))
    raise DataError(
        "data must be a data set, a DataLoader or an iterable of (images, labels) batches, not "
        f"{type(data).__name__}"
    )


def _is_map_style(data: Any) -> bool:
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return False
    try:
        return len(data) > 0 and is_sample(data[0])
    except (KeyError, IndexError, TypeError):
        return False


def _of_images(images: Any) -> Indexed:
    """Images in memory without labels."""
    made: Any = TensorDataset(image_tensor(images, "the data"))
    made.name = "tensors"
    return Indexed(made)


def _dimensions(labels: Any) -> int:
    try:
        return np.ndim(labels)
    except ValueError:  # a list of numbers and tensors of one number
        return 1


def _two_arrays(data: Any) -> Indexed | None:
    """Images and labels in memory, with the attributes of labels in several columns."""
    if not isinstance(data, list | tuple) or len(data) != 2:
        return None
    images, labels = data
    if not isinstance(images, Tensor | np.ndarray) or isinstance(labels, str):
        return None
    if hasattr(labels, "columns"):  # a table of pandas or polars
        labels = {str(name): np.asarray(labels[name]) for name in labels.columns}
    attributes = {}
    if isinstance(labels, Mapping):
        attributes = {str(name): names_of_text(values) for name, values in labels.items()}
        labels = label_table(labels, len(images), {}, attributes)
    if images.ndim < 2 or not hasattr(labels, "__len__"):
        return None
    if len(labels) != len(images):
        if getattr(labels, "ndim", 1) == 1:  # otherwise, these may be two batches without labels
            raise DataError(
                f"there are {len(images)} images and {len(labels)} labels; give one label per image"
            )
        return None
    images = image_tensor(images, "the data")
    names = names_of_text(labels)
    several = attributes or _dimensions(labels) > 1
    rows = labels if isinstance(labels, Tensor) or not several else np.asarray(labels)
    numbers = torch.as_tensor(rows) if several else label_numbers(labels, names)
    if numbers.ndim not in (1, 2):
        return None
    if images.ndim == 4 and numbers.ndim == 1:
        made: Any = TensorImages(images, numbers, [names[label] for label in sorted(names)])
    else:
        made = TensorDataset(images, numbers)
        made.classes, made.name = names, "tensors"
    source = Indexed(made)
    source.attributes = attributes
    return source


def _of_loader(loader: DataLoader[Any]) -> Source:
    """The source that a loader reads from: samples by index if its sampler yields indices."""
    data = loader.dataset
    name = str(getattr(data, "name", None) or type(data).__name__)
    plain = type(loader).__iter__ is DataLoader.__iter__
    if not plain or (loader.batch_sampler is None and not isinstance(data, IterableDataset)):
        return Stream(loader, name, class_names(data))
    if isinstance(data, IterableDataset):
        # Each worker process would yield the whole stream, unless the stream divides itself.
        alone = loader if not loader.num_workers else _in_this_process(loader)
        return Stream(alone, name, class_names(data))
    try:
        with _same_random_state(loader):
            (first, batch), (second, _) = _sampled(loader), _sampled(loader)
    except (TypeError, ValueError):  # the sampler yields keys that are no integers
        return Stream(loader, name, class_names(data))
    size = loader.batch_size or max(batch, 1)
    indices = _each_once(first, name)
    ordered = torch.equal(first, second)
    if not ordered:
        indices = indices.sort().values
    drawn = not torch.equal(indices.sort().values, second.sort().values)
    if isinstance(loader.sampler, DistributedSampler) and processes().world > 1:
        # Processes divide all samples among themselves anyway.
        indices = torch.arange(len(data))  # type: ignore[arg-type]  # a map-style data set has a length
    reading = {
        "num_workers": loader.num_workers,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "prefetch_factor": loader.prefetch_factor,
    }
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    return Indexed(
        data,
        indices,
        collate=collate,
        batch_size=size,
        reading=reading,
        drawn=drawn,
        ordered=ordered,
    )


def _in_this_process(loader: DataLoader[Any]) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        collate_fn=loader.collate_fn,
    )


@contextmanager
def _same_random_state(loader: DataLoader[Any]) -> Iterator[None]:
    """Preserves the random states that a sampler draws from."""
    owners = (loader, loader.sampler, loader.batch_sampler)
    known = (getattr(owner, "generator", None) for owner in owners)
    generators = [generator for generator in known if isinstance(generator, Generator)]
    states = [generator.get_state() for generator in generators]
    with torch.random.fork_rng(devices=[]):
        yield
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _sampled(loader: DataLoader[Any]) -> tuple[Tensor, int]:
    """The indices that a loader's sampler yields this time, and the size of its first batch."""
    batches = ([int(number) for number in batch] for batch in loader.batch_sampler or ())
    first = next(batches, [])
    most = len(loader.dataset) + 1  # type: ignore[arg-type]  # a map-style data set has a length
    numbers = [*first, *islice(chain.from_iterable(batches), most)]
    return torch.tensor(numbers, dtype=torch.long), len(first)


def _each_once(indices: Tensor, name: str) -> Tensor:
    values, counts = torch.unique(indices, return_counts=True)
    if len(values) < len(indices):
        raise DataError(
            f"the DataLoader of {name} yields sample {int(values[counts.argmax()])} more than once, but "
            "each sample counts once; give a loader that draws without replacement, or the data set"
        )
    return indices
