"""Time of the gradients of many units beside captum and beside plain backward passes.

    python benchmarks/gradients.py [exact|probes] [--batch 64] [--units 256] [--repeats 7] [--threads 2]

The model is torchvision's resnet18 at 32 pixels with random weights. `exact`: gradients of the 256
pooled units of layer3. captum's NeuronGradient takes one neuron at a time; a plain backward pass is
`torch.autograd.grad` from one unit, for the whole batch, to the images, through a graph that is kept,
with weights that need no gradients. `probes`: all layers at once; the unit of time is a plain forward
pass, and the accuracy is told beside exact gradients. The contenders take turns; rows hold medians.
On a machine that does other work too, `--clock cpu --threads 1` compares more fairly than the wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from captum.attr import NeuronGradient
from torch import Tensor, nn

from probekit.capture.gradients import GradientNorms
from probekit.capture.plan import scout_layers
from probekit.metrics.gradient_variability import over_samples
from probekit.statistics.input_gradients import GradientMoments

Run = Callable[[], object]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    model = resnet()
    images = torch.rand(options.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    print(f"resnet18 at 32 px, batch {options.batch}, {options.threads} thread(s)")
    compare = exact if options.what == "exact" else probes
    compare(model, images, options)


def exact(model: nn.Module, images: Tensor, options: argparse.Namespace) -> None:
    """Our time for all units; the others' for a few units, which cost the same each."""
    few = min(4, options.units)
    layers, _ = scout_layers(model, images[:2], ["layer3"])
    index = torch.arange(len(images))
    source = GradientNorms(method="exact", units=options.units)
    with torch.no_grad(), source.open(model, layers) as tap:
        table = tap(images, index)["layer3"]
        measured = (table[0, :256] >= 0).nonzero()[:, 0]
        per_unit = {
            "probekit": (lambda: tap(images, index), len(measured)),
            "captum": (lambda: with_captum(model, images, measured[:few]), few),
            "plain backward": (plain_backward(model, images, measured[:few]), few),
        }
        norms = {name: run() for name, (run, _) in per_unit.items() if name != "probekit"}
        for name, found in norms.items():
            apart = ((table[:, measured[:few]] - found) / table[:, measured].max()).abs().max()  # type: ignore[operator]
            print(f"largest difference, relative to the largest norm, from {name}: {apart:.1e}")
        seconds = in_turns({name: run for name, (run, _) in per_unit.items()}, options)
    each = {name: seconds[name] / count for name, (_, count) in per_unit.items()}
    for name, value in each.items():
        print(f"{name:<16}{1e3 * value:>10.2f} ms a unit{value / each['probekit']:>8.2f}")


def with_captum(model: nn.Module, images: Tensor, units: Tensor) -> Tensor:
    with torch.enable_grad():
        gradient = NeuronGradient(model, model.layer3)
        found = [
            gradient.attribute(
                images.clone().requires_grad_(), lambda out, u=int(u): out[:, u].mean((1, 2))
            )
            for u in units
        ]
    return torch.stack([g.detach().flatten(1).norm(dim=1) for g in found], 1)


def plain_backward(model: nn.Module, images: Tensor, units: Tensor) -> Run:
    body = nn.Sequential(*list(model.children())[:7])
    for parameter in body.parameters():
        parameter.requires_grad_(False)
    with torch.enable_grad():
        inputs = images.clone().requires_grad_()
        pooled = body(inputs).mean((2, 3))

    def run() -> Tensor:
        sums = [pooled[:, int(u)].sum() for u in units] if pooled.requires_grad else []
        found = [torch.autograd.grad(one, inputs, retain_graph=True)[0] for one in sums]
        return torch.stack([g.flatten(1).norm(dim=1) for g in found], 1)

    def with_grad() -> Tensor:
        with torch.enable_grad():
            return run()

    return with_grad


def probes(model: nn.Module, images: Tensor, options: argparse.Namespace) -> None:
    layers, _ = scout_layers(model, images[:2])
    index = torch.arange(len(images))
    units = sum(layer.units for layer in layers)
    with torch.no_grad(), GradientNorms(method="probes").open(model, layers) as tap:
        taken = in_turns(
            {"probes": lambda: tap(images, index), "forward": lambda: model(images)},
            options,
        )
        table = tap(images, index)
    ratio = taken["probes"] / taken["forward"]
    print(f"32 probes of {units} units cost {ratio:.0f} forward passes ({taken['probes']:.2f} s)")
    start = options.now()
    source = GradientNorms(method="exact", units=options.units)
    with torch.no_grad(), source.open(model, layers) as tap:
        reference = tap(images, index)
    spent = options.now() - start
    chosen = source.chosen_units(layers)
    count = sum(map(len, chosen.values()))
    whole = spent * units / count
    print(
        f"exact, {count} units: {spent:.2f} s, so {whole / taken['probes']:.0f} times probes for all"
    )
    found, truth = [], []
    for layer in layers:
        kept = torch.cat([chosen[layer.name], chosen[layer.name] + layer.units])
        for tables, into in ((table, found), (reference, truth)):
            moments = GradientMoments()
            moments.update(tables[layer.name][:, kept], torch.zeros_like(index))
            into.append(over_samples(moments.to_xarray()))
    means, cvs = (
        [torch.cat([torch.from_numpy(one[name].values) for one in some]) for some in (found, truth)]
        for name in ("gradient_norm_mean", "gradient_norm_cv")
    )
    live = means[1] > 0
    apart = (means[0] / means[1] - 1)[live].abs().median()
    related = torch.corrcoef(torch.stack([means[0][live], means[1][live]]))[0, 1]
    print(f"means: {100 * apart:.2f}% apart (median), correlation {related:.4f}")
    print(f"CV: {cvs[0].nanmedian():.3f} from probes, {cvs[1].nanmedian():.3f} exact (median)")


def in_turns(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, float]:
    """The median seconds of each, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.repeats + 1):
        for name, run in runs.items():
            start = options.now()
            run()
            if turn:
                seconds[name].append(options.now() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def resnet() -> nn.Module:
    """Random weights, and batch norms that have seen data."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(32, 3, 32, 32))
    return model.eval()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", nargs="?", choices=["exact", "probes"], default="exact")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--units", type=int, default=256, help="units a layer, at most")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    options.now = time.perf_counter if options.clock == "wall" else time.process_time
    return options


if __name__ == "__main__":
    main()
