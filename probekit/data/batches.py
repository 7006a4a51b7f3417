"""The one loop over data: any source of labelled images, streamed as checked batches."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from probekit.data.images import LabelledImages, TensorImages
from probekit.errors import DataError, OptionError

__all__ = ["Batch", "Batches", "draw"]

_WORKERS = 4096


@dataclass(frozen=True)
class Batch:
    """Some samples: images (batch, ...), labels (batch,) and their indices (batch,) in the data."""

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same samples on a device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.index,
        )


def draw(count: int, most: int, seed: int) -> Tensor:
    """Some of the numbers below `count`, drawn at random, in increasing order.

    >>> draw(3, 3, seed=0)
    tensor([0, 1, 2])
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


class Batches:
    """Streams any labelled images as batches, reading one batch ahead in the background.

    Args:
        data: A map-style data set, a `DataLoader`, two tensors (images, labels), or any iterable of
            batches: pairs (images, labels), or mappings with `image`/`images`/`pixel_values` and
            `label`/`labels`.
        batch_size: Samples a batch, for data that does not come in batches.
        limit: How many samples to use. Of a map-style data set a random sample is drawn, so that
            data sorted by class stays representative; of anything else the first ones are taken.
        seed: Seeds that sample.
        workers: Reading processes; None takes what the data set advises.

    Raises:
        DataError: Nothing in it, or something that is no batch of labelled images; labels below 0
            or beyond the known classes.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int = 64,
        limit: int | None = None,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("limit", limit)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} must be a whole number of at least 1, not {value!r}")
        if batch_size > sys.maxsize or not -(2**63) <= seed < 2**63:
            raise OptionError(f"batch_size {batch_size} or seed {seed} has more than 64 bits")
        if workers is not None and (not isinstance(workers, int) or not 0 <= workers <= _WORKERS):
            raise OptionError(f"workers is a whole number from 0 to {_WORKERS}, not {workers!r}")
        if isinstance(data, tuple) and len(data) == 2 and all(isinstance(x, Tensor) for x in data):
            images, labels = data
            if images.ndim > 1 and labels.ndim == 1 and len(images) == len(labels):
                data = TensorImages(images, labels) if images.ndim == 4 else [data]
        self.source = data
        self.batch_size = batch_size
        self.limit = limit
        self.seed = seed
        self.workers = workers
        if isinstance(data, DataLoader):
            self.batch_size = data.batch_size or batch_size
            data = data.dataset
        self.classes: tuple[str, ...] = tuple(str(x) for x in getattr(data, "classes", None) or ())
        self.name: str = str(getattr(data, "name", type(data).__name__))
        self.skipped = 0
        self.first = 0
        self.rank, self.world = 0, 1
        self._drawn: Tensor | None = None

    @property
    def samples(self) -> int | None:
        """How many samples there are, as far as that is known in advance."""
        known: int | None = None
        if isinstance(self.source, DataLoader | Dataset) and not isinstance(
            self.source, IterableDataset
        ):
            data = self.source.dataset if isinstance(self.source, DataLoader) else self.source
            known = len(data) if hasattr(data, "__len__") else None
        if known is None:
            return None
        return known if self.limit is None else min(known, self.limit)

    def provenance(self) -> dict[str, Any]:
        """What is known of the data, as plain values."""
        data = self.source.dataset if isinstance(self.source, DataLoader) else self.source
        fingerprint = getattr(data, "fingerprint", None)
        return {
            "name": self.name,
            "fingerprint": fingerprint or "unknown",
            "samples": self.samples,
            "limit": self.limit,
            "batch_size": self.batch_size,
        }

    def subset(self) -> Tensor | None:
        """The indices that `limit` draws from a map-style data set; None where it draws none."""
        if self._drawn is None and self.limit is not None and _is_map(self.source):
            count = len(self.source)
            if self.limit < count:
                self._drawn = draw(count, self.limit, self.seed)
        return self._drawn

    def starting(self, first: int) -> Batches:
        """The same data without the first samples, which a resumed run has seen already."""
        if not first:
            return self
        rest = copy(self)
        rest.first = first
        return rest

    def share(self, rank: int, world: int) -> Batches:
        """The part of the data that one of several processes takes.

        Samples of a map-style data set are dealt out one by one, those of anything else by batches.
        """
        part = copy(self)
        part.rank, part.world = rank, world
        return part

    def order(self) -> Tensor | None:
        """The indices of a map-style data set in the order they come; None where that is 0, 1, 2, ..."""
        index = self.subset()
        if not _is_map(self.source) or (not self.first and self.world == 1):
            return index
        index = torch.arange(len(self.source)) if index is None else index
        return index[self.first :][self.rank :: self.world]

    def peek(self) -> Batch:
        """The first batch, which comes again when the data is gone through."""
        if isinstance(self.source, Iterator):
            self.source = _Replayed(self.source)
        if isinstance(self.source, _Replayed):
            return self._check(next(self.source.again(), DataError(f"{self.name} is empty")), None)
        return next(iter(self))

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = 0
        mapped = _is_map(self.source)
        order = self.order()
        place = 0 if mapped else self.first
        for number, raw in enumerate(_read_ahead(self._raw())):
            batch = self._check(raw, None if order is None else order[place:], place)
            if self.limit is not None and not mapped:
                keep = min(len(batch), self.limit - place)
                batch = Batch(batch.images[:keep], batch.labels[:keep], batch.index[:keep])
            place += len(batch)
            if len(batch) and (mapped or number % self.world == self.rank):
                yield batch
            if self.limit is not None and not mapped and place >= self.limit:
                break
        if not place and (not mapped or self.world == 1):
            raise DataError(f"{self.name} has no samples that can be read")

    def _raw(self) -> Iterator[Any]:
        if isinstance(self.source, DataLoader) or not isinstance(self.source, Dataset):
            if not isinstance(self.source, Iterable):
                raise DataError(
                    f"data must be a data set, a DataLoader or an iterable of (images, labels) "
                    f"batches, not {type(self.source).__name__}"
                )
            yield from islice(self.source, self.first // self.batch_size, None)
            return
        data = self.source
        index = self.order()
        own = isinstance(data, LabelledImages)
        if isinstance(data, LabelledImages):
            data = _Chosen(data, range(len(data)) if index is None else index.tolist())
        elif index is not None:
            data = Subset(data, index.tolist())
        workers = self.workers
        if workers is None:
            workers = getattr(self.source, "workers", 0)
            workers = 0 if (self.samples or 0) <= 4 * self.batch_size else workers
        loader = DataLoader(
            data,
            batch_size=self.batch_size,
            num_workers=workers,
            collate_fn=_as_fetched if own else None,
            pin_memory=torch.cuda.is_available() and own,
        )
        try:
            yield from loader
        except TypeError as error:
            if "default_collate" not in str(error):
                raise
            raise DataError(
                f"{self.name} gives items that are not tensors; give it a transform to tensors, or "
                "load it with load_data(dataset, model)"
            ) from None

    def _check(self, raw: Any, order: Tensor | None, place: int = 0) -> Batch:
        if isinstance(raw, DataError):
            raise raw
        images, labels, index = _parts(raw)
        if index is None:
            count = len(images)
            index = torch.arange(place, place + count) if order is None else order[:count]
        elif isinstance(self.source, LabelledImages) and self.source.skip_bad:
            whole = len(self.source) if order is None else len(order) + place
            asked = min(self.batch_size, whole - place - self.skipped)
            self.skipped += asked - len(index)
        if labels.ndim != 1 or len(labels) != len(images):
            raise DataError(
                f"a batch must be (images, labels) with one label an image, not of the shapes "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(f"labels must be whole numbers from 0, not {labels.dtype}")
        if len(labels):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or (self.classes and high >= len(self.classes)):
                beyond = f"{len(self.classes)} classes" if self.classes else "whole numbers from 0"
                raise DataError(
                    f"label {low if low < 0 else high} is out of range: expected {beyond}"
                )
        return Batch(images, labels.long(), index)


class _Replayed:
    """An iterator whose first item can be looked at before it is gone through."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._first = list(islice(iterator, 1))
        self._rest = iterator

    def again(self) -> Iterator[Any]:
        """The first item alone."""
        return iter(self._first)

    def __iter__(self) -> Iterator[Any]:
        yield from self._first
        yield from self._rest


class _Chosen(Dataset[Any]):
    """Samples of a `LabelledImages`, fetched many at a time, with their numbers or what went wrong."""

    def __init__(self, data: LabelledImages, index: Sequence[int]) -> None:
        self.data, self.index = data, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, numbers: list[int]) -> Any:
        return self.data.fetch([self.index[number] for number in numbers])


def _is_map(data: Any) -> bool:
    return isinstance(data, Dataset) and not isinstance(data, IterableDataset)


def _as_fetched(fetched: Any) -> Any:
    return fetched


_IMAGES = ("image", "images", "pixel_values", "img")
_LABELS = ("label", "labels", "target", "fine_label")


def _parts(raw: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    if isinstance(raw, Mapping):
        images = next((raw[key] for key in _IMAGES if key in raw), None)
        labels = next((raw[key] for key in _LABELS if key in raw), None)
        parts: tuple[Any, ...] = (images, labels)
    elif isinstance(raw, list | tuple) and len(raw) in (2, 3):
        parts = tuple(raw)
    else:
        raise DataError(
            f"a batch must be (images, labels), not {type(raw).__name__}"
            + (f" of {len(raw)}" if isinstance(raw, list | tuple) else "")
        )
    if not isinstance(parts[0], Tensor) or not parts[0].ndim:
        raise DataError(f"the images of a batch must be a tensor, not {type(parts[0]).__name__}")
    try:
        labels = torch.as_tensor(parts[1])
        index = torch.as_tensor(parts[2]) if len(parts) == 3 else None
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the labels of a batch must be whole numbers, not {type(parts[1]).__name__}"
        ) from None
    return parts[0], labels, index


def _read_ahead(source: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """Yields what an iterator yields, computed in a thread up to `depth` items ahead."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for item in source:
                if not put("item", item) or stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=read, daemon=True, name="probekit-read-ahead")
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "item":
                yield value
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stopped.set()
        with suppress(queue.Empty):  # makes room for what the thread may be waiting to hand over
            while True:
                ready.get_nowait()
        thread.join(timeout=5)
