"""Shared setup of the tests of attacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacked_networks import Trained


@pytest.fixture
def torchattacks() -> Any:
    """Installed without its dependencies, whose version pins conflict with other packages."""
    return pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")


@pytest.fixture(scope="session")
def trained() -> Trained:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(bunch.target), generator=generator)
    images = torch.from_numpy(bunch.images / 16).float()[order, None]
    labels = torch.from_numpy(bunch.target)[order]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16 * 16, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(5):
            for rows in torch.randperm(1400).split(50):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    found = Trained(model.eval(), images[1400:1600], labels[1400:1600])
    assert found.accuracy(found.images) > 0.9
    return found
