"""Weights of the user's own tensor classes, such as those of quantization libraries, and sparse buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

import probekit as pk

X = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2


class Named(Tensor):
    """Plain data, with the default `__torch_function__` of subclasses."""


class Dispatched(Tensor):
    """Holds int8 values and scales, and is dequantized by each operation."""

    @staticmethod
    def __new__(cls, values: Tensor, scales: Tensor) -> Dispatched:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scales.dtype)  # type: ignore[attr-defined, no-any-return]

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        self.values_of, self.scales = values, scales

    @classmethod
    def quantized(cls, weight: Tensor) -> Dispatched:
        scales = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scales).round().to(torch.int8), scales)

    def full(self) -> Tensor:
        return self.values_of.float() * self.scales

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].values_of, args[0].scales)
        plain = tree_map(lambda one: one.full() if isinstance(one, cls) else one, (args, kwargs))
        return func(*plain[0], **(plain[1] or {}))


class Intercepted(Dispatched):
    """Replaces `linear` itself, as weight-only quantization does."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear:
            return functional.linear(args[0], args[1].full(), *args[2:])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "named": lambda weight: weight.as_subclass(Named),
    "dispatched": Dispatched.quantized,
    "intercepted": Intercepted.quantized,
}


@pytest.fixture(params=KINDS)
def net(request: Any) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    for layer in (net[0], net[2]):
        weight = KINDS[request.param](layer.weight.detach())
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return net


def hidden(net: nn.Sequential, x: Tensor) -> Tensor:
    return torch.relu(net[0](x)).as_subclass(Tensor)


def test_activations_and_class_means(net: nn.Sequential) -> None:
    assert pk.plan(net, X, verify=True)[["values", "complete"]].all(axis=None)
    expected = hidden(net, X).detach().numpy()
    recording = pk.record(net, (X, Y), progress=False)
    np.testing.assert_allclose(recording["activation"].values, expected, atol=1e-6)
    result = pk.analyze(net, (X, Y), progress=False)
    means = np.stack([expected[Y.numpy() == one].mean(0) for one in (0, 1)], 1)
    np.testing.assert_allclose(result["units"]["class_mean"].values, means, atol=1e-6)


def test_gradients_and_attacks(net: nn.Sequential) -> None:
    metric = pk.GradientVariability(method="exact")
    found = pk.analyze(net, (X, Y), metrics=[metric], progress=False)["units"]
    x = X.clone().requires_grad_()
    rows = [
        torch.autograd.grad(hidden(net, x)[:, unit].sum(), x)[0].norm(dim=1) for unit in range(8)
    ]
    expected = torch.stack(rows, 1).mean(0).numpy()
    np.testing.assert_allclose(found["gradient_norm_mean"].values, expected, atol=1e-6)

    with torch.no_grad():
        logits = net(X)
        net[2].bias[0] -= (logits[:, 0] - logits[:, 1]).median()
        labels = net(X).argmax(1).as_subclass(Tensor)
    images = nn.Sequential(nn.Flatten(), *net)
    robust = pk.robustness(
        images, (X.view(-1, 3, 2, 2), labels), corruptions=[], attacks=["fgsm"], epsilons=[0.1],
        progress=False,
    )  # fmt: skip
    functional.cross_entropy(net(x), labels).backward()
    assert x.grad is not None
    moved = (X + 0.1 * x.grad.sign()).clamp(0, 1)
    accuracy = (net(moved).argmax(1) == labels).double().mean().item()
    assert accuracy < 1
    assert robust["robustness"]["attack_accuracy"].item() == pytest.approx(accuracy)


class Graph(nn.Module):
    """Sums the features of neighbors, which a sparse buffer holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.act, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)
        self.register_buffer("neighbors", (torch.rand(3, 3) > 0.4).float().to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        summed = [torch.sparse.mm(self.neighbors, one) for one in self.features(x)]
        logits: Tensor = self.head(self.act(torch.stack(summed)).mean(1))
        return logits


@torch.no_grad()
def test_a_model_with_a_sparse_buffer_is_recorded() -> None:
    net, x = Graph().eval(), X.view(-1, 3, 4)
    found = pk.record(net, (x, Y), progress=False)["activation"].values
    summed = torch.einsum("ij,bjk->bik", net.neighbors.to_dense(), net.features(x))
    np.testing.assert_allclose(found, summed.relu().mean(1), atol=1e-6)
