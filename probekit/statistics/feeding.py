"""Updates statistics from the batches of a pass, and from recordings larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from probekit.capture.readouts import Readout
from probekit.data.batches import Batch
from probekit.errors import DataError
from probekit.results.labels import strings
from probekit.statistics.base import distinct

Labeled = TypeVar("Labeled", xr.DataArray, xr.Dataset)
ROWS = 1024  # number of samples that trigger an update


class Feeder:
    """Buffers the tables of batches, and updates the statistics when there are enough samples (`rows`).

    An update takes about as long for 16 rows as for a thousand, and each layer needs one. Statistics do
    not depend on how samples are divided into batches, so the tables of small batches are combined.
    The buffer takes at most `nbytes`, whatever the number of samples.
    """

    def __init__(
        self, fed: Mapping[str, Sequence[Any]], *, rows: int = ROWS, nbytes: int = 32 * 2**20
    ) -> None:
        self._fed = fed
        self._rows, self._nbytes = rows, nbytes
        self.readouts: list[Readout] = distinct(one.source for own in fed.values() for one in own)
        self._waiting: list[tuple[Tensor, Tensor, Sequence[Mapping[str, Tensor]]]] = []
        self._waiting_rows = self._waiting_bytes = 0

    def update(self, batch: Batch, tables: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds the tables of one batch, in the order of `readouts`."""
        self._waiting.append((batch.labels, batch.index, tables))
        self._waiting_rows += len(batch)
        self._waiting_bytes += sum(table.nbytes for own in tables for table in own.values())
        if self._waiting_rows >= self._rows or self._waiting_bytes >= self._nbytes:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        labels = torch.cat([labels for labels, _, _ in self._waiting])
        index = torch.cat([index for _, index, _ in self._waiting])
        waiting = [tables for _, _, tables in self._waiting]
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        for place, readout in enumerate(self.readouts):
            for name in waiting[0][place]:
                parts = [tables[place][name] for tables in waiting]
                table = parts[0] if len(parts) == 1 else torch.cat(parts)
                each = max(len(table) // max(len(labels), 1), 1)  # rows per sample
                own = (labels.repeat_interleave(each), index.repeat_interleave(each))
                for one in self._fed[name]:
                    if one.source == readout:
                        one.update(table, *own)


def feed(recording: xr.Dataset, statistic: Any, *, rows: int = 4096, client: Any = None) -> Any:
    """Computes a statistic of a recording, which may be larger than memory.

    Args:
        recording: `activation` (sample, unit) with `label` (sample), in memory or lazy.
        statistic: An empty statistic, which is updated.
        rows: Number of samples in memory at a time.
        client: A `distributed.Client` whose workers each process blocks of rows; they must have
            access to the recording's files. None reads the blocks one after another in this process.

    Returns:
        The statistic's `to_xarray()`, with the coordinates of the recording's units.

    Raises:
        DataError: The dataset is not a recording.

    Example:
        >>> from probekit.statistics.class_means import ClassMeans
        >>> recording = xr.Dataset(
        ...     {"activation": (("sample", "unit"), [[1.0], [3.0], [7.0]]), "label": ("sample", [0, 0, 1])}
        ... )
        >>> feed(recording, ClassMeans()).values
        array([[2., 7.]])
    """
    # Statistics that use labels check them.
    table, classes = table_and_labels(recording, uses_labels=False)
    labels = torch.from_numpy(classes)
    if hasattr(statistic, "expect"):
        statistic.expect(labels)
    if client is None:
        for start in range(0, table.sizes["sample"], rows):
            _update(statistic, table[start : start + rows].values, labels, start)
    else:
        _feed_on_workers(table, labels, statistic, rows, client)
    found = statistic.to_xarray()
    units = {
        name: values
        for name, values in table.coords.items()
        if values.dims == ("unit",) and name != "unit"
    }
    return found.assign_coords(units) if "unit" in found.dims else found


def table_and_labels(
    recording: xr.Dataset, *, uses_labels: bool = True
) -> tuple[xr.DataArray, npt.NDArray[np.int64]]:
    """The activations (sample, unit) and the labels (sample,) of a recording."""
    if not isinstance(recording, xr.Dataset):
        raise DataError(
            f"recording must be the dataset that pk.record returns, not {type(recording).__name__}"
        )
    if "activation" not in recording or "label" not in recording.variables:
        raise DataError(
            "a recording must have activation(sample, unit) and label(sample), not the variables "
            f"{', '.join(map(str, recording.variables)) or 'none'}; make one with pk.record"
        )
    labels = np.asarray(recording["label"].values)
    fractions = labels.dtype.kind == "f" and bool((labels % 1 != 0).any())  # or NaN
    if fractions or labels.dtype.kind in "US":
        raise DataError(
            f"the labels of a recording must be integers, not {'fractions' if fractions else 'text'}; "
            "number the classes, as numpy.unique(..., return_inverse=True) does"
        )
    if uses_labels and (labels < 0).any():
        raise DataError(
            "the recording has samples without a label (label -1); assign it the labels of all samples: "
            "recording.assign(label=('sample', [...]))"
        )
    return recording["activation"].transpose("sample", "unit"), labels.astype(np.int64)


def values_and_labels(
    recording: xr.Dataset,
) -> tuple[np.ndarray[Any, Any], npt.NDArray[np.int64]]:
    """The activations (sample, unit) and the labels (sample,) of a recording, in memory."""
    table, labels = table_and_labels(recording)
    values = table.values
    _check_finite(values)
    return values, labels


def _check_finite(values: np.ndarray[Any, Any]) -> None:
    if not np.isfinite(values).all():
        raise DataError(
            "the activations of the recording contain NaN or infinity; leave out these samples or units"
        )


def split_by_layer(recording: xr.Dataset) -> dict[str, xr.Dataset]:
    """The part of a recording for each layer, in order; all of it if it names no layers."""
    if "layer" not in recording.coords:
        return {"": recording}
    names = np.broadcast_to(recording["layer"].values, recording.sizes["unit"])
    return {
        str(name): recording.isel(unit=np.flatnonzero(names == name))
        for name in dict.fromkeys(names.tolist())
    }


def by_layer(recording: xr.Dataset, function: Callable[[xr.Dataset], Labeled]) -> Labeled:
    """A function of the part for each layer, along `layer`; of all of it if it names no layers."""
    found = {name: function(part) for name, part in split_by_layer(recording).items()}
    if "layer" not in recording.coords:
        return found[""]
    return xr.concat(found.values(), xr.Variable("layer", strings(found)))


def _update(statistic: Any, block: np.ndarray[Any, Any], labels: Tensor, start: int) -> Any:
    """Updates a statistic with the rows from `start` on."""
    _check_finite(block)
    index = torch.arange(start, start + len(block))
    values = torch.from_numpy(np.ascontiguousarray(block))
    statistic.update(values, labels[start : start + len(block)], index)
    return statistic


def _feed_on_workers(
    table: xr.DataArray, labels: Tensor, statistic: Any, rows: int, client: Any
) -> None:
    """Workers update separate statistics, a few blocks at a time; these are merged in order."""
    ahead = 2 * max(1, len(client.scheduler_info()["workers"]))
    starts = list(range(0, table.sizes["sample"], rows))

    def block(start: int) -> Any:
        part = table[start : start + rows]
        return part.values if table.chunks is None else client.compute(part.data)

    for first in range(0, len(starts), ahead):
        parts = [
            client.submit(_update, statistic.fresh(), block(start), labels, start)
            for start in starts[first : first + ahead]
        ]
        for part in client.gather(parts):
            statistic.merge(part)
