"""The labels of tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["strings"]


def strings(values: Iterable[Any]) -> np.ndarray[Any, Any]:
    """Text of any length, in the type that netCDF and zarr both keep.

    >>> strings(["relu", "layer1.0.relu1"])
    array(['relu', 'layer1.0.relu1'], dtype=object)
    """
    return np.array([str(value) for value in values], dtype=object)
