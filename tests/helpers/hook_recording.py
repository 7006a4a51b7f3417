"""The activations of a small network, found and recorded in two passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.recorder import Recorder

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def hooks(module: nn.Module) -> int:
    return sum(
        len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules()
    )


def record(module: nn.Module, layers: Any = None, x: Any = X, **options: Any) -> dict[str, Tensor]:
    """The activations of the second pass; the first pass finds the layers."""
    with torch.no_grad(), Recorder(module, layers, **options) as recorder:
        module(x)
        first = recorder.activations
        module(x)
        second = recorder.activations
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    return second


def conv(channels: int = 6) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, channels, 3, padding=1)
