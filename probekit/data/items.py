"""Extracts images and labels from single samples and batches of any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from probekit.data.decoding import ImageDecoder
from probekit.data.labels import (
    LABEL_KEYS,
    ClassNames,
    class_names,
    declared_labels,
    declared_text,
    label_numbers,
    some_places,
)
from probekit.errors import DataError, first_line, warn
from probekit.models.inputs import IMAGE_KEYS, KeywordInputs

# Names of model arguments in the output of tokenizers and feature extractors.
TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "input_values", "input_features")
_IMAGE_AXES = 3


def pair_of(raw: object, what: str = "a batch", attributes: Sequence[str] = ()) -> tuple[Any, Any]:
    """The image and the label of a sample, or the images and labels of a batch.

    Further elements of a tuple (weights, paths, other metadata) are ignored. For an image alone, the
    label is None.
    """
    if isinstance(raw, Mapping):
        tokens = {key: raw[key] for key in TOKEN_KEYS if key in raw}
        inputs = tokens or column(raw, IMAGE_KEYS, what)
        if attributes and all(name in raw for name in attributes):
            return inputs, {name: raw[name] for name in attributes}
        return inputs, next((raw[key] for key in LABEL_KEYS if key in raw), None)
    if isinstance(raw, Tensor | np.ndarray | Image.Image):
        return raw, None
    if isinstance(raw, list | tuple) and len(raw) == 1:
        return raw[0], None
    if isinstance(raw, list | tuple) and len(raw) in (2, 3):
        return raw[0], raw[1]
    raise DataError(
        f"{what} must be (images, labels), not {type(raw).__name__}"
        + (f" of {len(raw)}" if isinstance(raw, list | tuple) else "")
    )


def column(raw: Mapping[str, Any], keys: Sequence[str], what: str) -> Any:
    """The value of the first of several keys that a mapping has."""
    for key in keys:
        if key in raw:
            return raw[key]
    splits = "; choose a split, as in data['test']" if {"train", "test"} & set(raw) else ""
    raise DataError(
        f"{what} has the keys {', '.join(map(str, raw))}, and none of {', '.join(keys)}{splits}"
    )


def image_tensor(image: object, what: str, decode: ImageDecoder | None = None) -> Any:
    """Converts an image or images to a tensor; for a mapping, each of its arrays.

    `decode` reads images that are not arrays; None refuses them, as their target size is not known. `what`
    describes the image for the message.
    """
    if ImageDecoder.reads(image) and decode is not None:
        return decode(image, what)
    if isinstance(image, list | tuple) and image and ImageDecoder.reads(image[0]):
        return torch.stack([image_tensor(one, what, decode) for one in image])
    if isinstance(image, Mapping) and not ImageDecoder.reads(image):
        return {
            str(name): image_tensor(np.asarray(one) if isinstance(one, list) else one, what)
            for name, one in image.items()
        }
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray) and image.dtype.kind in "biuf":
        if np.ma.is_masked(image):
            raise DataError(f"images of {what} have masked pixels; fill them in, as in x.filled(0)")
        return torch.from_numpy(np.ascontiguousarray(image.astype(image.dtype.newbyteorder("="))))
    if ImageDecoder.reads(image):
        raise DataError(
            f"{what} gives items that are not tensors, and the model has no input size to fit them to; "
            "give it a transform to tensors, or wrap the model in an ImageModel"
        )
    raise DataError(f"the images of {what} must be tensors, not {type(image).__name__}")


def stacked(images: Sequence[Any], name: str) -> Any:
    """Stacks images of equal shape to a batch, or samples of several arrays to `KeywordInputs`."""
    if images and isinstance(images[0], Mapping):
        columns = {key: [one[key] for one in images] for key in images[0]}
        return KeywordInputs({key: stacked(column, name) for key, column in columns.items()})
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    if len(shapes) > 1:
        raise DataError(
            f"images of {name} have different shapes, such as {shapes[0]} and {shapes[1]}; resize them "
            "to one, or load the data with load_data(dataset, model); pad tokens to one length"
        )
    return torch.stack(list(images))


def read_items(data: Any, numbers: Sequence[int], name: str) -> list[Any]:
    """Reads several items of a map-style data set."""
    many = getattr(data, "__getitems__", None)
    if callable(many):
        try:
            found = many(list(numbers))
            found = [] if isinstance(found, Mapping) else list(found)
        except Exception:  # read the items one by one to find the faulty one
            found = []
        if len(found) == len(numbers):
            return found
    items: list[Any] = []
    first: list[tuple[Any, Any]] = []
    for number in numbers:
        try:
            items.append(data[number])
            first = first or _copies(items[0])
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"item {number} of {name} cannot be read: {type(error).__name__}: {first_line(error)}"
            ) from error
    for now, before in first:
        same = torch.equal(now, before) if isinstance(now, Tensor) else np.array_equal(now, before)
        if not same and not bool((now != now).any()):  # NaN is refused later
            raise DataError(
                f"the items of {name} share memory: reading one changes those read before; return copies, "
                "as in image.clone()"
            )
    return items


def all_names(data: Any, beside: Sequence[Any] = ()) -> ClassNames:
    """The names that a data set declares for its labels, or its labels themselves if they are text.

    `beside` are the other splits of the data; a subset has the names of the whole data set.
    """
    if isinstance(data, Subset):
        return all_names(data.dataset, beside)
    if names := class_names(data):
        return names
    names = declared_text(data, beside)
    if names and not _are_numbered(data, names):
        warn(
            f"classes have no names: `labels` or `targets` of {type(data).__name__} are text that the "
            "numbers in its items do not follow; give it `classes`, the names in label order"
        )
        return {}
    return names


def _are_numbered(data: Any, names: ClassNames) -> bool:
    """Whether items have the labels that a data set declares as text, as numbers or as text."""
    declared = declared_labels(data, names)
    if declared is None:  # such as a list of all classes
        return False
    for place in some_places(declared):
        try:
            label = pair_of(data[place])[1]
        except Exception:  # it is reported when it is read again
            continue
        if isinstance(label, str | bytes):
            return True
        try:
            if int(label_numbers([label], names)) != int(declared[place]):
                return False
        except DataError:
            return False
    return True


def _copies(item: Any) -> list[tuple[Any, Any]]:
    """The tensors and arrays of the image and the label of an item, each with a copy."""
    parts = list(item.values()) if isinstance(item, Mapping) else [item]
    parts = list(item[:2]) if isinstance(item, list | tuple) else parts
    return [
        (one, one.clone() if isinstance(one, Tensor) else one.copy())
        for one in parts
        if _is_array(one)
    ]


def _is_array(one: Any) -> bool:
    if isinstance(one, Tensor):
        return one.device.type == "cpu" and one.layout == torch.strided
    return isinstance(one, np.ndarray) and one.dtype.kind in "biuf"


def is_map_style(data: object) -> bool:
    """Whether data has items by index: a map-style data set, or another object with `len` and `[]`."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return indexed and not isinstance(data, str | Path | list | tuple | Mapping)


def is_sample(raw: object) -> bool:
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
    if has_one_hot_label(image, label):
        return not hasattr(image, "shape") or len(image) != len(label)
    values = list(label.values()) if isinstance(label, Mapping) else [label]
    return all(
        isinstance(value, str) or (not isinstance(value, list | tuple) and np.ndim(value) == 0)
        for value in values
    )


def has_one_hot_label(image: object, label: object) -> bool:
    """Whether an item may be one image with a one-hot label."""
    if isinstance(image, Mapping | list) or getattr(image, "ndim", _IMAGE_AXES) != _IMAGE_AXES:
        return False
    if not hasattr(image, "ndim") and not ImageDecoder.reads(image):
        return False
    if not isinstance(label, Tensor | np.ndarray | list | tuple) or np.ndim(label) != 1:
        return False
    values = np.asarray(label)
    return values.dtype.kind in "biuf" and sorted(values) == [0] * (len(values) - 1) + [1]
