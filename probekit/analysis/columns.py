"""Per-sample values, collected during a pass."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CODES = {torch.int64: "q", torch.float32: "f", torch.float64: "d"}
_DTYPES = {"q": np.int64, "f": np.float32, "d": np.float64}


class Columns:
    """Columns of values with one row per sample, each in one growing block of memory.

    Small tensors, one per batch, would fragment memory between the large ones, and memory use would
    grow with the number of batches.
    """

    def __init__(self) -> None:
        self._columns: dict[str, array[Any]] = {}

    def append(self, **values: Tensor) -> None:
        """Appends (batch,) values to each column, in int64, float32 or float64."""
        for name, column in values.items():
            known = self._columns.setdefault(name, array(_CODES[column.dtype]))
            known.frombytes(column.detach().cpu().contiguous().numpy().tobytes())

    @classmethod
    def joined(cls, parts: Iterable[Columns]) -> Columns:
        """The rows of all parts, one after another."""
        whole = cls()
        for part in parts:
            for name, column in part._columns.items():
                whole._columns.setdefault(name, array(column.typecode)).extend(column)
        return whole

    def __contains__(self, name: str) -> bool:
        """Whether every sample has a value in this column."""
        return name in self._columns and self.count(name) == len(self)

    def count(self, name: str) -> int:
        """The number of samples with a value in a column."""
        return len(self._columns.get(name, ()))

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """A column (samples,), a copy."""
        column = self._columns[name]
        return np.array(column, _DTYPES[column.typecode])

    def __len__(self) -> int:
        return max(map(len, self._columns.values()), default=0)
