"""Activation functions called as functions or methods, such as `F.relu(x)` and `x.relu()`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Called: TypeAlias = Callable[[str, Any], "Tensor | None"]

_ALWAYS = (
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish",
    "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "softplus", "softsign", "tanhshrink",
    "softshrink", "hardshrink", "logsigmoid", "threshold", "glu",
)  # fmt: skip
_SELECTIONS = ("where", "mul", "multiply", "__mul__", "masked_fill", "index_put", "__setitem__")
_HINTS = ("erf", "sin", "sign", *_SELECTIONS)
_CLAMPS = ("clamp", "clip", "clamp_min")
_MAXIMA = ("maximum", "max", "fmax")

FUNCTION_NAMES = frozenset({*_ALWAYS, *_CLAMPS, *_MAXIMA})
"""The possible last parts of the name of a function's layer."""


def _clamps(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a clamp is a ReLU (from 0) or a ReLU6 (from 0 to 6)."""
    low, high = [*args[1:3], None, None][:2]
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    if isinstance(low, Tensor):
        return high is None and _all_zero(low)
    numbers = isinstance(low, int | float) and (high is None or isinstance(high, int | float))
    return numbers and low == 0 and high in (None, 6, math.inf)


def _bounds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a maximum bounds a tensor from below by zeros, a scalar or one number per channel."""
    pair = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)]
    if len(pair) != 2 or not all(isinstance(one, Tensor) for one in pair):
        return False
    small, large = sorted(pair, key=lambda one: one.numel())
    if small.shape == large.shape:
        return any(map(_all_zero, pair))
    per_sample = small.ndim == large.ndim and small.shape[:1] == large.shape[:1]
    return large.ndim > 0 and small.numel() < large.numel() and not per_sample


def _all_zero(tensor: Tensor) -> bool:
    try:
        return not bool(tensor.any())
    except RuntimeError:  # without values, as in torch.func.vmap
        return False


def _by_sign(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether one tensor is masked by the sign of another, as in `x * (x > 0)`."""
    given = [part for one in (*args, *kwargs.values()) for part in _listed(one)]
    tensors = [one.detach() for one in given if isinstance(one, Tensor)]
    try:
        arrays = [one.float().cpu().numpy() for one in tensors if one.numel() > 1]
    except RuntimeError:  # without values, as in torch.func.vmap
        return False
    binary = [one for one in arrays if ((one == 0) | (one == 1)).all()]
    masks = [one for one in binary if one.any() and not one.all()]
    return any(
        mask is not one and np.array_equal(mask, compare(one, 0))
        for mask in masks
        for one in arrays
        for compare in _COMPARISONS
    )


def _listed(given: Any) -> Any:
    return given if isinstance(given, list | tuple) else (given,)


_COMPARISONS = (np.greater, np.greater_equal, np.less, np.less_equal)


def _watched() -> dict[Any, tuple[str, Callable[..., bool] | None]]:
    places = (functional, torch, Tensor, torch.special, torch._C._nn, torch.ops.aten)
    judges = dict.fromkeys(_CLAMPS, _clamps) | dict.fromkeys(_MAXIMA, _bounds)
    judges |= dict.fromkeys(_SELECTIONS, _by_sign)
    found: dict[Any, tuple[str, Callable[..., bool] | None]] = {}
    for name in (*FUNCTION_NAMES, *_HINTS):
        for place in places:
            for form in (name, f"{name}_"):
                function = getattr(place, form, None)
                if function is not None:
                    found[function] = name, judges.get(name)
                for overload in getattr(function, "overloads", list)():  # of torch.ops.aten
                    found[getattr(function, overload)] = name, judges.get(name)
    found[torch.special.expit] = "sigmoid", None
    return found


_WATCHED = _watched()


def called_activation(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> str | None:
    """The name of the activation function that a call of a torch function computes, or None.

    `erf` is included because explicit implementations of GELU use it, and so are `sin`, `sign` and
    selections by the sign of a tensor, such as `x * (x > 0)`. A clamp counts if it is a ReLU or a ReLU6. A
    maximum counts if it bounds a tensor from below by zeros, a scalar or one number per channel, as a
    thresholded linear unit does.
    """
    known = _WATCHED.get(function)
    if known is None:
        return None
    name, judge = known
    return name if judge is None or judge(args, kwargs or {}) else None


class Interception(TorchFunctionMode):
    """While active and not `paused`, intercepts calls of activation functions as torch functions.

    `called` receives the name of the function and its result; unless it returns None, its return value
    replaces the result. With `hints`, functions that only hint at an activation function are intercepted too.
    """

    def __init__(self, called: Called) -> None:
        super().__init__()
        self.paused = False
        self.hints = True
        self._called = called

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs a torch function and, if it is an activation function, reports its result."""
        result = func(*args, **kwargs) if kwargs else func(*args)
        known = _WATCHED.get(func)
        if known is None or self.paused or not (self.hints or known[0] in FUNCTION_NAMES):
            return result
        name = called_activation(func, args, kwargs)
        changed = None if name is None else self._called(name, result)
        if changed is None:
            return result
        if any(result is given for given in args):  # in place: the caller may ignore the result
            return result.copy_(changed)
        return changed

    @property
    def on(self) -> bool:
        """Whether this mode is active in this thread."""
        return any(mode is self for mode in _modes())

    def start(self) -> None:
        """Activates this mode in this thread."""
        torch._C._push_on_torch_function_stack(self)

    def end(self) -> None:
        """Deactivates this mode, wherever it is on the mode stack of this thread."""
        others = []
        while self.on:
            mode = torch._C._pop_torch_function_stack()
            if mode is self:
                break
            others.append(mode)
        for mode in reversed(others):
            torch._C._push_on_torch_function_stack(mode)


@contextmanager
def ended_interceptions() -> Iterator[None]:
    """Ends interceptions that begin inside, also those of other recorders whose pass was interrupted."""
    before = _modes()
    try:
        yield
    finally:
        for mode in _modes():
            if isinstance(mode, Interception) and not any(mode is one for one in before):
                mode.end()


def _modes() -> list[Any]:
    count = torch._C._len_torch_function_stack()
    return [torch._C._get_function_stack_at(place) for place in range(count)]


_CALL = nn.Module._call_impl.__code__


def calling_module(known: Collection[nn.Module]) -> nn.Module | None:
    """The innermost of some modules that is running in this thread, found in the call stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            module: nn.Module = frame.f_locals["self"]
            if module in known:
                return module
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return None


def named_functions(module: nn.Module) -> set[str]:
    """The activation functions named in the methods of a user-defined module, or among its attributes.

    A name that is also that of a submodule, as in `self.relu(x)`, does not count.
    """
    if type(module).__module__.startswith("torch."):
        return set()
    own = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.")]
    codes = [
        code
        for kind in own
        for method in vars(kind).values()
        if (code := getattr(method, "__code__", None)) is not None
    ]
    names = {name for code in codes for name in code.co_names} - module._modules.keys()
    known = (_WATCHED.get(value) for value in vars(module).values() if callable(value))
    return {name.removesuffix("_") for name in names if name.removesuffix("_") in _ALWAYS} | {
        one[0] for one in known if one is not None
    }
