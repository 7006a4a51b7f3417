"""Time of a selectivity analysis beside the bare forward pass, over the same batches in memory.

    python benchmarks/overhead.py [MODEL ...] [--repeats 25] [--threads 2]

Each batch is timed bare and analysed in turn, so that what else the machine does falls on both: a row
holds the medians and the median of the ratios of neighbours. The step that is timed is that of
`analyze`: the forward pass with its hooks, the check for NaN, and the batch's share of the update of
the class means of every default layer. What an analysis does once (finding the layers, assembling the
result) is timed apart: `once` is a whole analysis of one batch less the bare pass over it.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

from probekit.analysis import analyze
from probekit.capture.layers import Layer
from probekit.capture.stream import Reading, find_layers, stream
from probekit.data.batches import Batches
from probekit.models.architectures import cifar_resnet
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.feeder import Feeder

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
QUIET = Reading(progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{'model':<24}{'batch':>6}{'bare s':>9}{'analyze s':>11}{'ratio':>8}{'once s':>9}")
    for name in options.models or MODELS:
        make, size, shape = MODELS[name]
        report(name, make().eval(), torch.randn(size, *shape), options.repeats)


def report(name: str, net: nn.Module, images: Tensor, repeats: int) -> None:
    """Prints one row."""
    labels = torch.arange(len(images)) % 10
    batches = Batches([(images, labels)] * 2)
    layers = find_layers(net, batches, None, QUIET)
    feeder = Feeder(
        {layer.name: [ClassMeans()] for layer in layers}, rows=sys.maxsize, nbytes=sys.maxsize
    )
    pairs = [(bare(net, images), step(net, batches, layers, feeder)) for _ in range(repeats + 1)]
    update = seconds(feeder.flush) / len(pairs)
    pairs = [(alone, analysed + update) for alone, analysed in pairs[1:]]
    once = [
        seconds(lambda: analyze(net, [(images, labels)], progress=False)) - bare(net, images)
        for _ in range(3)
    ]
    print(
        f"{name:<24}{len(images):>6}{median(a for a, _ in pairs):>9.3f}"
        f"{median(b for _, b in pairs):>11.3f}{median(b / a for a, b in pairs):>8.3f}"
        f"{median(once):>9.3f}",
        flush=True,
    )


def bare(net: nn.Module, images: Tensor) -> float:
    """Seconds that any use of the model costs."""
    with torch.no_grad():
        return seconds(lambda: net(images))


def step(net: nn.Module, batches: Batches, layers: list[Layer], feeder: Feeder) -> float:
    """Seconds of the second batch of an analysis, up to the update of the statistics."""

    def take(observed: Any) -> None:
        seen = next(observed)
        feeder.take(seen.batch, seen.tables)

    with stream(net, batches, layers, feeder.sources, QUIET) as observed:
        take(observed)
        return seconds(lambda: take(observed))


def seconds(run: Callable[[], Any]) -> float:
    """The time that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
