"""Warnings name the line of the caller."""

from __future__ import annotations

import warnings

import torch
from torch import nn

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
