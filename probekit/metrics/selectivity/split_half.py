"""The split-half index: one half of the samples selects the preferred class, the other measures it."""

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
    SelectivityIndex,
    by_unit,
    enough_classes,
    preferred,
)
from probekit.results.labels import attributes
from probekit.statistics.base import StatisticLike
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.resampled import ResampledClassMeans

_VARIABLES = {
    "selectivity_split_half": attributes(
        "split-half selectivity index",
        "The index when one half of the samples determines the preferred class and the other half "
        "measures it: without the upward bias of a maximum.",
        short_name="split-half selectivity",
        share=True,
    ),
    "preferred_class_agreement": attributes(
        "agreement on the preferred class",
        "Fraction of splits in which both halves have the same preferred class.",
        share=True,
    ),
    "selectivity_reliability": attributes(
        "reliability of selectivity",
        "Correlation of the index between halves, over units, corrected to the whole sample.",
        short_name="reliability",
    ),
}


@dataclass(frozen=True)
class SplitHalf(IndexMetric):
    """The metric `selectivity_split_half`: an index that selecting the best class does not inflate.

    Each sample is assigned to one of two halves at random. The preferred class is the class with the
    highest mean in one half, and its index is measured on the other half. The result is averaged over
    both directions and several splits, and the bias due to the curvature of the quotient is corrected
    to first order. For units without class information the index is distributed around zero, so it is
    negative for some of them. If the wrong class is selected among classes with similar means, the
    index is on average too low, never too high.

    Variables per unit are `selectivity_split_half` and `preferred_class_agreement`, the fraction of
    splits in which both halves prefer the same class. The variable per layer is
    `selectivity_reliability`: the correlation over units between the plain index of the two halves,
    averaged over splits and extrapolated to the whole sample by the Spearman-Brown formula
    2r / (1 + r).

    Args:
        splits: Number of random splits.
        seed: Seed of the splits.
        eps, negative: As for `class_selectivity`.
        memory: Maximum number of bytes for the sums: 16 * splits * classes * units.

    Raises:
        OptionError: An option is not valid, or `memory` is too small for the splits.

    Source:
        Spearman-Brown formula: Spearman 1910; Brown 1910.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = ["selectivity", pk.SplitHalf(splits=4)]
        >>> result = pk.analyze(model, data, "layer3.2.relu2", metrics, limit=200)
        >>> bool(result["selectivity_split_half_mean"] < result["selectivity_mean"])
        True
    """

    name = "selectivity_split_half"
    variables = _VARIABLES

    splits: int = 20
    seed: int = 0
    memory: int = field(default=2**31, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("splits", self.splits, least=2)

    @property
    def needs(self) -> Sequence[StatisticLike]:
        halves = ResampledClassMeans(self.splits, "halves", self.seed, memory=self.memory)
        return (ClassMeans(), halves)

    def evaluate(
        self, class_mean: xr.DataArray, halves: xr.Dataset
    ) -> tuple[xr.Dataset, xr.Dataset]:
        enough_classes(class_mean.sizes["class"])
        formula = self.formula
        whole, parts = tables(class_mean, halves)
        plain = by_unit(formula.at, parts)
        plain[..., np.isnan(formula.at(whole))] = np.nan
        choice = by_unit(preferred, parts)
        units = xr.Dataset(
            {
                "selectivity_split_half": ("unit", cross_index(whole, parts, formula)),
                "preferred_class_agreement": ("unit", (choice[:, 0] == choice[:, 1]).mean(0)),
            }
        )
        return units, xr.Dataset({"selectivity_reliability": _reliability(plain)})


def tables(class_mean: xr.DataArray, halves: xr.Dataset) -> tuple[Array, Array]:
    """Class means of all samples (unit, class) and of the halves (split, 2, unit, class) as arrays."""
    parts = halves["class_mean"].transpose("replicate", "half", "unit", "class")
    return class_mean.transpose("unit", "class").values, parts.values


def cross_index(whole: Array, parts: Array, formula: SelectivityIndex) -> Array:
    """The split-half index of every unit, averaged over splits and directions.

    Let a and b be the means of the selected class and of the other classes in the other half. To first
    order, E[(a - b) / (a + b)] is too low by 2 (b var a - a var b) / (a + b)^3; this is added. The
    variance of a class mean is modeled as its square times one factor per unit, which is estimated
    from the differences between halves. The variance of the selected class alone would be too high,
    because outliers make a class more likely to be selected.
    """

    def index(whole: Array, first: Array) -> Array:
        second = first[:, [1, 0]]
        curvature = _curvature(whole, first, formula.eps)
        # The preferred class in one half, among the classes with samples in the other.
        place = preferred(np.where(np.isnan(second), np.nan, first))
        correction = np.take_along_axis(curvature[None, None], place[..., None], -1)[..., 0]
        mean = mean_of_known(formula.at(second, place) + correction, (0, 1))
        return np.where(np.isnan(formula.at(whole)), np.nan, mean)

    return by_unit(index, whole, parts)


def _curvature(whole: Array, parts: Array, eps: float) -> Array:
    """The downward bias of the index of each class (unit, class), measured on one half."""
    means = np.maximum(whole, 0.0)
    squares = means**2
    differences = np.nan_to_num(mean_of_known((parts[:, 0] - parts[:, 1]) ** 2, 0))
    total = squares.sum(1, keepdims=True)
    # The difference between two halves has twice the variance of one half.
    noise = differences.sum(1, keepdims=True) / 2 / np.where(total > 0, total, 1.0)
    others = means.shape[1] - 1
    rest = (means.sum(1, keepdims=True) - means) / others
    size = means + rest + eps
    correction = 2 * noise * (rest * squares - means * (total - squares) / others**2)
    found: Array = np.where(size > 0, correction / np.where(size > 0, size, 1.0) ** 3, 0.0)
    return found


def mean_of_known(values: Array, axis: int | tuple[int, ...]) -> Array:
    """The mean of the values that are not NaN; NaN without any."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    found: Array = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def _reliability(plain: Array) -> float:
    """The Spearman-Brown formula applied to the mean correlation between halves (split, 2, unit)."""
    found = []
    for first, second in plain:
        known = ~(np.isnan(first) | np.isnan(second))
        if known.sum() > 2 and first[known].std() > 0 and second[known].std() > 0:
            found.append(float(np.corrcoef(first[known], second[known])[0, 1]))
    if not found:
        return float("nan")
    r = float(np.mean(found))
    return 2 * r / (1 + r) if r > -1 else float("nan")


register(SplitHalf())
