"""Common code of the two phases of a recorder: hooks on a model, start and end of forward passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from probekit.capture.functions import Interception
from probekit.capture.layers import Layer
from probekit.capture.masks import position_mask, token_mask
from probekit.capture.outputs import count_samples, inputs_in
from probekit.capture.reader import Reader

__all__ = ["Change", "Hook", "Phase", "Settings", "Stop", "in_backward"]

Change: TypeAlias = Callable[[Layer, Tensor], Tensor]


class Stop(BaseException):
    """Raised to end a forward pass when the last selected layer has been recorded."""


class _Nothing:
    """A hook that does nothing."""

    def __call__(self, *given: Any) -> None:
        return None


class Hook:
    """A hook that is not copied or pickled with its module."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run

    def __call__(self, *given: Any) -> Any:
        return self._run(*given)

    def __deepcopy__(self, memo: Any) -> _Nothing:
        return _Nothing()

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()


@dataclass(frozen=True)
class Settings:
    """The settings of a recorder.

    Attributes:
        reader: Computes the recorded tensor from an output.
        pick: The tensor of an output to record, as for `tensor_of`.
        stop: End the forward pass at the last selected layer.
        change: Computes a replacement for a layer's output.
        when: Called at the start of a forward pass; whether to record it.
    """

    reader: Reader
    pick: int | str | None
    stop: bool
    change: Change | None
    when: Callable[[], bool]


class Phase:
    """Hooks on a model, from `hook` to `unhook`, that follow successive forward passes.

    Args:
        module: The model.
        settings: The settings of the recorder.
        functions: Intercepts functions and calls `called` of the phase.
    """

    def __init__(self, module: nn.Module, settings: Settings, functions: Interception) -> None:
        self.module = module
        self.settings = settings
        self.hooked = False
        self.open = False
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
        """Removes the hooks."""
        self.hooked = False
        self._observed = []
        while self._handles:
            self._handles.pop().remove()
        self.leave()

    def leave(self) -> None:
        """Ends an interrupted forward pass."""
        self.open = False
        self.functions.end()

    def called(self, name: str, result: Any) -> Tensor | None:
        """Handles a call of an activation function; returns a replacement for its result, or None."""
        raise NotImplementedError

    def _hook(self) -> None:
        raise NotImplementedError

    def before(self, module: nn.Module, run: Callable[..., Any]) -> None:
        """Sets a hook that runs before a module; the hook set last runs first."""
        self._handles.append(
            module.register_forward_pre_hook(Hook(run), with_kwargs=True, prepend=True)
        )

    def after(self, module: nn.Module, run: Callable[..., Any], always: bool = False) -> None:
        """Sets a hook that runs after a module; with `always`, also if the module raises an exception.

        It runs after hooks that the user sets later, from the next forward pass on.
        """
        self._observed.append(module)
        self._handles.append(module.register_forward_hook(Hook(run), always_call=always))

    def begin(self, args: Any, kwargs: Any, source: tuple[int, int] | None = None) -> list[Tensor]:
        """Starts a forward pass; returns its input tensors.

        Args:
            args: The positional arguments of the model.
            kwargs: The keyword arguments of the model.
            source: Where to read the number of samples, in the format of `count_samples`.
        """
        self.open = self.hooked and self.settings.when()
        self.in_graph = torch.is_grad_enabled()
        self.held = {}
        if not torch.compiler.is_compiling():
            for module in self._observed:
                _move_to_end(module)
        inputs = inputs_in((args, kwargs))
        self.mask = token_mask(kwargs)
        self.batch = count_samples(inputs, source)
        return inputs

    def read(self, layer: Layer, tensor: Tensor) -> Tensor:
        """The recorded tensor of a layer's output."""
        if not self.batch and tensor.ndim > layer.batch_axis:  # only the layers show it
            self.batch = tensor.shape[layer.batch_axis] // layer.windows
        mask = None if self.mask is None else position_mask(self.mask, layer, tensor, self.module)
        return self.settings.reader.read(layer, tensor, self.batch, self.in_graph, mask)


def in_backward() -> bool:
    """Whether autograd is running, as when activation checkpointing recomputes a layer."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def _move_to_end(module: nn.Module) -> None:
    """Moves the hooks of recorders behind those of the user, which may change the output."""
    hooks: Any = module._forward_hooks
    if not isinstance(next(reversed(hooks.values())), Hook):
        for number in [number for number, hook in hooks.items() if isinstance(hook, Hook)]:
            hooks.move_to_end(number)
