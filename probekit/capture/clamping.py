"""A source of tables that clamps units to fixed values while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.readouts import Tap
from probekit.capture.recorder import Recorder
from probekit.errors import LayerError


@dataclass(frozen=True, eq=False)
class Clamped:
    """A source that clamps selected units to a value at all positions during the forward pass.

    Its tables are the layers' activations after clamping, pooled over positions.

    Attributes:
        held: For each layer name, a boolean mask (units,) of the clamped units.
        values: For each layer name, the values (units,); missing layers use zero.
    """

    held: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    own_pass = False

    @contextmanager
    def open(
        self, model: Any, layers: Sequence[Layer], *, samples: Tensor | None = None, **reading: Any
    ) -> Iterator[Tap]:
        """Clamps the units while the model runs."""
        self._check(layers)
        with Recorder(model, list(layers), change=self._hold, **reading) as recorder:
            yield lambda images, index: recorder.activations

    def _check(self, layers: Sequence[Layer]) -> None:
        units = {layer.name: layer.units for layer in layers}
        for table in (self.held, self.values):
            for name, column in table.items():
                if units.get(name) != len(column):
                    raise LayerError(
                        f"{len(column)} units of layer {name!r} were to be clamped, and the layer has "
                        f"{units.get(name, 'no recording in this pass')}"
                    )

    def _hold(self, layer: Layer, maps: Tensor) -> Tensor:
        held = self.held.get(layer.name)
        if held is None or not bool(held.any()):
            return maps
        shape = (1, -1, *(1 for _ in maps.shape[2:]))
        value = self.values.get(layer.name, maps.new_zeros(len(held)))
        value = value.to(maps.device, maps.dtype).view(shape)
        return torch.where(held.to(maps.device).view(shape), value, maps)
