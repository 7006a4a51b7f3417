"""For how many samples a unit is silent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from probekit.errors import DataError
from probekit.statistics.base import Statistic

__all__ = ["SilentCounts"]


@dataclass
class SilentCounts(Statistic):
    """Counts the samples for which a unit's activation is not above a threshold.

    State: `silent` (units,) and `count` ().

    Args:
        threshold: The highest activation of a silent unit.

    Example:
        >>> counts = SilentCounts()
        >>> counts.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        >>> counts.to_xarray()["silent"].values
        array([2, 1])
    """

    threshold: float = 0.0

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Counts a batch (batch, units)."""
        if len(activations):
            silent = (activations.detach() <= self.threshold).sum(0)
            count = torch.tensor(len(activations), device=silent.device)
            self._add({"silent": silent, "count": count})

    def merge(self, other: SilentCounts) -> None:
        """Adds what another one has counted."""
        self._add(other.state)

    def to_xarray(self) -> xr.Dataset:
        """`silent` (unit) and `count`."""
        if not self.state:
            raise DataError("silent samples of no samples at all")
        return xr.Dataset(
            {
                "silent": ("unit", self.state["silent"].cpu().numpy()),
                "count": int(self.state["count"]),
            }
        )

    def _add(self, counts: dict[str, Tensor]) -> None:
        for name, values in counts.items():
            known = self.state.get(name)
            self.state[name] = values if known is None else known + values.to(known.device)
