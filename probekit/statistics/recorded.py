"""Stored activations of all samples, or of a random subset of them, as statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.checks import positive_int
from probekit.runtime import randomness
from probekit.statistics.base import (
    SpatialStatistic,
    Statistic,
    append,
    check_batch,
    check_memory,
    columns_of,
    gather,
    lowest_rows,
    nbytes,
)
from probekit.statistics.resampled import checked_index

_REMEDY = "choose fewer layers or fewer samples (limit)"
_PARTS = ("activation", "label", "index")


@dataclass
class Recorded(SpatialStatistic):
    """Stores a layer's table of activations, in the same form as a recording of that layer.

    Memory: rows x columns x itemsize of the activations, and twice that while the table is created.

    Args:
        spatial: `"mean"`: units pooled over positions; `"positions"`: every position is a row;
            `"flatten"`: every element is a column.
        memory: Maximum number of bytes for all layers of a pass together; checked before the pass if
            the number of samples is known, and for each layer during the pass.

    Example:
        >>> recorded = Recorded()
        >>> recorded.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor([8, 7]))
        >>> table = recorded.to_xarray()
        >>> table["activation"].dims, table["sample"].values, table["label"].values
        (('sample', 'unit'), array([7, 8]), array([0, 1]))
    """

    memory: int = 2**30

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("memory", self.memory)

    def check(self, layers: Sequence[Layer], samples: int | None) -> None:
        """Checks before a pass that the tables of these layers fit into memory."""
        if samples is None:
            return
        needed = 0
        for layer in layers:
            rows = samples
            if self.spatial == "positions":
                rows *= columns_of(layer, "flatten") // layer.units
            needed += rows * columns_of(layer, self.spatial) * layer.itemsize
        what = f"storing the activations of {len(layers)} layers for {samples} samples"
        check_memory(needed, self.memory, what, _REMEDY)

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Stores a batch (rows, columns); without an index (rows,), samples are numbered consecutively."""
        check_batch(activations, labels)
        if not len(labels):
            return
        if index is None:
            start = sum(map(len, gather(self.state, "label")))
            index = torch.arange(start, start + len(labels))
        append(self.state, activation=activations.cpu(), label=labels.cpu(), index=index.cpu())
        check_memory(nbytes(self.state), self.memory, "storing a layer's activations", _REMEDY)

    def merge(self, other: Recorded) -> None:
        for parts in zip(*(gather(other.state, name) for name in _PARTS), strict=True):
            self.update(*parts)

    def to_xarray(self) -> xr.Dataset:
        """`activation` (sample, unit) and `label` (sample), in the order of the samples' indices."""
        state = self._on_cpu()
        return _recording(*(torch.cat(gather(state, name)) for name in _PARTS))


@dataclass
class SampledRows(Statistic):
    """The activations of a random subset of the samples.

    The subset is drawn without replacement and consists of the samples with the lowest hash of (seed,
    index). It does not depend on the batches, their order or the number of processes.

    State: `rows` (rows, units) in the activations' dtype; `order`, `index` and `label` (rows,).
    """

    uses_labels: ClassVar[bool] = False

    rows: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        positive_int("rows", self.rows)

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        index = checked_index(activations, labels, index, uses_labels=False).cpu()
        if len(index):
            order = randomness.keyed(f"sampled rows {self.seed}", index)
            batch = {"rows": activations, "order": order, "index": index, "label": labels.cpu()}
            self.state = lowest_rows(self.state, batch, self.rows)

    def merge(self, other: SampledRows) -> None:
        if other.state:
            self.state = lowest_rows(self.state, other.state, self.rows)

    def to_xarray(self) -> xr.Dataset:
        """`activation` (sample, unit) and `label` (sample), in the order of the samples' indices."""
        state = self._on_cpu()
        return _recording(state["rows"], state["label"], state["index"])


def _recording(rows: Tensor, label: Tensor, index: Tensor) -> xr.Dataset:
    order = index.argsort(stable=True)
    return xr.Dataset(
        {
            "activation": (("sample", "unit"), rows[order].numpy()),
            "label": ("sample", label[order].numpy()),
        },
        coords={"sample": index[order].numpy()},
    )
