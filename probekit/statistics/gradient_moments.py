"""Moments, over samples, of the norms of units' gradients with respect to the image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.gradients.norms import GradientNorms
from probekit.errors import DataError
from probekit.statistics.base import Statistic, accumulator


@dataclass
class GradientMoments(Statistic):
    """Joint first and second moments of gradient norms and their squares.

    The input is (samples, 2 * units): estimates of each unit's gradient norm, then of its square;
    negative values mark samples that were not measured. State, in float64: `count` (units,), `mean`
    (2, units) and `deviation` (3, units), the sums of products of deviations from the means: norm with
    norm, norm with square, square with square. Parts are merged without cancellation (Chan, Golub &
    LeVeque 1983).
    """

    uses_labels: ClassVar[bool] = False

    gradients: GradientNorms = field(default_factory=GradientNorms)

    @property
    def source(self) -> GradientNorms:
        return self.gradients

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        columns = activations.shape[1]
        if columns % 2:
            raise DataError(
                f"gradient moments need norms and squares, an even number of columns, not {columns}"
            )
        if not len(activations):
            return
        zero = accumulator((0,), activations)
        table = activations.detach().to(zero.device).to(zero.dtype)
        table = table.reshape(len(table), 2, columns // 2)
        measured = (table >= 0).all(1)
        count = measured.sum(0)
        weight = measured[:, None]
        mean = (table * weight).sum(0) / count.clamp(min=1)
        norm, square = ((table - mean) * weight).unbind(1)
        deviation = torch.stack([norm * norm, norm * square, square * square]).sum(1)
        self._join(count, mean, deviation)

    def merge(self, other: GradientMoments) -> None:
        if other.state:
            self._join(*(other.state[name] for name in ("count", "mean", "deviation")))

    def _join(self, count: Tensor, mean: Tensor, deviation: Tensor) -> None:
        given = {"count": count, "mean": mean, "deviation": deviation}
        if not self.state:
            self.state = {name: torch.zeros_like(values) for name, values in given.items()}
        home = self.state["mean"].device
        count, mean, deviation = (values.to(home) for values in given.values())
        before, total = self.state["count"], self.state["count"] + count
        share = count.to(mean.dtype) / total.clamp(min=1)
        norm, square = apart = mean - self.state["mean"]
        products = torch.stack([norm * norm, norm * square, square * square])
        self.state["deviation"] = self.state["deviation"] + deviation + products * before * share
        self.state["mean"] = self.state["mean"] + apart * share
        self.state["count"] = total

    def to_xarray(self) -> xr.Dataset:
        """The moments over samples, each (unit), with variances and covariances divided by count - 1."""
        state = self._on_cpu()
        nan = torch.full((), torch.nan, dtype=torch.float64)
        count = state["count"]
        mean = torch.where(count > 0, state["mean"], nan)
        spread = torch.where(count > 1, state["deviation"] / (count - 1).clamp(min=1), nan)
        columns = {
            "count": count,
            "norm": mean[0],
            "square": mean[1],
            "norm_variance": spread[0],
            "norm_square_covariance": spread[1],
            "square_variance": spread[2],
        }
        return xr.Dataset({name: ("unit", values.numpy()) for name, values in columns.items()})
