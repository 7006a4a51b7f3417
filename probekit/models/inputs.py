"""Inputs of a model, which may modify them in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, TypeVar

from torch import Tensor

from probekit.errors import DataError

__all__ = ["KeywordInputs", "call", "check_continuous", "copied", "one_tensor", "tensors_of"]

T = TypeVar("T")


class KeywordInputs:
    """Inputs that a model takes by keyword, such as `input_ids` and `attention_mask`.

    They are indexed by sample, like a tensor of images.

    Args:
        tensors: Tensors (samples, ...) by argument name.

    Raises:
        DataError: There are no tensors, or their numbers of samples differ.

    Example:
        >>> import torch
        >>> inputs = KeywordInputs({"input_ids": torch.ones(3, 5), "attention_mask": torch.ones(3, 5)})
        >>> len(inputs), inputs[:2].tensors["input_ids"].shape
        (3, torch.Size([2, 5]))
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        rows = {name: len(one) if one.ndim else 0 for name, one in self.tensors.items()}
        if len(set(rows.values())) != 1:
            raise DataError(f"inputs by keyword need the same number of samples each, not {rows}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Any) -> KeywordInputs:
        return self.map(lambda one: one[rows])

    def __repr__(self) -> str:
        return f"KeywordInputs({', '.join(self.tensors)}, {len(self)} samples)"

    def map(self, change: Callable[[Tensor], Tensor]) -> KeywordInputs:
        """Applies a function to every tensor."""
        return KeywordInputs({name: change(one) for name, one in self.tensors.items()})

    def to(self, *where: Any, **options: Any) -> KeywordInputs:
        """Moves the inputs to a device."""
        return self.map(lambda one: one.to(*where, **options))

    def detach(self) -> KeywordInputs:
        """Detaches the inputs from the autograd graph."""
        return self.map(Tensor.detach)

    def pin_memory(self) -> KeywordInputs:
        """Copies the inputs to pinned memory."""
        return self.map(lambda one: one.pin_memory())


def tensors_of(inputs: Tensor | KeywordInputs) -> list[Tensor]:
    """The tensors of a batch of inputs."""
    return list(inputs.tensors.values()) if isinstance(inputs, KeywordInputs) else [inputs]


def one_tensor(inputs: Any, asker: str) -> Tensor:
    """Returns inputs that must be one tensor, to be modified or differentiated.

    Raises:
        DataError: The inputs are something else, such as tokens.
    """
    if isinstance(inputs, Tensor):
        return inputs
    raise DataError(
        f"{asker} needs inputs that are one tensor of images, and the data gives {inputs!r}; wrap the "
        "model in a module that takes one tensor, and give that"
    )


def call(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a model with a copy of its inputs; named inputs are passed by keyword.

    Example:
        >>> import torch
        >>> call(lambda x, scale: x * scale, KeywordInputs({"scale": torch.ones(1), "x": torch.ones(1)}))
        tensor([1.])
    """
    first = args[0] if len(args) == 1 else None
    if isinstance(first, KeywordInputs):
        args, kwargs = (), {**first.tensors, **kwargs}
    return model(*copied(args), **copied(kwargs))


def copied(inputs: T) -> T:
    """Copies inputs, so that the model may modify them.

    A model that normalizes its images in place (`x.sub_(mean)`, `F.relu(x, inplace=True)`) would
    otherwise change the images of the user and of every later pass. In autograd, the copy propagates
    the gradient and is not a leaf, which operations must not modify in place.

    Args:
        inputs: A tensor, or tuples, lists and mappings of tensors; anything else is returned unchanged.

    Example:
        >>> import torch
        >>> images = torch.ones(2)
        >>> copied({"pixel_values": images})["pixel_values"].zero_(), images
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    if isinstance(inputs, Tensor):
        return inputs.clone()  # type: ignore[return-value]
    if isinstance(inputs, Mapping):
        twin = copy(inputs)  # keeps the type of the mapping, such as BatchEncoding
        for key, value in inputs.items():
            twin[key] = copied(value)  # type: ignore[index]
        return twin
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):
        return type(inputs)(*map(copied, inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs)(map(copied, inputs))
    return inputs


def check_continuous(inputs: Tensor) -> None:
    """Checks that gradients with respect to the inputs exist.

    Raises:
        DataError: The inputs are integers, such as tokens.
    """
    if not inputs.is_floating_point():
        raise DataError(
            f"gradients by the inputs were asked for, and the inputs are {inputs.dtype}, which have none; "
            "give floating-point inputs, or a model that begins behind its embedding"
        )
