"""Inputs handed to a model, which may write into them in place."""

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

    They are indexed by sample, as a tensor of images is.

    Args:
        tensors: (samples, ...) by the name of the argument.

    Raises:
        DataError: No tensors, or tensors of different numbers of samples.

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
        """The same inputs with every tensor changed."""
        return KeywordInputs({name: change(one) for name, one in self.tensors.items()})

    def to(self, *where: Any, **options: Any) -> KeywordInputs:
        """The same inputs on a device."""
        return self.map(lambda one: one.to(*where, **options))

    def detach(self) -> KeywordInputs:
        """The same inputs without a graph."""
        return self.map(Tensor.detach)

    def pin_memory(self) -> KeywordInputs:
        """The same inputs in pinned memory."""
        return self.map(lambda one: one.pin_memory())


def tensors_of(inputs: Tensor | KeywordInputs) -> list[Tensor]:
    """The tensors of a batch of inputs."""
    return list(inputs.tensors.values()) if isinstance(inputs, KeywordInputs) else [inputs]


def one_tensor(inputs: Any, asker: str) -> Tensor:
    """Inputs that are one tensor, for what changes or differentiates them.

    Raises:
        DataError: They are something else, such as tokens.
    """
    if isinstance(inputs, Tensor):
        return inputs
    raise DataError(
        f"{asker} needs inputs that are one tensor of images, and the data gives {inputs!r}; wrap the "
        "model in a module that takes one tensor, and give that"
    )


def call(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a model returns for a copy of some inputs, which are given by keyword where they have names.

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


def check_continuous(inputs: Tensor) -> None:
    """Refuses inputs by which no gradient can be taken.

    Raises:
        DataError: They are integers, such as tokens.
    """
    if not inputs.is_floating_point():
        raise DataError(
            f"gradients by the inputs were asked for, and the inputs are {inputs.dtype}, which have none; "
            "give floating-point inputs, or a model that begins behind its embedding"
        )
