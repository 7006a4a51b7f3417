"""The samples with the highest activations of each unit, and a random sample to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.checks import positive_int
from probekit.runtime import randomness as streams
from probekit.statistics.base import Statistic, accumulator, lowest_rows
from probekit.statistics.resampled import checked_index


@dataclass
class TopSamples(Statistic):
    """The k samples with a unit's highest activations, and its activations for random samples.

    Ties are broken in favor of the lower sample index. The random samples are the same for all units:
    those with the lowest hash of (seed, index), which is a draw without replacement. Neither depends
    on batches, order or the number of processes.

    State: `activation`, `sample` and `label` (top, units), highest first; `drawn_activation`
    (drawn, units), `drawn_order`, `drawn_sample` and `drawn_label` (drawn,). Memory: 8 * (3 * top +
    drawn) bytes per unit, whatever the number of samples.

    Args:
        top: Number of highest activations per unit.
        drawn: Number of random samples.
        seed: Seed of their draw.

    Raises:
        OptionError: A number of samples is below 1.

    Example:
        >>> best = TopSamples(top=2, drawn=1)
        >>> table = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
        >>> best.update(table, torch.tensor([0, 1, 1]), torch.tensor([10, 11, 12]))
        >>> best.to_xarray()["top_sample"].values
        array([[11, 12],
               [10, 11]])
    """

    uses_labels: ClassVar[bool] = False

    top: int = 9
    drawn: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("top", self.top), ("drawn", self.drawn)):
            positive_int(name, value)

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Updates the samples with a batch (batch, units), its labels and its indices (batch,)."""
        index = checked_index(activations, labels, index, uses_labels=False)
        if not len(labels):
            return
        device = accumulator((0,), activations).device
        values = activations.detach().to(device).to(torch.float64)
        index, labels = index.to(device), labels.to(device)
        of_units = {"sample": index[:, None], "label": labels[:, None]}
        top = {name: column.expand(values.shape) for name, column in of_units.items()}
        top["activation"] = values
        order = streams.words(f"top samples {self.seed}", 1, index)[0]
        self._join(top, {"activation": values, "order": order, "sample": index, "label": labels})

    def merge(self, other: TopSamples) -> None:
        if other.state:
            self._join(*_parts(other.state))

    def to_xarray(self) -> xr.Dataset:
        """The samples with the highest activations, in decreasing order, and the random samples.

        Returns:
            `top_sample`, `top_activation` and `top_label` (unit, rank), with ranks from 1, and fewer
            ranks if there were fewer samples; `drawn_activation` (unit, drawn), whose coordinates
            `drawn` and `drawn_label` are the indices and labels of the random samples.
        """
        state = self._on_cpu()
        best = {name: state[name].T.contiguous() for name in ("sample", "activation", "label")}
        order = state["drawn_sample"].argsort(stable=True)
        drawn = state["drawn_activation"][order].T.contiguous()
        return xr.Dataset(
            {
                **{f"top_{x}": (("unit", "rank"), values.numpy()) for x, values in best.items()},
                "drawn_activation": (("unit", "drawn"), drawn.numpy()),
            },
            coords={
                "rank": np.arange(1, len(state["sample"]) + 1),
                "drawn": state["drawn_sample"][order].numpy(),
                "drawn_label": ("drawn", state["drawn_label"][order].numpy()),
            },
        )

    def _join(self, top: dict[str, Tensor], drawn: dict[str, Tensor]) -> None:
        """Merges new samples into the state, with the highest activations and the random samples."""
        known_top, known_drawn = _parts(self.state) if self.state else ({}, {})
        for name, values in known_top.items():
            top[name] = torch.cat([values, top[name].to(values.device)])
        by_sample = top["sample"].argsort(dim=0, stable=True)
        ordered = top["activation"].gather(0, by_sample)
        best = by_sample.gather(0, ordered.argsort(dim=0, descending=True, stable=True)[: self.top])
        self.state = {name: values.gather(0, best) for name, values in top.items()}
        lowest = lowest_rows(known_drawn, drawn, self.drawn)
        self.state |= {f"drawn_{name}": rows for name, rows in lowest.items()}


def _parts(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The top samples and the random samples of a state."""
    drawn = {
        name.removeprefix("drawn_"): x for name, x in state.items() if name.startswith("drawn_")
    }
    return {name: x for name, x in state.items() if not name.startswith("drawn_")}, drawn
