"""The activations themselves as a statistic, for metrics that need every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.readouts import Activations, Spatial
from probekit.errors import DataError, OptionError
from probekit.statistics.base import Statistic
from probekit.statistics.rows import append, columns_of, gather, nbytes, on_cpu, refuse_beyond

__all__ = ["Recorded"]

_REMEDY = "choose fewer layers or fewer samples (limit)"


@dataclass
class Recorded(Statistic):
    """Keeps a layer's table of activations, as a recording of that layer has it.

    Memory: rows x columns x itemsize of the activations, and twice that when the table is made.

    Args:
        spatial: `"mean"`: units pooled over positions; `"positions"`: every position is a row;
            `"flatten"`: every element is a column.
        memory: The most bytes that all layers of a pass may need together; checked before the
            pass where the number of samples is known, and on the way for each layer alone.

    Example:
        >>> recorded = Recorded()
        >>> recorded.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor([8, 7]))
        >>> table = recorded.to_xarray()
        >>> table["activation"].dims, table["sample"].values, table["label"].values
        (('sample', 'unit'), array([7, 8]), array([0, 1]))
    """

    spatial: Spatial = "mean"
    memory: int = 2**30

    def __post_init__(self) -> None:
        if self.spatial not in get_args(Spatial):
            known = ", ".join(map(repr, get_args(Spatial)))
            raise OptionError(f"spatial is one of {known}, not {self.spatial!r}")

    @property
    def source(self) -> Activations:
        """Activations, pooled or not."""
        return Activations(self.spatial)

    def check(self, layers: Sequence[Layer], samples: int | None) -> None:
        """Makes sure before a pass that memory will do.

        Raises:
            OptionError: The tables of these layers need more than `memory`.
        """
        if samples is None:
            return
        needed = 0
        for layer in layers:
            rows = samples
            if self.spatial == "positions":
                rows *= columns_of(layer, "flatten") // layer.units
            needed += rows * columns_of(layer, self.spatial) * layer.itemsize
        what = f"keeping the activations of {len(layers)} layers for {samples} samples"
        refuse_beyond(needed, self.memory, what, _REMEDY)

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Keeps a batch.

        Args:
            activations: (rows, columns).
            labels: (rows,).
            index: (rows,), the numbers of the samples; counted on where there are none.

        Raises:
            DataError: Not one label a row.
            OptionError: More than `memory` would be needed.
        """
        if labels.shape != activations.shape[:1]:
            raise DataError(
                f"{tuple(activations.shape)} activations need one label a row, not "
                f"{tuple(labels.shape)}"
            )
        if not len(labels):
            return
        if index is None:
            seen = sum(map(len, gather(self.state, "label")))
            index = torch.arange(seen, seen + len(labels))
        append(self.state, activation=activations.cpu(), label=labels.cpu(), index=index.cpu())
        refuse_beyond(nbytes(self.state), self.memory, "keeping a layer's activations", _REMEDY)

    def merge(self, other: Recorded) -> None:
        """Adds what another one has kept."""
        names = ("activation", "label", "index")
        for parts in zip(*(gather(other.state, name) for name in names), strict=True):
            self.update(*parts)

    def to_xarray(self) -> xr.Dataset:
        """`activation` (sample, unit) and `label` (sample), in the order of the samples' numbers."""
        if not self.state:
            raise DataError("activations of no samples at all")
        index = torch.cat(gather(self.state, "index"))
        order = index.argsort(stable=True)
        table = torch.cat([on_cpu(part) for part in gather(self.state, "activation")])
        return xr.Dataset(
            {
                "activation": (("sample", "unit"), table[order].numpy()),
                "label": ("sample", torch.cat(gather(self.state, "label"))[order].numpy()),
            },
            coords={"sample": index[order].numpy()},
        )
