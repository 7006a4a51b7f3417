"""An optimizer for part of the weights is not mistaken for gradient accumulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import probekit as pk


@pytest.mark.parametrize("trained", [[5], [3, 5]])
def test_an_optimizer_for_part_of_the_weights_is_not_accumulation(trained: list[int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    weights = [one for number in trained for one in net[number].parameters()]
    optimizer = torch.optim.SGD(weights, 0.1)
    with pk.SelectivityRegularizer(net, alpha=-1.0) as penalty:
        for _ in range(4):
            images, labels = torch.rand(8, 1, 2, 2), torch.arange(8) % 2
            optimizer.zero_grad()
            (nn.functional.cross_entropy(net(images), labels) + penalty(labels)).backward()
            optimizer.step()
