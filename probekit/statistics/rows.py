"""Rows that a statistic has to keep: as they came, within a number of bytes that is stated."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.errors import OptionError

__all__ = ["append", "columns_of", "gather", "in_words", "nbytes", "on_cpu", "refuse_beyond"]


def append(state: dict[str, Tensor], **parts: Tensor) -> None:
    """Puts the parts of a batch into a state, each under its name and the number of the batch."""
    number = 1 + max((int(name.rpartition(".")[2]) for name in state if "." in name), default=-1)
    for name, values in parts.items():
        state[f"{name}.{number}"] = values.detach().clone()


def gather(state: dict[str, Tensor], name: str) -> list[Tensor]:
    """The parts of all batches under a name, in the order in which they came."""
    numbers = [int(key.rpartition(".")[2]) for key in state if key.startswith(f"{name}.")]
    return [state[f"{name}.{number}"] for number in sorted(numbers)]


def nbytes(state: dict[str, Tensor]) -> int:
    """How much memory a state takes."""
    return sum(values.numel() * values.element_size() for values in state.values())


def columns_of(layer: Layer, spatial: str) -> int:
    """How many columns the table of a layer has."""
    return layer.units * (prod(layer.positions) if spatial == "flatten" else 1)


def refuse_beyond(needed: int, memory: int, what: str, remedy: str) -> None:
    """Raises where more memory would be needed than is allowed.

    Raises:
        OptionError: It says how much is needed, how much is allowed, and what to do.
    """
    if needed > memory:
        raise OptionError(
            f"{what} needs {in_words(needed)} of memory, and memory={memory} allows "
            f"{in_words(memory)}; {remedy}, or raise memory"
        )


def in_words(size: int) -> str:
    """A number of bytes for people.

    >>> in_words(3 * 2**30)
    '3.0 GiB'
    """
    units: Sequence[str] = ("bytes", "KiB", "MiB", "GiB", "TiB")
    step = min(len(units) - 1, max(0, (int(size).bit_length() - 1) // 10))
    return f"{size / 1024**step:.1f} {units[step]}" if step else f"{size} bytes"


def on_cpu(values: Tensor) -> Tensor:
    """Values as numpy can hold them: on the CPU, half precision as float32."""
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    return values.cpu()
