"""Feeds the statistics of every layer with several small batches at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probekit.capture.readouts import Source
from probekit.data.batches import Batch
from probekit.statistics.base import distinct

__all__ = ["ROWS", "Feeder"]

ROWS = 1024  # samples that are worth an update

Table = tuple[Tensor, Tensor, Tensor]


class Feeder:
    """Collects the tables of batches until they are worth an update of the statistics.

    An update costs about the same for 16 rows as for a thousand, and there is one for each layer.
    Statistics do not depend on how samples fall into batches, so the tables of small batches wait
    for one another. What waits is bounded, whatever the number of samples.

    Args:
        fed: For each layer, its statistics.
        rows: How many samples are worth an update.
        nbytes: How much may wait.

    Example:
        >>> from probekit.statistics.class_means import ClassMeans
        >>> means = ClassMeans()
        >>> feeder = Feeder({"relu": [means]})
        >>> batch = Batch(torch.zeros(2, 1), torch.tensor([0, 1]), torch.arange(2))
        >>> feeder.take(batch, [{"relu": torch.tensor([[1.0], [3.0]])}])
        >>> feeder.flush()
        >>> means.to_xarray().values
        array([[1., 3.]])
    """

    def __init__(
        self, fed: Mapping[str, Sequence[Any]], *, rows: int = ROWS, nbytes: int = 32 * 2**20
    ) -> None:
        self._fed = fed
        self._rows, self._nbytes = rows, nbytes
        self.sources: list[Source] = distinct(one.source for own in fed.values() for one in own)
        self._labels: list[tuple[Tensor, Tensor]] = []
        self._tables: list[Sequence[Mapping[str, Tensor]]] = []
        self._held_rows = self._held_bytes = 0

    def take(self, batch: Batch, tables: Sequence[Mapping[str, Tensor]]) -> None:
        """Takes in the tables of one batch, in the order of `sources`."""
        self._labels.append((batch.labels, batch.index))
        self._tables.append(tables)
        self._held_rows += len(batch)
        self._held_bytes += sum(table.nbytes for own in tables for table in own.values())
        if self._held_rows >= self._rows or self._held_bytes >= self._nbytes:
            self.flush()

    def flush(self) -> None:
        """Feeds the statistics with all that waits."""
        noted, waiting = self._labels, self._tables
        self._labels, self._tables = [], []
        self._held_rows = self._held_bytes = 0
        if not noted:
            return
        labels, index = (torch.cat(column) for column in zip(*noted, strict=True))
        for place, source in enumerate(self.sources):
            for name in waiting[0][place]:
                rows = _rows([tables[place][name] for tables in waiting], labels, index)
                for one in self._fed[name]:
                    if one.source == source:
                        one.update(*rows)


def _rows(tables: list[Tensor], labels: Tensor, index: Tensor) -> Table:
    """The tables of several batches as one, with the label and the index of each row."""
    table = tables[0] if len(tables) == 1 else torch.cat(tables)
    each = len(table) // max(len(labels), 1)
    if each > 1:
        labels, index = labels.repeat_interleave(each), index.repeat_interleave(each)
    return table, labels, index
