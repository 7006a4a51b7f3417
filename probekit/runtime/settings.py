"""Isolates computations from the global settings of the caller, and preserves these settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
R = TypeVar("R")

_CALLER_DEVICE: ContextVar[torch.device | None] = ContextVar("caller_device", default=None)


@contextmanager
def own_settings(*, restore_random: bool = True) -> Iterator[None]:
    """Runs outside inference mode, with the CPU as default device and numpy's default error handling.

    At exit, all settings are restored, including the states of torch's random generators.

    Args:
        restore_random: Whether to restore the random generators.

    Example:
        >>> with torch.inference_mode(), own_settings():
        ...     torch.ones(1).is_inference()
        False
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if restore_random:
            used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            devices = list(range(torch.cuda.device_count())) if used else []
            stack.enter_context(torch.random.fork_rng(devices))
        default = torch.get_default_device()
        if default.type != "cpu":
            token = _CALLER_DEVICE.set(default)
            stack.callback(_CALLER_DEVICE.reset, token)
            stack.enter_context(torch.device("cpu"))
        yield


def caller_device() -> AbstractContextManager[object]:
    """Restores the caller's default device, for user code that runs inside `own_settings`."""
    device = _CALLER_DEVICE.get()
    return nullcontext() if device is None else device


def in_own_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a function to run in `own_settings`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_settings():
            return function(*args, **kwargs)

    return run


def on_own_device(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a function to run in `own_settings` without restoring torch's random generators."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_settings(restore_random=False):
            return function(*args, **kwargs)

    return run
