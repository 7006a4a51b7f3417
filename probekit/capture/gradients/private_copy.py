"""A copy of a model to differentiate, without weight gradients and with folded batch norms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from probekit.capture.layers import unwrap
from probekit.models.image_model import as_module, check_differentiable

__all__ = ["lend_private", "unfused_attention"]

Forward = Callable[[Any, Tensor], dict[str, Tensor]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def lend_private(model: Any, images: Tensor, recorded: set[str], forward: Forward) -> Iterator[Any]:
    """Yields an equivalent of a model that is cheap to differentiate.

    The copy shares the model's weights, but has no weight gradients and no hooks. If the model can be
    traced, each batch norm is folded into the convolution before it. The copy is used only if it
    computes the same activations. Otherwise, the model itself is yielded, with weight gradients
    disabled until the context exits.

    Args:
        model: A module in eval mode, or an object with one as `module`.
        images: A few inputs for the comparison.
        recorded: The modules whose outputs are recorded, which remain unchanged.
        forward: Computes the recorded activations of a model for images.

    Yields:
        The model to use.
    """
    module = unwrap(as_module(model))
    with torch.no_grad():
        expected = forward(model, images)
    for fold in (True, False):
        twin = None if _hooked(module) else _try_copy(module, recorded, fold)
        if twin is None:
            continue
        private = _holding(model, twin)
        if private is not None and _same(private, images, expected, forward):
            yield private
            return
    check_differentiable(module)
    with ExitStack() as stack:
        for parameter in module.parameters():
            if parameter.requires_grad:
                stack.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        yield model


def _hooked(module: nn.Module) -> bool:
    """Whether there are hooks other than a recorder's, which may change the computation."""
    hooks = (
        hook
        for child in module.modules()
        for name in _HOOKS
        for hook in getattr(child, name, {}).values()
    )
    return any(getattr(hook, "__module__", "") != "probekit.capture.phase" for hook in hooks)


def _try_copy(module: nn.Module, recorded: set[str], fold: bool) -> nn.Module | None:
    try:
        twin = _copy(module, {}, {})
        if fold:
            _fold_batch_norms(twin, recorded)
    except Exception:  # copying and tracing modules may raise any exception
        return None
    return twin


def _copy(
    module: nn.Module, modules: dict[nn.Module, nn.Module], tensors: dict[int, nn.Parameter]
) -> nn.Module:
    """A module of the same structure on the same memory, with no hooks and no gradients."""
    if module in modules:
        return modules[module]
    twin = modules[module] = copy.copy(module)
    inside = twin.__dict__
    for name in _HOOKS:
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


def _holding(model: Any, twin: nn.Module) -> Any:
    """The user's model, with its module replaced by the copy."""
    if isinstance(model, nn.Module):
        return twin
    if is_dataclass(model) and not isinstance(model, type):
        return replace(model, module=twin)
    return None


def _same(private: Any, images: Tensor, expected: dict[str, Tensor], forward: Forward) -> bool:
    try:
        with torch.no_grad():
            found = forward(private, images)
    except Exception:  # a copy that does not run is not used
        return False
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], values, rtol=1e-3, atol=1e-4 * float(values.abs().max()))
        for name, values in expected.items()
    )


def _fold_batch_norms(module: nn.Module, recorded: set[str]) -> None:
    """Folds each batch norm that is the only consumer of a convolution, if both are called once."""
    graph = fx.Tracer().trace(module)
    children = dict(module.named_modules())
    calls: dict[nn.Module, int] = {}
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op == "call_module":
            child = children[str(node.target)]
            calls[child] = calls.get(child, 0) + 1
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        before, after = str(source.target), str(node.target)
        convolution, norm = children[before], children[after]
        if (
            type(convolution) in _CONVOLUTIONS
            and type(norm) in _BATCH_NORMS
            and calls[convolution] == calls[norm] == len(source.users) == 1
            and not {before, after} & read
            and before not in recorded
            and norm.running_mean is not None
            and not norm.training
            and convolution.weight.dtype in (torch.float32, torch.float64)
        ):
            _put(module, before, fuse_conv_bn_eval(convolution, norm).requires_grad_(False))
            _put(module, after, nn.Identity())


def _put(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    module.get_submodule(parent)._modules[leaf] = child.eval()


@contextmanager
def unfused_attention(model: Any) -> Iterator[None]:
    """Computes attention by matrix products inside the context, as forward mode requires."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    module = unwrap(as_module(model))
    fused = [child for child in module.modules() if getattr(child, "fused_attn", None) is True]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for child in fused:
            child.fused_attn = False  # type: ignore[assignment]
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child in fused:
            child.fused_attn = True  # type: ignore[assignment]
