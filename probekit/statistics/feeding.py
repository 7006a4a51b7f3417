"""Statistics of recordings, block by block, so that a recording larger than memory is no matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from probekit.errors import DataError

__all__ = ["feed"]


def feed(recording: xr.Dataset, statistic: Any, *, rows: int = 4096, client: Any = None) -> Any:
    """What a statistic says of a recording, which need not fit into memory.

    Args:
        recording: `activation` (sample, unit) with `label` (sample); in memory or lazy.
        statistic: A fresh statistic, which is fed and stays as it ends.
        rows: How many samples are in memory at a time.
        client: A `distributed.Client` whose workers each take blocks of rows; they must see the
            recording's files. None reads one block after another, here.

    Returns:
        The statistic's `to_xarray()`, with the coordinates that the recording's units have.

    Raises:
        DataError: The dataset is no recording.

    Example:
        >>> from probekit.statistics.class_means import ClassMeans
        >>> recording = xr.Dataset(
        ...     {"activation": (("sample", "unit"), [[1.0], [3.0], [7.0]]), "label": ("sample", [0, 0, 1])}
        ... )
        >>> feed(recording, ClassMeans()).values
        array([[2., 7.]])
    """
    if "activation" not in recording or "label" not in recording.variables:
        raise DataError("a recording has activation(sample, unit) and label(sample)")
    table = recording["activation"].transpose("sample", "unit")
    labels = torch.from_numpy(np.asarray(recording["label"].values).astype(np.int64))
    if hasattr(statistic, "expect"):
        statistic.expect(labels)
    starts = range(0, table.sizes["sample"], rows)
    if client is None:
        for start in starts:
            _take(statistic, table[start : start + rows].values, labels, start)
    else:
        _feed_on_workers(table, labels, statistic, rows, client)
    found = statistic.to_xarray()
    units = {
        name: values
        for name, values in table.coords.items()
        if values.dims == ("unit",) and name != "unit"
    }
    return found.assign_coords(units) if "unit" in found.dims else found


def _take(statistic: Any, block: np.ndarray[Any, Any], labels: torch.Tensor, start: int) -> Any:
    """Feeds a statistic with the rows from `start` on."""
    index = torch.arange(start, start + len(block))
    values = torch.from_numpy(np.ascontiguousarray(block))
    statistic.update(values, labels[start : start + len(block)], index)
    return statistic


def _feed_on_workers(
    table: xr.DataArray, labels: torch.Tensor, statistic: Any, rows: int, client: Any
) -> None:
    """Lets workers feed statistics of their own, a few blocks at a time, and merges them in order."""
    ahead = 2 * max(1, len(client.scheduler_info()["workers"]))
    starts = list(range(0, table.sizes["sample"], rows))
    for first in range(0, len(starts), ahead):
        parts = [
            client.submit(
                _take, statistic.fresh(), client.compute(table[at : at + rows].data), labels, at
            )
            if table.chunks is not None
            else client.submit(_take, statistic.fresh(), table[at : at + rows].values, labels, at)
            for at in starts[first : first + ahead]
        ]
        for part in client.gather(parts):
            statistic.merge(part)
