"""Derivatives along random directions: the directions themselves, and forward mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from probekit.capture.gradients.forward import (
    Differentiator,
    directional_derivatives,
    directions,
)
from probekit.errors import ModelError

IMAGES = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([10, 3, 700, 4])


def drawn(index: Tensor, probes: int, seed: int, chunk: int) -> Tensor:
    return torch.cat(list(directions(IMAGES[: len(index)], index, probes, seed, chunk)))


def test_directions_are_standard_normal() -> None:
    values = drawn(INDEX, 100, 0, 100).flatten()
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_directions_depend_only_on_seed_and_sample(chunk: int) -> None:
    whole = drawn(INDEX, 7, 5, 100)
    assert torch.equal(drawn(INDEX, 7, 5, chunk), whole)
    assert torch.equal(drawn(INDEX[2:3], 7, 5, chunk), whole[:, 2:3])
    assert not torch.equal(drawn(INDEX, 7, 6, chunk), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 7


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()
    ).eval()


@pytest.mark.parametrize("together", [True, False])
def test_derivatives_are_products_with_the_jacobian(together: bool) -> None:
    net = small()
    differentiate = Differentiator(lambda x: {"y": net(x)}, net)
    differentiate._together = together
    along = torch.randn(3, *IMAGES.shape)
    found = differentiate(IMAGES, along)["y"]
    assert differentiate._together == together
    for number, image in enumerate(IMAGES):
        jacobian = torch.autograd.functional.jacobian(lambda x: net(x[None])[0], image)
        expected = along[:, number].flatten(1) @ jacobian.flatten(1).T
        torch.testing.assert_close(found[:, number], expected, rtol=1e-4, atol=1e-5)


class Branching(nn.Module):
    """Branches on a value, which `vmap` does not support."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(1) if float(x.sum()) > 0 else x.flatten(1)


def test_models_without_batching_support_use_one_direction_at_a_time() -> None:
    net = Branching()
    differentiate = Differentiator(lambda x: {"y": net(x)}, net)
    along = torch.randn(3, *IMAGES.shape)
    torch.testing.assert_close(differentiate(IMAGES, along)["y"], 2 * along.flatten(2))


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_pieces_cover_all_samples_and_directions_once(rows: int) -> None:
    net = nn.Flatten()
    pieces = directional_derivatives(
        Differentiator(lambda x: {"y": net(x)}, net), IMAGES, INDEX, probes=5, seed=1, rows=rows
    )
    total, count = torch.zeros(4, 36), torch.zeros(4)
    for part, found in pieces:
        assert found["y"].shape[0] * found["y"].shape[1] <= max(rows, 1)
        total[part] += found["y"].sum(0)
        count[part] += len(found["y"])
    assert count.tolist() == [5] * 4
    torch.testing.assert_close(total, drawn(INDEX, 5, 1, 5).sum(0).flatten(1))


class Distances(nn.Module):
    """A torch operation without a forward-mode derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x + 1)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)


@pytest.mark.parametrize(
    ("layer", "operation"), [(Distances(), "_cdist_forward"), (Custom(), "Doubled|custom autograd")]
)
def test_an_operation_without_forward_mode_is_named(layer: nn.Module, operation: str) -> None:
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), layer), nn.Flatten())
    with pytest.raises(ModelError, match=rf"({operation}).* in '1.1' .*method='exact'"):
        Differentiator(lambda x: {"y": net(x)}, net)(IMAGES, torch.randn(2, *IMAGES.shape))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in net.modules())
