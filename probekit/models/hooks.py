"""The hooks of recorders on modules, beside those of the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """A hook that does nothing in copies of its module, deep copied or pickled."""

    def __init__(self, run: Callable[..., Any] = lambda *given: None) -> None:
        self._run = run

    def __call__(self, *given: Any) -> Any:
        return self._run(*given)

    @property
    def owner(self) -> object:
        """The object whose method the hook runs, if it is one."""
        return getattr(self._run, "__self__", None)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


def move_to_end(module: nn.Module) -> None:
    """Moves the hooks of recorders behind those of the user, which may change the output."""
    hooks: Any = module._forward_hooks
    if not isinstance(next(reversed(hooks.values()), None), Hook):
        for number in [number for number, hook in hooks.items() if isinstance(hook, Hook)]:
            hooks.move_to_end(number)


def runs_as_written_by_torch(module: nn.Module) -> bool:
    """Whether the output is that of a forward of torch, without hooks of the user."""
    forward = getattr(type(module).forward, "__module__", None) or ""
    replaced = "forward" in vars(module) or not forward.startswith("torch.")
    return not replaced and all(isinstance(one, Hook) for one in module._forward_hooks.values())
