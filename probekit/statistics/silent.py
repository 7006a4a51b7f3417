"""The number of samples for which a unit is silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probekit.statistics.base import Statistic, add_to


@dataclass
class SilentCounts(Statistic):
    """Counts the samples for which a unit's activation does not exceed a threshold.

    State: `silent` (units,) and `count` ().
    """

    uses_labels: ClassVar[bool] = False

    threshold: float = 0.0

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        if len(activations):
            silent = (activations.detach() <= self.threshold).sum(0)
            add_to(self.state, {"silent": silent, "count": torch.tensor(len(activations))})

    def merge(self, other: SilentCounts) -> None:
        add_to(self.state, other.state)

    def to_xarray(self) -> xr.Dataset:
        state = self._on_cpu()
        silent = state["silent"].numpy()
        return xr.Dataset({"silent": ("unit", silent), "count": int(state["count"])})
