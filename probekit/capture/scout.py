"""Analyzes the first forward pass: the calls, their order and their unit axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from probekit.capture.axes import Axes, Label, newest
from probekit.capture.batch_axis import BatchAxis, decide, first_guess
from probekit.capture.calls import Call
from probekit.capture.layers import Layer
from probekit.capture.outputs import shares_memory, tensor_of, tensors_in
from probekit.capture.selection import Selection
from probekit.capture.tracer import Tracer
from probekit.capture.units import Unplaced, place
from probekit.errors import LayerError, OptionError, some_of, warn

Tokens: TypeAlias = Literal["all", "patch", "class"]


class Scout:
    """Follows one forward pass and finds its layers.

    The axes of `unsettled` layers depend on the rest of the pass. `asked` is, after it, the requested name
    of each layer; `notes` are messages about what is uncertain or missing, also issued as warnings.
    """

    def __init__(
        self,
        module: nn.Module,
        selection: Selection,
        pick: int | str | None,
        tokens: Tokens,
        inputs: Sequence[Tensor],
    ) -> None:
        self.selection = selection
        self.layers: list[Layer] = []
        self.unsettled: set[str] = set()
        self.tracer = Tracer(module, inputs)
        self._inputs = inputs
        self._batch = first_guess(self.tracer.inputs)
        self._sequences: list[tuple[Label, int]] = []
        self._visits: dict[str, _Visit] = {}
        self._pick = pick
        self._tokens = tokens
        self._classes = getattr(module, "num_classes", None)
        self._calls: list[Call] = []
        self._left_out: dict[str, str] = {}
        self._doubts: dict[str, str] = {}
        self.asked: dict[str, str] = {}
        self.notes: list[str] = []
        self._last: tuple[str, Tensor] | None = None
        self._weights_after = False
        self._weighted = ""

    @property
    def count(self) -> int:
        """The number of samples known so far."""
        return 0 if self._batch is None else self._batch.size

    def visit(self, call: Call, output: object, activation: bool) -> tuple[Layer, Tensor] | None:
        """Updates with one call of a module or of a function; returns a selected layer and its output."""
        site, module = call.name, call.called
        self._calls.append(call)
        wanted = self.selection.wants(call, activation)
        try:
            tensor = tensor_of(output, self._pick if wanted else None)
        except LayerError as error:
            raise LayerError(f"layer {site!r}: {error}") from None
        axes = () if tensor is None else self.tracer.axes(tensor)
        before = self._weighted
        if module is not None:
            first = getattr(module, "batch_first", None)  # of sequence modules
            if isinstance(first, bool) and len(axes) == 3:
                self._sequences.append(axes[0 if first else 1][0])
            if any(True for _ in module.parameters(recurse=False)):
                self._weights_after, self._weighted = True, call.module
        if not wanted:
            return None
        if (why := _unreadable(output, tensor)) or tensor is None:
            self._leave_out(call, why)
            return None
        shape, depends = tuple(tensor.shape), self.tracer.depends(tensor)
        size = tensor.element_size()
        visit = _Visit(call, shape, size, axes, depends, before)
        if activation and self.tracer.nonlinearities is not None:
            self.tracer.nonlinearities.settle(tensor)
        layer, settled = self._guess(visit)
        if activation and depends is not False:
            self._last, self._weights_after = (site, tensor), False
        self._visits[site] = visit
        if not settled:
            self.unsettled.add(site)
        self.layers.append(layer)
        return layer, tensor

    def is_last_output(self, layers: int, output: object) -> bool:
        """Whether an output is already recorded, as that of the last layer found since `layers`."""
        return len(self.layers) > layers and self._last is not None and self._last[1] is output

    def doubt(self, name: str, why: str) -> None:
        """Notes that a module may be or contain an activation function that is not recorded."""
        self._doubts[name] = why

    def doubt_operation(self, name: str, operation: str) -> None:
        """Notes that a module computes a nonlinear operation that may be an activation function."""
        self._doubts.setdefault(name, f"computes {operation} by itself")

    def remove_since(self, layers: int, name: str) -> None:
        """Removes all selected layers except the first `layers`, as parts of the module `name`."""
        self._doubts.pop(name, None)
        for layer in self.layers[layers:]:
            self.unsettled.discard(layer.name)
        del self.layers[layers:]

    def finish(self, output: object) -> None:
        """Completes the analysis after the whole pass; `output` is None if the pass was stopped."""
        self.selection.check_reached(self._calls)
        names = {layer.name for layer in self.layers}
        self.asked = self.selection.chosen([call for call in self._calls if call.name in names])
        self.layers = [layer for layer in self.layers if layer.name in self.asked]
        self._decide(output)
        if (
            self.tracer.nonlinearities is not None
            and isinstance(output, Tensor)
            and output.ndim > 2
        ):
            self.tracer.nonlinearities.read(output)
        classifier = self._classifier(output) if self.selection.default else None
        self._last = None
        self.layers = [layer for layer in self.layers if layer.name != classifier]
        for sentence in self.selection.first_of_several(self._calls):
            self.note(sentence)
        if not self.layers:
            raise self._nothing_found(classifier)
        if self._left_out:
            name, why = next(iter(self._left_out.items()))
            self.note(f"not recorded: {some_of(list(self._left_out))}; {name!r} {why}")
        if self._doubts and self.selection.default:
            self.note(
                f"layers may be missing{self._doubtful()}; name it as a layer if its output is that of "
                "an activation function"
            )

    def _nothing_found(self, classifier: str | None) -> LayerError:
        if self.selection.default and not (self._left_out or classifier):
            return LayerError(
                "the model runs no activation function, neither as a module nor as a function"
                f"{self._doubtful()}; name layers, or a type among "
                f"{', '.join(self.selection.kinds[:20]) or 'none'}"
            )
        reasons = [f"; {site!r} {why}" for site, why in self._left_out.items()]
        reasons += [f"; {classifier!r} is the classifier's"] if classifier else []
        return LayerError("no selected layer has units to record" + "".join(reasons[:3]))

    def _guess(self, visit: _Visit) -> tuple[Layer, bool]:
        """Returns a layer with the axes known so far, and whether all are known."""
        if self._batch is not None and self._batch.size:
            try:
                layer = self._layer(visit, self._batch)
            except Unplaced:
                pass
            else:
                later = layer.split or layer.evidence == "weights after"
                return layer, layer.certain and not later
        call = visit.call
        shape = visit.shape[1:]
        return Layer(call.name, call.module, call.number, call.type, shape, 1, 1), False

    def _decide(self, output: object) -> None:
        """Determines the batch and thereby the axes of all layers."""
        if self._tokens == "class" and not self.tracer.seen_tokens:
            raise OptionError(
                "tokens='class' was requested, but the model has no class token: it concatenates "
                "nothing with its patches"
            )
        outputs = [self.tracer.axes(tensor) for tensor in tensors_in(output)]
        self._batch = decide(self.tracer, outputs, self._sequences, self._batch, self._inputs)
        if self._batch.label is not None and not self._batch.size:
            raise LayerError(
                "the first batch has no samples, so the layers cannot be found; start with a batch that "
                "has samples"
            )
        layers = []
        calls = Counter((call.module, call.function) for call in self._calls)
        for before in self.layers:
            visit = self._visits[before.name]
            try:
                layer = self._layer(visit, self._batch)
            except Unplaced as reason:
                self._leave_out(visit.call, str(reason))
                continue
            if before.name not in self.unsettled:
                self._check_unmoved(before, layer)
            layers.append(replace(layer, calls=calls[layer.module, layer.function]))
        self.layers = layers

    def _layer(self, visit: _Visit, batch: BatchAxis) -> Layer:
        beside = self.tracer.seen_tokens
        shape = visit.shape
        call = visit.call
        found = place(
            call.called, shape, visit.axes, visit.depends, batch.label, batch.size, beside
        )
        units = prod(shape[axis] for axis in (found.unit_axis, *found.split) if axis < len(shape))
        if not units:
            raise Unplaced(f"has the shape {shape}, without units")
        layer = Layer(
            name=call.name,
            module=call.module,
            call=call.number,
            type=call.type,
            shape=tuple(size for i, size in enumerate(shape) if i != found.batch_axis),
            units=units,
            itemsize=visit.itemsize,
            function=call.function,
            samples_from=batch.source,
            after=visit.after,
            **{name: value for name, value in vars(found).items() if name != "several"},
        )
        if self._tokens != "all" and layer.positions:
            if found.several:
                raise Unplaced(
                    f"has the shape {layer.shape}, in which its tokens cannot be identified"
                )
            if self._tokens == "class" and layer.class_token is None:
                raise Unplaced(f"has the shape {layer.shape} and no class token")
            if self._tokens == "patch" and layer.positions == (layer.prefix + layer.suffix,):
                raise Unplaced("has no patch tokens")
        return layer if batch.certain else replace(layer, certain=False)

    def _check_unmoved(self, before: Layer, after: Layer) -> None:
        """Checks that a layer recorded during the pass has the axes determined after the pass."""
        same_tokens = before.chosen(self._tokens) == after.chosen(self._tokens)
        names = ("batch_axis", "unit_axis", "split", "windows", "outer")
        if not same_tokens or any(getattr(before, x) != getattr(after, x) for x in names):
            raise LayerError(
                f"layer {after.name!r} has its samples on axis {after.batch_axis} and its units on "
                f"axis {after.unit_axis}, which was not known before the end of the forward pass; find "
                "the layers first, with another Recorder on a few inputs, and pass its layers to this one"
            )

    def _leave_out(self, call: Call, problem: str) -> None:
        if call.name in self.selection.exact:
            raise LayerError(f"layer {call.name!r} ({call.type}) {problem}")
        self._left_out[call.name] = problem

    def _classifier(self, output: object) -> str | None:
        """The activation function whose output, or pooled output, is the model's output.

        Features that are returned beside the logits are not the classifier's, since weights read them.
        """
        if self._last is None:
            return None
        site, tensor = self._last
        if any(label.read for axis in self._visits[site].axes for label, _ in axis):
            return None
        if tensor.ndim == 2 and shares_memory(tensor, output):
            return site
        layer = next((layer for layer in self.layers if layer.name == site), None)
        if layer is None or self._weights_after or layer.units != self._classes:
            return None
        units = newest(self._visits[site].axes[layer.unit_axis])
        pools = any(
            newest(axis).serial == units.serial
            for one in tensors_in(output)
            for axis in self.tracer.axes(one)
        )
        return site if pools else None

    def _doubtful(self) -> str:
        doubts = [f"{name or 'the model'!r} {why}" for name, why in self._doubts.items()]
        return f": {some_of(doubts)}" if doubts else ""

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)
        warn(sentence)


def doubts(layers: Sequence[Layer]) -> list[str]:
    """Messages about layers whose axes are guesses."""
    doubtful = [layer.name for layer in layers if not layer.certain]
    if not doubtful:
        return []
    return [
        f"the batch or unit axis of {some_of(doubtful)} is not certain: an operation before could not "
        "be followed, splits the units or gives copies of them constants of their own, and no weights show "
        "where the units are; check unit_axis in pk.plan, and exclude the layers or name others"
    ]


@dataclass(frozen=True)
class _Visit:
    """A call of a selected layer, with the information that determines its axes."""

    call: Call
    shape: tuple[int, ...]
    itemsize: int
    axes: Axes
    depends: bool | None
    after: str


def _unreadable(output: object, tensor: Tensor | None) -> str:
    """Why an output has no samples and units to record; empty if its tensor may have them."""
    if tensor is None and isinstance(output, Tensor):
        return f"returns {output.dtype} of shape {tuple(output.shape)}, not a batch of floating-point numbers"
    if tensor is None:
        return f"returns {type(output).__name__} without a floating-point tensor in it"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "runs inside torch.func or torch.vmap, outside of which its values do not exist"
    if tensor.is_nested:
        return (
            "returns a nested tensor, whose samples have different numbers of tokens; build the "
            "nn.TransformerEncoder with enable_nested_tensor=False"
        )
    if hasattr(tensor, "to_local"):
        return (
            f"returns a {type(tensor).__name__}, which is distributed over processes; let the layer "
            "return its local output, or pass a model with full weights"
        )
    if tensor.layout != torch.strided:
        return f"returns a sparse tensor ({tensor.layout}); let the layer return to_dense()"
    return ""
