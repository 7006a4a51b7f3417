"""What a classifier's output says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from probekit.errors import DataError, ModelError

__all__ = ["correct"]


def correct(output: Any, labels: Tensor, asker: str) -> Tensor:
    """Which predictions are right, (batch,) of bool.

    Args:
        output: What the model gave: logits (batch, classes).
        labels: (batch,) of class numbers.
        asker: What needs the logits, for the message.

    Raises:
        ModelError: The output is something else.
        DataError: A label that the model has no class for.

    Example:
        >>> import torch
        >>> correct(torch.eye(2), torch.tensor([0, 0]), "the example")
        tensor([ True, False])
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"{asker} needs logits (batch, classes) of two classes or more, and the model gives "
            f"{shape}; hand over a module that returns the logits alone"
        )
    if int(labels.max()) >= output.shape[1]:
        raise DataError(
            f"label {int(labels.max())} is out of range: the model has {output.shape[1]} classes"
        )
    return output.argmax(1) == labels
