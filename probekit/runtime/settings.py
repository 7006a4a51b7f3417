"""Isolates computations from the global settings of the caller, and preserves these settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import numpy as np
import torch

_CALLER_DEVICE: ContextVar[torch.device | None] = ContextVar("caller_device", default=None)


@contextmanager
def own_settings(*, restore_random: bool = True) -> Iterator[None]:
    """Runs outside inference mode, with the CPU as default device and numpy's default error handling.

    At exit, all settings are restored, including the states of torch's random generators.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if restore_random:
            used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # untyped in torch
            devices = list(range(torch.cuda.device_count())) if used else []
            stack.enter_context(torch.random.fork_rng(devices))
        # In torch 2.6, get_default_device ignores contexts, and fails after set_default_device(None).
        default = torch.empty(0).device
        if default.type != "cpu":
            token = _CALLER_DEVICE.set(default)
            stack.callback(_CALLER_DEVICE.reset, token)
            stack.enter_context(torch.device("cpu"))
        yield


def caller_device() -> AbstractContextManager[object]:
    """Restores the caller's default device, for user code that runs inside `own_settings`."""
    device = _CALLER_DEVICE.get()
    return nullcontext() if device is None else device


# Decorators for functions that run in these settings.
in_own_settings = own_settings()
on_own_device = own_settings(restore_random=False)
