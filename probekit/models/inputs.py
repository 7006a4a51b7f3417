"""Inputs handed to a model, which may write into them in place."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TypeVar

from torch import Tensor

__all__ = ["copied"]

T = TypeVar("T")


def copied(inputs: T) -> T:
    """The same inputs in memory of their own, so that the model may write into them.

    A model that normalizes its images in place (`x.sub_(mean)`, `F.relu(x, inplace=True)`) would
    otherwise change the images of the user and of every later pass. In autograd the copy keeps the
    gradient, and is no leaf, which no operation may change in place.

    Args:
        inputs: A tensor, or tuples, lists and mappings of tensors; anything else is returned as it is.

    Example:
        >>> import torch
        >>> images = torch.ones(2)
        >>> copied({"pixel_values": images})["pixel_values"].zero_(), images
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    if isinstance(inputs, Tensor):
        return inputs.clone()  # type: ignore[return-value]
    if isinstance(inputs, Mapping):
        twin = copy(inputs)  # keeps the mapping's own type, as a BatchEncoding
        for key, value in inputs.items():
            twin[key] = copied(value)  # type: ignore[index]
        return twin
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*map(copied, inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs)(map(copied, inputs))
    return inputs
