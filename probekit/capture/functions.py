"""Activation functions called as functions or methods, such as `F.relu(x)` and `x.relu()`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

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
_CLAMPS = ("clamp", "clip", "clamp_min")
_MAXIMA = ("maximum", "max", "fmax")

FUNCTION_NAMES = frozenset({*_ALWAYS, *_CLAMPS, *_MAXIMA})
"""The possible last parts of the name of a function's layer."""


def _clamps(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a clamp is a ReLU (from 0) or a ReLU6 (from 0 to 6)."""
    low, high = _limits(args, kwargs)
    if isinstance(low, Tensor):
        return high is None and _all_zero(low)
    numbers = isinstance(low, int | float) and (high is None or isinstance(high, int | float))
    return numbers and low == 0 and high in (None, 6, math.inf)


def _limits(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    low, high = [*args[1:3], None, None][:2]
    return kwargs.get("min", low), kwargs.get("max", high)


def _pair(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The two tensors that a function of two tensors was called with, the smaller one first."""
    pair = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)]
    if len(pair) != 2 or not all(isinstance(one, Tensor) for one in pair):
        return []
    return sorted(pair, key=Tensor.numel)


def _bounds(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a maximum bounds a tensor from below by zeros, a scalar or one number per channel.

    A multiple of the tensor itself counts too, as in a leaky ReLU.
    """
    if not (pair := _pair(args, kwargs)):
        return False
    small, large = pair
    if small.shape == large.shape:
        return any(map(_all_zero, pair)) or _multiples(small, large)
    per_sample = small.ndim == large.ndim and small.shape[:1] == large.shape[:1]
    return large.ndim > 0 and small.numel() < large.numel() and not per_sample


def _multiples(one: Tensor, other: Tensor) -> bool:
    """Whether two different tensors are multiples of each other."""
    try:
        parts = [part.detach() / part.detach().abs().max() for part in (one, other)]
        close = 1e-5 if one.dtype in (torch.float32, torch.float64) else 1e-2
        return not torch.equal(one, other) and any(
            torch.allclose(parts[0], sign * parts[1], atol=close) for sign in (1, -1)
        )
    except RuntimeError:  # no numbers, or without values, as in torch.func.vmap
        return False


def _all_zero(tensor: Tensor) -> bool:
    try:
        return not bool(tensor.any())
    except RuntimeError:  # without values, as in torch.func.vmap
        return False


def _watched() -> dict[Any, tuple[str, Callable[..., bool] | None]]:
    places = (functional, torch, Tensor, torch.special, torch._C._nn, torch.ops.aten)
    judges = dict.fromkeys(_CLAMPS, _clamps) | dict.fromkeys(_MAXIMA, _bounds)
    found: dict[Any, tuple[str, Callable[..., bool] | None]] = {}
    for name in FUNCTION_NAMES:
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
    function: object, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> str | None:
    """The name of the activation function that a call of a torch function computes, or None.

    A clamp counts if it is a ReLU or a ReLU6. A maximum counts if it bounds a tensor from below by zeros, a
    scalar, one number per channel, as a thresholded linear unit does, or a multiple of itself.
    """
    known = _WATCHED.get(function)
    if known is None:
        return None
    name, judge = known
    return name if judge is None or judge(args, kwargs or {}) else None


_EXPORTS = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)


class Interception(TorchFunctionMode):
    """While active and not `paused`, intercepts calls of activation functions as torch functions.

    `called` receives the name of the function and its result; unless it returns None, its return value
    replaces the result. `exported` receives tensors that leave torch, for NumPy.
    """

    def __init__(self, called: Called) -> None:
        super().__init__()
        self.paused = False
        self.exported: Callable[[Tensor], None] | None = None
        self._called = called

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs a torch function and, if it is an activation function, reports its result."""
        result = func(*args, **kwargs) if kwargs else func(*args)
        if self.paused:
            return result
        if func in _EXPORTS and self.exported is not None:
            self.exported(args[0])
        name = called_activation(func, args, kwargs)
        changed = None if name is None else self._called(name, result)
        if changed is None:
            return result
        given = (*args, *(kwargs or {}).values())
        if any(result is one for one in given):
            # In place, or `out`: the caller may ignore the result.
            return result.copy_(changed)
        return changed

    @property
    def on(self) -> bool:
        """Whether this mode is active in this thread."""
        return any(mode is self for mode in _modes())

    def start(self) -> None:
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


def is_called_from_variable(module: nn.Module) -> bool:
    """Whether the code that calls a module, whose call begins, may do so by a local variable."""
    frame = sys._getframe(1)
    while frame is not None and not (frame.f_code is _CALL and frame.f_locals["self"] is module):
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    while frame is not None and frame.f_code.co_filename == _CALL.co_filename:
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    if frame is None:
        return False
    arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return any(value is module for name, value in frame.f_locals.items() if name not in arguments)


def running_calls(module: nn.Module) -> int:
    """How many calls of a module are running in this thread, with the forward that the innermost runs."""
    calls: list[Any] = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL and frame.f_locals["self"] is module:
            calls.append(frame.f_locals.get("forward_call"))
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return calls.count(calls[0]) if calls else 0


def named_functions(module: nn.Module) -> set[str]:
    """The activation functions named in the methods of a user-defined module, or among its attributes.

    The code of functions that these methods name counts too, and that of objects among the attributes or
    named by the methods. A name that is also that of a submodule, as in `self.relu(x)`, does not.
    """
    if type(module).__module__.startswith("torch."):
        return set()
    methods = _methods(module)
    names = {name for one in methods for name in one.__code__.co_names} - module._modules.keys()
    held = [one for value in vars(module).values() for one in _listed(value)]
    held += [one for value in held if _plain(value) for one in _attributes(value)]
    helpers = [one for value in held if _plain(value) for one in _methods(value)]
    names |= _names_in_helpers((*methods, *helpers), tuple(methods))
    known = (_WATCHED.get(value) for value in held if callable(value))
    return {name.removesuffix("_") for name in names if name.removesuffix("_") in _ALWAYS} | {
        one[0] for one in known if one is not None
    }


@lru_cache(maxsize=1000)
def _names_in_helpers(
    functions: tuple[FunctionType, ...], methods: tuple[FunctionType, ...]
) -> frozenset[str]:
    """The names in the code of functions and of those that they call, directly or through others.

    The code of the `methods` of the module itself is excluded.
    """
    found: dict[FunctionType, None] = {}
    todo = [one for one in functions if one.__name__ != "__init__"]
    while todo and len(found) < _MOST_HELPERS:
        found |= dict.fromkeys(one for one in todo if one not in methods)
        values = [value for one in todo for value in _named(one) if _plain(value)]
        named = dict.fromkeys(one for value in values for one in _methods(value))
        todo = [one for one in named if one not in found and one not in methods]
    return frozenset(name for one in found for name in one.__code__.co_names)


def _methods(value: Any) -> list[FunctionType]:
    """A user-defined Python function, or those of the class of an object, or of a class."""
    if isinstance(value, FunctionType):
        return [value] if _foreign(value) else []
    kind = value if isinstance(value, type) else type(value)
    own = [one for one in kind.__mro__ if _foreign(one)]
    functions = [getattr(one, "__func__", one) for base in own for one in vars(base).values()]
    return [one for one in functions if isinstance(one, FunctionType)]


def _foreign(value: Any) -> bool:
    """Whether a function or class is defined by the user, not by Python, torch or numpy."""
    package = (getattr(value, "__module__", None) or "builtins").partition(".")[0]
    return package not in _LIBRARIES


_LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}


def _listed(value: Any) -> Collection[Any]:
    """The elements of a collection, or the value itself."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple | set) else [value]


def _attributes(value: Any) -> Collection[Any]:
    own = not isinstance(value, type) and _foreign(type(value))
    return getattr(value, "__dict__", {}).values() if own else ()


def _plain(value: Any) -> bool:
    """Whether an object or class is no module, whose code is examined by itself."""
    kind = value if isinstance(value, type) else type(value)
    return not issubclass(kind, nn.Module)


_MOST_HELPERS = 200


def _named(function: FunctionType) -> Iterator[Any]:
    """What the names in the code of a function refer to, in its closure, its module and other modules."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a cell without a value
            yield cell.cell_contents
    names = function.__code__.co_names
    values = [function.__globals__.get(name) for name in names]
    yield from values
    for value in values:
        if isinstance(value, ModuleType):
            yield from (vars(value).get(name) for name in names)
