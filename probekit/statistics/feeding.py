"""Statistics of recordings, block by block, so that a recording larger than memory is no matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from probekit.errors import DataError

__all__ = ["feed"]


def feed(recording: xr.Dataset, statistic: Any, *, rows: int = 4096) -> Any:
    """What a statistic says of a recording.

    Args:
        recording: `activation` (sample, unit) with `label` (sample); in memory or lazy.
        statistic: A fresh statistic, which is fed and stays as it ends.
        rows: How many samples are in memory at a time.

    Returns:
        The statistic's `to_xarray()`, with the coordinates that the recording's units have.

    Raises:
        DataError: The dataset is no recording.
    """
    if "activation" not in recording or "label" not in recording.variables:
        raise DataError("a recording has activation(sample, unit) and label(sample)")
    table = recording["activation"].transpose("sample", "unit")
    labels = torch.from_numpy(np.asarray(recording["label"].values).astype(np.int64))
    if hasattr(statistic, "expect"):
        statistic.expect(labels)
    for start in range(0, table.sizes["sample"], rows):
        block = torch.from_numpy(np.ascontiguousarray(table[start : start + rows].values))
        index = torch.arange(start, start + len(block))
        statistic.update(block, labels[start : start + rows], index)
    found = statistic.to_xarray()
    units = {
        name: values
        for name, values in table.coords.items()
        if values.dims == ("unit",) and name != "unit"
    }
    return found.assign_coords(units) if "unit" in found.dims else found
