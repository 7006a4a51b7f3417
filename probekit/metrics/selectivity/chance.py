"""Chance level of selectivity: the index of a unit under permuted labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from probekit.checks import integer
from probekit.metrics.metric import register
from probekit.metrics.selectivity.index import (
    Array,
    IndexMetric,
    by_unit,
    enough_classes,
)
from probekit.replicates.comparisons import adjust_p_values
from probekit.results.labels import attributes
from probekit.statistics.base import StatisticLike
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.permuted import PermutedClassMeans

# Indices closer than this count as equal: a different order of summation changes them by less.
_SAME = 1e-9

_VARIABLES = {
    "selectivity_chance": attributes(
        "chance level of selectivity",
        "Mean class selectivity index of the unit under permuted labels.",
        share=True,
    ),
    "selectivity_z": attributes(
        "selectivity above chance",
        "Index minus chance level, in standard deviations of the index under permuted labels.",
    ),
    "selectivity_p": attributes("p value", "p of the permutation test of the unit.", share=True),
    "selectivity_p_corrected": attributes(
        "p value (family-wise)", "p of the permutation test, corrected over the layer.", share=True
    ),
    "selectivity_q": attributes(
        "q value",
        "Smallest false discovery rate, over all units, at which the unit is called selective.",
        share=True,
    ),
    "units_above_chance": attributes(
        "units above chance", "Number of units with a q value of at most 0.05."
    ),
}


@dataclass(frozen=True)
class SelectivityChance(IndexMetric):
    """The metric `selectivity_chance`: the index under permuted labels.

    The highest of several noisy class means exceeds their average. Hence a unit that carries no class
    information has an index above zero, and the fewer samples per class, the higher it is.

    Variables per unit, over permutations of the labels:

    - `selectivity_chance`: the mean index
    - `selectivity_z`: the index minus chance, in standard deviations of chance
    - `selectivity_p`: (1 + number of permutations with an index at least as high) / (permutations + 1)
    - `selectivity_p_corrected`: the same for the highest z of the layer: the probability that any unit
      of a layer without class information reaches this z
    - `selectivity_q`: the smallest false discovery rate, over all recorded units, at which the unit
      counts as selective (Benjamini and Hochberg)

    The variable per layer is `units_above_chance`, the number of units with q up to 0.05.

    Args:
        permutations: Number of permutations; p is at least 1 / (permutations + 1).
        seed: Seed of the permutations.
        class_counts: Number of samples of each class, in label order. Required only for data that can be
            read only once; other data that does not declare its labels is read twice.
        eps, negative: As for `class_selectivity`.
        memory: Maximum number of bytes for the sums: 8 * permutations * classes * units.

    Raises:
        OptionError: An option is not valid, or `memory` is too small for the permutations.

    Source:
        p of permutation tests: Phipson & Smyth 2010 (arXiv 1603.05766); the highest statistic:
        Westfall & Young 1993; false discovery rate: Benjamini & Hochberg 1995.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = pk.SelectivityChance(permutations=99)
        >>> units = pk.analyze(model, data, "layer3.2.relu2", metrics, limit=200)["units"]
        >>> bool((units["selectivity_p"] == 1 / 100).all())
        True
    """

    name = "selectivity_chance"
    variables = _VARIABLES

    permutations: int = 200
    seed: int = 0
    class_counts: tuple[int, ...] | None = None
    memory: int = field(default=2**31, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("permutations", self.permutations, least=2)

    @property
    def needs(self) -> Sequence[StatisticLike]:
        counts = None if self.class_counts is None else tuple(self.class_counts)
        return (
            ClassMeans(),
            PermutedClassMeans(self.permutations, self.seed, counts, memory=self.memory),
        )

    def evaluate(
        self, class_mean: xr.DataArray, permuted: xr.DataArray
    ) -> tuple[xr.Dataset, xr.Dataset]:
        enough_classes(class_mean.sizes["class"])
        formula = self.formula
        found = formula.at(class_mean.transpose("unit", "class").values)
        tables = permuted.transpose("permutation", "unit", "class").values
        null = by_unit(formula.at, tables)
        mean, spread = null.mean(0), null.std(0, ddof=1)
        units = {
            "selectivity_chance": mean,
            "selectivity_z": _scores(found, mean, spread),
            "selectivity_p": _p_values(found, null),
            "selectivity_p_corrected": _p_values(
                _scores(found, mean, spread),
                np.fmax.reduce(_scores(null, mean, spread), axis=1)[:, None],
            ),
        }
        return xr.Dataset({name: ("unit", values) for name, values in units.items()}), xr.Dataset()

    def conclude(
        self, units: xr.Dataset, layers: xr.Dataset
    ) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
        """Computes false discovery rates over all layers, and the number of units above chance."""
        q = xr.DataArray(adjust_p_values(units["selectivity_p"].values, "bh"), dims="unit")
        names = layers["layer"].values
        above = [int((q.values[units["layer"].values == name] <= 0.05).sum()) for name in names]
        return (
            xr.Dataset({"selectivity_q": q}),
            xr.Dataset({"units_above_chance": ("layer", above)}),
            xr.Dataset(),
        )


def _scores(index: Array, mean: Array, spread: Array) -> Array:
    """Distances from chance in standard deviations; 0 where chance does not vary, NaN without an index."""
    varies, distance = spread > _SAME, index - mean
    found = np.where(varies, distance / np.where(varies, spread, 1.0), 0.0)
    return np.where(np.isnan(distance), np.nan, found)


def _p_values(found: Array, null: Array) -> Array:
    at_least = (null >= found - _SAME).sum(0)
    p = (1 + at_least) / (len(null) + 1)
    return np.where(np.isnan(found) | np.isnan(null).any(0), np.nan, p)


register(SelectivityChance())
