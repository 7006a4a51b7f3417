"""The part of an analysis that is repeated for every batch."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness import Run, Setting
from torch import Tensor, nn

from probekit.capture.stream import PassOptions, find_layers, stream
from probekit.data.batches import Batches
from probekit.metrics.metric import resolve
from probekit.statistics.base import distinct
from probekit.statistics.feeding import ROWS, Feeder

QUIET = PassOptions(progress=False)
# More batches than any benchmark uses.
_BATCHES = 1_000_000


class WatchedBatch:
    """One batch of an analysis: the forward pass with hooks, the check for NaN, the statistics.

    As in `analyze`, tables are buffered until there are enough rows for an update of the statistics. An
    update is timed at the end, and its time is divided by its number of batches.

    Attributes:
        layers: The layers of the analysis.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        metrics: Sequence[Any],
        reading: PassOptions = QUIET,
    ) -> None:
        self._model = model
        self._reading = reading
        self._batches = Batches(_Repeated(images, labels))
        self.layers = find_layers(model, self._batches, None, reading)
        self._needs = distinct(need for metric in resolve(metrics) for need in metric.needs)
        self._batches_an_update = max(ROWS // len(labels), 1)

    @contextmanager
    def opened(self) -> Iterator[Run]:
        """Yields the step of one batch, after the first batch has run."""
        waiting = self._feeder()
        with stream(
            self._model, self._batches, self.layers, waiting.readouts, self._reading
        ) as observed:
            batches = 0

            def step() -> None:
                nonlocal waiting, batches
                if batches == self._batches_an_update:
                    waiting, batches = self._feeder(), 0
                self._last = next(observed)
                waiting.update(self._last.batch, self._last.tables)
                batches += 1

            step()
            yield step

    def share_of_update(self, setting: Setting) -> float:
        """The seconds of an update, divided by its number of batches."""
        feeder = self._feeder()
        for _ in range(2):  # the first update allocates the tables of the statistics
            for _ in range(self._batches_an_update):
                feeder.update(self._last.batch, self._last.tables)
            update = setting.seconds(feeder.flush)
        return update / self._batches_an_update

    def _feeder(self) -> Feeder:
        return Feeder(
            {layer.name: [need.fresh() for need in self._needs] for layer in self.layers},
            rows=sys.maxsize,
            nbytes=sys.maxsize,
        )


class _Repeated:
    """An iterable that repeats one batch."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._batch = images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self._batch, _BATCHES)
