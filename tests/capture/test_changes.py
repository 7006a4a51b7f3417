"""Changes of outputs reach the rest of the model, however it uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probekit.capture.recorder import Recorder

X = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 2


class Ignored(nn.Module):
    """Relies on its activation function to modify its input in place."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.act(x)
        return x.mean((2, 3))


class OwnInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class SameTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), OwnInPlace()])
def test_a_change_is_visible_when_the_output_of_an_in_place_module_is_ignored(act: Any) -> None:
    net = Ignored(act)
    with torch.no_grad():
        expected = net(X) * 3
        with Recorder(net, ["act"], change=lambda layer, maps: maps * 3) as recorder:
            net(X)
            torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(recorder.activations["act"], expected)


class Given(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **named: Any) -> Tensor:
        return self.function(*args, **named)


def scaled(gate: float, x: Tensor) -> Tensor:
    return x.mul_(gate)


def written(x: Tensor, buffer: Tensor) -> Tensor:
    return buffer.copy_(x * 2)


def test_a_change_is_visible_in_any_input_that_a_module_writes_into() -> None:
    net = nn.Module()
    torch.manual_seed(0)
    net.conv, net.first, net.second = nn.Conv2d(3, 6, 3), Given(scaled), Given(written)

    def forward(x: Tensor) -> Tensor:
        maps = net.conv(x)
        buffer = torch.zeros_like(maps)
        net.first(2.0, x=maps)
        net.second(maps, buffer=buffer)
        return buffer

    net.forward = forward  # type: ignore[method-assign]
    with torch.no_grad():
        expected = net.conv(X) * 36
        with Recorder(net, ["first", "second"], change=lambda layer, maps: maps * 3) as recorder:
            net(X)
            torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(recorder.activations["second"], expected.mean((2, 3)))


class Recursive(nn.Module):
    """A block that runs itself on its input first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        return self.conv(self(x, depth - 1) if depth else x)


def test_a_change_applies_to_each_call_of_a_recursive_module() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Recursive())
    with torch.no_grad():
        expected = X
        for _ in range(3):
            expected = net[0].conv(expected) * 3
        with Recorder(net, ["0", "0_1", "0_2"], change=lambda layer, maps: maps * 3) as recorder:
            net(X)
            torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(recorder.activations["0_2"], expected.mean((2, 3)))


def test_a_change_of_a_module_that_returns_its_input_does_not_modify_the_input() -> None:
    net = Ignored(SameTensor())
    with torch.no_grad(), Recorder(net, ["act"], change=lambda layer, maps: maps * 3):
        net(X)
        torch.testing.assert_close(net(X), net.conv(X).mean((2, 3)))
