"""Readouts of layers: the tables that update statistics, one (rows, columns) tensor per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.phase import Change
from probekit.capture.pooling import pool
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError
from probekit.models.image_model import Model

Spatial: TypeAlias = Literal["mean", "positions", "flatten"]
Tap: TypeAlias = Callable[[Tensor, Tensor], dict[str, Tensor]]


@runtime_checkable
class Readout(Protocol):
    """Defines the table of each layer that updates a statistic.

    `own_pass` is whether its tap runs the model itself instead of observing the shared forward pass.
    """

    own_pass: bool

    def open(
        self,
        model: Model,
        layers: Sequence[Layer],
        *,
        samples: Tensor | None = None,
        **options: Any,
    ) -> AbstractContextManager[Tap]:
        """Yields a function from a batch of images and their indices to {layer: (rows, columns)}.

        `samples` are the indices of all samples, if they are known in advance.

        The function is called once per batch, after its forward pass. A sample has one row, or several
        contiguous rows.
        """


@dataclass(frozen=True)
class Activations:
    """The activations of the layers in the forward pass.

    They are pooled over positions (`"mean"`); or each position is a row (`"positions"`), or each element a
    column (`"flatten"`). `change` computes a replacement for a layer's output, as for `Recorder`.
    """

    spatial: Spatial = "mean"
    change: Change | None = None
    own_pass = False

    @contextmanager
    def open(
        self,
        model: Model,
        layers: Sequence[Layer],
        *,
        samples: Tensor | None = None,
        **options: Any,
    ) -> Iterator[Tap]:
        """Observes the forward pass of the model."""
        options |= {"spatial": _TABLES[self.spatial], "change": self.change}
        with Recorder(model, list(layers), **options) as recorder:
            yield lambda images, index: recorder.activations


def clamped(held: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Activations:
    """The activations while units are clamped to a value at all positions.

    `held` is a mask (units,) of the clamped units, and `values` holds theirs; missing layers use zero.
    """

    def hold(layer: Layer, maps: Tensor) -> Tensor:
        mask = held.get(layer.name)
        if mask is None or not bool(mask.any()):
            return maps
        value = values.get(layer.name, maps.new_zeros(layer.units))
        for column in (mask, value):
            if len(column) != layer.units:
                raise LayerError(
                    f"{len(column)} units of layer {layer.name!r} were to be clamped, and the layer "
                    f"has {layer.units}"
                )
        shape = (1, -1, *(1 for _ in maps.shape[2:]))
        value = value.to(maps.device, maps.dtype).view(shape)
        return torch.where(mask.to(maps.device).view(shape), value, maps)

    return Activations(change=hold)


def _positions(maps: Tensor) -> Tensor:
    """(batch, units, *positions) as (batch * positions, units)."""
    return maps.flatten(2).movedim(1, 2).flatten(0, 1).clone() if maps.ndim > 2 else maps.clone()


_TABLES = {
    "mean": pool,
    "positions": _positions,
    "flatten": lambda maps: maps.flatten(1).clone(),  # (batch, units * positions)
}
