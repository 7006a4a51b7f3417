"""What selectivity and dimensionality cost beside the forward passes that they look on at.

    python benchmarks/dimensionality.py [--images 128] [--batch 16] [--repeats 5] [--threads 1] [--clock cpu]

A ResNet18 with random weights sees random images of 224 px. A bare loop of forward passes and whole
calls of `analyze` take turns; each row holds the median time and its ratio to the bare loop. A call
has costs that do not grow with the number of images: finding the layers, hashing the weights, and the
eigenvalues of each layer's covariance; the last column leaves them out, as the slope between half of
the images and all.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import probekit as pk
from probekit.errors import ProbekitWarning

Run: TypeAlias = Callable[[list[tuple[Tensor, Tensor]]], None]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
METRICS: dict[str, list[object]] = {
    "selectivity": ["selectivity"],
    "selectivity + dimensionality": ["selectivity", "dimensionality"],
    "dimensionality, positions": [pk.Dimensionality(spatial="positions")],
}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = resnet18().eval()
    images = torch.rand(options.images, 3, options.pixels, options.pixels)
    batches = list(zip(images.split(options.batch), labels(images, options.batch), strict=True))
    halves = (batches[: len(batches) // 2], batches)
    runs: dict[str, Run] = {
        "bare forward loop": lambda part: bare(model, part),
        **{name: analysis(model, metrics) for name, metrics in METRICS.items()},
    }
    times: dict[str, list[list[float]]] = {name: [[], []] for name in runs}
    for round_number in range(options.repeats + 1):
        for name, run in runs.items():
            for kept, part in zip(times[name], halves, strict=True):
                seconds = timed(run, part, options.clock)
                if round_number:
                    kept.append(seconds)
    report(times, options)


def report(times: dict[str, list[list[float]]], options: argparse.Namespace) -> None:
    """Medians, and ratios to the bare loop."""
    print(f"resnet18, {options.images} images of {options.pixels} px, batches of {options.batch}")
    print(f"{'':<30}{'seconds':>9}{'ratio':>8}{'slope':>8}")
    half, whole = (statistics.median(kept) for kept in times["bare forward loop"])
    for name, kept in times.items():
        mine = [statistics.median(values) for values in kept]
        slope = (mine[1] - mine[0]) / (whole - half)
        print(f"{name:<30}{mine[1]:>9.2f}{mine[1] / whole:>8.3f}{slope:>8.3f}")


def bare(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for images, _ in batches:
            model(images)


def analysis(model: nn.Module, metrics: list[object]) -> Run:
    def run(batches: list[tuple[Tensor, Tensor]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbekitWarning)
            pk.analyze(model, batches, metrics=metrics, progress=False)  # type: ignore[arg-type]

    return run


def labels(images: Tensor, batch: int) -> tuple[Tensor, ...]:
    return (torch.arange(len(images)) % 10).split(batch)


def timed(run: Run, batches: list[tuple[Tensor, Tensor]], clock: str) -> float:
    start = CLOCKS[clock]()
    run(batches)
    return CLOCKS[clock]() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in (
        ("images", 128),
        ("batch", 16),
        ("pixels", 224),
        ("repeats", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    return parser.parse_args()


if __name__ == "__main__":
    main()
