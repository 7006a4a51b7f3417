"""The first phase of a recorder: one forward pass that finds the layers to record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.calls import Call, Calls
from probekit.capture.elementwise import acts_like_activation
from probekit.capture.functions import Interception, named_functions
from probekit.capture.layers import FirstPass, Layer, is_activation_function, uncompiled
from probekit.capture.nonlinear import Nonlinearities
from probekit.capture.phase import Phase, Settings, Stop, in_backward
from probekit.capture.scout import Scout
from probekit.capture.selection import Selection
from probekit.errors import LayerError, some_of
from probekit.models.image_model import check_weights


class Exploring(Phase):
    """Hooks every module and intercepts every function for one forward pass.

    `done` is called at the end of the pass with this phase, the layers and the recorded tensors. The
    attribute `notes` then holds messages about what is uncertain or missing.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        functions: Interception,
        selection: Selection,
        done: Callable[[Exploring, list[Layer], dict[str, Tensor]], None],
    ) -> None:
        super().__init__(module, settings, functions)
        self._selection = selection
        self._done = done
        self._calls = Calls(module)
        self._scout: Scout | None = None
        self.notes: list[str] = []
        self._ran: set[nn.Module] = set()
        self._functions: set[tuple[str, str]] = set()
        self._eager = ExitStack()
        self._thread = 0

    def _hook(self) -> None:
        self._hook_parts()
        self.before(self.module, _eager(self._begin))
        self.after(self.module, _eager(self._end))
        self.after(self.module, _eager(self._after), always=True)

    def _hook_parts(self) -> None:
        """Sets the hooks of all submodules that have none yet, such as those that replaced others."""
        hooked = {self.module, *self._observed}
        for module in self.module.modules():
            if module not in hooked:
                self.before(module, _eager(self._enter))
                self.after(module, _eager(self._exit), with_kwargs=True)

    def leave(self) -> None:
        super().leave()
        self._calls.forget_names()
        if self._scout is not None:
            self._scout.tracer.stop()
        self._scout = None
        self.functions.exported = None
        self._eager.close()

    def _begin(self, module: nn.Module, args: object, kwargs: Any) -> None:
        if self.is_inside():
            return
        self.leave()
        check_weights(self.module)
        self._hook_parts()
        inputs = self.begin(args, kwargs)
        if self.open:
            self._scout = Scout(
                self.module, self._selection, self.settings.pick, self.settings.tokens, inputs
            )
            self._thread = get_ident()
            self._calls = Calls(self.module)
            self._calls.watch_names()
            self._calls.enter(self.module)
            self._ran, self._functions = {self.module}, set()
            if self._selection.default:
                nonlinearities = Nonlinearities(self._caller, self._scout.doubt_operation)
                self._scout.tracer.nonlinearities = nonlinearities
                self.functions.exported = nonlinearities.leave_torch
            self._eager.enter_context(uncompiled())
            self.functions.start()
            self._scout.tracer.start()

    def _caller(self) -> str | None:
        """The name of the running module; None if it is one of torch."""
        running = self._calls.stack[-1]
        return None if type(running.module).__module__.startswith("torch.nn.") else running.name

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        if self.open and not self.is_inside():
            self._finish(output)

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        if not self.is_inside():
            self.leave()

    def _enter(self, module: nn.Module, args: object, kwargs: Any) -> None:
        if self._scout is not None and not in_backward():
            if get_ident() != self._thread:
                raise LayerError(
                    f"the model runs {self._calls.canonical(module)!r} in another thread than its forward, "
                    "where neither the order of its calls nor functions can be followed; let it run its "
                    "parts one after another"
                )
            self._calls.enter(module, len(self._scout.layers))
            self._ran.add(module)
            if isinstance(module, nn.MultiheadAttention):  # would lose its fast path
                self.functions.end()

    def _exit(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._scout is None or in_backward():
            return
        call, layers = self._calls.leave(module)
        if isinstance(module, nn.MultiheadAttention):
            self.functions.start()
        self.functions.paused = True
        try:
            activation = is_activation_function(module)
            alone = activation or self._scout.is_last_output(layers, output)
            if self._selection.default and not alone:  # perhaps a user-defined one
                found = acts_like_activation(module, args, output, kwargs)
                if found is None:
                    self._scout.doubt(call.name, f"({call.type}) cannot be examined alone")
                elif found:
                    self._scout.remove_since(layers, call.series)
                activation = bool(found)
            self._visit(self._scout, call, output, activation)
        finally:
            self.functions.paused = False

    def called(self, name: str, result: object) -> Tensor | None:
        """Handles a call of an activation function, and leaves its result unchanged."""
        if self._scout is None or in_backward():
            return None
        caller = self._calls.stack[-1]
        self._functions.add((self._calls.canonical(caller.module), name))
        if any(is_activation_function(one.module) for one in self._calls.stack):
            return None
        if self._scout.tracer.running:
            why = (
                f"computes {name} outside Python, as TorchScript does, where it cannot be recorded"
            )
            self._scout.doubt(caller.name, why)
        else:
            self._visit(self._scout, self._calls.function(name), result, True)
        return None

    def _visit(self, scout: Scout, call: Call, output: object, activation: bool) -> None:
        found = scout.visit(call, output, activation)
        if found is None:
            return
        layer, tensor = found
        if layer.name in scout.unsettled:
            self.held[layer.name] = (tensor if self.settings.grad else tensor.detach()).clone()
        else:
            self.batch = scout.count
            self.held[layer.name] = self.read(layer, tensor)
        if self.settings.stop and not scout.unsettled and scout.selection.only == self.held.keys():
            self._finish(None)
            raise Stop(self.functions)

    def _finish(self, output: object) -> None:
        scout, held = self._scout, self.held
        assert scout is not None
        self.functions.paused = True
        scout.tracer.stop()
        try:
            scout.finish(output)
            self.batch = scout.count
            recorded = {
                scout.asked[layer.name]: self.read(layer, held[layer.name])
                if layer.name in scout.unsettled
                else held[layer.name]
                for layer in scout.layers
            }
        finally:
            self.functions.paused = False
        self.held = {}
        self.open = False
        if exchanged := [
            layer.name for layer in scout.layers if layer.module in self._calls.exchanged
        ]:
            scout.note(
                f"the names of {some_of(exchanged)} may be exchanged: they are calls of one module with "
                "several names, held in variables; name it where it is called, as in self.act(x)"
            )
        self.notes = scout.notes
        first = self._first_pass(scout.tracer.reads_values)
        layers = [
            replace(layer, name=scout.asked[layer.name], first_pass=first) for layer in scout.layers
        ]
        self._done(self, layers, recorded)

    def _first_pass(self, reads_values: bool) -> FirstPass:
        """What ran; functions and idle modules do not count if layers were selected by name only."""
        if self._selection.only is not None:
            return FirstPass(may_branch=reads_values)
        idle = {
            name: module for name, module in self.module.named_modules() if module not in self._ran
        }
        if not self._selection.default:
            calls = [Call(x, x, x, x, 0, called=module) for x, module in idle.items()]
            wanted = tuple(one.name for one in calls if self._selection.wants(one, False))
            return FirstPass(wanted, None, reads_values)
        names = {module: self._calls.canonical(module) for module in self._ran}
        others = any(
            (name, function) not in self._functions
            for module, name in names.items()
            for function in named_functions(module)
        )
        active = tuple(name for name, module in idle.items() if _may_activate(module))
        return FirstPass(active, frozenset(self._functions), reads_values or others)


def _may_activate(module: nn.Module) -> bool:
    """Whether a module may be an activation function or call one as a function."""
    kind = type(module)
    own = not kind.__module__.startswith("torch.nn.") or kind.__name__.startswith("Transformer")
    return is_activation_function(module) or own


def _eager(hook: object) -> Any:
    """Excludes a hook from compilation, since tracing the first pass would take minutes."""
    if "torch._dynamo" not in sys.modules:
        return hook
    return torch.compiler.disable(hook)  # type: ignore[no-untyped-call]  # untyped in torch
