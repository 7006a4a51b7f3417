"""Whether the memory of an analysis grows with the number of samples.

python benchmarks/memory.py [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from harness import Case, Question, Row, Setting, Spread, main
from harness.peak import peak_of
from torch import Tensor, nn

from probekit.analysis.analyze import analyze

BATCH = 250
BOUND = 1.05


def cases(setting: Setting) -> Iterator[Case]:
    yield Case("small network, selectivity", partial(grown, "selectivity", setting))
    yield Case("small network, dimensionality", partial(grown, "dimensionality", setting))


def grown(metric: str, setting: Setting) -> Iterator[Row]:
    """The peak with many samples relative to that with few, each in a separate process."""
    few, many = setting.size((2_000, 20_000), (250, 500))
    least, most = (peak_of(analysis, metric, samples, setting.threads) for samples in (few, many))
    yield Row(
        "20,000 samples",
        "2,000 samples",
        "cost",
        value=most.whole,
        ratio=Spread.of([most.whole / least.whole]),
        bound=BOUND,
        unit="MiB",
        note=f"of the peak, {most.grown:.0f} and {least.grown:.0f} MiB came with the analysis",
    )


def analysis(metric: str, samples: str, threads: str) -> Callable[[], object]:
    """An analysis of images that are generated on demand."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return lambda: analyze(net, Generated(int(samples)), metrics=metric, progress=False)


class Generated:
    """Random images with labels, generated batch by batch, identical in each iteration."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(0, self.samples, BATCH):
            images = torch.rand(BATCH, 3, 16, 16, generator=generator)
            yield images, torch.arange(BATCH) % 10


QUESTION = Question(
    "memory",
    "Does memory grow with the number of samples?",
    "Peak memory of a process that analyzes 20,000 images of 16 px, divided by that of a process that "
    "analyzes 2,000. Images are created on demand, so only the analysis itself can use more memory.",
    cases,
)

if __name__ == "__main__":
    sys.exit(main([QUESTION]))
