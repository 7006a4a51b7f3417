"""Networks whose sizes alone do not determine the axes, and their records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probekit.capture.recorder import Recorder

Truth = Callable[[Tensor], Tensor]


def record(net: nn.Module, *inputs: Any, layers: Any = None, **options: Any) -> dict[str, Tensor]:
    """The activations of two passes, the first of which finds the layers."""
    with torch.no_grad(), Recorder(net, layers, **options) as recorder:
        net(*inputs)
        first = recorder.activations
        net(*inputs)
        second = recorder.activations
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=0, atol=0)
    assert all(layer.certain for layer in recorder.layers)
    return second


def watched(net: nn.Module, name: str, *inputs: Any) -> Tensor:
    """The output of a module, from a plain hook."""
    seen: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_hook(
        lambda module, args, output: seen.append(
            (output[0] if isinstance(output, tuple) else output).clone()
        )
    )
    with torch.no_grad():
        net(*inputs)
    handle.remove()
    return seen[-1]


class Lambda(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


class Chain(nn.Module):
    """A convolution, a function, an activation module named `act`, and a classifier."""

    def __init__(self, function: Callable[[Tensor], Tensor], act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function
        self.act = act or nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.function(self.conv(x))).flatten(1).sum(1, keepdim=True)


# Height, width, number of channels and number of samples are equal, so sizes do not reveal the axes.
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# Samples on an axis other than the first


class Tower(nn.Module):
    """A transformer over (tokens, samples, features) after a patch embedding."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = batch_first
        self.patch = nn.Conv2d(3, 8, 2, 2)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, activation=nn.GELU())
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2)
        x = x.permute(0, 2, 1) if self.first else x.permute(2, 0, 1)
        return self.head(self.encoder(x).mean(1 if self.first else 0))
