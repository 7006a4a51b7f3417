"""Measurements under each condition: outcomes by class, and each layer's activations and change."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.analysis.classes import Classifier
from probekit.analysis.robustness.conditions import (
    CLEAN,
    Condition,
    ConditionStore,
    Perturbation,
    PerturbedBatch,
    unchanged,
)
from probekit.capture.layers import Layer, unit_coordinates
from probekit.capture.stream import Observe
from probekit.data.batches import Batch, Batches
from probekit.errors import OptionError, noted
from probekit.metrics.dimensionality import Dimensionality
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.models.image_model import Model
from probekit.models.logits import ClassMatch, correct
from probekit.results.labels import attributes, strings
from probekit.runtime.processes import processes
from probekit.statistics.base import accumulator, format_bytes, merged
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.covariance import Covariance
from probekit.statistics.feeding import Feeder

_DIMENSIONALITY = Dimensionality(spectrum=0)
_SELECTIVITY = Selectivity()
_BUFFER = 2**23
_CHANGE_SIZE = attributes(
    "size of the change in activation", "Mean over images of |perturbed - clean| activation."
)


@dataclass(frozen=True)
class Measurement:
    """The options that all passes share.

    Without layers, only outcomes are measured. `memory` is the maximum number of bytes for the statistics
    of one pass and for `clean`: the clean activations of every batch, once a pass has computed them, if they
    fit into a quarter of it. Otherwise, each pass computes them again.
    """

    model: Model
    batches: Batches
    layers: list[Layer]
    dimensionality: bool
    selectivity: bool
    memory: int
    classes: int
    match: ClassMatch
    clean: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def classifier(self) -> Classifier:
        """The model with its outputs in the order of the data's classes."""
        return Classifier(self.model, self.match)

    def run(self, one: Perturbation, store: ConditionStore, observe: Observe) -> None:
        """Measures the conditions of a perturbation that are not in the store."""
        own = [condition for condition in one.conditions if condition not in store]
        missing = processes().gather(own)[0]
        share = self._conditions_at_once()
        for start in range(0, len(missing), share):
            part = tuple(missing[start : start + share])
            with noted() as notes:
                measured = self._measured(one, part, observe)
            for condition, tree in measured.items():
                tree.attrs["notes"] = "\n".join(notes)
                store[condition] = tree

    def _measured(
        self, one: Perturbation, conditions: tuple[Condition, ...], observe: Observe
    ) -> dict[Condition, xr.DataTree]:
        batches = one.data or self.batches
        # Each clean batch precedes the perturbed ones.
        paired = bool(self.layers) and one.data is None and conditions != (CLEAN,)
        known = iter(self.clean) if paired and self.clean else None
        steps = [unchanged()] if paired and known is None else []
        steps.append(replace(one, conditions=conditions))
        classifier, times = self.classifier, sum(len(step.conditions) for step in steps)

        def under_each(batch: Batch) -> Iterator[PerturbedBatch]:
            for step in steps:
                yield from step(classifier, batch)

        buffer = self._buffer(len(conditions))
        found = {x: ConditionStatistics(x, self, buffer, paired=paired) for x in conditions}
        keeps = self._bytes_of_clean() > 0
        clean, computed = None, []
        for observation in observe(batches, conditions[0].name, under_each, times):
            batch = cast(PerturbedBatch, observation.batch)
            tables = observation.tables[0] if observation.tables else {}
            if batch.condition == CLEAN and keeps:
                computed.append(tables)
            if known is not None and batch.condition == conditions[0]:
                clean = next(known)
            if batch.condition in found:
                found[batch.condition].update(batch, observation.output, tables, clean)
            else:
                clean = tables
        if computed:
            self.clean[:] = computed
        return {condition: statistics.to_tree() for condition, statistics in found.items()}

    def _conditions_at_once(self) -> int:
        """The number of conditions that a pass can measure within the memory allowed."""
        if not self.layers:
            return sys.maxsize
        each, working = self._bytes_of_statistics()
        if each + working > self.memory:
            largest = max(self.layers, key=lambda layer: layer.units)
            raise OptionError(
                f"one condition needs {format_bytes(each + working)} of memory for the statistics of "
                f"{len(self.layers)} layers, with {largest.units} units in {largest.name!r}, and "
                f"memory={self.memory} allows {format_bytes(self.memory)}; choose fewer layers, "
                "dimensionality=False, or raise memory"
            )
        return (self.memory - working - self._bytes_of_clean()) // max(each, 1)

    def _buffer(self, conditions: int) -> int:
        """The bytes of activations that each condition may collect, in the memory that is left."""
        each, working = self._bytes_of_statistics()
        left = self.memory - working - self._bytes_of_clean() - each * conditions
        return min(_BUFFER, left // conditions)

    def _bytes_of_clean(self) -> int:
        """The bytes of the clean activations; 0 if they are too many to be stored."""
        # Half precision is averaged to float32.
        row = sum(layer.units * max(4, layer.itemsize) for layer in self.layers)
        needed = row * (sys.maxsize if self.batches.samples is None else self.batches.samples)
        most = min(self.memory // 4, self.memory - sum(self._bytes_of_statistics()))
        return needed if needed <= most else 0

    def _bytes_of_statistics(self) -> tuple[int, int]:
        """The bytes of the statistics of one condition, and those needed to evaluate them.

        For each layer of D units, a condition takes 8 D^2 bytes for the covariance and 8 D bytes per
        class. The largest layer takes another 48 D^2 bytes while its covariance is evaluated.
        """
        square, means = 8 * self.dimensionality, 8 * self.selectivity * self.classes
        each = sum(square * layer.units**2 + means * layer.units for layer in self.layers)
        largest = max((layer.units for layer in self.layers), default=0)
        return each, 6 * square * largest**2


class ConditionStatistics:
    """The statistics of one condition, and the tables computed from them.

    For clean images, the covariance is that of the activations. Otherwise it is that of the change:
    the clean activations minus the perturbed activations of the same images.
    """

    def __init__(
        self, condition: Condition, options: Measurement, buffer: int, *, paired: bool
    ) -> None:
        self._options = options
        clean = condition.kind == "clean"
        self._has_covariance = options.dimensionality and (paired or clean)
        # Means are those of the units of all layers together.
        self._statistics: dict[tuple[str, str], Any] = {}
        if options.layers and options.selectivity:
            self._statistics["mean", ""] = ClassMeans(memory=options.memory)
        if options.layers and paired and not clean:
            self._statistics["size", ""] = ClassMeans(memory=options.memory)
        fed = {}
        if self._has_covariance:
            for layer in options.layers:
                self._statistics["covariance", layer.name] = covariance = Covariance()
                fed[layer.name] = [covariance]
        self._feeder = Feeder(fed, nbytes=buffer)

    def update(
        self,
        batch: PerturbedBatch,
        output: object,
        activations: Mapping[str, Tensor],
        clean: Mapping[str, Tensor] | None,
    ) -> None:
        outcomes = dict(batch.outcomes) or {
            "correct": correct(output, batch.labels, "robustness", self._options.match)[:, None]
        }
        for name, table in outcomes.items():
            known = self._statistics.setdefault(("outcome", name), ClassMeans())
            known.update(table, batch.labels)
        if not activations:
            return
        units = self._all_units(activations)
        if known := self._statistics.get(("mean", "")):
            known.update(units, batch.labels)
        changes = dict(activations)
        if clean is not None:
            change = self._all_units(clean) - units
            self._statistics["size", ""].update(change.abs(), torch.zeros_like(batch.labels))
            each = torch.split(change, [layer.units for layer in self._options.layers], 1)
            changes = {
                layer.name: part for layer, part in zip(self._options.layers, each, strict=True)
            }
        if self._has_covariance:
            self._feeder.update(batch, [changes])

    def _all_units(self, tables: Mapping[str, Tensor]) -> Tensor:
        """The activations (batch, units) of all layers, in the precision of the statistics."""
        zero = accumulator((1,), next(iter(tables.values())))
        return torch.cat([tables[layer.name].to(zero) for layer in self._options.layers], 1)

    def to_tree(self) -> xr.DataTree:
        """A tree with the outcomes at the root, `/units` and `/layers`, merged over processes."""
        self._feeder.flush()
        self._statistics = merged(self._statistics)
        nodes = {"/": self._outcome_table()}
        if self._options.layers:
            nodes["units"] = self._unit_table()
            nodes["layers"] = self._layer_table()
        return xr.DataTree.from_dict(nodes)

    def _outcome_table(self) -> xr.Dataset:
        found = xr.Dataset()
        for (kind, name), statistic in self._statistics.items():
            if kind != "outcome":
                continue
            by_class = statistic.to_xarray()
            counts = by_class["count"]
            total = (by_class * counts).sum("class") / counts.sum()
            if name == "correct":
                found["accuracy"] = total[0]
                found["accuracy_by_class"] = by_class[0]
                found["samples_by_class"] = ("class", counts.values)
            elif name == "correct_by_step":
                found["accuracy_by_step"] = ("step", total.values)
                found = found.assign_coords(step=np.arange(len(total)))
            else:
                found[f"{name}_by_class"] = (by_class[0] * counts).round().astype(np.int64)
                found[name] = found[f"{name}_by_class"].sum()
        return found.drop_vars("count", errors="ignore")

    def _unit_table(self) -> xr.Dataset:
        units = xr.Dataset(coords=unit_coordinates(self._options.layers))
        if sizes := self._statistics.get(("size", "")):
            units["change_size"] = ("unit", sizes.to_xarray().values[:, 0], _CHANGE_SIZE)
        if means := self._statistics.get(("mean", "")):
            found = _SELECTIVITY.with_attributes(_SELECTIVITY.evaluate(means.to_xarray())[0])
            units.update(found[["selectivity", "preferred_class", "dead", "negative_class_mean"]])
        return units

    def _layer_table(self) -> xr.Dataset:
        layers = self._options.layers
        table = xr.Dataset(
            {"n_units": ("layer", [layer.units for layer in layers])},
            coords={"layer": strings([layer.name for layer in layers])},
        )
        if self._has_covariance:
            covariances = (
                self._statistics.pop(("covariance", layer.name)).to_xarray() for layer in layers
            )
            found = _DIMENSIONALITY.over_layers(covariances)
            table.update(_DIMENSIONALITY.with_attributes(found))
        return table
