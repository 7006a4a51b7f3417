"""The mean activation of every unit for every class, and the squared deviations from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.checks import positive_int
from probekit.statistics.base import (
    ClassSums,
    SpatialStatistic,
    Statistic,
    accumulator,
    check_batch,
    check_memory,
    columns_of,
    with_classes,
)


@dataclass
class ClassMeans(ClassSums, SpatialStatistic):
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
            self._check(len(torch.unique(labels)), columns, f"{len(layers)} layers")

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

    def _shapes(self, columns: int) -> dict[str, tuple[int, ...]]:
        return {"sum": (columns,)}

    def _check(self, classes: int, columns: int, layers: str = "a layer") -> None:
        check_memory(
            8 * classes * columns,
            self.memory,
            f"the mean of {columns} columns of {layers} for {classes} classes",
            "choose fewer or smaller layers",
        )


@dataclass
class ClassMoments(Statistic):
    """Class means and sums of squared deviations from them, in float64 and mergeable in any order.

    State: `mean` and `squares` (classes, units) and `count` (classes,) for the classes in `label`
    (classes,), which are those with samples. Memory: 16 * classes * units bytes.

    Source:
        Chan, Golub & LeVeque 1983 (The American Statistician 37).
    """

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        check_batch(activations, labels)
        if not len(labels):
            return
        label, rows, count = torch.unique(labels, return_inverse=True, return_counts=True)
        mean = accumulator((len(label), activations.shape[1]), activations)
        label, rows, count = (one.to(mean.device) for one in (label, rows, count))
        values = activations.detach().to(mean.device).to(torch.float64)
        mean.index_add_(0, rows, values).div_(count[:, None])
        squares = torch.zeros_like(mean).index_add_(0, rows, (values - mean[rows]).square())
        self._add({"label": label, "mean": mean, "squares": squares, "count": count})

    def merge(self, other: ClassMoments) -> None:
        if other.state:
            self._add(other.state)

    def to_xarray(self) -> xr.Dataset:
        """`class_mean` and `squares` (unit, class) and `count` (class), for classes with samples."""
        state = {
            name: values.movedim(0, -1).contiguous().numpy()
            for name, values in self._on_cpu().items()
        }
        return xr.Dataset(
            {
                "class_mean": (("unit", "class"), state["mean"]),
                "squares": (("unit", "class"), state["squares"]),
                "count": ("class", state["count"]),
            },
            coords={"class": state["label"]},
        )

    def _add(self, part: dict[str, Tensor]) -> None:
        device = self.state["mean"].device if self.state else part["mean"].device
        own = self.state or {name: values[:0] for name, values in part.items()}
        part = {name: values.to(device) for name, values in part.items()}
        label = torch.unique(torch.cat([own["label"], part["label"]]))
        own, part = with_classes(own, label), with_classes(part, label)
        total = own["count"] + part["count"]
        step = part["mean"] - own["mean"]
        share = (part["count"].double() / total.clamp(min=1))[:, None]
        between = step.square() * share * own["count"][:, None]
        self.state = {
            "label": label,
            "mean": own["mean"] + share * step,
            "squares": own["squares"] + part["squares"] + between,
            "count": total,
        }
