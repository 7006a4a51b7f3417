"""The mean activation of every unit for every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.checks import positive_int
from probekit.statistics.base import SpatialStatistic, check_batch
from probekit.statistics.rows import check_memory, columns_of, rows_of


@dataclass
class ClassMeans(SpatialStatistic):
    """Class-conditional mean activations, computed from sums and counts in float64.

    State: `sum` (classes, columns) and `count` (classes,) for the classes in `label` (classes,). Only
    classes with samples are stored, so memory does not depend on the largest label.

    Args:
        spatial: `"mean"`: units pooled over positions; `"positions"`: units with every position as
            a row; `"flatten"`: the elements of the map.
        memory: Maximum number of bytes for the sums of all layers of a pass, 8 * classes * columns. It
            is checked before the pass if the labels are known, and for each layer during the pass.

    Example:
        >>> means = ClassMeans()
        >>> means.update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 2]))
        >>> means.to_xarray().values
        array([[2., 0.],
               [0., 5.]])
        >>> means.to_xarray()["class"].values
        array([0, 2])
    """

    memory: int = 2**33

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int("memory", self.memory)

    def expect(
        self, labels: Tensor | None, index: Tensor | None = None, layers: Sequence[Layer] = ()
    ) -> None:
        """Checks before a pass that the class means of all layers fit into memory, if labels are known."""
        if labels is not None and len(labels) and layers:
            columns = sum(columns_of(layer, self.spatial) for layer in layers)
            self._check_memory(len(torch.unique(labels)), columns, f"{len(layers)} layers")

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the means with a batch (batch, columns) and its labels (batch,)."""
        check_batch(activations, labels)
        if not len(labels):
            return
        rows = self._rows(labels, activations)
        total, count = self.state["sum"], self.state["count"]
        values = activations.detach().to(total.device).to(torch.float64)
        total.index_add_(0, rows, values)
        count.index_add_(0, rows, torch.ones_like(rows))

    def merge(self, other: ClassMeans) -> None:
        if other.state:
            rows = self._rows(other.state["label"], other.state["sum"])
            for name in ("sum", "count"):
                self.state[name][rows] += other.state[name].to(rows.device)

    def to_xarray(self) -> xr.DataArray:
        """Class means (unit, class) of the classes with samples, with the coordinate `count` (class).

        With `spatial="flatten"` the dimensions are (element, class), with the elements of the first
        unit, then those of the second, and so on.
        """
        state = self._on_cpu()
        means = (state["sum"] / state["count"][:, None]).T
        return xr.DataArray(
            means.contiguous().numpy(),
            dims=("element" if self.spatial == "flatten" else "unit", "class"),
            coords={"class": state["label"].numpy(), "count": ("class", state["count"].numpy())},
            name="class_mean",
        )

    def _rows(self, labels: Tensor, like: Tensor) -> Tensor:
        columns = like.shape[1]
        return rows_of(
            self.state, labels, like,
            lambda classes: self._check_memory(classes, columns, "a layer"), sum=(columns,),
        )  # fmt: skip

    def _check_memory(self, classes: int, columns: int, layers: str) -> None:
        check_memory(
            8 * classes * columns,
            self.memory,
            f"the mean of {columns} columns of {layers} for {classes} classes",
            "choose fewer or smaller layers",
        )
