"""One pass of a model over data that feeds the statistics of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr

from probekit.analysis.columns import Columns
from probekit.capture.layers import Layer
from probekit.capture.stream import Reading, stream
from probekit.data.batches import Batch, Batches
from probekit.data.labels import ClassNames
from probekit.models.logits import ClassMap, ClassMatch, logits_of, match_classes
from probekit.runtime.processes import processes
from probekit.statistics.base import merged
from probekit.statistics.feeding import Feeder

__all__ = ["Pass"]


class Pass:
    """One pass of a model over data that feeds statistics.

    Attributes:
        layers: The layers, as a scouting pass found them.
        statistics: Prototypes of what each layer feeds.
        fed: For each layer, the statistics in the order of the prototypes.
    """

    def __init__(self, layers: Sequence[Layer], statistics: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.statistics = list(statistics)
        self.fed = {layer.name: [one.fresh() for one in statistics] for layer in layers}
        self._columns = Columns()
        self._outputs = 0

    def run(self, model: Any, batches: Batches, reading: Reading) -> Pass:
        """Streams the data through the model once.

        A statistic that has a method `expect` first receives the labels, where they are known in
        advance; one that has a method `check` checks whether these layers fit into memory.
        """
        wanted = any(hasattr(one, "expect") for one in self.statistics)
        labels, index = (batches.known_labels() if wanted else None) or (None, None)
        for one in self.statistics:
            if hasattr(one, "expect"):
                one.expect(labels, index, self.layers)
            if hasattr(one, "check"):
                one.check(self.layers, batches.samples or batches.limit)
        feeder = Feeder(self.fed)
        with stream(model, batches, self.layers, feeder.sources, reading) as observed:
            for seen in observed:
                feeder.update(seen.batch, seen.tables)
                self._note(seen.batch, seen.output)
            feeder.flush()
        self._merge()
        return self

    def _merge(self) -> None:
        """Merges the statistics of all processes, so that each of them has those of all samples."""
        places = {
            (name, place): one for name, own in self.fed.items() for place, one in enumerate(own)
        }
        for (name, place), whole in merged(places).items():
            self.fed[name][place] = whole
        together = processes()
        self._columns = Columns.joined(together.gather(self._columns))
        self._outputs = max(together.gather(self._outputs))

    def _note(self, batch: Batch, output: Any) -> None:
        self._columns.append(sample=batch.index, label=batch.labels)
        logits = logits_of(output, len(batch), self._outputs or None)
        if logits is not None:
            self._columns.append(prediction=logits.argmax(1))
            self._outputs = logits.shape[1]

    def match(self, model: Any, classes: ClassNames, class_map: ClassMap) -> ClassMatch:
        """Which output of the model stands for each class of the data."""
        if "prediction" not in self._columns:
            why = "the model gives no logits (batch, classes) of two classes or more"
            return ClassMatch(0, why_not=why)
        labels = torch.from_numpy(self._columns["label"])
        return match_classes(model, classes, self._outputs, labels, class_map)

    def samples(self, match: ClassMatch) -> xr.Dataset:
        """One row per sample: its label and, where the outputs are its classes, the predicted label."""
        table = xr.Dataset(
            {"label": ("sample", self._columns["label"])},
            coords={"sample": self._columns["sample"]},
        )
        if not match.why_not:
            predicted = match.labels(torch.from_numpy(self._columns["prediction"]))
            table["prediction"] = ("sample", predicted.numpy())
        return table.sortby("sample") if processes().world > 1 else table
