"""The second phase of a recorder: record known layers in every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from probekit.capture.functions import Interception, calling_module
from probekit.capture.layers import Layer
from probekit.capture.outputs import tensor_of
from probekit.capture.phase import Phase, Settings, Stop, in_backward
from probekit.errors import LayerError, some_of, warn
from probekit.models.nested import all_tensors

_Given: TypeAlias = "list[tuple[Tensor, int | None]]"


class Capturing(Phase):
    """Hooks only the known layers.

    Functions are intercepted only inside modules in which a function call is a layer, at no cost
    elsewhere. To notice functions that run only in later passes, they are intercepted everywhere in
    the first 16 passes, then in every 2^n-th, and in all passes if the model reads values of tensors or
    the code of a module names an activation function that did not run. In such models, the last weights
    before each layer are compared too. `done` is called with the recorded tensors at the end of each
    forward pass.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        functions: Interception,
        layers: Sequence[Layer],
        done: Callable[[dict[str, Tensor]], None],
    ) -> None:
        super().__init__(module, settings, functions)
        self.layers = list(layers)
        self._done = done
        self._sites = {(layer.module, layer.function, layer.call): layer for layer in layers}
        self._calls: dict[tuple[str, str], int] = {}
        self._callers: dict[nn.Module, str] = {}
        # For each running module that decides it, whether to intercept functions.
        self._inside: list[bool] = []
        # For each running call of a module, its inputs and their versions.
        self._inputs: dict[nn.Module, list[_Given]] = {}
        self._warned = False
        self._first = layers[0].first_pass
        self._names: dict[nn.Module, str] = {}
        self._passes = 0
        self._closed = 0
        self._latest = ""
        self._order: list[Any] = []
        self._everywhere = False

    def _hook(self) -> None:
        self._closed = 0
        modules = dict(self.module.named_modules())
        if foreign := [layer.name for layer in self.layers if layer.module not in modules]:
            raise LayerError(f"layer {foreign[0]!r} was planned for another model")
        if self.settings.grad:
            _note_backward_hooks(self.layers, modules)
        self._callers = {modules[one.module]: one.module for one in self.layers if one.function}
        for caller in self._callers:
            self.before(caller, partial(self._enter, True))
            self.after(caller, partial(self._exit, True), always=True)
        self._names = {one: name for name, one in modules.items()}
        for name in modules.keys() & self._first.idle:
            self.before(modules[name], self._awake)
        if self._first.functions is not None:
            self.after(self.module, self._after, always=True)
            for module in modules.values():
                if isinstance(module, _WITH_FAST_PATH):  # which interception would disable
                    self.before(module, partial(self._enter, False))
                    self.after(module, partial(self._exit, False), always=True)
        self.before(self.module, self._begin)
        for name in dict.fromkeys(layer.module for layer in self.layers if not layer.function):
            if self.settings.change is not None:
                self.before(modules[name], self._note_inputs)
            self.after(modules[name], partial(self._tap, name))
        for name in {one.after for one in self.layers if self._is_compared(one)} & modules.keys():
            self.after(modules[name], partial(self._follow, name))
            self._order.append(self._handles[-1])
        self.after(self.module, self._end)

    def leave(self) -> None:
        super().leave()
        self._inside = []
        self._everywhere = False

    def _begin(self, module: nn.Module, args: object, kwargs: Any) -> None:
        if self.is_inside():
            return
        if self._inside or self._everywhere:  # an interrupted pass
            self.leave()
        self.begin(args, kwargs, self.layers[0].samples_from)
        self._calls = {}
        self._inputs = {}
        self._latest = ""
        if not torch.compiler.is_compiling() and self.open and self._watches():
            self._everywhere = True
            self.functions.start()

    def _watches(self) -> bool:
        """Whether to intercept functions everywhere in this pass."""
        if self._first.functions is None or self._warned:
            return False
        self._passes += 1
        rare = self._passes > 16 and self._passes & (self._passes - 1)
        return self._first.may_branch or not rare

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        if self._everywhere and not (torch.compiler.is_compiling() or self.is_inside()):
            self._inside = []
            self._everywhere = False
            self.functions.end()

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        if self.open and not self.is_inside():
            self._close()

    def _enter(self, intercepts: bool, module: nn.Module, args: object, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # compiled code calls no functions
            return
        if self.open and not in_backward() and (intercepts or self._everywhere):
            self._inside.append(intercepts)
            self._switch()

    def _exit(self, intercepts: bool, module: nn.Module, args: object, output: object) -> None:
        if torch.compiler.is_compiling():
            return
        if self._inside and not in_backward() and (intercepts or self._everywhere):
            self._inside.pop()
            self._switch()

    def _switch(self) -> None:
        if not (self._inside[-1] if self._inside else self._everywhere):
            self.functions.end()
        elif not self.functions.on:
            self.functions.start()

    def called(self, name: str, result: object) -> Tensor | None:
        module = calling_module(self._names) if self.open and not in_backward() else None
        if module is None:
            return None
        caller = self._names[module]
        known = self._first.functions
        if known is not None and (caller, name) not in known:
            self._note_new(f"{name} in {caller or 'the model'}")
        return self._record(caller, name, result) if module in self._callers else None

    def _awake(self, module: nn.Module, args: object, kwargs: Any) -> None:
        """Notes a module that runs but did not in the first forward pass."""
        if not torch.compiler.is_compiling() and self.open and not in_backward():
            self._note_new(self._names[module])

    def _note_new(self, name: str) -> None:
        self._warn_once(
            f"the layers are not complete: {name!r} runs in this forward pass but did not in the "
            "first one, which found the layers; use a model whose calls do not depend on its inputs "
            "or its state, or begin with inputs that reach every part"
        )

    def _warn_once(self, sentence: str) -> None:
        if not self._warned:
            self._warned = True
            warn(sentence)

    def _tap(self, name: str, module: nn.Module, args: object, output: Any) -> Tensor | None:
        running = self._inputs.get(module)
        given = running.pop() if running else []
        if not self.open or in_backward():
            return None
        changed = self._record(name, "", output)
        if changed is not None and _wrote_into(given, module, output):
            output.copy_(changed)  # the caller may ignore the return value
            return None
        return changed

    def _follow(self, name: str, module: nn.Module, args: object, output: object) -> None:
        if not torch.compiler.is_compiling():
            self._latest = name

    def _is_compared(self, layer: Layer) -> bool:
        """Whether the weights before a layer are compared, as for shared modules and models with branches."""
        return layer.calls > 1 or self._first.may_branch

    def _check_order(self, layer: Layer) -> None:
        """Warns if a layer follows other weights than in the first forward pass."""
        if torch.compiler.is_compiling() or not (self._order and self._is_compared(layer)):
            return
        if self._latest != layer.after:
            latest = repr(self._latest) if self._latest else "other weights"
            self._warn_once(
                f"layer {layer.name!r} is another part of the model than before: it runs after "
                f"{latest} in this forward pass and ran after {layer.after!r} in the first; use a "
                "module for each part, or a model whose calls do not depend on its inputs or its state"
            )

    def _note_inputs(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = all_tensors((args, kwargs))
        given = [(one, None if one.is_inference() else one._version) for one in tensors]
        self._inputs.setdefault(module, []).append(given)

    def _record(self, module: str, function: str, output: object) -> Tensor | None:
        """Records an output; returns its replacement, or None if the output is unchanged."""
        call = self._calls.get((module, function), 0)
        self._calls[module, function] = call + 1
        layer = self._sites.get((module, function, call))
        if layer is None:
            return None
        self._check_order(layer)
        tensor = tensor_of(output, self.settings.pick)
        if tensor is None:
            raise LayerError(f"layer {layer.name!r} returned no floating-point tensor in this pass")
        change = self.settings.change
        changed = None if change is None else _changed(change, layer, tensor, output)
        self.held[layer.name] = self.read(layer, tensor if changed is None else changed)
        if self.settings.stop and len(self.held) == len(self._sites):
            self._close()
            raise Stop(self.functions)
        return changed

    def _close(self) -> None:
        held, self.held = self.held, {}
        self.open = False
        if not torch.compiler.is_compiling():
            self._closed += 1
            while self._order and self._closed == _CHECKED and not self._first.may_branch:
                self._order.pop().remove()
        unfinished = not self.settings.stop or len(held) < len(self.layers)
        if unfinished and not (self._warned or torch.compiler.is_compiling()):
            self._compare_calls()
        self._done(held)

    def _compare_calls(self) -> None:
        """Warns of the layers whose module is called less or more often than in the first forward pass."""
        modules = dict(self.module.named_modules(remove_duplicate=False))
        changed: dict[str, str] = {}
        for layer in self.layers:
            calls = self._calls.get((layer.module, layer.function), 0)
            module = modules.get(layer.module)
            replaced = module is None or self._names.get(module) != layer.module
            if replaced and calls < layer.calls:
                changed[layer.name] = (
                    f"is missing, because its module {layer.module!r} was replaced while it was recorded; "
                    "open a new Recorder after the change"
                )
            elif calls != layer.calls:
                moved = "may be another part of the model than before" if calls else "is missing"
                what = " in ".join(filter(None, (layer.function, layer.module or "the model")))
                changed[layer.name] = (
                    f"{moved} (calls of {what}: {calls} in this forward pass, {layer.calls} in the first); "
                    "use a model whose calls do not depend on its inputs, or name layers that run in every "
                    "pass"
                )
        if changed:
            (name, why), *others = changed.items()
            also = (
                f"; the calls of {some_of([one for one, _ in others])} changed too"
                if others
                else ""
            )
            self._warn_once(f"layer {name!r} {why}{also}")


_WITH_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)
_CHECKED = 16  # forward passes in which the order of shared modules is compared


def _note_backward_hooks(layers: Sequence[Layer], modules: dict[str, nn.Module]) -> None:
    """Warns of layers whose own backward hooks do not change the gradients of what is recorded."""
    own = {layer.name: modules[layer.module] for layer in layers if not layer.function}
    if hooked := [
        name for name, one in own.items() if one._backward_hooks or one._backward_pre_hooks
    ]:
        warn(
            f"backward hooks on {some_of(hooked)} do not change the gradients of these layers, which begin "
            "at their outputs, before the hooks; hooks on the modules before them do"
        )


def _wrote_into(given: _Given, module: nn.Module, output: Any) -> bool:
    """Whether a module has modified one of its inputs in place and returned it."""
    for tensor, version in given:
        if tensor is output:
            return bool(
                getattr(module, "inplace", False) if version is None else tensor._version != version
            )
    return False


def _changed(
    change: Callable[[Layer, Tensor], Tensor], layer: Layer, tensor: Tensor, output: object
) -> Tensor:
    if tensor is not output:
        raise LayerError(
            f"layer {layer.name!r} returns {type(output).__name__}, and only an output that is one "
            "tensor can be changed; choose a layer inside or after it"
        )
    maps = layer.arrange(tensor)
    changed = change(layer, maps)
    if changed.shape != maps.shape:
        raise LayerError(
            f"the change of layer {layer.name!r} returned the shape {tuple(changed.shape)} instead of "
            f"{tuple(maps.shape)}; it must keep the shape"
        )
    return layer.restore(changed, tensor)
