"""Networks and images for benchmarks: random weights and images, and the bundled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import probekit as pk
from probekit.models.architectures import CifarResNet

BUNDLED = "probekit:resnet20-fashion-mnist"
Batches = Sequence[tuple[Tensor, Tensor]]


def timm_model(name: str, device: str) -> nn.Module:
    """A timm network with random weights, in eval mode."""
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name).eval()
    return model.to(device)


def gray_resnet20(device: str) -> nn.Module:
    """The architecture of the bundled networks."""
    torch.manual_seed(0)
    return CifarResNet(20, channels=1).eval().to(device)


def torchvision_resnet18(device: str) -> nn.Module:
    """torchvision's resnet18 with random weights and updated batch-norm statistics."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = resnet18().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(32, 3, 32, 32))
    return model.eval().to(device)


def torchvision_googlenet(device: str) -> nn.Module:
    """torchvision's googlenet with random weights, whose activation functions are all function calls."""
    from torchvision.models import googlenet

    torch.manual_seed(0)
    model: nn.Module = googlenet(weights=None, aux_logits=False, init_weights=False).eval()
    return model.to(device)


def random_batches(images: int, batch: int, shape: tuple[int, ...], device: str) -> Batches:
    """Random images with labels for ten classes."""
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
    """Runs the forward passes only, the minimum cost of using the model."""
    with torch.no_grad():
        for images, _ in batches:
            model(images)


@contextmanager
def plain_hooks(
    modules: Mapping[str, nn.Module], keep: Callable[[str, nn.Module, Any, Tensor], None]
) -> Iterator[None]:
    """Handwritten forward hooks: one per module, called with the module's name."""
    handles = [
        module.register_forward_hook(partial(keep, name)) for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
