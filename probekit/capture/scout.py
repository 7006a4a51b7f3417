"""What the first forward pass teaches: which calls happen, in which order, and where their units lie."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from probekit.capture.layers import (
    Layer,
    Selection,
    axis_of_type,
    is_activation_function,
    prefix_tokens,
    site_names,
    tensor_of,
    tensors_in,
)
from probekit.errors import LayerError, ProbekitWarning

__all__ = ["Scout", "shares_memory"]


def shares_memory(tensor: Tensor, output: Any) -> bool:
    """Whether any tensor of an output lies in the memory of another tensor."""
    storage = tensor.untyped_storage().data_ptr()
    return any(other.untyped_storage().data_ptr() == storage for other in tensors_in(output))


@dataclass
class _Definition:
    """A module whose type fixes the unit axis of what it puts out."""

    order: int
    shape: tuple[int, ...]
    axis: int


class Scout:
    """Follows one forward pass and learns its layers.

    The units of a pointwise module (an activation function, dropout, a sum in a block) lie where the
    nearest module of a telling type put them: the last one before it with an output of the same
    shape, or else the first one after it.
    """

    def __init__(self, module: nn.Module, selection: Selection, pick: int | str | None) -> None:
        self.selection = selection
        self.calls: Counter[str] = Counter()
        self.layers: list[Layer] = []
        self.unsettled: set[str] = set()
        self.without_units: dict[str, str] = {}
        self._pick = pick
        self._prefix = prefix_tokens(module)
        self._order = 0
        self._definitions: list[_Definition] = []
        self._names: dict[str, Iterator[str]] = {}
        self._orders: dict[str, int] = {}
        self._last: tuple[str, Tensor] | None = None

    def visit(self, name: str, module: nn.Module, output: Any, batch: int) -> tuple[str, bool]:
        """Takes in one call; returns its layer name and whether it is wanted and has units."""
        if name not in self._names:
            self._names[name] = site_names(name, self.selection.modules)
        site = next(self._names[name])
        call = self.calls[name]
        self.calls[name] += 1
        self._order += 1
        wanted = self.selection.wants(site, module)
        tensor = tensor_of(output, self._pick if wanted else None)
        axis = None if tensor is None else axis_of_type(module, tensor)
        if tensor is not None and axis is not None and tensor.ndim > 2:
            self._definitions.append(_Definition(self._order, tuple(tensor.shape), axis))
        if not wanted:
            return site, False
        problem = _without_units(output, tensor, batch)
        if tensor is None or problem:
            if site in self.selection.exact:
                raise LayerError(f"layer {site!r} ({type(module).__name__}) {problem}")
            self.without_units[site] = problem
            return site, False
        self._orders[site] = self._order
        if axis is None:
            axis = self._axis_before(tuple(tensor.shape))
        if axis is None:
            self.unsettled.add(site)
        if is_activation_function(module):
            self._last = (site, tensor)
        self.layers.append(
            self._layer(
                Layer(
                    name=site,
                    module=name,
                    call=call,
                    type=type(module).__name__,
                    shape=tuple(tensor.shape[1:]),
                    unit_axis=1,
                    units=0,
                    windows=tensor.shape[0] // batch,
                    itemsize=tensor.element_size(),
                ),
                _default_axis(tensor.ndim) if axis is None else axis,
            )
        )
        return site, True

    def _layer(self, layer: Layer, axis: int) -> Layer:
        layer = replace(layer, unit_axis=axis, units=(1, *layer.shape)[axis] if layer.shape else 1)
        if layer.tokens and layer.shape[0] > self._prefix:
            layer = replace(layer, prefix=self._prefix)
        return layer

    def _axis_before(self, shape: tuple[int, ...]) -> int | None:
        same = (found.axis for found in reversed(self._definitions) if found.shape == shape)
        return next(same, None)

    def _axis_after(self, order: int, shape: tuple[int, ...]) -> int | None:
        same = (
            found.axis
            for found in self._definitions
            if found.order > order and found.shape[1:] == shape
        )
        return next(same, None)

    def finish(self, output: Any) -> None:
        """Settles what the whole pass was needed for.

        Raises:
            LayerError: A wanted layer was never reached, or none has units.
        """
        self.selection.explain_silence(self.calls)
        if self.selection.default and self._last and shares_memory(self._last[1], output):
            classifier = self._last[0]
            self.layers = [layer for layer in self.layers if layer.name != classifier]
        self._last = None
        for number, layer in enumerate(self.layers):
            layer = replace(layer, calls=self.calls[layer.module])
            if layer.name in self.unsettled:
                axis = self._axis_after(self._orders[layer.name], layer.shape)
                layer = layer if axis is None else self._layer(layer, axis)
            self.layers[number] = layer
        self._say_what_is_missing()
        if not self.layers:
            raise LayerError(
                "no wanted layer has units to record"
                + "".join(f"; {name!r} {why}" for name, why in list(self.without_units.items())[:3])
            )

    def _say_what_is_missing(self) -> None:
        axes: dict[tuple[int, ...], set[int]] = {}
        for found in self._definitions:
            axes.setdefault(found.shape[1:], set()).add(found.axis)
        doubtful = [
            layer.name
            for layer in self.layers
            if len(axes.get(layer.shape, ())) > 1
            and axis_of_type(self.selection.modules[layer.module], _Shape(layer)) is None
        ]
        if doubtful:
            warnings.warn(
                f"the unit axis of {_some(doubtful)} is not certain: layers of the same shape have "
                "it in different places; another image size tells them apart",
                ProbekitWarning,
                stacklevel=2,
            )
        if self.without_units:
            why = next(iter(self.without_units.values()))
            warnings.warn(
                f"not recorded: {_some(list(self.without_units))}, whose output {why}",
                ProbekitWarning,
                stacklevel=2,
            )


class _Shape:
    """Enough of a tensor to ask a module's type for the unit axis."""

    def __init__(self, layer: Layer) -> None:
        self.ndim = len(layer.shape) + 1


def _default_axis(ndim: int) -> int:
    return 2 if ndim == 3 else 1


def _without_units(output: Any, tensor: Tensor | None, batch: int) -> str:
    if tensor is None:
        return f"gives {type(output).__name__} and no floating-point tensor in it"
    if batch < 1 or tensor.shape[0] % batch or not tensor.shape[0]:
        return f"has the shape {tuple(tensor.shape)}, whose first axis is not the batch of {batch} samples"
    return ""


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
