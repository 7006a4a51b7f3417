"""Unit axes of heads, experts and lists of layers, parts of which have weights of their own.

Expected values are computed in plain Python from the model's own parts, never with probekit.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axis_networks import Lambda, X, record
from probekit.capture.recorder import Recorder


class Heads(nn.Module):
    """Linear attention with a ReLU over separate head and feature axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.act, self.proj = nn.Linear(8, 24), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        q, k = self.act(q), self.act(k)
        return self.proj((q @ (k.mT @ v)).transpose(1, 2).flatten(2).mean(1))


def test_units_over_heads_and_features_include_all_of_them() -> None:
    net = Heads()
    x = torch.randn(8, 8, 8)
    expected = net.qkv(x)[..., :8].relu().mean(1).detach()
    with torch.no_grad(), Recorder(net, ["act*"]) as recorder:
        net(x)
    layer = recorder.layers[0]
    assert (layer.units, layer.positions, layer.certain) == (8, (8,), True)
    torch.testing.assert_close(recorder.activations["act"], expected)
    output = net.act(net.qkv(x)[..., :8].unflatten(2, (2, 4)).transpose(1, 2)).detach()
    torch.testing.assert_close(layer.restore(layer.arrange(output), output), output)


class OwnMatrices(nn.Module):
    """Multiplies the two halves of each token by matrices of their own, or by the same one."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], same: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(2, 4, 5)
        self.weight = nn.Parameter(weight[:1].repeat(2, 1, 1) if same else weight)
        self.product, self.head = product, nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.product(x.unflatten(2, (2, 4)), self.weight)).mean((1, 2)))


class Spectral(nn.Module):
    """A Fourier neural operator: matrices of their own for some frequencies, between two transforms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act, self.head = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.randn(6, 5, 4, 3, dtype=torch.complex64))

    def filtered(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft2(self.conv(x))[:, :, :4, :3]
        spectrum = torch.zeros(len(x), 5, 8, 5, dtype=torch.complex64)
        spectrum[:, :, :4, :3] = torch.einsum("bixy,ioxy->boxy", low, self.weight)
        return torch.fft.irfft2(spectrum, s=(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.filtered(x)).mean((2, 3)))


def test_positions_after_a_fourier_transform_are_no_units() -> None:
    net = Spectral()
    with torch.no_grad():
        expected = net.filtered(X).relu().mean((2, 3))
    torch.testing.assert_close(record(net, X)["act"], expected)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: torch.einsum("bnkd,kde->bnke", x, w),
        lambda x, w: (
            torch.bmm(x.flatten(0, 1).transpose(0, 1), w).transpose(0, 1).unflatten(0, (-1, 6))
        ),
        lambda x, w: (x.transpose(1, 2) @ w).transpose(1, 2),
        lambda x, w: (w.mT @ x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    ],
)
def test_parts_with_matrices_of_their_own_have_units_of_their_own(
    product: Callable[[Tensor, Tensor], Tensor], same: bool
) -> None:
    """As experts, heads or the blocks of a block-diagonal matrix; with the same matrix they share units."""
    x = torch.randn(3, 6, 8)
    net = OwnMatrices(product, same)
    parts = torch.stack([x[..., :4] @ net.weight[0], x[..., 4:] @ net.weight[1]], 2)
    values = F.gelu(parts)
    expected = values.mean((1, 2)) if same else values.mean(1).flatten(1)
    with torch.no_grad(), Recorder(net) as recorder:
        for _ in range(2):
            net(x)
            found = recorder.activations["gelu"]
            torch.testing.assert_close(found, expected.detach())


class ValuesOfHeads(nn.Module):
    """Attention whose queries, keys and values come from different weights, in any order."""

    def __init__(self, order: str, attend: Callable[..., Tensor], own: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.order, self.attend, self.own = order, attend, own
        self.weights = nn.ParameterDict({name: torch.randn(2, 8, 4) for name in "qkv"})
        self.head = nn.Linear(8, 2)

    def values(self, x: Tensor) -> Tensor:
        made = {}
        for name in self.order:
            weight = self.weights[name]
            if self.own:
                made[name] = torch.einsum("bnd,hde->bhne", x, weight)
            else:
                joint = F.linear(x, weight.transpose(1, 2).flatten(0, 1))
                made[name] = joint.unflatten(2, (2, 4)).transpose(1, 2)
        return F.gelu(self.attend(made["q"], made["k"], made["v"]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.values(x).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("order", ["qkv", "vqk"])
@pytest.mark.parametrize(
    "attend",
    [
        F.scaled_dot_product_attention,
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
        lambda q, k, v: torch.einsum("bhnm,bhme->bhne", (q @ k.mT).softmax(-1), v),
        lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
        lambda q, k, v: ((q.mT @ k).softmax(-1) @ v.mT).mT,
        lambda q, k, v: ((q[:, :, :, None] * k[:, :, None]).sum(-1)[..., None] * v[:, :, None]).sum(
            3
        ),
        lambda q, k, v: v * q.sum(-1, keepdim=True).sigmoid(),
    ],
)
def test_units_of_attention_are_those_of_its_values(
    attend: Callable[..., Tensor], order: str, own: bool
) -> None:
    net, x = ValuesOfHeads(order, attend, own), torch.randn(3, 6, 8)
    expected = net.values(x).mean(2).flatten(1).detach()
    found = record(net, x)["gelu"]
    torch.testing.assert_close(found, expected)


def test_matrices_for_each_position_leave_the_units_of_the_values() -> None:
    torch.manual_seed(0)
    keys = nn.Parameter(torch.randn(4, 5, 8))

    def attend(x: Tensor) -> Tensor:
        scores = torch.einsum("byxc,ykc->byxk", x, keys).softmax(-1)
        return F.gelu(torch.einsum("byxk,bykc->byxc", scores, x[:, :, :5]))

    embed, head = nn.Linear(3, 8), nn.Linear(8, 2)
    net = Lambda(lambda x: head(attend(embed(x)).mean((1, 2))))
    net.embed, net.head, net.keys = embed, head, keys
    x = torch.randn(3, 4, 6, 3)
    torch.testing.assert_close(record(net, x)["gelu"], attend(embed(x)).mean((1, 2)).detach())


class Stacked(nn.Module):
    """Stacks the outputs of two layers, of one layer for two inputs, or of the steps of a loop."""

    def __init__(self, how: str, place: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.place = how, place
        self.one, self.other, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def parts(self, x: Tensor) -> list[Tensor]:
        if self.how == "two layers":
            return [self.one(x), self.other(x)]
        if self.how == "two inputs":
            return [self.one(x), self.one(-x)]
        steps = [torch.zeros(len(x), 6, 8)]
        for _ in range(2):
            steps.append(self.one(x) + self.other(steps[-1]))
        return steps[1:]

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack(self.parts(x), self.place).relu()
        return self.head(stacked.sum(self.place).mean(1))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("how", ["two layers", "two inputs", "steps"])
def test_stacked_outputs_of_two_layers_are_units_of_both(how: str, place: int) -> None:
    net, x = Stacked(how, place), torch.randn(3, 6, 8)
    values = torch.stack(net.parts(x), 1).relu().mean(2).detach()
    expected = values.flatten(1) if how == "two layers" else values.mean(1)
    torch.testing.assert_close(record(net, x)["relu"], expected)
