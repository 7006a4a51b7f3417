"""Gradients of all units by random probes: cost in forward passes, and error.

python benchmarks/probes.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from harness import Case, Question, Row, Setting, always, cost, gain, main, versus
from networks import torchvision_resnet18
from torch import Tensor, nn
from torch.autograd import forward_ad

from probekit.capture.gradients.norms import GradientNorms
from probekit.capture.layers import Layer
from probekit.capture.plan import scout_layers
from probekit.metrics.gradient_variability import over_samples
from probekit.statistics.gradient_moments import GradientMoments

Tables = dict[str, Tensor]
DUAL = "forward-mode passes"


def cases(setting: Setting) -> Iterator[Case]:
    yield Case("resnet18, 32 px, all layers, batch 64", partial(compared, setting))


def compared(setting: Setting) -> Iterator[Row]:
    model = torchvision_resnet18(setting.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(setting.size(64, 4), 3, 32, 32, generator=generator).to(setting.device)
    layers, _ = scout_layers(model, images[:2])
    index = torch.arange(len(images))
    probing = GradientNorms(method="probes", probes=setting.size(32, 4))
    exact = GradientNorms(method="exact", units=setting.size(8, 1))
    chosen = exact.chosen_units(layers)
    units, measured = sum(layer.units for layer in layers), sum(map(len, chosen.values()))
    with (
        torch.no_grad(),
        probing.open(model, layers) as probe,
        exact.open(model, layers) as differentiate,
    ):
        times = setting.take_turns(
            {
                "probes, all units": always(lambda: probe(images, index)),
                "forward pass": always(lambda: model(images)),
                DUAL: always(lambda: dual_passes(model, images, probing.probes)),
                "exact, all units": always(
                    lambda: differentiate(images, index), per=measured / units
                ),
            }
        )
        found, truth = probe(images, index), differentiate(images, index)
    note = (
        f"{probing.probes} probes of {units:,} units; exact gradients of {measured} of them, their "
        f"time multiplied up; {differences(found, truth, chosen, layers, index)}"
    )
    asked = {"forward pass": cost(40), DUAL: gain(), "exact, all units": gain()}
    yield from versus(times, "probes, all units", asked, note)


def dual_passes(model: nn.Module, images: Tensor, probes: int) -> None:
    """PyTorch's own derivatives along as many random directions, without reading any layer."""
    for _ in range(probes):
        with forward_ad.dual_level():
            model(forward_ad.make_dual(images, torch.randn_like(images)))


def differences(
    found: Tables, truth: Tables, chosen: Tables, layers: Sequence[Layer], index: Tensor
) -> str:
    """A text that describes the error of the probes relative to exact gradients."""
    means: list[Tensor] = []
    cvs: list[Tensor] = []
    for tables in (found, truth):
        parts = []
        for layer in layers:
            columns = torch.cat([chosen[layer.name], chosen[layer.name] + layer.units])
            moments = GradientMoments()
            moments.update(tables[layer.name][:, columns], torch.zeros_like(index))
            parts.append(over_samples(moments.to_xarray()))
        for kept, name in ((means, "gradient_norm_mean"), (cvs, "gradient_norm_cv")):
            kept.append(torch.cat([torch.from_numpy(part[name].values) for part in parts]))
    live = means[1] > 0
    apart = (means[0] / means[1] - 1)[live].abs().median()
    related = torch.corrcoef(torch.stack([means[0][live], means[1][live]]))[0, 1]
    return (
        f"means over samples {100 * apart:.2g}% apart (median over units; correlation {related:.4f}), "
        f"coefficient of variation {cvs[0].nanmedian():.3f} where the exact one is {cvs[1].nanmedian():.3f}"
    )


QUESTION = Question(
    "probes",
    "What do gradients of all units from random probes cost?",
    "Norms of the gradients of every unit of every activation function of torchvision's resnet18 with "
    "respect to the image, from derivatives along random directions. The cost is relative to plain "
    "forward passes over the same batch, to as many forward-mode passes of PyTorch that read no layer, "
    "and to exact gradients.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
