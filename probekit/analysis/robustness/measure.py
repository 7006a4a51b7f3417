"""What is measured under one condition: outcomes by class, and each layer's activations and change."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.analysis.robustness.conditions import Condition, Perturbed
from probekit.capture.layers import Layer, unit_coordinates
from probekit.errors import OptionError
from probekit.metrics.dimensionality import Dimensionality
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.models.logits import ClassMatch, correct
from probekit.results.labels import strings
from probekit.statistics.base import merged
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.covariance import Covariance
from probekit.statistics.rows import format_bytes

__all__ = ["Measure", "conditions_at_once"]

_DIMENSIONALITY = Dimensionality(spectrum=0)
_SELECTIVITY = Selectivity()


class Measure:
    """The statistics of one condition, and the numbers that they give.

    Where the images are clean the covariance is that of the activations; else it is that of the
    change, the clean activations less the perturbed ones of the same images.

    Args:
        condition: What the images are under.
        layers: The layers; none measures the outcome alone.
        dimensionality: Whether to keep covariances.
        selectivity: Whether to keep class means.
        paired: Whether clean activations of the same images will be given.
        match: Which output of the model stands for each class of the data.
    """

    def __init__(
        self,
        condition: Condition,
        layers: Sequence[Layer],
        *,
        dimensionality: bool,
        selectivity: bool,
        paired: bool,
        match: ClassMatch | None = None,
    ) -> None:
        self.condition = condition
        self.match = match
        self.layers = list(layers)
        names = [layer.name for layer in layers]
        clean = condition.kind == "clean"
        self._outcomes: dict[str, ClassMeans] = {}
        self._means = {name: ClassMeans() for name in names if selectivity}
        self._sizes = {name: ClassMeans() for name in names if paired and not clean}
        self._covariances = {
            name: Covariance() for name in names if dimensionality and (paired or clean)
        }

    def add(
        self,
        batch: Perturbed,
        output: Any,
        activations: Mapping[str, Tensor],
        clean: Mapping[str, Tensor] | None,
    ) -> None:
        """Takes in a batch.

        Args:
            batch: The batch under this condition.
            output: The model's output for it.
            activations: (batch, units) of each layer for it.
            clean: The same for the clean images, where there are any.
        """
        outcomes = dict(batch.outcomes) or {
            "correct": correct(output, batch.labels, "robustness", self.match)[:, None]
        }
        for name, table in outcomes.items():
            self._outcomes.setdefault(name, ClassMeans()).update(table, batch.labels)
        for name, table in activations.items():
            if name in self._means:
                self._means[name].update(table, batch.labels)
            subject = table
            if name in self._sizes and clean is not None:
                subject = _double(clean[name]) - _double(table)
                self._sizes[name].update(subject.abs(), torch.zeros_like(batch.labels))
            if name in self._covariances:
                self._covariances[name].update(subject, batch.labels)

    def merge(self) -> None:
        """Merges what all processes have seen, so that each of them has the whole."""
        self._outcomes = merged(self._outcomes)
        self._means = merged(self._means)
        self._sizes = merged(self._sizes)
        self._covariances = merged(self._covariances)

    def to_tree(self) -> xr.DataTree:
        """What was found: outcomes at the root, `/units`, and `/layers`."""
        nodes = {"/": self._outcome_table()}
        if self.layers:
            nodes["units"] = self._unit_table()
            nodes["layers"] = self._layer_table()
        return xr.DataTree.from_dict(nodes)

    def _outcome_table(self) -> xr.Dataset:
        found = xr.Dataset()
        for name, statistic in self._outcomes.items():
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
        units = xr.Dataset(coords=unit_coordinates(self.layers))
        if self._sizes:
            sizes = _joined(self._sizes.values()).to_xarray()[:, 0]
            units["change_size"] = sizes.drop_vars(["class", "count"])
        if self._means:
            found, _ = _SELECTIVITY.evaluate(_joined(self._means.values()).to_xarray())
            units.update(found[["selectivity", "preferred_class", "dead", "negative_class_mean"]])
        return units

    def _layer_table(self) -> xr.Dataset:
        parts = []
        for layer in self.layers:
            numbers = xr.Dataset({"n_units": layer.units})
            if layer.name in self._covariances:
                covariance = self._covariances.pop(layer.name)
                _, found = _DIMENSIONALITY.evaluate(covariance.to_xarray())
                numbers.update(found.drop_dims("component"))
            parts.append(numbers)
        names = strings([layer.name for layer in self.layers])
        return xr.concat(parts, "layer").assign_coords(layer=names)


def conditions_at_once(
    layers: Sequence[Layer], *, dimensionality: bool, classes: int, memory: int
) -> int:
    """How many conditions a pass can measure within a number of bytes.

    For each layer of D units a condition keeps 8 D^2 bytes for the covariance and 8 D for each
    class; the largest layer takes 48 D^2 more while its covariance is evaluated.

    Args:
        layers: The layers.
        dimensionality: Whether covariances are kept.
        classes: How many classes have their means kept; 0 for none.
        memory: Bytes.

    Raises:
        OptionError: Not even one.
    """
    if not layers:
        return sys.maxsize
    largest = max(layers, key=lambda layer: layer.units)
    square = 8 * dimensionality
    one = sum(square * layer.units**2 + 8 * classes * layer.units for layer in layers)
    working = 6 * square * largest.units**2
    if one + working > memory:
        raise OptionError(
            f"one condition needs {format_bytes(one + working)} of memory for the statistics of "
            f"{len(layers)} layers, with {largest.units} units in {largest.name!r}, and "
            f"memory={memory} allows {format_bytes(memory)}; choose fewer layers, dimensionality=False, "
            "or raise memory"
        )
    return (memory - working) // max(one, 1)


def _joined(statistics: Iterable[ClassMeans]) -> ClassMeans:
    """Class means of the units of all layers, which have seen the same samples."""
    states = [one.state for one in statistics]
    sums = torch.cat([state["sum"] for state in states], 1)
    same = {name: states[0][name] for name in ("label", "count")}
    return ClassMeans(state=same | {"sum": sums})


def _double(table: Tensor) -> Tensor:
    """In float64, on the CPU where the device knows none."""
    return (table.cpu() if table.device.type == "mps" else table).to(torch.float64)
