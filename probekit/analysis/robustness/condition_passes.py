"""Passes of a model over data under several conditions, each kept as soon as it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import xarray as xr

from probekit.analysis.classes import Classifier
from probekit.analysis.robustness.conditions import (
    Clean,
    Condition,
    Perturbation,
    Perturbed,
    PerturbedBatches,
)
from probekit.analysis.robustness.measure import Measure, conditions_at_once
from probekit.analysis.robustness.store import ConditionStore
from probekit.capture.layers import Layer
from probekit.capture.readouts import Activations
from probekit.capture.stream import Reading, stream
from probekit.data.batches import Batches
from probekit.models.logits import ClassMatch
from probekit.runtime.processes import processes

__all__ = ["Pass", "Subject"]


@dataclass(frozen=True)
class Pass:
    """One way through some data.

    Attributes:
        batches: The data.
        perturbation: What is done to each batch.
        paired: Whether the clean batch comes before, to measure the change.
    """

    batches: Batches
    perturbation: Perturbation
    paired: bool

    @property
    def conditions(self) -> Sequence[Condition]:
        """What it gives."""
        return self.perturbation.conditions


@dataclass(frozen=True)
class Subject:
    """What all passes share: the model and what is measured of it.

    Attributes:
        model: The model.
        layers: Its layers; none measures outcomes alone.
        dimensionality: Whether covariances are kept.
        selectivity: Whether class means are kept.
        reading: How the model is read.
        memory: Bytes that the statistics of one pass may take.
        classes: How many classes there are, as far as that is known.
        match: Which output of the model stands for each of them.
    """

    model: Any
    layers: list[Layer]
    dimensionality: bool
    selectivity: bool
    reading: Reading
    memory: int
    classes: int = 0
    match: ClassMatch | None = None

    @property
    def classifier(self) -> Any:
        """The model with its outputs in the order of the data's classes."""
        return self.model if self.match is None else Classifier(self.model, self.match)

    def fill(self, kept: ConditionStore, one: Pass) -> None:
        """Measures the conditions of a pass that are not there yet."""
        own = [condition for condition in one.conditions if condition not in kept]
        missing = processes().gather(own)[0]
        share = conditions_at_once(
            self.layers,
            dimensionality=self.dimensionality,
            classes=self.classes if self.selectivity else 0,
            memory=self.memory,
        )
        for start in range(0, len(missing), share):
            part = one.perturbation.only(missing[start : start + share])
            for condition, found in self._measure(one, part).items():
                kept[condition] = found

    def _measure(self, one: Pass, part: Perturbation) -> dict[Condition, xr.DataTree]:
        paired = one.paired and bool(self.layers)
        ahead: list[Perturbation] = [Clean()] if paired else []
        batches = PerturbedBatches(self.classifier, one.batches, [*ahead, part])
        measures = {
            condition: Measure(
                condition,
                self.layers,
                dimensionality=self.dimensionality,
                selectivity=self.selectivity,
                paired=paired,
                match=self.match,
            )
            for condition in part.conditions
        }
        clean = None
        sources = [Activations()] if self.layers else []
        # It has all that the loop over a model asks of data.
        data = cast(Batches, batches)
        title = part.conditions[0].name
        with stream(self.model, data, self.layers, sources, self.reading, title) as observed:
            for seen in observed:
                batch = cast(Perturbed, seen.batch)
                tables = seen.tables[0] if seen.tables else {}
                if batch.condition in measures:
                    measures[batch.condition].add(batch, seen.output, tables, clean)
                else:
                    clean = tables
        for measure in measures.values():
            measure.merge()
        return {condition: measure.to_tree() for condition, measure in measures.items()}
