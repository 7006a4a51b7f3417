"""Time of a selectivity analysis beside the bare forward pass, over the same batches in memory.

    python benchmarks/overhead.py [MODEL ...] [--repeats 9] [--batches 4] [--threads 1]
                                  [--clock wall|cpu]

Each pass over the data is timed in turn with the other, so that what else the machine does falls on
both; a row holds the medians and the median of the ratios of neighbours. What `analyze` does once,
such as finding the layers and hashing the weights, is timed apart, with an analysis of no more than
the first batch, and taken off both it and the bare pass. On a machine that is busy with other work,
`--clock cpu` counts the processor time of all threads instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from probekit.analysis import analyze
from probekit.models.architectures import cifar_resnet

Batches = list[tuple[Tensor, Tensor]]
Run = Callable[[nn.Module, Batches], Any]
Clock = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}

MODELS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "resnet18": (lambda: timm.create_model("resnet18"), 16, (3, 224, 224)),
    "resnet20": (lambda: cifar_resnet(20, channels=1), 256, (1, 28, 28)),
    "vit_tiny_patch16_224": (lambda: timm.create_model("vit_tiny_patch16_224"), 16, (3, 224, 224)),
    "tf_efficientnet_lite0": (
        lambda: timm.create_model("tf_efficientnet_lite0"),
        16,
        (3, 224, 224),
    ),
}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{'model':<24}{'batch':>6}{'bare s':>9}{'analyze s':>11}{'ratio':>8}{'with setup':>12}")
    for name in options.models or MODELS:
        make, size, shape = MODELS[name]
        net = make().eval()
        labels = torch.arange(size) % 10
        data = [(torch.randn(size, *shape), labels) for _ in range(options.batches + 1)]
        report(name, size, net, data, options.repeats, CLOCKS[options.clock])


def report(name: str, size: int, net: nn.Module, data: Batches, repeats: int, clock: Clock) -> None:
    """Prints one row."""
    rounds = [
        [seconds(run, net, part, clock) for part in (data, data[:1]) for run in (bare, measured)]
        for _ in range(repeats + 1)
    ][1:]
    bare_s = median(whole - one for whole, _, one, _ in rounds)
    analyze_s = median(whole - one for _, whole, _, one in rounds)
    ratio = median((b - d) / (a - c) for a, b, c, d in rounds)
    total = median(b / a for a, b, _, _ in rounds)
    print(
        f"{name:<24}{size:>6}{bare_s:>9.3f}{analyze_s:>11.3f}{ratio:>8.3f}{total:>12.3f}",
        flush=True,
    )


def seconds(run: Run, net: nn.Module, data: Batches, clock: Clock) -> float:
    """The time that one run over some batches takes."""
    start = clock()
    run(net, data)
    return clock() - start


def bare(net: nn.Module, data: Batches) -> None:
    """What any use of the model costs."""
    with torch.no_grad():
        for images, _ in data:
            net(images)


def measured(net: nn.Module, data: Batches) -> None:
    """The same, with the class selectivity of every unit of the default layers."""
    analyze(net, data, metrics="selectivity", progress=False)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    return parser.parse_args()


if __name__ == "__main__":
    main()
