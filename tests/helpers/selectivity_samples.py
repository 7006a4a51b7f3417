"""Samples with a known selectivity index, and metrics evaluated on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def noise(size: int, units: int, seed: int, classes: int = 10) -> Sample:
    """Exponential activations that are independent of their balanced labels."""
    random = np.random.default_rng(seed)
    labels = torch.arange(classes * size) % classes
    table = torch.from_numpy(random.exponential(size=(len(labels), units)))
    return table, labels, torch.arange(len(labels))


def selective(means: np.ndarray, size: int, random: np.random.Generator) -> Sample:
    """Gamma activations, of coefficient of variation 0.7, with given class means (unit, class)."""
    units, classes = means.shape
    labels = torch.arange(classes * size) % classes
    table = random.gamma(2, 0.5, size=(len(labels), units)) * means.T[labels.numpy()]
    return torch.from_numpy(table), labels, torch.arange(len(labels))


def fed(metric: Any, sample: Sample) -> list[Any]:
    """The statistics of a metric after an update with a sample."""
    needs = [need.fresh() for need in metric.needs]
    for need in needs:
        if hasattr(need, "expect"):
            need.expect(sample[1])
        need.update(*sample)
    return [need.to_xarray() for need in needs]


def evaluate(metric: Any, sample: Sample) -> tuple[xr.Dataset, xr.Dataset]:
    """The results of a metric for one layer."""
    units, layers = metric.evaluate(*fed(metric, sample))
    if hasattr(metric, "conclude"):
        layers = layers.expand_dims(layer=["a"])
        units = units.assign_coords(layer=("unit", ["a"] * units.sizes["unit"]))
        for table, more in zip((units, layers), metric.conclude(units, layers), strict=False):
            table.update(more)
    return units, layers


def sparse(chance: np.ndarray, size: int, random: np.random.Generator) -> Any:
    """Units (unit, class) that are active with a given probability per class, with variable responses."""
    labels = np.arange(chance.shape[1] * size) % chance.shape[1]
    active = random.random((len(labels), len(chance))) < chance.T[labels]
    rows = active * random.lognormal(0, 1, active.shape)
    return torch.tensor(rows), torch.tensor(labels), torch.arange(len(labels))
