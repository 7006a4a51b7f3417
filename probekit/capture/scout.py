"""What the first forward pass teaches: which calls happen, in which order, and where their units lie."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from probekit.capture.calls import Call
from probekit.capture.layers import Layer
from probekit.capture.outputs import shares_memory, tensor_of
from probekit.capture.selection import Selection
from probekit.capture.units import UnitAxes, prefix_tokens
from probekit.errors import LayerError, ProbekitWarning, some_of

__all__ = ["Scout", "Tokens"]

Tokens: TypeAlias = Literal["all", "patch", "class"]


class Scout:
    """Follows one forward pass and learns its layers.

    Args:
        module: What runs.
        selection: Which layers are wanted.
        pick: Which tensor of an output counts, as for `tensor_of`.
        tokens: Which tokens of a sequence count.

    Attributes:
        layers: The wanted layers so far, in execution order.
        unsettled: The shapes of those whose unit axis a later call must tell.
        asked: After the pass, the name to give to each layer: the one that was asked for.
        notes: Sentences on what is uncertain or missing, which are warned of too.
    """

    def __init__(
        self, module: nn.Module, selection: Selection, pick: int | str | None, tokens: Tokens
    ) -> None:
        self.selection = selection
        self.layers: list[Layer] = []
        self.unsettled: dict[str, tuple[int, ...]] = {}
        self._pick = pick
        self._tokens = tokens
        self._classes = getattr(module, "num_classes", None)
        self._axes = UnitAxes(prefix_tokens(module))
        self._calls: list[tuple[Call, nn.Module | None]] = []
        self._moments: dict[str, int] = {}
        self._inferred: dict[str, tuple[int, ...]] = {}
        self._left_out: dict[str, str] = {}
        self._doubts: dict[str, str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self.asked: dict[str, str] = {}
        self.notes: list[str] = []
        self._last: tuple[str, Tensor] | None = None
        self._weights_after = False

    def visit(
        self, call: Call, module: nn.Module | None, output: Any, batch: int, activation: bool
    ) -> tuple[Layer, Tensor] | None:
        """Takes in one call.

        Args:
            call: The call.
            module: The module that was called; None where it is a function.
            output: What it gave.
            batch: The number of samples.
            activation: Whether it is an activation function.

        Returns:
            The layer and its output if it is wanted and has units.

        Raises:
            LayerError: A layer asked for by name has no units.
        """
        site = call.name
        kind = call.function if module is None else type(module).__name__
        self._calls.append((call, module))
        wanted = self.selection.wants(call, module, activation)
        tensor = self._tensor(site, output, wanted)
        axis = None
        if module is not None:
            axis = None if tensor is None else self._axes.note(module, tuple(tensor.shape))
            self._weights_after |= any(True for _ in module.parameters(recurse=False))
        if not wanted:
            return None
        problem = _without_units(output, tensor, batch)
        if tensor is not None and not problem:
            layer = self._layer(call, kind, tensor, axis, batch)
            problem = self._without_tokens(layer)
        if tensor is None or problem:
            self._leave_out(site, kind, problem)
            return None
        if activation:
            self._last, self._weights_after = (site, tensor), False
        self.layers.append(layer)
        return layer, tensor

    def gave_last(self, layers: int, output: Any) -> bool:
        """Whether an output is that of the last layer, found after so many, and so a layer already."""
        return len(self.layers) > layers and self._last is not None and self._last[1] is output

    def doubt(self, name: str, why: str) -> None:
        """A module may be, or hold, an activation function that is no layer."""
        self._doubts[name] = why

    def forget_since(self, layers: int, name: str) -> None:
        """Takes back all wanted layers but the first so many, as parts of what they are in.

        Args:
            layers: The number of layers to keep.
            name: What they are in.
        """
        self._doubts.pop(name, None)
        for layer in self.layers[layers:]:
            self.unsettled.pop(layer.name, None)
            self._inferred.pop(layer.name, None)
        del self.layers[layers:]

    def finish(self, output: Any) -> None:
        """Settles what the whole pass was needed for.

        Args:
            output: What the model gave; None where the pass was stopped.

        Raises:
            LayerError: A wanted layer was never reached, or none has units.
        """
        self.selection.explain_silence(self._calls)
        self._keep_chosen()
        classifier = self._classifier(output) if self.selection.default else None
        self._last = None
        self._counts = Counter((call.module, call.function) for call, _ in self._calls)
        self.layers = [self._settled(layer) for layer in self.layers if layer.name != classifier]
        for sentence in self.selection.first_of_several([call for call, _ in self._calls]):
            self._note(sentence)
        if not self.layers:
            if self.selection.default and not (self._left_out or classifier):
                raise LayerError(
                    "the model runs no activation function, neither as a module nor as a function; "
                    f"name layers, or a type among {', '.join(self.selection.kinds[:20]) or 'none'}"
                )
            reasons = [f"; {site!r} {why}" for site, why in self._left_out.items()]
            reasons += [f"; {classifier!r} is the classifier's"] if classifier else []
            raise LayerError("no wanted layer has units to record" + "".join(reasons[:3]))
        self._say_what_is_uncertain()
        self._say_what_is_missing()

    def _keep_chosen(self) -> None:
        """Keeps the layers that are meant once all names are known."""
        names = {layer.name for layer in self.layers}
        pairs = [pair for pair in self._calls if pair[0].name in names]
        self.asked = self.selection.chosen(pairs)
        self.layers = [layer for layer in self.layers if layer.name in self.asked]

    def _tensor(self, site: str, output: Any, wanted: bool) -> Tensor | None:
        try:
            return tensor_of(output, self._pick if wanted else None)
        except LayerError as error:
            raise LayerError(f"layer {site!r}: {error}") from None

    def _layer(self, call: Call, kind: str, tensor: Tensor, axis: int | None, batch: int) -> Layer:
        site = call.name
        shape = tuple(tensor.shape)
        if axis is None:
            self._inferred[site] = shape
            self._moments[site] = self._axes.now
            axis = self._axes.before(shape)
        if axis is None:
            self.unsettled[site] = shape
            axis = 2 if tensor.ndim == 3 else 1
        layer = Layer(
            name=site,
            module=call.module,
            call=call.number,
            type=kind,
            function=call.function,
            shape=shape[1:],
            unit_axis=axis,
            units=1,
            windows=shape[0] // batch,
            itemsize=tensor.element_size(),
        )
        return self._on_axis(layer, axis)

    def _on_axis(self, layer: Layer, axis: int) -> Layer:
        layer = replace(layer, unit_axis=axis, units=(1, *layer.shape)[axis] if layer.shape else 1)
        return replace(layer, prefix=self._axes.prefix(layer.shape[0])) if layer.tokens else layer

    def _settled(self, layer: Layer) -> Layer:
        layer = replace(layer, calls=self._counts[layer.module, layer.function])
        shape = self.unsettled.get(layer.name)
        axis = shape and self._axes.after(self._moments[layer.name], shape)
        return self._on_axis(layer, axis) if axis else layer

    def _without_tokens(self, layer: Layer) -> str:
        if self._tokens == "class" and layer.positions and not layer.prefix:
            return f"has the shape {layer.shape} and no class token"
        if self._tokens == "patch" and layer.tokens and layer.shape[0] == layer.prefix:
            return "has no patch tokens"
        return ""

    def _leave_out(self, site: str, kind: str, problem: str) -> None:
        if site in self.selection.exact:
            raise LayerError(f"layer {site!r} ({kind}) {problem}")
        self._left_out[site] = problem

    def _classifier(self, output: Any) -> str | None:
        """The activation function that is the model's output, or pools to it."""
        if self._last is None:
            return None
        site, tensor = self._last
        returned = tensor.ndim == 2 and shares_memory(tensor, output)
        units = next((layer.units for layer in self.layers if layer.name == site), 0)
        pools = not self._weights_after and units == self._classes
        return site if returned or pools else None

    def _say_what_is_uncertain(self) -> None:
        doubtful = [
            layer.name
            for layer in self.layers
            if (shape := self._inferred.get(layer.name)) and self._axes.contested(shape)
        ]
        if doubtful:
            self._note(
                f"the unit axis of {some_of(doubtful)} is not certain: layers of the same shape have "
                "it in different places; another image size tells them apart"
            )

    def _say_what_is_missing(self) -> None:
        if self._left_out:
            why = next(iter(self._left_out.values()))
            self._note(f"not recorded: {some_of(list(self._left_out))}, whose output {why}")
        if self._doubts and self.selection.default:
            shown = some_of(
                [f"{name or 'the model'!r} {why}" for name, why in self._doubts.items()]
            )
            self._note(
                f"the layers may not be complete: {shown}; name it as a layer if its output is that of "
                "an activation function"
            )

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        warnings.warn(sentence, ProbekitWarning, stacklevel=2)


def _without_units(output: Any, tensor: Tensor | None, batch: int) -> str:
    if tensor is None:
        return f"gives {type(output).__name__} and no floating-point tensor in it"
    if batch < 1 or tensor.shape[0] % batch or not tensor.shape[0]:
        return f"has the shape {tuple(tensor.shape)}, whose first axis is not the batch of {batch} samples"
    return ""
