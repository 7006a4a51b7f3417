"""Classes with few samples are reported."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import probekit as pk
from probekit.errors import ProbekitWarning


def analyze(samples: int) -> list[str]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    labels = torch.cat([torch.arange(3).repeat(19), torch.full((samples - 19,), 2)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pk.analyze(net, (torch.rand(len(labels), 1, 2, 2), labels), progress=False)
    return [str(one.message) for one in told if issubclass(one.category, ProbekitWarning)]


def test_classes_with_fewer_than_20_samples_are_counted() -> None:
    (said,) = analyze(30)
    assert "2 of 3 classes have fewer than 20 samples (the fewest 19)" in said
    assert "selectivity_split_half" in said


def test_20_samples_in_each_class_are_enough() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProbekitWarning)
        pk.analyze(net, (torch.rand(60, 1, 2, 2), torch.arange(60) % 3), progress=False)
