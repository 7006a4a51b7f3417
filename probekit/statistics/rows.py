"""Tables of rows in a state: one row per class, all rows in order, or a random sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.errors import OptionError
from probekit.statistics.base import accumulator


def rows_of(
    state: dict[str, Tensor],
    labels: Tensor,
    like: Tensor,
    check: Callable[[int], None],
    **shapes: Sequence[int],
) -> Tensor:
    """The row of each label in tables with one row per class; new labels get a row.

    `state` holds `label` (classes,), in increasing order, `count` (classes,) and tables (classes, ...) whose
    rows have the `shapes`; it is changed in place, on the device of `like`. `check` is called with the new
    number of classes before the tables grow.
    """
    if not state:
        state |= {name: accumulator((0, *shape), like) for name, shape in shapes.items()}
        device = next(iter(state.values())).device
        state |= {x: torch.zeros(0, dtype=torch.int64, device=device) for x in ("count", "label")}
    known = state["label"]
    labels = labels.to(known.device)
    every = torch.unique(torch.cat([known, labels]))
    if len(every) > len(known):
        check(len(every))
        state.update(with_classes(state, every))
    return torch.searchsorted(every, labels)


def with_classes(state: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Extends tables to more labels (in increasing order), with zero rows for new labels."""
    place = torch.searchsorted(labels, state["label"])
    grown = {}
    for name, values in state.items():
        grown[name] = values.new_zeros(len(labels), *values.shape[1:])
        grown[name][place] = values
    return grown | {"label": labels}


def lowest_rows(
    known: dict[str, Tensor], offered: dict[str, Tensor], most: int
) -> dict[str, Tensor]:
    """Selects the rows with the lowest random numbers in `order` from two sets of tables."""
    both = {
        name: torch.cat([known[name], rows.detach().to(known[name])]) if known else rows.detach()
        for name, rows in offered.items()
    }
    lowest = both["order"].argsort(stable=True)[:most]
    return {name: rows[lowest.to(rows.device)] for name, rows in both.items()}


def append(state: dict[str, Tensor], **parts: Tensor) -> None:
    """Adds the tensors of a batch to a state, each under its name and the number of the batch."""
    number = 1 + max((int(name.rpartition(".")[2]) for name in state if "." in name), default=-1)
    for name, values in parts.items():
        state[f"{name}.{number}"] = values.detach().clone()


def gather(state: dict[str, Tensor], name: str) -> list[Tensor]:
    """The tensors of all batches under a name, in the order in which they were added."""
    numbers = [int(key.rpartition(".")[2]) for key in state if key.startswith(f"{name}.")]
    return [state[f"{name}.{number}"] for number in sorted(numbers)]


def nbytes(state: dict[str, Tensor]) -> int:
    return sum(values.nbytes for values in state.values())


def columns_of(layer: Layer, spatial: str) -> int:
    return layer.units * (prod(layer.positions) if spatial == "flatten" else 1)


def check_memory(needed: int, memory: int, what: str, remedy: str) -> None:
    """Raises `OptionError` if the required memory exceeds the limit; the message ends with the remedy."""
    if needed > memory:
        raise OptionError(
            f"{what} needs {format_bytes(needed)} of memory, and memory={memory} allows "
            f"{format_bytes(memory)}; {remedy}, or raise memory"
        )


def format_bytes(size: int) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    step = min(len(units) - 1, max(0, (int(size).bit_length() - 1) // 10))
    return f"{size / 1024**step:.1f} {units[step]}" if step else f"{size} bytes"
