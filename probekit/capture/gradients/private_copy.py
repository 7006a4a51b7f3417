"""A copy of a model to differentiate, without weight gradients and without hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.layers import unwrap
from probekit.models.hooks import Hook
from probekit.models.image_model import Model, as_module, check_differentiable

ModelForward = Callable[[Any, Tensor], dict[str, Tensor]]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OPTIONS_OF_HOOKS = (
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)


@contextmanager
def lend_private(model: Model, images: Tensor, forward: ModelForward) -> Iterator[Any]:
    """Yields an equivalent of a model, without weight gradients, whose passes no other hook observes.

    This is a copy that shares the model's memory, if it computes the same activations of a few `images`.
    Otherwise it is the model itself, with weight gradients disabled until the context exits.
    """
    module = unwrap(as_module(model))
    if not _hooked(module):
        private = _private(model, module)
        if private is not None and _same(private, model, images, forward):
            yield private
            return
    check_differentiable(module)
    with ExitStack() as stack:
        for parameter in module.parameters():
            if parameter.requires_grad:
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        yield model


@contextmanager
def unfused_attention(model: Model) -> Iterator[None]:
    """Computes attention by matrix products inside the context, as forward mode requires."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    module: Any = unwrap(as_module(model))
    fused = [child for child in module.modules() if getattr(child, "fused_attn", None) is True]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for child in fused:
            child.fused_attn = False
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child in fused:
            child.fused_attn = True


def _hooked(module: nn.Module) -> bool:
    """Whether there are hooks other than a recorder's, which may change the computation."""
    hooks = (
        hook
        for child in module.modules()
        for name in _HOOKS
        for hook in getattr(child, name, {}).values()
    )
    return not all(isinstance(hook, Hook) for hook in hooks)


def _private(model: Model, module: nn.Module) -> Any:
    """The user's model with a copy of its module; None if it cannot be copied."""
    try:
        twin = _copy(module, {}, {})
    except Exception:  # user-defined modules may raise any exception
        return None
    if isinstance(model, nn.Module):
        return twin
    if is_dataclass(model) and not isinstance(model, type):
        return replace(model, module=twin)
    return None


def _copy(
    module: nn.Module, modules: dict[nn.Module, nn.Module], tensors: dict[int, nn.Parameter]
) -> nn.Module:
    """A module of the same structure on the same memory, with no hooks and no gradients."""
    if module in modules:
        return modules[module]
    twin = modules[module] = copy.copy(module)
    inside = twin.__dict__
    for name in (*_HOOKS, *_OPTIONS_OF_HOOKS):
        inside[name] = type(inside[name])()
    inside["_parameters"] = {
        name: None
        if value is None
        else tensors.setdefault(id(value), nn.Parameter(_plain(value), requires_grad=False))
        for name, value in module._parameters.items()
    }
    inside["_buffers"] = {
        name: None if value is None else _plain(value) for name, value in module._buffers.items()
    }
    inside["_modules"] = {
        name: None if child is None else _copy(child, modules, tensors)
        for name, child in module._modules.items()
    }
    return twin


def _plain(tensor: Tensor) -> Tensor:
    """The same memory without a graph; a copy for inference tensors."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def _same(private: object, model: Model, images: Tensor, forward: ModelForward) -> bool:
    with torch.no_grad():
        expected = forward(model, images)
        try:
            found = forward(private, images)
        except Exception:  # a copy that does not run is not used
            return False
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], values, rtol=1e-3, atol=1e-4 * float(values.abs().max()))
        for name, values in expected.items()
    )
