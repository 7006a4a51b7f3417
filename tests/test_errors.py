"""Warnings name the line of the caller."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

import probekit as pk
from probekit.errors import ProbekitWarning


def test_a_warning_names_the_line_outside_the_package_each_time() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    data = [(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default", ProbekitWarning)
        first = pk.analyze(network, data, progress=False)
        second = pk.analyze(network, data, progress=False)
    assert first.attrs["notes"] == second.attrs["notes"]
    few = [one for one in said if "fewer than 20" in str(one.message)]
    assert {one.filename for one in few} == {__file__}
    assert few[1].lineno == few[0].lineno + 1


class ReluByHand(nn.Module):
    """Causes a warning in a hook, since one of its activation functions is not recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.layers(images)
        return x * (x > 0)


def test_a_warning_of_a_hook_names_a_line_outside_torch() -> None:
    network = ReluByHand()
    data = [(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default", ProbekitWarning)
        pk.record(network, data, progress=False)
        pk.plan(network, data[0][0])
    files = [one.filename for one in said if "layers may be missing" in str(one.message)]
    assert files == [__file__] * 2
