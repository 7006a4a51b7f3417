"""Networks that call activation functions as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5


def modes() -> int:
    return torch._C._len_torch_function_stack()


class Calls(nn.Module):
    """A convolution followed by the given function of its map."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3)
        self.function = function
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.function(self.conv(x)).mean((2, 3)))
        return logits


def in_place(x: Tensor) -> Tensor:
    x.relu_()
    return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(functional.relu(self.conv(x)) - 0.1) + functional.silu(x)


class Mixed(nn.Module):
    """Functions in the root and in a block that runs twice, together with modules, and a stored function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 5, 3)
        self.block = Block()
        self.held = functional.relu
        self.relu_1 = nn.ReLU()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x))
        x = self.block(self.block(x))
        x = self.relu_1(self.held(x - 0.2) - 0.1).add_(1)
        logits: Tensor = self.head(functional.relu(x, inplace=True).mean((2, 3)))
        return logits


NAMES = [
    "relu",
    "block.relu_1", "block.relu", "block.silu", "block.relu_2", "block.relu_3", "block.silu_1",
    "relu_2", "relu_1", "relu_3",
]  # fmt: skip


def by_hand(net: Any) -> dict[str, Tensor]:
    found: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x.mean((2, 3)))
        return x

    def block(x: Tensor) -> Tensor:
        first = keep(net.block.conv(x).relu())
        second = keep((first - 0.1).relu())
        return second + keep(x * x.sigmoid())

    with torch.no_grad():
        x = keep(net.conv(X).relu())
        x = block(block(x))
        x = keep((x - 0.2).relu())
        x = keep((x - 0.1).relu())
        keep((x + 1).relu())
    return dict(zip(NAMES, found, strict=True))
