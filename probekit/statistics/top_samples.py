"""The samples that excite each unit most, and a random sample to compare them with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.checks import positive_int
from probekit.errors import DataError
from probekit.runtime import randomness as streams
from probekit.statistics.base import Statistic, accumulator
from probekit.statistics.resampled import checked_index

__all__ = ["TopSamples"]

_NONE = torch.iinfo(torch.int64).max


@dataclass
class TopSamples(Statistic):
    """The k samples with a unit's highest activations, and its activations for random samples.

    Of equal activations, that of the sample with the lower index counts as higher. The random sample
    is the same for all units: the samples whose hash of (seed, index) is lowest, a draw without
    replacement. Neither depends on batches, order or number of processes.

    State: `activation`, `sample` and `label` (top, units), best first; `drawn_activation`
    (drawn, units), `drawn_order`, `drawn_sample` and `drawn_label` (drawn,). 8 * (3 * top + drawn)
    bytes a unit, whatever the number of samples.

    Args:
        top: How many samples of each unit.
        drawn: How many random samples.
        seed: Seeds their draw.

    Raises:
        OptionError: A number below 1.

    Example:
        >>> best = TopSamples(top=2, drawn=1)
        >>> table = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
        >>> best.update(table, torch.tensor([0, 1, 1]), torch.tensor([10, 11, 12]))
        >>> best.to_xarray()["top_sample"].values
        array([[11, 12],
               [10, 11]])
    """

    top: int = 9
    drawn: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("top", self.top), ("drawn", self.drawn)):
            positive_int(name, value)

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            activations: (batch, units).
            labels: (batch,), whole numbers from 0.
            index: (batch,), the samples' indices in the data.

        Raises:
            DataError: No indices, a label below 0, or not one label and one index a row.
        """
        index = checked_index(activations, labels, index)
        if not len(labels):
            return
        self._reserve(activations)
        home = self.state["activation"].device
        values = activations.detach().to(device=home).to(torch.float64)
        index, labels = index.to(home), labels.to(home)
        self._offer_top(values, index, labels)
        order = streams.words(f"top samples {self.seed}", 1, index)[0]
        self._offer_drawn(values, order, index, labels)

    def merge(self, other: TopSamples) -> None:
        """Takes in what another one has seen."""
        if not other.state:
            return
        if not self.state:
            self.state = {name: values.clone() for name, values in other.state.items()}
            return
        home = self.state["activation"].device
        theirs = {name: values.to(home) for name, values in other.state.items()}
        every = torch.arange(theirs["activation"].shape[1], device=home)
        self._join(every, *(theirs[name] for name in ("activation", "sample", "label")))
        self._offer_drawn(
            *(theirs[f"drawn_{x}"] for x in ("activation", "order", "sample", "label"))
        )

    def to_xarray(self) -> xr.Dataset:
        """The best samples, best first, and the random ones.

        Returns:
            `top_sample`, `top_activation` and `top_label` (unit, rank), with ranks from 1, fewer of
            them where fewer samples were seen; `drawn_activation` (unit, drawn), whose coordinates
            `drawn` and `drawn_label` are the random samples' indices and labels.

        Raises:
            DataError: Nothing was seen.
        """
        if not self.state:
            raise DataError("top samples of no samples at all")
        state = {name: values.cpu() for name, values in self.state.items()}
        seen = (state["sample"] != _NONE).all(1)
        best = {
            name: state[name][seen].T.contiguous() for name in ("sample", "activation", "label")
        }
        order = state["drawn_sample"].argsort(stable=True)
        drawn = state["drawn_activation"][order].T.contiguous()
        return xr.Dataset(
            {
                **{f"top_{x}": (("unit", "rank"), values.numpy()) for x, values in best.items()},
                "drawn_activation": (("unit", "drawn"), drawn.numpy()),
            },
            coords={
                "rank": np.arange(1, int(seen.sum()) + 1),
                "drawn": state["drawn_sample"][order].numpy(),
                "drawn_label": ("drawn", state["drawn_label"][order].numpy()),
            },
        )

    def _reserve(self, like: Tensor) -> None:
        if self.state:
            return
        units = like.shape[1]
        zeros = accumulator((self.top, units), like)
        empty = torch.empty(0, dtype=torch.int64, device=zeros.device)
        self.state = {
            "activation": zeros - torch.inf,
            "sample": torch.full_like(zeros, _NONE, dtype=torch.int64),
            "label": torch.full_like(zeros, -1, dtype=torch.int64),
            "drawn_activation": zeros[:0],
            "drawn_order": empty,
            "drawn_sample": empty.clone(),
            "drawn_label": empty.clone(),
        }

    def _offer_top(self, values: Tensor, index: Tensor, labels: Tensor) -> None:
        """Takes from a batch what is better than the last that is kept.

        Late in a pass that is little, and finding it costs one comparison rather than a sort.
        """
        last, sample = self.state["activation"][-1], self.state["sample"][-1]
        better = (values > last) | ((values == last) & (index[:, None] < sample))
        count = better.sum(0)
        units = count.nonzero()[:, 0]
        if not len(units):
            return
        better = better[:, units]
        found = values[:, units].masked_fill(~better, -torch.inf)
        found, rows = found.topk(int(count.max()), dim=0)
        better = better.gather(0, rows)
        self._join(units, found, index[rows].masked_fill(~better, _NONE), labels[rows])

    def _join(self, units: Tensor, activation: Tensor, sample: Tensor, label: Tensor) -> None:
        """Keeps the best of what some units have and of what is offered to them."""
        offered = {"activation": activation, "sample": sample, "label": label}
        both = {name: torch.cat([self.state[name][:, units], x]) for name, x in offered.items()}
        by_sample = both["sample"].argsort(dim=0, stable=True)
        ordered = both["activation"].gather(0, by_sample)
        best = by_sample.gather(0, ordered.argsort(dim=0, descending=True, stable=True)[: self.top])
        for name, values in both.items():
            self.state[name][:, units] = values.gather(0, best)

    def _offer_drawn(self, values: Tensor, order: Tensor, index: Tensor, labels: Tensor) -> None:
        """Keeps the samples whose random number is lowest."""
        known = self.state["drawn_order"]
        if len(known) == self.drawn and int(order.min()) >= int(known[-1]):
            return
        offered = {"activation": values, "order": order, "sample": index, "label": labels}
        every = torch.cat([known, order])
        lowest = every.argsort(stable=True)[: self.drawn]
        for name, more in offered.items():
            self.state[f"drawn_{name}"] = torch.cat([self.state[f"drawn_{name}"], more])[lowest]
