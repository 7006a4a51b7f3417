"""Inputs and outputs of modules: tensors, alone or nested in tuples, mappings and dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from probekit.errors import LayerError
from probekit.models.nested import all_tensors


def tensors_in(output: object) -> list[Tensor]:
    """The floating-point tensors of any nested output, in order."""
    return [one for one in all_tensors(output) if one.is_floating_point() and one.ndim]


def tensor_of(output: Any, pick: int | str | None = None) -> Tensor | None:
    """The tensor of a module's output to record; None if the output contains none.

    `pick` is the index, key or field to select; None selects the first floating-point tensor with units,
    that is, of two axes or more, or else the first. An output that is a tensor is returned unchanged.
    """
    if pick is not None and not isinstance(output, Tensor):
        try:
            by_key = isinstance(pick, int) or isinstance(output, Mapping)
            output = output[pick] if by_key else getattr(output, str(pick))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise LayerError(
                f"output={pick!r} names nothing in an output of type {type(output).__name__}"
            ) from None
    found = tensors_in(output)
    with_units = [tensor for tensor in found if tensor.ndim > 1]
    return next(iter(with_units or found), None)


def shares_memory(tensor: Tensor, output: object) -> bool:
    """Whether any tensor of an output shares memory with another tensor."""
    storage = tensor.untyped_storage()._cdata
    return any(other.untyped_storage()._cdata == storage for other in tensors_in(output))


def count_samples(inputs: Sequence[Tensor], place: tuple[int, int] | None) -> int:
    """The number of samples in a module's input tensors; 0 if unknown.

    `place` holds the indices of the tensor and of its axis; (-1, 0) is the number of tensors.
    """
    if place is None:
        return 0
    which, axis = place
    if which < 0:
        return len(inputs)
    return inputs[which].shape[axis] if which < len(inputs) and axis < inputs[which].ndim else 0
