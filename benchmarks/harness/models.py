"""What benchmarks look at: networks with random weights, random images, and the bundled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import probekit as pk
from probekit.models.architectures import cifar_resnet

BUNDLED = "probekit:resnet20-fashion-mnist"
Batches = Sequence[tuple[Tensor, Tensor]]


def timm_model(name: str, device: str) -> nn.Module:
    """A network of timm's with random weights, in eval mode."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name).eval()
    return model.to(device)


def grey_resnet20(device: str) -> nn.Module:
    """The architecture of the bundled networks."""
    torch.manual_seed(0)
    return cifar_resnet(20, channels=1).eval().to(device)


def torchvision_resnet18(device: str) -> nn.Module:
    """torchvision's resnet18 with random weights, and batch norms that have seen data."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = resnet18().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(32, 3, 32, 32))
    return model.eval().to(device)


def random_batches(images: int, batch: int, shape: tuple[int, ...], device: str) -> Batches:
    """Random images with labels in ten classes."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(images, *shape, generator=generator).to(device)
    labels = (torch.arange(images) % 10).to(device)
    return list(zip(whole.split(batch), labels.split(batch), strict=True))


def bundled(images: int, batch: int, device: str) -> tuple[Any, Batches]:
    """The bundled network, and the first images of its test set as batches in memory."""
    model = pk.load_model(BUNDLED)
    model.module.to(device)
    data = pk.load_data("fashion-mnist", model)
    whole, labels, _ = data.fetch(list(range(images)))
    parts = zip(whole.to(device).split(batch), labels.to(device).split(batch), strict=True)
    return model, list(parts)


def bare_loop(model: Any, batches: Batches) -> None:
    """What any use of the model costs: its forward passes."""
    with torch.no_grad():
        for images, _ in batches:
            model(images)


@contextmanager
def plain_hooks(
    modules: Mapping[str, nn.Module], keep: Callable[[str, nn.Module, Any, Tensor], None]
) -> Iterator[None]:
    """What one would write by hand: a forward hook on each module, which is told its name."""
    handles = [
        module.register_forward_hook(partial(keep, name)) for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
