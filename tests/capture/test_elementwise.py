"""User-defined activation functions are distinguished from other modules without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probekit.capture.elementwise import acts_like_activation


class Own(nn.Module):
    """A user-defined module: a function of itself and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def per_channel(x: Tensor, values: Tensor) -> Tensor:
    return values.view(-1, *(1 for _ in x.shape[2:]))


ACTIVATIONS = {
    "QuickGELU": Own(lambda own, x: x * torch.sigmoid(1.702 * x)),
    "Mish": Own(lambda own, x: x * functional.softplus(x).tanh()),
    "StarReLU": Own(
        lambda own, x: own.scale * functional.relu(x) ** 2 + own.shift,
        scale=nn.Parameter(torch.ones(1)),
        shift=nn.Parameter(torch.zeros(1)),
    ),
    "StarReLU of a module": Own(lambda own, x: own.relu(x) ** 2 - 1, relu=nn.ReLU()),
    "Swish with a slope per channel": Own(
        lambda own, x: x * torch.sigmoid(x * per_channel(x, own.slope)),
        slope=nn.Parameter(torch.ones(4)),
    ),
    "weights in a list": Own(
        lambda own, x: x.relu() + per_channel(x, own.slopes[0]) * (-x).relu(),
        slopes=nn.ParameterList([nn.Parameter(torch.rand(4))]),
    ),
    "in place": Own(lambda own, x: x.mul_(x.sigmoid())),
    "hard swish of a hard sigmoid": Own(
        lambda own, x: x * own.gate(x),
        gate=Own(lambda own, x: own.relu(x + 3) / 6, relu=nn.ReLU6()),
    ),
    "sine": Own(lambda own, x: torch.sin(30 * x)),
    "leaky": Own(lambda own, x: torch.where(x > 0, x, 0.1 * x)),
}
OTHERS = {
    "identity": Own(lambda own, x: x),
    "scale": Own(lambda own, x: x * per_channel(x, own.scale), scale=nn.Parameter(torch.rand(4))),
    "flip": Own(lambda own, x: x.flip(1)),
    "standardize": Own(lambda own, x: (x - x.mean()) / x.std()),
    "layer norm": Own(lambda own, x: functional.layer_norm(x, x.shape[1:])),
    "RMS norm": Own(lambda own, x: x / x.square().mean(1, keepdim=True).add(1e-6).sqrt()),
    "unit length": Own(lambda own, x: functional.normalize(x, dim=1)),
    "softmax": Own(lambda own, x: x.softmax(1)),
    "dropout": Own(lambda own, x: functional.dropout(x, 0.5, True)),
    "noise": Own(lambda own, x: x + torch.randn_like(x)),
    "gate": Own(lambda own, x: x * x.flatten(2).mean(2).sigmoid().view(*x.shape[:2], 1, 1)),
    "weights": Own(lambda own, x: own.weight.tanh() * x, weight=nn.Parameter(torch.rand(4, 5, 5))),
    "convolution": Own(lambda own, x: own.conv(x).relu(), conv=nn.Conv2d(4, 4, 1)),
    "scale of an activation": Own(
        lambda own, x: own.scale(x.relu()),
        scale=Own(lambda own, x: x * per_channel(x, own.by), by=nn.Parameter(torch.rand(4))),
    ),
    "dropout of torch": nn.Dropout(),
    "batch norm of torch": nn.BatchNorm2d(4),
}  # fmt: skip
X = torch.rand(3, 4, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_elementwise_non_affine_modules_are_detected(name: str, dtype: torch.dtype) -> None:
    assert acts_like_activation(ACTIVATIONS[name].to(dtype), (X.to(dtype),), X.to(dtype)) is True


@pytest.mark.parametrize("name", OTHERS)
def test_modules_that_mix_elements_or_are_affine_are_not_detected(name: str) -> None:
    assert acts_like_activation(OTHERS[name], (X,), X) is False


@pytest.mark.parametrize("shape", [(3, 4), (3, 7, 4), (1, 4), (2, 1)])
def test_any_shape_is_accepted(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert acts_like_activation(ACTIVATIONS["Mish"], (x,), x) is True
    assert acts_like_activation(OTHERS["identity"], (x,), x) is False


def test_a_module_with_several_inputs_or_another_shape_is_not_detected() -> None:
    mish = ACTIVATIONS["Mish"]
    assert acts_like_activation(mish, (X, X), X) is False
    assert acts_like_activation(mish, (X,), X[:, :2]) is False
    assert acts_like_activation(mish, (X,), (X,)) is False


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0, cache: Any = None) -> Tensor:
        return scale * functional.softplus(x)


def test_other_arguments_are_passed_on_if_they_are_plain() -> None:
    scaled = Scaled()
    assert acts_like_activation(scaled, (X, 2.0), X) is True
    assert acts_like_activation(scaled, (), X, {"scale": 2.0, "x": X}) is True
    assert acts_like_activation(scaled, (X, 0.0), X) is False
    assert acts_like_activation(scaled, (X,), X, {"cache": {}}) is False
    assert acts_like_activation(scaled, (X,), X, {"cache": X}) is False


def test_modules_that_cannot_be_copied_are_uncertain() -> None:
    own = Own(lambda own, x: x.tanh(), generator=(one for one in ()))
    assert acts_like_activation(own, (X,), X) is None


def test_the_module_and_the_random_state_are_unchanged() -> None:
    def count(own: Any, x: Tensor) -> Tensor:
        own.calls += 1
        own.total.add_(1)
        return torch.randn_like(x) + x

    own = Own(count, calls=0, total=torch.zeros(1))
    before = torch.get_rng_state()
    acts_like_activation(own, (X,), X)
    assert (own.calls, float(own.total)) == (0, 0.0)
    assert torch.equal(before, torch.get_rng_state())
