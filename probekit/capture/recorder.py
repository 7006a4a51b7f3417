"""The one hook mechanism: what flows through the chosen layers of a forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from probekit.capture.layers import Layer, uncompiled, unwrap
from probekit.capture.outputs import batch_size, shares_memory, tensor_of
from probekit.capture.pooling import pool
from probekit.capture.scout import Scout, Tokens
from probekit.capture.selection import LayerChoice, Selection
from probekit.capture.units import prefix_tokens
from probekit.errors import LayerError, ModelError, OptionError

__all__ = ["Change", "Layers", "Reading", "Recorder", "Tokens", "pool"]

Layers: TypeAlias = "LayerChoice | Sequence[LayerChoice] | Sequence[Layer] | None"
Reading: TypeAlias = Callable[[Tensor], Tensor]
Change: TypeAlias = Callable[[Layer, Tensor], Tensor]


def _whole(maps: Tensor) -> Tensor:
    return maps


_READINGS: dict[str, Reading] = {"mean": pool, "none": _whole}


class _Stop(BaseException):
    """Leaves a forward pass when the last wanted layer has been recorded."""


class _Nothing:
    """A hook that does nothing."""

    def __call__(self, *given: Any) -> None:
        return None


class _Hook:
    """A hook that stays behind when its module is copied or pickled."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *given: Any) -> Any:
        return self._run(*given)

    def __deepcopy__(self, memo: Any) -> _Nothing:
        return _Nothing()

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()


class Recorder:
    """Records chosen layers of any module while it runs, without changing it.

    The first forward pass inside the context finds out which calls happen, in which order, and on
    which axis each layer has its units; the passes after it only record.

    Args:
        model: Any module; what `torch.compile` or `DistributedDataParallel` wraps is recorded in the
            original, which `recorder(x)` runs without the compiler. An `ImageModel` too.
        layers: Names, globs over names, module types, predicates `(name, module) -> bool`, or several
            of them; `"!glob"` takes out. None: every activation-function output but the
            classifier's. The second call of a module `relu` is the layer `relu_1`.
        spatial: `"mean"` pools each map to one number a unit, giving (batch, units); `"none"` keeps
            (batch, units, *positions). Or a function from the latter to any tensor; what it returns
            is copied where it is a view of the layer's output.
        tokens: For sequences of tokens: `"all"`, only the `"patch"` tokens, or the `"class"` token.
        output: The index, key or field of the tensor to take from layers that give several;
            None takes the first floating-point tensor.
        grad: Keep the recorded tensors in the autograd graph.
        stop: End the forward pass at the last wanted layer. Inside the context, `recorder(x)` then
            returns None; `module(x)` leaves the `with` block.
        change: A function from a layer and its output, (batch, units, *positions), to what flows on
            in its place, of the same shape; what is recorded is the latter. The first forward pass,
            which finds the layers out, is left as it is, unless planned layers are given.

    Attributes:
        paused: While true, forward passes are not recorded.

    Raises:
        LayerError: No such layer, a layer that is never called, or one that has no units.
        ModelError: `nn.DataParallel`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten())
        >>> with Recorder(net, layers=["0", "1"]) as recorder:
        ...     _ = net(torch.rand(2, 3, 6, 6))
        >>> {name: tuple(tensor.shape) for name, tensor in recorder.activations.items()}
        {'0': (2, 8), '1': (2, 8)}
    """

    def __init__(
        self,
        model: Any,
        layers: Layers = None,
        *,
        spatial: Literal["mean", "none"] | Reading = "mean",
        tokens: Tokens = "all",
        output: int | str | None = None,
        grad: bool = False,
        stop: bool = False,
        change: Change | None = None,
    ) -> None:
        if not callable(model):
            raise ModelError(f"a model is a torch module, not {type(model).__name__}")
        inner = model if isinstance(model, nn.Module) else getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise ModelError(f"a model is a torch module, not {type(model).__name__}")
        self.module = unwrap(inner)
        self._run = self.module if isinstance(model, nn.Module) else model
        if isinstance(spatial, str) and spatial not in _READINGS:
            raise OptionError(f"spatial is 'mean', 'none' or a function, not {spatial!r}")
        if tokens not in ("all", "patch", "class"):
            raise OptionError(f"tokens is 'all', 'patch' or 'class', not {tokens!r}")
        if tokens == "class" and not prefix_tokens(self.module):
            raise OptionError("tokens='class' was asked for, but the model has no class token")
        self._read = _READINGS[spatial] if isinstance(spatial, str) else spatial
        self._tokens = tokens
        self._pick = output
        self._grad = grad
        self._stop = stop
        self._change = change
        self._layers: list[Layer] = []
        self._selection: Selection | None = None
        choices = list(layers) if isinstance(layers, Sequence) else [layers]
        planned = [choice for choice in choices if isinstance(choice, Layer)]
        if planned and len(planned) < len(choices):
            raise OptionError("layers are either planned ones or choices, not both")
        if planned:
            self._learn(planned)
        else:
            self._selection = Selection(
                self.module, cast("LayerChoice | Sequence[LayerChoice] | None", layers)
            )
        self.paused = False
        self._scout: Scout | None = None
        self._handles: list[Any] = []
        self._hooked = False
        self._open = False
        self._in_graph = False
        self._calls: dict[str, int] = {}
        self._batch = 0
        self._held: dict[str, Tensor] = {}
        self._activations: dict[str, Tensor] | None = None

    @property
    def layers(self) -> list[Layer]:
        """The layers in execution order, known after the first forward pass."""
        return self._layers

    @property
    def activations(self) -> dict[str, Tensor]:
        """What the last forward pass gave, by layer, in execution order."""
        if self._activations is None:
            raise LayerError(
                "nothing is recorded: no forward pass of the module itself was seen; call the module "
                "(not its forward, a method or its compiled copy), or recorder(x)"
            )
        return self._activations

    def __enter__(self) -> Recorder:
        if self._handles:
            raise LayerError("this recorder is already in use; make a second one")
        with ExitStack() as undo:
            undo.callback(self._unhook)
            if self._selection is None:
                self._hook_layers()
            else:
                self._hook(self._selection.modules)
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._unhook()
        self._open, self._scout, self._held = False, None, {}
        return kind is _Stop

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; returns its output, or None where `stop` ended the pass."""
        try:
            with uncompiled():
                return self._run(*args, **kwargs)
        except _Stop:
            return None

    def _learn(self, layers: list[Layer]) -> None:
        self._layers = layers
        self._sites = {(layer.module, layer.call): layer for layer in layers}

    def _hook_layers(self) -> None:
        modules = dict(self.module.named_modules())
        if foreign := [layer.name for layer in self._layers if layer.module not in modules]:
            raise LayerError(f"layer {foreign[0]!r} was planned for another model")
        self._hook({layer.module: modules[layer.module] for layer in self._layers})

    def _hook(self, modules: dict[str, nn.Module]) -> None:
        eager = _eager if self._selection is not None else _as_it_is
        begin, end = _Hook(eager(self._begin)), _Hook(eager(self._end))
        self._handles.append(
            self.module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
        )
        for name, module in modules.items():
            self._handles.append(module.register_forward_hook(_Hook(eager(self._tap(name)))))
        self._handles.append(self.module.register_forward_hook(end))
        self._hooked = True

    def _unhook(self) -> None:
        self._hooked = False
        while self._handles:
            self._handles.pop().remove()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if _in_backward():
            return
        self._open = self._hooked and not self.paused
        self._in_graph = torch.is_grad_enabled()
        self._calls = {}
        self._held = {}
        self._batch = batch_size((args, kwargs))
        if self._selection is not None:
            self._scout = Scout(self.module, self._selection, self._pick, self._tokens)

    def _tap(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def tap(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if self._open and not _in_backward():
                if self._scout is None:
                    return self._record(name, output)
                self._explore(self._scout, name, module, output)
            return None

        return tap

    def _record(self, name: str, output: Any) -> Tensor | None:
        """Keeps an output; returns what flows on in its place, or None where that is itself."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        layer = self._sites.get((name, call))
        if layer is None:
            return None
        tensor = tensor_of(output, self._pick)
        if tensor is None:
            raise LayerError(f"layer {layer.name!r} gave no floating-point tensor this time")
        changed = None if self._change is None else self._changed(layer, tensor, output)
        self._held[layer.name] = self._reading(layer, tensor if changed is None else changed)
        if self._stop and len(self._held) == len(self._sites):
            self._close()
            raise _Stop
        return changed

    def _changed(self, layer: Layer, tensor: Tensor, output: Any) -> Tensor:
        if tensor is not output:
            raise LayerError(
                f"layer {layer.name!r} gives {type(output).__name__}, and only the output of a layer "
                "that gives one tensor can be changed; choose a layer inside or after it"
            )
        assert self._change is not None
        maps = layer.arrange(tensor)
        changed = self._change(layer, maps)
        if changed.shape != maps.shape:
            raise LayerError(
                f"the change of layer {layer.name!r} gave {tuple(changed.shape)} in the place of "
                f"{tuple(maps.shape)}; it must keep the shape"
            )
        return layer.restore(changed, tensor)

    def _explore(self, scout: Scout, name: str, module: nn.Module, output: Any) -> None:
        found = scout.visit(name, module, output, self._batch)
        if found is None:
            return
        layer, tensor = found
        if layer.name in scout.unsettled:
            self._held[layer.name] = tensor.clone() if self._grad else tensor.detach().clone()
        else:
            self._held[layer.name] = self._reading(layer, tensor)
        if self._stop and not scout.unsettled and scout.selection.only == self._held.keys():
            self._settle(scout, None)
            raise _Stop

    def _reading(self, layer: Layer, tensor: Tensor) -> Tensor:
        """What is kept of a layer's output: always a tensor of its own, never a view of it."""
        if tensor.shape[0] != self._batch * layer.windows:
            raise LayerError(
                f"layer {layer.name!r} gave {tensor.shape[0]} rows for {self._batch} samples where "
                f"{self._batch * layer.windows} were expected; inputs of another size need a new "
                "recorder, and a layer whose first axis is not the batch cannot be recorded"
            )
        if self._grad and self._in_graph and not torch.is_grad_enabled():
            raise LayerError(
                f"layer {layer.name!r} runs without gradients inside a forward pass that has them, as "
                "reentrant activation checkpointing does; use use_reentrant=False, or leave it out"
            )
        maps = layer.arrange(tensor if self._grad else tensor.detach())
        if layer.prefix and self._tokens != "all":
            maps = maps[:, :, 0] if self._tokens == "class" else maps[:, :, layer.prefix :]
        reading = self._read(maps)
        if self._read is not pool and shares_memory(tensor, reading):
            return reading.clone(memory_format=torch.contiguous_format)
        return reading

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._open or _in_backward():
            return
        if self._scout is not None:
            self._settle(self._scout, output)
        else:
            self._close()

    def _settle(self, scout: Scout, output: Any) -> None:
        """Ends the first pass: from here on only the layers themselves are hooked."""
        scout.finish(output)
        held = self._held
        self._held = {
            layer.name: self._reading(layer, held[layer.name])
            if layer.name in scout.unsettled
            else held[layer.name]
            for layer in scout.layers
        }
        self._learn(scout.layers)
        self._selection = self._scout = None
        self._unhook()
        self._hook_layers()
        self._close()

    def _close(self) -> None:
        self._activations = self._held
        self._held = {}
        self._open = False


def _as_it_is(hook: Any) -> Any:
    return hook


def _eager(hook: Any) -> Any:
    """A hook that a compiler leaves alone: tracing what the first pass learns takes it minutes."""
    if "torch._dynamo" not in sys.modules:
        return hook
    return torch.compiler.disable(hook)  # type: ignore[no-untyped-call]


def _in_backward() -> bool:
    """Whether autograd is running, as when activation checkpointing computes a layer again."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)
