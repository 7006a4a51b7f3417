"""A regularized training step, compared with a plain step and a simple regularizer.

python benchmarks/regularizer.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from harness import Case, Question, Row, Run, Setting, always, cost, main, versus
from torch import Tensor, nn
from torch.nn import functional

import probekit as pk
from probekit.models.architectures import CifarResNet
from probekit.training.regularizer.batch_selectivity import batch_selectivity, class_sums

ALPHA = -1.0
PLAIN, COMPILED = "plain step", "compiled plain step"


class Subject(NamedTuple):
    """A network and the images of one step."""

    model: str
    dtype: str
    batch: int
    channels: int
    size: int
    bound: float
    compiled: bool = False


SUBJECTS = (
    Subject("ResNet20", "float32", 256, 1, 28, 1.10),
    Subject("ResNet20", "bfloat16", 256, 1, 28, 1.15),
    Subject("ResNet20", "float32", 256, 3, 32, 1.10, compiled=True),
    Subject("ResNet18", "float32", 128, 3, 64, 1.10),
)


class PlainWay:
    """The usual implementation of the regularizer: hooks, `mean((2, 3))` and autograd."""

    def __init__(self, model: nn.Module) -> None:
        self._pooled: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._pooled.append(output.float().mean((2, 3)))

    def __call__(self, labels: Tensor) -> Tensor:
        pooled, self._pooled = self._pooled, []
        terms = [batch_selectivity(class_sums([table], labels, 10))[0].mean() for table in pooled]
        return -ALPHA * torch.stack(terms).mean()


def cases(setting: Setting) -> Iterator[Case]:
    for one in SUBJECTS:
        name = f"{one.model}, {one.size} px, batch {one.batch}, {one.dtype}"
        yield Case(name, partial(compared, one, setting))


def compared(one: Subject, setting: Setting) -> Iterator[Row]:
    ways: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor] | None]] = {
        PLAIN: lambda model: None,
        "pk.SelectivityRegularizer": lambda model: pk.SelectivityRegularizer(model, ALPHA),
        "hooks, mean and autograd": PlainWay,
    }
    steps = {name: always(step(one, setting, way)) for name, way in ways.items()}
    if one.compiled:
        steps[COMPILED] = always(step(one, setting, ways[PLAIN], compiled=True), warm=True)
    times = setting.take_turns(steps)
    _, ours, usual = ways
    batch = setting.size(one.batch, 8)
    speeds = (f"{name} {batch / times.median(name):.0f}" for name in steps)
    yield from versus(
        times, ours, {PLAIN: cost(one.bound)}, "images per second: " + ", ".join(speeds)
    )
    if one.compiled:
        yield from versus(times, ours, {COMPILED: cost()})
    yield from versus(times, usual, {PLAIN: cost()})


def step(
    one: Subject,
    setting: Setting,
    regularize: Callable[[nn.Module], Callable[[Tensor], Tensor] | None],
    *,
    compiled: bool = False,
) -> Run:
    """A complete training step of a new network, in channels-last memory format."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    device, batch = setting.device, setting.size(one.batch, 8)
    model: nn.Module = (
        resnet18(num_classes=10) if one.model == "ResNet18" else CifarResNet(20, 10, one.channels)
    )
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, one.channels, one.size, one.size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    penalty = regularize(model)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=one.dtype == "bfloat16"):
            loss = functional.cross_entropy(forward(images), labels)
        if penalty is not None:
            loss = loss + penalty(labels)
        loss.backward()
        optimizer.step()

    return run


QUESTION = Question(
    "regularizer",
    "What does a regularized training step cost?",
    "Forward pass, loss, backward pass and optimizer step in channels-last layout, for ResNet20 on gray "
    "and color images and torchvision's ResNet18, compared with the same step without a regularizer, and "
    "once with such a step of the model compiled by `torch.compile`. The usual "
    "way to regularize is a forward hook that computes the mean over positions, with plain autograd.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
