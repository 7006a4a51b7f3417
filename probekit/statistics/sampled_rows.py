"""A bounded random sample of a layer's rows, for errors that need rows and not only sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from probekit.errors import DataError, OptionError
from probekit.runtime import randomness
from probekit.statistics.base import Statistic
from probekit.statistics.resampled import checked_index
from probekit.statistics.rows import on_cpu

__all__ = ["SampledRows"]


@dataclass
class SampledRows(Statistic):
    """The activations of a random sample of the samples, of at most a number.

    The sample is drawn without replacement: those whose hash of (seed, index) is lowest, whatever
    the batches, their order and the number of processes.

    State: `rows` (rows, units) in the activations' dtype; `order`, `index` and `label` (rows,).

    Args:
        rows: The most samples.
        seed: Seed of the draw.

    Raises:
        OptionError: A number below 1.

    Example:
        >>> sampled = SampledRows(rows=2)
        >>> sampled.update(torch.eye(3), torch.tensor([0, 1, 2]), torch.arange(3))
        >>> sampled.to_xarray()["activation"].shape
        (2, 3)
    """

    rows: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rows, int) or self.rows < 1:
            raise OptionError(f"rows must be an integer of at least 1, not {self.rows!r}")

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Offers a batch (batch, units) with its labels and indices.

        Raises:
            DataError: No indices, or not one label and one index per row.
        """
        index = checked_index(activations, labels, index).cpu()
        if not len(index):
            return
        order = randomness.keyed(f"sampled rows {self.seed}", index)
        batch = {"rows": activations, "order": order, "index": index, "label": labels.cpu()}
        self._offer(batch)

    def merge(self, other: SampledRows) -> None:
        """Offers what another one has kept."""
        if other.state:
            self._offer(other.state)

    def to_xarray(self) -> xr.Dataset:
        """`activation` (sample, unit) and `label` (sample), in the order of the samples' indices."""
        if not self.state:
            raise DataError("rows of no samples at all")
        index = self.state["index"].cpu()
        order = index.argsort(stable=True)
        return xr.Dataset(
            {
                "activation": (("sample", "unit"), on_cpu(self.state["rows"])[order].numpy()),
                "label": ("sample", self.state["label"].cpu()[order].numpy()),
            },
            coords={"sample": index[order].numpy()},
        )

    def _offer(self, batch: dict[str, Tensor]) -> None:
        known = self.state.get("order", torch.empty(0, dtype=torch.int64))
        lowest = torch.cat([known.cpu(), batch["order"].cpu()]).argsort(stable=True)[: self.rows]
        if len(known) == self.rows and int(lowest.max()) < self.rows:
            return
        for name, more in batch.items():
            new = more.detach()
            old = self.state.get(name, new[:0])
            both = torch.cat([old, new.to(old.device, old.dtype)])
            self.state[name] = both[lowest.to(both.device)]
