"""The mean activation of every unit for every class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from probekit.errors import DataError
from probekit.statistics.base import Statistic, accumulator

__all__ = ["ClassMeans"]


@dataclass
class ClassMeans(Statistic):
    """Class-conditional mean activations, from sums and counts in float64.

    State: `sum` (classes, units) and `count` (classes,), which grow with the labels seen.

    Example:
        >>> means = ClassMeans()
        >>> means.update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 2]))
        >>> means.to_xarray().values
        array([[2., 0.],
               [0., 5.]])
        >>> means.to_xarray()["class"].values
        array([0, 2])
    """

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            activations: (batch, units).
            labels: (batch,), whole numbers from 0.
            index: Not used.

        Raises:
            DataError: A label below 0, or not one label a row.
        """
        if labels.shape != activations.shape[:1]:
            raise DataError(
                f"{tuple(activations.shape)} activations need one label a row, not "
                f"{tuple(labels.shape)}"
            )
        if not len(labels):
            return
        if int(labels.min()) < 0:
            raise DataError(f"label {int(labels.min())} is below 0")
        self._reserve(int(labels.max()) + 1, activations)
        total, count = self.state["sum"], self.state["count"]
        labels = labels.to(total.device)
        values = activations.detach().to(device=total.device).to(torch.float64)
        total.index_add_(0, labels, values)
        count.index_add_(0, labels, torch.ones_like(labels, dtype=count.dtype))

    def merge(self, other: ClassMeans) -> None:
        """Adds what another one has seen."""
        if other.state:
            self._reserve(len(other.state["count"]), other.state["sum"])
            for name, values in other.state.items():
                self.state[name][: len(values)] += values.to(self.state[name].device)

    def to_xarray(self) -> xr.DataArray:
        """Class means (unit, class) of the classes that have samples, with `count(class)`."""
        if not self.state:
            raise DataError("class means of no samples at all")
        count = self.state["count"].cpu()
        present = count.nonzero()[:, 0]
        means = (self.state["sum"].cpu()[present] / count[present, None]).T
        return xr.DataArray(
            means.contiguous().numpy(),
            dims=("unit", "class"),
            coords={"class": present.numpy(), "count": ("class", count[present].numpy())},
            name="class_mean",
        )

    def _reserve(self, classes: int, like: Tensor) -> None:
        units = like.shape[1]
        if not self.state:
            self.state["sum"] = accumulator((0, units), like)
            self.state["count"] = torch.zeros(0, dtype=torch.int64, device=self.state["sum"].device)
        more = classes - len(self.state["count"])
        if more > 0:
            for name, values in self.state.items():
                self.state[name] = torch.cat([values, values.new_zeros(more, *values.shape[1:])])
