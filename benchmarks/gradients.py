"""Exact gradients of many units, compared with captum and plain backward passes.

python benchmarks/gradients.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import (
    Case,
    Contender,
    Missing,
    Question,
    Row,
    Run,
    Setting,
    always,
    cost,
    gain,
    main,
    peer,
    versus,
)
from networks import torchvision_resnet18
from torch import Tensor, nn

from probekit.capture.gradients.norms import GradientNorms
from probekit.capture.plan import scout_layers

# The minimum speedup over captum, by batch size.
CAPTUM = {64: 2.2, 8: 4.0}
BACKWARD = 0.95
# The peers' cost per unit is constant, so a few units are enough to measure it.
FEW = 4


def cases(setting: Setting) -> Iterator[Case]:
    for batch in CAPTUM:
        yield Case(f"resnet18, 32 px, layer3, batch {batch}", partial(compared, batch, setting))


def compared(batch: int, setting: Setting) -> Iterator[Row]:
    """The time per unit; ours is measured over all units of the layer."""
    model = torchvision_resnet18(setting.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(setting.size(batch, 2), 3, 32, 32, generator=generator)
    images = images.to(setting.device)
    layers, _ = scout_layers(model, images[:2], ["layer3"])
    index = torch.arange(len(images))
    source = GradientNorms(method="exact", units=setting.size(None, 8))
    with torch.no_grad(), source.open(model, layers) as tap:
        table = tap(images, index)["layer3"]
        measured = (table[0, : layers[0].units] >= 0).nonzero()[:, 0]
        few = measured[:FEW]
        peers: dict[str, Any] = {
            "captum, a unit at a time": peer(
                "captum.attr", lambda captum: partial(with_captum, captum, model, images, few)
            ),
            "plain backward pass": plain_backward(model, images, few),
        }
        contenders: dict[str, Contender | Missing] = {
            "exact": always(lambda: tap(images, index), per=len(measured))
        }
        contenders |= {
            name: run if isinstance(run, Missing) else always(run, per=len(few))
            for name, run in peers.items()
        }
        largest = table[:, measured].max()
        apart = [
            float(((run().cpu() - table[:, few]) / largest).abs().max())
            for run in peers.values()
            if not isinstance(run, Missing)
        ]
        times = setting.take_turns(contenders)
    note = (
        f"{len(measured)} units; norms differ from the peers' by {max(apart):.0e} of the largest; "
        "times are for one unit"
    )
    asked = {
        "captum, a unit at a time": gain(CAPTUM[batch]),
        "plain backward pass": cost(BACKWARD),
    }
    yield from versus(times, "exact", asked, note)


def with_captum(captum: Any, model: nn.Module, images: Tensor, units: Tensor) -> Tensor:
    """captum's NeuronGradient, which handles one neuron at a time."""
    with torch.enable_grad():
        gradient = captum.NeuronGradient(model, model.layer3)
        found = [
            gradient.attribute(
                images.clone().requires_grad_(), lambda out, u=int(u): out[:, u].mean((1, 2))
            )
            for u in units
        ]
    return torch.stack([one.detach().flatten(1).norm(dim=1) for one in found], 1)


def plain_backward(model: nn.Module, images: Tensor, units: Tensor) -> Run:
    """`torch.autograd.grad` of one unit at a time for the whole batch, with a retained graph."""
    body = nn.Sequential(*list(model.children())[:7])
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    with torch.enable_grad():
        inputs = images.clone().requires_grad_()
        sums = body(inputs).mean((2, 3)).sum(0)

    def run() -> Tensor:
        with torch.enable_grad():
            found = [torch.autograd.grad(sums[int(u)], inputs, retain_graph=True)[0] for u in units]
            return torch.stack([one.flatten(1).norm(dim=1) for one in found], 1)

    return run


QUESTION = Question(
    "gradients",
    "What do exact gradients of many units cost?",
    "Norms of the gradients of the pooled units of layer3 of torchvision's resnet18 with respect to the "
    "image. captum's `NeuronGradient` computes one neuron at a time. A plain backward pass is "
    "`torch.autograd.grad` of one unit for the whole batch; its graph is built once, and the weights "
    "need no gradients. Both are timed on four units; the cost does not depend on the unit.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
