"""A bounded random sample of a layer's rows, for standard errors that need rows, not only sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import xarray as xr
from torch import Tensor

from probekit.checks import positive_int
from probekit.runtime import randomness
from probekit.statistics.base import Statistic
from probekit.statistics.resampled import checked_index
from probekit.statistics.rows import lowest_rows


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
        index = state["index"]
        order = index.argsort(stable=True)
        return xr.Dataset(
            {
                "activation": (("sample", "unit"), state["rows"][order].numpy()),
                "label": ("sample", state["label"][order].numpy()),
            },
            coords={"sample": index[order].numpy()},
        )
