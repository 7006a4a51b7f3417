"""What single samples and whole batches of any data are made of: an image and a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probekit.errors import DataError, first_line
from probekit.models.inputs import KeywordInputs

__all__ = ["IMAGE_KEYS", "LABEL_KEYS", "column", "image_tensor", "pair_of", "read_items", "stacked"]

IMAGE_KEYS = ("image", "images", "pixel_values", "img", "jpg", "png")
# What tokenizers and feature extractors name the arguments of a model.
TOKEN_KEYS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "input_values",
    "input_features",
)
LABEL_KEYS = ("label", "labels", "target", "fine_label", "cls")


def pair_of(raw: Any, what: str = "a batch", attributes: Sequence[str] = ()) -> tuple[Any, Any]:
    """The image and the label of a sample, or the images and labels of a batch.

    A third member of a tuple (weights, paths, other metadata) is ignored. Of an image alone the label
    is None.

    Args:
        raw: A tuple, a mapping or an image.
        what: What it is, for the message.
        attributes: Keys of a mapping that hold its labels.

    Raises:
        DataError: Neither a pair, nor a mapping with the key of images, nor an image.
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
    """The first of some keys that a mapping has.

    Raises:
        DataError: It has none of them.
    """
    for key in keys:
        if key in raw:
            return raw[key]
    raise DataError(
        f"{what} has the keys {', '.join(map(str, raw))}, and none of {', '.join(keys)}"
    )


def image_tensor(image: Any, what: str) -> Any:
    """An image, or images, as a tensor; of a mapping, each of its arrays.

    Raises:
        DataError: A PIL image, which has no size to be fitted to here, or no image.
    """
    if isinstance(image, Mapping):
        return {
            str(name): image_tensor(np.asarray(one) if isinstance(one, list) else one, what)
            for name, one in image.items()
        }
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray) and image.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(image.astype(image.dtype.newbyteorder("="))))
    if isinstance(image, Image.Image):
        raise DataError(
            f"{what} gives items that are not tensors; give it a transform to tensors, or load it "
            "with load_data(dataset, model)"
        )
    raise DataError(f"the images of {what} must be tensors, not {type(image).__name__}")


def stacked(images: Sequence[Any], name: str) -> Any:
    """Images of one shape as a batch, or samples of several arrays as `KeywordInputs`.

    Raises:
        DataError: They differ in shape.
    """
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
    """Some items of a map-style data set.

    Raises:
        DataError: One cannot be read; the data set's own exception is the cause.
    """
    many = getattr(data, "__getitems__", None)
    if callable(many):
        try:
            found = list(many(list(numbers)))
        except Exception:  # the item at fault is found one by one
            found = []
        if len(found) == len(numbers):
            return found
    items = []
    for number in numbers:
        try:
            items.append(data[number])
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"item {number} of {name} cannot be read: {type(error).__name__}: {first_line(error)}"
            ) from error
    return items
