"""Common code of the two phases of a recorder: hooks on a model, start and end of forward passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from probekit.capture.functions import Interception, running_calls
from probekit.capture.layers import Layer
from probekit.capture.masks import masked_mean, position_mask, token_mask
from probekit.capture.outputs import count_samples, shares_memory
from probekit.capture.pooling import pool
from probekit.capture.scout import Tokens
from probekit.errors import LayerError
from probekit.models.hooks import Hook, move_to_end
from probekit.models.nested import all_tensors

Change: TypeAlias = Callable[[Layer, Tensor], Tensor]
Reduce: TypeAlias = Callable[[Tensor], Tensor]


class Stop(BaseException):
    """Raised to end a forward pass when the last selected layer has been recorded."""


@dataclass(frozen=True)
class Settings:
    """The settings of a recorder.

    Attributes:
        reduce: Maps (batch, units, *positions) to the recorded tensor.
        tokens: The tokens of a sequence to use.
        grad: Keep the recorded tensors in the autograd graph.
        pick: The tensor of an output to record, as for `tensor_of`.
        stop: End the forward pass at the last selected layer.
        change: Computes a replacement for a layer's output.
        when: Called at the start of a forward pass; whether to record it.
    """

    reduce: Reduce
    tokens: Tokens
    grad: bool
    pick: int | str | None
    stop: bool
    change: Change | None
    when: Callable[[], bool]


class Phase:
    """Hooks on a model, from `hook` to `unhook`, that follow successive forward passes."""

    def __init__(self, module: nn.Module, settings: Settings, functions: Interception) -> None:
        self.module = module
        self.settings = settings
        self.hooked = False
        self.open = False
        self._level = 0
        self.batch = 0
        self.mask: Tensor | None = None
        self.in_graph = False
        self.held: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._observed: list[nn.Module] = []
        self.functions = functions

    def hook(self) -> None:
        """Sets the hooks, or none if that fails."""
        with ExitStack() as undo:
            undo.callback(self.unhook)
            self._hook()
            undo.pop_all()
        self.hooked = True

    def unhook(self) -> None:
        self.hooked = False
        self._observed = []
        while self._handles:
            self._handles.pop().remove()
        self.leave()

    def leave(self) -> None:
        """Ends an interrupted forward pass."""
        self.open = False
        self.functions.end()

    def leave_others(self) -> None:
        """Ends the forward pass of other recorders of the model, after this one has stopped it."""
        if _running(self.module):  # the pass was a part of another one, which goes on
            return
        for hook in self.module._forward_pre_hooks.values():
            if isinstance(hook, Hook) and isinstance(hook.owner, Phase):
                hook.owner.leave()

    def called(self, name: str, result: object) -> Tensor | None:
        """Handles a call of an activation function; returns a replacement for its result, or None."""
        raise NotImplementedError

    def _hook(self) -> None:
        raise NotImplementedError

    def before(self, module: nn.Module, run: Callable[..., Any]) -> None:
        """Sets a hook that runs before a module; the hook set last runs first."""
        self._handles.append(
            module.register_forward_pre_hook(Hook(run), with_kwargs=True, prepend=True)
        )

    def after(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        always: bool = False,
        with_kwargs: bool = False,
    ) -> None:
        """Sets a hook that runs after a module; with `always`, also if the module raises an exception.

        It runs after hooks that the user sets later, from the next forward pass on.
        """
        self._observed.append(module)
        self._handles.append(
            module.register_forward_hook(Hook(run), always_call=always, with_kwargs=with_kwargs)
        )

    def begin(
        self, args: object, kwargs: Any, source: tuple[int, int] | None = None
    ) -> list[Tensor]:
        """Starts a forward pass, whose number of samples is read from `source`; returns its inputs."""
        self.open = self.hooked and self.settings.when()
        self._level = _running(self.module)
        self.in_graph = torch.is_grad_enabled()
        self.held = {}
        if not torch.compiler.is_compiling():
            for module in self._observed:
                move_to_end(module)
        inputs = all_tensors((args, kwargs))
        self.mask = token_mask(kwargs)
        self.batch = count_samples(inputs, source)
        return inputs

    def is_inside(self) -> bool:
        """Whether a call of the model is a part of the running pass, rather than the pass itself.

        Activation checkpointing recomputes it, or the model calls itself, as for several scales.
        """
        return in_backward() or (self.open and _running(self.module) > self._level)

    def read(self, layer: Layer, tensor: Tensor) -> Tensor:
        """The recorded tensor of a layer's output, always a new tensor and never a view."""
        if tensor.is_nested:
            raise LayerError(
                f"layer {layer.name!r} returns a nested tensor, as nn.TransformerEncoder does for padded "
                "tokens, so its samples have different numbers of tokens; build the encoder with "
                "enable_nested_tensor=False, or set encoder.use_nested_tensor = False"
            )
        tensor = layer.with_samples(tensor)
        rows = tensor.shape[layer.batch_axis] if tensor.ndim > layer.batch_axis else 0
        self.batch = self.batch or rows // layer.windows  # only the layers may show it
        mask = None if self.mask is None else position_mask(self.mask, layer, tensor, self.module)
        self._check(layer, tensor, rows)
        maps = layer.arrange(tensor if self.settings.grad else tensor.detach())
        if maps.shape[1] != layer.units:
            raise LayerError(
                f"layer {layer.name!r} has {maps.shape[1]} units in this forward pass and had "
                f"{layer.units} in the first, so its units are not the same; exclude it"
            )
        if self.settings.tokens != "all" and maps.ndim > 2:
            maps = maps[:, :, layer.chosen(self.settings.tokens)]
            mask = None if mask is None else mask[:, layer.chosen(self.settings.tokens)]
            maps = maps[:, :, 0] if self.settings.tokens == "class" else maps
        if mask is not None and maps.ndim > 2:
            if self.settings.reduce is not pool:
                raise LayerError(
                    f"layer {layer.name!r} has padding among its positions, which only a mean over the "
                    "positions can exclude; use spatial='mean', or samples of equal length without an "
                    "attention_mask"
                )
            return masked_mean(maps, mask)
        reduced = self.settings.reduce(maps)
        if self.settings.reduce is not pool and shares_memory(tensor, reduced):
            return reduced.clone(memory_format=torch.contiguous_format)
        return reduced

    def _check(self, layer: Layer, tensor: Tensor, rows: int) -> None:
        """Raises `LayerError` unless an output has the rows, axes and graph of the layer."""
        if rows != self.batch * layer.windows or tensor.ndim != len(layer.shape) + 1:
            raise LayerError(
                f"layer {layer.name!r} returned {rows} rows for {self.batch} samples, and "
                f"{self.batch * layer.windows} were expected; exclude it with "
                f"'!{layer.name}' if it runs on regions or other parts whose number varies; inputs of "
                "another size need a new recorder, and a layer without a batch axis cannot be recorded"
            )
        if self.settings.grad and self.in_graph and not torch.is_grad_enabled():
            raise LayerError(
                f"layer {layer.name!r} runs without gradients inside a forward pass that has them, as "
                "under torch.no_grad or with reentrant activation checkpointing; remove it, use "
                "use_reentrant=False, or exclude the layer"
            )


def in_backward() -> bool:
    """Whether autograd is running, as when activation checkpointing recomputes a layer."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def _running(module: nn.Module) -> int:
    return 0 if torch.compiler.is_compiling() else running_calls(module)
