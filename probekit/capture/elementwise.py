"""Detects whether a user-defined module acts like an activation function."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.layers import is_activation_function

_HARMLESS = (
    nn.Identity, nn.Dropout, nn.modules.dropout._DropoutNd, nn.ParameterList, nn.ParameterDict
)  # fmt: skip

_PLAIN = (bool, int, float, str, type(None))


def acts_like_activation(
    module: nn.Module, args: tuple[Any, ...], output: object, named: Mapping[str, Any] | None = None
) -> bool | None:
    """Whether a module maps each element of one tensor independently, by a function that is not affine.

    `args` and `named` are the arguments of its call, beside the tensor only numbers, strings or None.
    Modules of torch are known by type and are not tested. The test runs a copy of the module on
    synthetic inputs, without gradients, so the module itself does not change. The result is None if the
    module may be an activation function, but cannot be copied or run alone.
    """
    named = named or {}
    tensors = [one for one in (*args, *named.values()) if not isinstance(one, _PLAIN)]
    if len(tensors) != 1 or not isinstance(tensors[0], Tensor) or not isinstance(output, Tensor):
        return False
    shape = tuple(output.shape)
    if tensors[0].shape != output.shape or not output.is_floating_point() or not output.numel():
        return False
    if type(module).__module__.startswith("torch.") or not _small(module, shape[1:]):
        return False
    try:
        return _examine(module, args, named, (min(2, shape[0]), *shape[1:]), output)
    except Exception:  # user-defined modules may refuse to be copied, and raise any exception
        return None


def _small(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether all weights of a module are scalars or have one number per channel.

    User-defined modules in it, such as the hard sigmoid in a hard swish, may have none.
    """
    inside = [child for child in module.modules() if child is not module]
    return (
        all(is_activation_function(child) or _is_harmless(child) for child in inside)
        and all(one.numel() in (1, *shape) for one in module.parameters())
        and all(one.numel() == 1 for one in module.buffers())
    )


def _is_harmless(child: nn.Module) -> bool:
    own = not type(child).__module__.startswith("torch.") and not child._parameters
    return own or isinstance(child, _HARMLESS)


def _examine(
    module: nn.Module,
    args: tuple[Any, ...],
    named: Mapping[str, Any],
    shape: tuple[int, ...],
    like: Tensor,
) -> bool:
    twin = copy.deepcopy(module)

    def run(x: Tensor) -> Tensor:
        given = [x.clone() if isinstance(one, Tensor) else one for one in args]
        others = {key: x.clone() if isinstance(one, Tensor) else one for key, one in named.items()}
        return twin.forward(*given, **others).float()  # type: ignore[no-any-return]  # untyped in torch

    devices = [like.device] if like.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other, mask = (_spread(shape, step, like) for step in (0.618034, 0.754878, 0.732051))
        other = other / 4 - 1  # another mean and variance, which a norm would remove
        of_one, of_other, mixed = run(one), run(other), run(torch.where(mask > 0, one, other))
        expected = torch.where(mask > 0, of_one, of_other)
        if mixed.shape != one.shape or not torch.allclose(mixed, expected, rtol=1e-2, atol=1e-3):
            return False  # an element depends on others
        middle = (of_one + of_other) / 2  # an affine function maps the midpoint there
        apart = (run((one + other) / 2) - middle).abs().max()
        affine = float(apart) < 2e-2 * (float(middle.abs().max()) + 1e-6)
        return not affine


def _spread(shape: tuple[int, ...], step: float, like: Tensor) -> Tensor:
    """Numbers from -4 to 4, neighbors far apart."""
    count = torch.Size(shape).numel()
    values = torch.arange(1, count + 1, dtype=torch.float64).mul_(step).remainder_(1.0) * 8 - 4
    return values.reshape(shape).to(like.device, like.dtype)
