"""The part of an analysis that repeats with every batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from harness.timing import Clock, Run
from probekit.capture.stream import Reading, find_layers, stream
from probekit.data.batches import Batches
from probekit.metrics.registry import resolve
from probekit.statistics.base import distinct
from probekit.statistics.feeder import Feeder

QUIET = Reading(progress=False)
# More turns than any benchmark takes.
_BATCHES = 1_000_000


class Watched:
    """One batch of an analysis: the forward pass with hooks, the check for NaN, the statistics.

    Updates of the statistics wait until many rows are there, as in `analyze`; what all of them take
    is timed at the end, and each batch bears its share.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, metrics: Sequence[Any]
    ) -> None:
        self._model = model
        self._batches = Batches(_Again((images, labels)))
        self._layers = find_layers(model, self._batches, None, QUIET)
        needs = distinct(need for metric in resolve(metrics) for need in metric.needs)
        self._feeder = Feeder(
            {layer.name: [need.fresh() for need in needs] for layer in self._layers},
            rows=sys.maxsize,
            nbytes=sys.maxsize,
        )
        self._taken = 0

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Lends the step of one batch after the first."""
        with stream(
            self._model, self._batches, self._layers, self._feeder.sources, QUIET
        ) as observed:

            def step() -> None:
                seen = next(observed)
                self._feeder.take(seen.batch, seen.tables)
                self._taken += 1

            step()
            yield step

    def share_of_update(self, clock: Clock) -> float:
        """Seconds that the updates take for each batch that was taken in."""
        return seconds(self._feeder.flush, clock) / self._taken


class _Again:
    """One batch again and again."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(_BATCHES):
            yield self._batch


def seconds(run: Callable[[], object], clock: Clock) -> float:
    """What one call takes."""
    start = clock()
    run()
    return clock() - start
