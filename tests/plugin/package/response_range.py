"""A third-party package with a statistic, a function metric and a class metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

import probekit as pk


@dataclass
class Extremes(pk.Statistic):
    """The lowest and the highest activation of each unit."""

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the extremes with a batch (batch, units)."""
        if len(activations):
            values = activations.detach().double()
            self._widen(values.amin(0), values.amax(0))

    def merge(self, other: Extremes) -> None:
        """Merges the extremes of another instance."""
        if other.state:
            self._widen(other.state["low"], other.state["high"])

    def to_xarray(self) -> xr.Dataset:
        """Returns `low` and `high` (unit)."""
        if not self.state:
            raise pk.ProbekitError("extremes of no samples at all")
        return xr.Dataset({name: ("unit", self.state[name].cpu().numpy()) for name in self.state})

    def _widen(self, low: Tensor, high: Tensor) -> None:
        if self.state:
            low = torch.minimum(low.to(self.state["low"].device), self.state["low"])
            high = torch.maximum(high.to(self.state["high"].device), self.state["high"])
        self.state.update(low=low, high=high)


@pk.unit_metric(needs=Extremes)
def response_range(extremes: xr.Dataset) -> xr.DataArray:
    """The distance between the strongest and the weakest response."""
    return extremes["high"] - extremes["low"]


@dataclass(frozen=True)
class ResponseExtent(pk.Metric):
    """The widest response range of a layer, with an option and a review."""

    share: float = 1.0

    @property
    def name(self) -> str:
        """The name of the metric."""
        return "response_extent"

    @property
    def needs(self) -> tuple[Extremes]:
        """The statistics that the metric needs."""
        return (Extremes(),)

    def evaluate(self, extremes: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Computes the results of one layer."""
        widest = self.share * (extremes["high"] - extremes["low"]).max()
        return xr.Dataset(), xr.Dataset({"response_extent": widest})

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Lists the layers that never respond."""
        silent: Any = layers["layer"].values[layers["response_extent"].values == 0]
        return [f"no unit of {name} ever responds" for name in silent]
