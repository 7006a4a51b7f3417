"""Models that compute the same function have the same identity; others differ."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probekit.models.identity import model_identity, options_of, own_code
from probekit.models.image_model import ImageModel


class Net(nn.Module):
    """A module with options of many types that counts its calls."""

    def __init__(self, act: Any = torch.relu, slope: float = 0.1, scale: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
        self.act, self.slope, self.scale = act, slope, scale
        self.calls = 0
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(images))
        out: Tensor = self.act(self.linear(images)) * self.slope
        return out


def weights_changed() -> Net:
    net = Net()
    net.linear.weight.data[0, 0] += 1
    return net


def hooked() -> Net:
    net = Net()
    net.linear.register_forward_hook(lambda module, given, out: out * 2)
    return net


def adding(number: int, by_default: int = 0) -> Callable[[Tensor], Tensor]:
    def add(x: Tensor, other: int = by_default) -> Tensor:
        return x + number + other

    return add


OTHERS: dict[str, Callable[[], Any]] = {
    "weights": weights_changed,
    "function": lambda: Net(torch.tanh),
    "lambda": lambda: Net(lambda x: x + 1),
    "another lambda": lambda: Net(lambda x: x + 2),
    "closure": lambda: Net(adding(1)),
    "another closure": lambda: Net(adding(2)),
    "default argument": lambda: Net(adding(0, by_default=1)),
    "another default argument": lambda: Net(adding(0, by_default=2)),
    "nested options": lambda: Net(scale=SimpleNamespace(part=SimpleNamespace(width=1))),
    "other nested options": lambda: Net(scale=SimpleNamespace(part=SimpleNamespace(width=2))),
    "module": lambda: Net(nn.LeakyReLU(0.1)),
    "option of a module": lambda: Net(nn.LeakyReLU(0.2)),
    "number": lambda: Net(slope=0.2),
    "tensor": lambda: Net(scale=torch.tensor([2.0])),
    "another tensor": lambda: Net(scale=torch.tensor([3.0])),
    "mapping": lambda: Net(scale={"a": [1, 2]}),
    "hook": hooked,
    "normalization": lambda: ImageModel(Net(), (0.5,), (0.5,), (1, 1, 3)),
    "another normalization": lambda: ImageModel(Net(), (0.4,), (0.5,), (1, 1, 3)),
}


def test_models_that_compute_something_else_differ() -> None:
    found = [str(model_identity(Net())), *(str(model_identity(make())) for make in OTHERS.values())]
    assert len(set(found)) == len(OTHERS) + 1


@pytest.mark.parametrize("kind", OTHERS)
def test_the_same_model_has_the_same_identity(kind: str) -> None:
    assert model_identity(OTHERS[kind]()) == model_identity(OTHERS[kind]())


def test_counters_and_training_mode_do_not_change_the_identity() -> None:
    net = Net()
    before = model_identity(net)
    net.eval()(torch.rand(2, 3))
    assert net.calls == 1
    assert model_identity(net) == before


class Doubled:
    def __init__(self, factor: float) -> None:
        self.factor, self.function = factor, len

    def evaluate(self, value: float) -> float:
        return self.factor * value


class Tripled(Doubled):
    def evaluate(self, value: float) -> float:
        return 3 * self.factor * value


def test_options_and_code_of_objects() -> None:
    assert options_of(Doubled(0.5)) == {"factor": 0.5, "function": "builtins.len"}
    assert own_code(Doubled(0.5)) == own_code(Doubled(1.0)) != own_code(Tripled(0.5))
    assert own_code(model_identity) == ""
