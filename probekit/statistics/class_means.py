"""The mean activation of every unit for every class."""

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
from probekit.statistics.base import Statistic, accumulator
from probekit.statistics.rows import columns_of, refuse_beyond

__all__ = ["ClassMeans"]


@dataclass
class ClassMeans(Statistic):
    """Class-conditional mean activations, from sums and counts in float64.

    State: `sum` (classes, columns) and `count` (classes,), which grow with the labels seen.

    Args:
        spatial: What is averaged: `"mean"`, units pooled over positions; `"positions"`, units with
            every position as a row; `"flatten"`, the elements of the map.
        memory: The most bytes that the sums of all layers of a pass may need together: 8 * classes *
            columns. Checked before the pass where the labels are known, and on the way for each layer
            alone.

    Example:
        >>> means = ClassMeans()
        >>> means.update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 2]))
        >>> means.to_xarray().values
        array([[2., 0.],
               [0., 5.]])
        >>> means.to_xarray()["class"].values
        array([0, 2])
    """

    spatial: Spatial = "mean"
    memory: int = 2**33

    def __post_init__(self) -> None:
        if self.spatial not in get_args(Spatial):
            known = ", ".join(map(repr, get_args(Spatial)))
            raise OptionError(f"spatial is one of {known}, not {self.spatial!r}")
        if not isinstance(self.memory, int) or self.memory < 1:
            raise OptionError(f"memory is a number of bytes, not {self.memory!r}")

    @property
    def source(self) -> Activations:
        """Activations, pooled or not."""
        return Activations(self.spatial)

    def expect(
        self, labels: Tensor | None, index: Tensor | None = None, layers: Sequence[Layer] = ()
    ) -> None:
        """Checks before a pass that the class means of all layers fit into memory.

        Args:
            labels: (samples,); None where they are not known, so that nothing is checked yet.
            index: Not used.
            layers: The layers that will feed one statistic each.

        Raises:
            OptionError: They do not fit.
        """
        if labels is not None and len(labels) and layers:
            columns = sum(columns_of(layer, self.spatial) for layer in layers)
            self._refuse(int(labels.max()) + 1, columns, f"{len(layers)} layers")

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            activations: (batch, columns).
            labels: (batch,), non-negative integers.
            index: Not used.

        Raises:
            DataError: A label below 0, or not one label a row.
            OptionError: More than `memory` would be needed.
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
        """Class means (unit, class) of the classes that have samples, with `count(class)`.

        With `spatial="flatten"` they are (element, class): the elements of the first unit, of the
        second, and so on.
        """
        if not self.state:
            raise DataError("class means of no samples at all")
        count = self.state["count"].cpu()
        present = count.nonzero()[:, 0]
        means = (self.state["sum"].cpu()[present] / count[present, None]).T
        return xr.DataArray(
            means.contiguous().numpy(),
            dims=("element" if self.spatial == "flatten" else "unit", "class"),
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
            self._refuse(classes, units, "a layer")
            for name, values in self.state.items():
                self.state[name] = torch.cat([values, values.new_zeros(more, *values.shape[1:])])

    def _refuse(self, classes: int, columns: int, layers: str) -> None:
        refuse_beyond(
            8 * classes * columns,
            self.memory,
            f"the mean of {columns} columns of {layers} for {classes} classes",
            "choose fewer or smaller layers",
        )
