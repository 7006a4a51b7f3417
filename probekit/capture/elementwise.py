"""Detects whether a user-defined module acts like an activation function."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.layers import is_activation_function

_HARMLESS = (nn.Identity, nn.Dropout, nn.modules.dropout._DropoutNd)


def acts_like_activation(module: nn.Module, given: tuple[Any, ...], output: Any) -> bool | None:
    """Whether a module maps each element independently, by a function that is not affine.

    Modules of torch are known by type and are not tested. The test runs a copy of the module on
    synthetic inputs, without gradients, so the module itself does not change. The result is None if the
    module may be an activation function, but cannot be copied or run alone.
    """
    if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
        return False
    shape = tuple(output.shape)
    if given[0].shape != output.shape or not output.is_floating_point() or not output.numel():
        return False
    if type(module).__module__.startswith("torch.") or not _small(module, shape[1:]):
        return False
    try:
        return _examine(module, (min(2, shape[0]), *shape[1:]), output)
    except Exception:  # user-defined modules may refuse to be copied, and raise any exception
        return None


def _small(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether all weights of a module are scalars or have one number per channel."""
    inside = [child for child in module.modules() if child is not module]
    return (
        all(is_activation_function(child) or isinstance(child, _HARMLESS) for child in inside)
        and all(one.numel() in (1, *shape) for one in module.parameters())
        and all(one.numel() == 1 for one in module.buffers())
    )


def _examine(module: nn.Module, shape: tuple[int, ...], like: Tensor) -> bool:
    twin = copy.deepcopy(module)

    def run(x: Tensor) -> Tensor:
        return twin.forward(x.clone()).float()  # type: ignore[no-any-return]  # untyped in torch

    devices = [like.device] if like.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other, mask = (_spread(shape, step, like) for step in (0.618034, 0.754878, 0.732051))
        other = other / 4 - 1  # another mean and variance, which a norm would remove
        return _by_element(run, one, other, mask > 0) and not _affine(run, one, other)


def _spread(shape: tuple[int, ...], step: float, like: Tensor) -> Tensor:
    """Numbers from -4 to 4, neighbors far apart."""
    count = torch.Size(shape).numel()
    values = torch.arange(1, count + 1, dtype=torch.float64).mul_(step).remainder_(1.0) * 8 - 4
    return values.reshape(shape).to(like.device, like.dtype)


def _by_element(run: Callable[[Tensor], Tensor], one: Tensor, other: Tensor, mask: Tensor) -> bool:
    """Whether each element of the result depends only on the same element of the input."""
    mixed = run(torch.where(mask, one, other))
    expected = torch.where(mask, run(one), run(other))
    return mixed.shape == one.shape and torch.allclose(mixed, expected, rtol=1e-2, atol=1e-3)


def _affine(run: Callable[[Tensor], Tensor], one: Tensor, other: Tensor) -> bool:
    """Whether the midpoint of two inputs maps to the midpoint of their results."""
    middle = (run(one) + run(other)) / 2
    scale = float(middle.abs().max()) + 1e-6
    return float((run((one + other) / 2) - middle).abs().max()) < 2e-2 * scale
