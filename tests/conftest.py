"""Shared setup of all tests: no network access, few threads, and a small network with its data."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for children, and for the workers of xdist

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from children import Child, fork_server, start_child
from probekit.models.image_model import ImageModel

# One thread: results are bitwise equal only with equal threads, which small networks do not need.
torch.set_num_threads(1)

collect_ignore = ["helpers"]  # they have no tests, and one runs commands when it is imported
if find_spec("accelerate") is None:
    collect_ignore += ["training/run", "training/sweep"]  # they need the extra `train`


def pytest_collection() -> None:
    """Collects no garbage while tests are imported, which takes a tenth of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collects garbage from now on, but rarely and not among what was imported."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Numbered IDs, since bytes such as the time in gzip can differ between processes."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def built_once() -> None:
    """Builds the command line once and reads the bundled images once, as hundreds of tests do."""
    import typer.testing

    from probekit.data import datasets

    typer.testing._get_command = functools.cache(typer.testing._get_command)
    datasets.read_idx = functools.cache(datasets.read_idx)


@pytest.fixture
def network() -> nn.Module:
    """Three nonlinearities on 8 px gray images, in train mode."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


@pytest.fixture
def model(network: nn.Module) -> ImageModel:
    """The same network as an image model."""
    return ImageModel(network, (0.3,), (0.5,), (1, 8, 8), ("a", "b", "c"))


@pytest.fixture
def labeled() -> tuple[torch.Tensor, torch.Tensor]:
    """30 gray images of 8 px in three classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(30, 1, 8, 8, generator=generator), torch.arange(30) % 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two class folders, of different sizes and types."""
    random = np.random.default_rng(0)
    for number in range(12):
        place = tmp_path / "photos" / ("cat" if number % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        mode = "RGB" if number % 3 else "L"
        Image.fromarray(pixels).convert(mode).save(place / f"{number:02d}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def server() -> Any:
    """Forks processes with one thread and with the imports of all commands."""
    return fork_server()


@pytest.fixture
def start(server: Any, tmp_path: Path) -> Callable[..., Child]:
    """Starts a command or other code in `tmp_path`; see `start_child`."""
    return functools.partial(start_child, server, tmp_path)
