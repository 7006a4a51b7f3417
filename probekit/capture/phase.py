"""What the two phases of a recorder share: hooks on a model, and the bounds of a forward pass."""

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
    """Leaves a forward pass when the last wanted layer has been recorded."""


class _Nothing:
    """A hook that does nothing."""

    def __call__(self, *given: Any) -> None:
        return None


class Hook:
    """A hook that stays behind when its module is copied or pickled."""

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
    """What a recorder was asked for.

    Attributes:
        reader: What is kept of an output.
        pick: Which tensor of an output counts.
        stop: End the forward pass at the last chosen layer.
        change: What flows on in place of a layer's output.
        when: Whether the forward pass that begins is recorded.
    """

    reader: Reader
    pick: int | str | None
    stop: bool
    change: Change | None
    when: Callable[[], bool]


class Phase:
    """Hooks on a model, from `hook` to `unhook`, that follow one forward pass after another.

    Args:
        module: The model.
        settings: What was asked for.
        functions: What intercepts functions; it calls `called` of the phase.
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
        self.functions = functions

    def hook(self) -> None:
        """Sets the hooks; none is left where that fails."""
        with ExitStack() as undo:
            undo.callback(self.unhook)
            self._hook()
            undo.pop_all()
        self.hooked = True

    def unhook(self) -> None:
        """Takes the hooks off."""
        self.hooked = False
        while self._handles:
            self._handles.pop().remove()
        self.leave()

    def leave(self) -> None:
        """Ends a forward pass that did not come to its end."""
        self.open = False
        self.functions.end()

    def called(self, name: str, result: Any) -> Tensor | None:
        """An activation function was called as a function; returns what flows on, if that changes."""
        raise NotImplementedError

    def _hook(self) -> None:
        raise NotImplementedError

    def before(self, module: nn.Module, run: Callable[..., Any]) -> None:
        """Hooks what happens before a module runs; the last to be set comes first."""
        self._handles.append(
            module.register_forward_pre_hook(Hook(run), with_kwargs=True, prepend=True)
        )

    def after(self, module: nn.Module, run: Callable[..., Any], always: bool = False) -> None:
        """Hooks what happens after a module has run; always, also where it raises an exception."""
        self._handles.append(module.register_forward_hook(Hook(run), always_call=always))

    def begin(self, args: Any, kwargs: Any, source: tuple[int, int] | None = None) -> list[Tensor]:
        """A forward pass begins; returns its input tensors.

        Args:
            args: What the model is called with.
            kwargs: By keyword.
            source: Where the number of samples is read from, as `count_samples` takes it.
        """
        self.open = self.hooked and self.settings.when()
        self.in_graph = torch.is_grad_enabled()
        self.held = {}
        inputs = inputs_in((args, kwargs))
        self.mask = token_mask(kwargs)
        self.batch = count_samples(inputs, source)
        return inputs

    def read(self, layer: Layer, tensor: Tensor) -> Tensor:
        """What is kept of a layer's output."""
        if not self.batch and tensor.ndim > layer.batch_axis:  # the layers alone tell it
            self.batch = tensor.shape[layer.batch_axis] // layer.windows
        mask = None if self.mask is None else position_mask(self.mask, layer, tensor, self.module)
        return self.settings.reader.read(layer, tensor, self.batch, self.in_graph, mask)


def in_backward() -> bool:
    """Whether autograd is running, as when activation checkpointing computes a layer again."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)
