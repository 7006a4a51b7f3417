"""The state of a model that its own forward passes may change, and its restoration."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from probekit.errors import warn

_OWN = frozenset(vars(nn.Module()))
_ROOM = 2**28  # bytes of copies


class State:
    """The buffers of a module and the attributes of its user-defined parts, which a forward pass may change.

    Observers of quantization, memory banks and stateful neurons change them also in eval mode.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._parts = module, _parts(module)
        self._held: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._containers: list[tuple[Any, Any]] = []
        room = _ROOM
        for child in module.modules():
            foreign = not type(child).__module__.startswith("torch.")
            if isinstance(child, ScriptModule):  # which keeps its state outside Python
                continue
            for held in (child._buffers, vars(child) if foreign else {}):
                values = {name: value for name, value in held.items() if name not in _OWN}
                self._held.append((child, held, values))
                for value in values.values():
                    if isinstance(value, Tensor) and (size := _bytes(value)) <= room:
                        room -= size
                        self._tensors.append((value, value.detach().clone()))
                    if type(value) in (dict, list, set):
                        self._containers.append((value, copy(value)))

    def restore(self) -> None:
        """Restores all of them if the model has changed tensors among them, and has built no new parts."""
        if _parts(self._module) != self._parts:
            return
        written = [pair for pair in self._tensors if not _equal(*pair)]
        where = {id(tensor) for tensor, _ in written}
        changed = [
            (f"{name!r} of {type(child).__name__}", values.get(name))
            for child, held, values in self._held
            for name in (held.keys() | values.keys()) - _OWN
            if id(values.get(name)) in where or _replaced(values.get(name), held.get(name))
        ]
        if not changed:
            return
        for _, held, values in self._held:
            for name in held.keys() - values.keys() - _OWN:
                del held[name]
            held.update(values)
        for value, content in self._containers:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)
        for tensor, saved in written:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                if tensor.shape != saved.shape:
                    tensor.resize_(saved.shape)
                tensor.copy_(saved)
        if names := [name for name, before in changed if before is not None]:
            warn(
                f"the model changes its own state when it runs, such as {names[0]}; it is restored, but "
                "the activations may depend on the images before"
            )


def _parts(module: nn.Module) -> list[tuple[str, int]]:
    """The names and identities of submodules and parameters."""
    return [(name, id(one)) for name, one in (*module.named_modules(), *module.named_parameters())]


def _bytes(tensor: Tensor) -> int:
    """The size of a tensor, or of the dense one that a sparse one stands for."""
    return tensor.nelement() * tensor.element_size()


def _replaced(before: object, now: object) -> bool:
    """Whether another value has replaced a tensor, or a tensor another value."""
    if isinstance(now, Tensor) and isinstance(before, Tensor):
        return now is not before and not _equal(now, before)
    return isinstance(now, Tensor) or isinstance(before, Tensor)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether tensors have equal values, or values that cannot be compared."""
    if one.shape != other.shape or one.device != other.device:
        return False
    try:
        if torch.equal(one, other):
            return True
        return one.is_floating_point() and torch.equal(one.nan_to_num(), other.nan_to_num())
    except (RuntimeError, NotImplementedError):
        return True
