"""Recognizes data and opens it as a source of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    default_collate,
)

from probekit.data.images import TensorImages
from probekit.data.items import (
    has_one_hot_label,
    image_tensor,
    is_map_style,
    is_sample,
    pair_of,
)
from probekit.data.labels import (
    ClassNames,
    class_names,
    declared_attributes,
    label_numbers,
    label_table,
    names_of_text,
)
from probekit.data.sources import Indexed, Stream
from probekit.errors import DataError, warn
from probekit.runtime.processes import processes


def open_source(data: Any, attributes: object) -> Indexed | Stream:
    """Opens data as a source."""
    source = data if isinstance(data, Indexed | Stream) else _opened(data, attributes)
    inner = getattr(source, "data", None)
    inner = inner.dataset if isinstance(inner, DataLoader) else inner
    found = declared_attributes(inner, attributes)
    own = list(declared_attributes(inner))
    if own != list(found) and sorted(own) == sorted(found):
        raise DataError(
            f"attributes were given in the order {', '.join(found)}, and the data has them in the order "
            f"{', '.join(own)}; give them in this order"
        )
    if found and not source.attributes:
        source.attributes = found
    return source


def _opened(data: Any, attributes: object) -> Indexed | Stream:
    if isinstance(data, tuple) and len(data) == 2 and data[1] is None:
        data = data[0]  # (images, labels) without labels
    if isinstance(data, Tensor | np.ndarray):
        return _of_images(data)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Mapping):
        inputs, labels = data  # such as the output of a processor or tokenizer, and labels
        if isinstance(labels, Tensor | np.ndarray | list):
            data = {**inputs, "label": labels}
    if isinstance(data, Mapping):
        what = f"the mapping {type(data).__name__}"
        images, labels = pair_of(data, what, list(declared_attributes(None, attributes)))
        if isinstance(images, Mapping | list):
            return Stream([(images, labels)], type(data).__name__, {})
        if labels is None:
            return _of_images(images)
        data = images, labels
    if arrays := _two_arrays(data, attributes):
        return arrays
    if isinstance(data, DataLoader):
        return _of_loader(data)
    name = str(getattr(data, "name", None) or type(data).__name__)
    if isinstance(data, list | tuple):
        if data and is_sample(data[0]):
            samples = Indexed(data)
            samples.names = names_of_text(pair_of(sample)[1] for sample in data)
            return samples
        if len(data) > 2 and all(has_one_hot_label(*pair_of(item)) for item in data):
            raise DataError(
                f"the items of {name} may be images with one-hot labels, or batches of "
                f"{len(pair_of(data[0])[1])}; give the labels as integers, or all images and all labels "
                "as two arrays"
            )
        return Stream(data, name, {})
    if is_map_style(data) and (isinstance(data, Dataset) or _begins_with_sample(data)):
        if not hasattr(data, "__len__"):
            raise DataError(f"{name} has no length; define __len__, or make it an IterableDataset")
        return Indexed(data)
    if isinstance(data, Iterable):
        return Stream(data, name, class_names(data))
    raise DataError(
        "data must be a data set, a DataLoader or an iterable of (images, labels) batches, not "
        f"{type(data).__name__}"
    )


def _begins_with_sample(data: Any) -> bool:
    try:
        return len(data) > 0 and is_sample(data[0])
    except (KeyError, IndexError, TypeError):
        return False


def _of_images(images: object) -> Indexed:
    """Images in memory without labels."""
    made: Any = TensorDataset(image_tensor(images, "the data"))
    made.name = "tensors"
    return Indexed(made)


def _dimensions(labels: Any) -> int:
    try:
        return np.ndim(labels)
    except ValueError:  # a list of numbers and tensors of one number
        return 1


def _two_arrays(data: Any, asked: object) -> Indexed | None:
    """Images and labels in memory, with the attributes of labels in several columns."""
    if not isinstance(data, list | tuple) or len(data) != 2:
        return None
    images, labels = data
    if not isinstance(images, Tensor | np.ndarray) or isinstance(labels, str):
        return None
    if hasattr(labels, "columns"):  # a table of pandas or polars
        labels = {str(name): np.asarray(labels[name]) for name in labels.columns}
    attributes: dict[str, ClassNames] = {}
    if isinstance(labels, Mapping):
        labels = {str(name): values for name, values in labels.items()}
        wanted = declared_attributes(None, asked) or {name: {} for name in labels}
        attributes = {
            name: names or names_of_text(labels.get(name)) for name, names in wanted.items()
        }
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
        classes = [names[label] for label in sorted(names)]
        made: Any = TensorImages(images, numbers, classes, scaled=False)
    else:
        made = TensorDataset(images, numbers)
        made.classes, made.name = names, "tensors"
    source = Indexed(made)
    source.attributes = attributes
    return source


def _of_loader(loader: DataLoader[Any]) -> Indexed | Stream:
    """The source that a loader reads from: samples by index if its sampler yields indices."""
    data = loader.dataset
    name = str(getattr(data, "name", None) or type(data).__name__)
    plain = type(loader).__iter__ is DataLoader.__iter__
    if not plain or (loader.batch_sampler is None and not isinstance(data, IterableDataset)):
        return Stream(loader, name, class_names(data))
    if isinstance(data, IterableDataset):
        # Each worker process would yield the whole stream, unless the stream divides itself.
        alone: DataLoader[Any] = DataLoader(
            data,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            collate_fn=loader.collate_fn,
        )
        return Stream(alone if loader.num_workers else loader, name, class_names(data))
    try:
        with _same_random_state(loader):
            (first, batch), (second, _) = _sampled(loader), _sampled(loader)
    except (TypeError, ValueError):  # the sampler yields keys that are no integers
        return Stream(loader, name, class_names(data))
    size = loader.batch_size or max(batch, 1)
    _check_once(first, name)
    ordered = torch.equal(first, second)
    indices = first if ordered else first.sort().values
    drawn = not torch.equal(first.sort().values, second.sort().values)
    whole = len(data)  # type: ignore[arg-type]  # a map-style data set has a length
    if isinstance(loader.sampler, DistributedSampler) and len(indices) < whole:
        if processes().world > 1:
            # Processes divide all samples among themselves anyway.
            indices = torch.arange(whole)
        else:
            warn(
                f"the DistributedSampler of {name} selects the share of one of {loader.sampler.num_replicas} "
                f"processes: {len(indices)} of {whole} samples; leave it out to measure all"
            )
    options = (
        "num_workers", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor",
    )  # fmt: skip
    return Indexed(
        data,
        indices,
        collate=None if loader.collate_fn is default_collate else loader.collate_fn,
        batch_size=size,
        loader_options={option: getattr(loader, option) for option in options},
        drawn=drawn,
        ordered=ordered,
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
    numbers = [number + most - 1 if number < 0 else number for number in numbers]
    return torch.tensor(numbers, dtype=torch.long), len(first)


def _check_once(indices: Tensor, name: str) -> None:
    values, counts = torch.unique(indices, return_counts=True)
    if len(values) < len(indices):
        raise DataError(
            f"the DataLoader of {name} yields sample {int(values[counts.argmax()])} more than once, but "
            "each sample counts once; give a loader that draws without replacement, or the data set"
        )
