"""A trained network, its images, and one result of them."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import xarray as xr
from torch import nn

import probekit as pk
from probekit.analysis.robustness.robustness import robustness
from probekit.models.image_model import ImageModel
from robustness_by_hand import EPSILONS, Data


@pytest.fixture(scope="session")
def images() -> Data:
    """40 images of 32 px in three classes, each with its own bright region."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40) % 3
    images = torch.rand(40, 1, 32, 32, generator=generator) * 0.8
    for number, label in enumerate(labels.tolist()):
        images[number, :, 10 * label : 10 * label + 10] += 0.15
    return images, labels


@pytest.fixture(scope="session")
def learned(images: Data) -> nn.Module:
    """Three nonlinearities on 32 px gray images, trained briefly on these images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3, stride=4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 64, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    x, y = images
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net((x - 0.3) / 0.5), y, label_smoothing=0.2).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


@pytest.fixture
def net(learned: nn.Module) -> nn.Module:
    """An independent copy of the network."""
    return deepcopy(learned)


@pytest.fixture
def trained(net: nn.Module) -> ImageModel:
    """The same network as an image model."""
    return ImageModel(net, (0.3,), (0.5,), (1, 32, 32), ("a", "b", "c"))


@pytest.fixture(scope="session")
def result(learned: nn.Module, images: Data) -> xr.DataTree:
    return robustness(
        ImageModel(learned, (0.3,), (0.5,), (1, 32, 32), ("a", "b", "c")),
        images,
        ["fog", "gaussian_noise"],
        (1, 5),
        ["fgsm", pk.PGD(steps=4, keep="last")],
        EPSILONS,
        batch_size=16,
        progress=False,
    )
