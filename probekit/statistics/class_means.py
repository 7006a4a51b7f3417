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
from probekit.checks import one_of, positive_int
from probekit.errors import DataError
from probekit.statistics.base import Statistic, accumulator
from probekit.statistics.by_class import rows_of
from probekit.statistics.rows import columns_of, refuse_beyond

__all__ = ["ClassMeans"]


@dataclass
class ClassMeans(Statistic):
    """Class-conditional mean activations, from sums and counts in float64.

    State: `sum` (classes, columns) and `count` (classes,) of the classes in `label` (classes,), which
    are those that were seen: memory does not depend on how large a label is.

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
        one_of("spatial", self.spatial, get_args(Spatial))
        positive_int("memory", self.memory)

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
            self._refuse(len(torch.unique(labels)), columns, f"{len(layers)} layers")

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
        rows = self._rows(labels, activations)
        total, count = self.state["sum"], self.state["count"]
        values = activations.detach().to(device=total.device).to(torch.float64)
        total.index_add_(0, rows, values)
        count.index_add_(0, rows, torch.ones_like(rows, dtype=count.dtype))

    def merge(self, other: ClassMeans) -> None:
        """Adds what another one has seen."""
        if other.state:
            rows = self._rows(other.state["label"], other.state["sum"])
            for name in ("sum", "count"):
                self.state[name][rows] += other.state[name].to(rows.device)

    def to_xarray(self) -> xr.DataArray:
        """Class means (unit, class) of the classes that have samples, with `count(class)`.

        With `spatial="flatten"` they are (element, class): the elements of the first unit, of the
        second, and so on.
        """
        if not self.state:
            raise DataError("class means of no samples at all")
        count, label = self.state["count"].cpu(), self.state["label"].cpu()
        present = count.nonzero()[:, 0]
        means = (self.state["sum"].cpu()[present] / count[present, None]).T
        return xr.DataArray(
            means.contiguous().numpy(),
            dims=("element" if self.spatial == "flatten" else "unit", "class"),
            coords={"class": label[present].numpy(), "count": ("class", count[present].numpy())},
            name="class_mean",
        )

    def _rows(self, labels: Tensor, like: Tensor) -> Tensor:
        """The row of each label; new labels get one."""
        if not self.state:
            self.state["sum"] = accumulator((0, like.shape[1]), like)
            for name in ("count", "label"):
                self.state[name] = torch.zeros(
                    0, dtype=torch.int64, device=self.state["sum"].device
                )
        before = len(self.state["label"])
        rows = rows_of(self.state, labels.to(self.state["label"].device))
        if len(self.state["label"]) > before:
            self._refuse(len(self.state["label"]), like.shape[1], "a layer")
        return rows

    def _refuse(self, classes: int, columns: int, layers: str) -> None:
        refuse_beyond(
            8 * classes * columns,
            self.memory,
            f"the mean of {columns} columns of {layers} for {classes} classes",
            "choose fewer or smaller layers",
        )
