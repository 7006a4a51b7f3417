"""The mean and the sum of squared deviations of every unit within every class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xarray as xr
from torch import Tensor

from probekit.statistics.base import Statistic, accumulator, check_batch
from probekit.statistics.rows import with_classes


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
