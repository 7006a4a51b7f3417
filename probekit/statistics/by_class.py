"""Tables with one row per class, for labels of any size: rows follow the classes that are there."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rows_of", "with_classes"]


def rows_of(state: dict[str, Tensor], labels: Tensor) -> Tensor:
    """The row of each label in tables by class, which get a row for every new label.

    Args:
        state: `label` (classes,), in increasing order, and tables (classes, ...), changed in place.
        labels: (batch,), on the device of the state.

    >>> state = {"label": torch.tensor([], dtype=torch.long), "count": torch.zeros(0)}
    >>> rows_of(state, torch.tensor([10**9, 7, 7])), state["label"].tolist()
    (tensor([1, 0, 0]), [7, 1000000000])
    """
    known = state["label"]
    rows = torch.searchsorted(known, labels)
    if len(known) and bool((known[rows.clamp(max=len(known) - 1)] == labels).all()):
        return rows
    state.update(with_classes(state, torch.unique(torch.cat([known, labels]))))
    return torch.searchsorted(state["label"], labels)


def with_classes(state: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """The same tables with a row for each of more labels (in increasing order), zero where it is new.

    >>> with_classes({"label": torch.tensor([4]), "count": torch.ones(1)}, torch.tensor([2, 4]))
    {'label': tensor([2, 4]), 'count': tensor([0., 1.])}
    """
    place = torch.searchsorted(labels, state["label"])
    grown = {}
    for name, values in state.items():
        grown[name] = values.new_zeros(len(labels), *values.shape[1:])
        grown[name][place] = values
    return grown | {"label": labels}
