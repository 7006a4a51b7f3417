"""What every statistic is: options, a state of tensors, and four methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import torch
import xarray as xr
from torch import Tensor

from probekit.capture.readouts import Activations, Source
from probekit.runtime.processes import processes

__all__ = ["Statistic", "StatisticLike", "accumulator", "distinct", "merged"]

Key = TypeVar("Key")


@runtime_checkable
class StatisticLike(Protocol):
    """A statistic, as an analysis uses it."""

    def fresh(self) -> Self:
        """A statistic with the same options that has seen nothing."""
        ...

    def update(self, activations: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        """Takes in a batch: activations (batch, units), labels (batch,), indices (batch,)."""
        ...

    def merge(self, other: Self) -> None:
        """Takes in what another statistic of the same options has seen."""
        ...

    def to_xarray(self) -> xr.DataArray | xr.Dataset:
        """The statistic as labelled numbers, with a `unit` dimension where it is per unit."""
        ...


@dataclass
class Statistic:
    """Base of the statistics here: options are fields, all that was seen is in `state`.

    Two statistics are equal when their options are, so that metrics which need the same one share
    it. `state` holds tensors alone: it can be saved and loaded as safetensors.
    """

    state: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @property
    def source(self) -> Source:
        """Which table of a layer it is fed with: here, the activations pooled over positions."""
        return Activations()

    def fresh(self) -> Self:
        """A statistic with the same options that has seen nothing."""
        return replace(self, state={})

    def to(self, device: torch.device | str) -> None:
        """Moves the state to a device."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}


def accumulator(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros in float64 beside a tensor, or on the CPU where its device knows no float64."""
    device = torch.device("cpu") if like.device.type == "mps" else like.device
    return torch.zeros(*shape, dtype=torch.float64, device=device)


def distinct(statistics: Iterable[Any]) -> list[Any]:
    """Statistics without those that equal an earlier one."""
    kept: list[Any] = []
    for statistic in statistics:
        if statistic not in kept:
            kept.append(statistic)
    return kept


def merged(statistics: Mapping[Key, Any]) -> dict[Key, Any]:
    """Statistics of all processes together, merged in the order of ranks.

    Every process passes what its share of the samples gave and receives the whole. A process whose
    share was empty may lack a key.
    """
    together = processes()
    if together.world == 1:
        return dict(statistics)
    for one in statistics.values():
        if isinstance(one, Statistic):
            one.to("cpu")
    whole: dict[Key, Any] = {}
    for part in together.gather(dict(statistics)):
        for key, one in part.items():
            whole.setdefault(key, one.fresh()).merge(one)
    return whole
