"""Peak memory of an analysis of 5,000 samples beside one of 50,000, each in a process of its own.

    python benchmarks/memory.py [--few 5000] [--many 50000]

The batches are made as they are asked for, so that only what the analysis itself keeps can grow.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from probekit.analysis import analyze

BATCH = 250


class Generated:
    """Random images with labels, made batch by batch, the same each time."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(0, self.samples, BATCH):
            images = torch.rand(BATCH, 3, 16, 16, generator=generator)
            yield images, torch.arange(BATCH) % 10


def peak(samples: int) -> float:
    """The most memory, in MiB, that this process has held when an analysis is done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    analyze(net, Generated(samples), progress=False)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def apart(samples: int) -> float:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--one", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=5_000)
    parser.add_argument("--many", type=int, default=50_000)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(peak(options.one))
        return
    few, many = apart(options.few), apart(options.many)
    print(f"{options.few:>8,} samples: {few:7.1f} MiB")
    print(f"{options.many:>8,} samples: {many:7.1f} MiB, ratio {many / few:.3f}")


if __name__ == "__main__":
    main()
