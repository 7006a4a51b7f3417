"""Confidence intervals for the selectivity of units, layers and networks (Poisson bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from probekit.checks import integer, number
from probekit.errors import some_of
from probekit.metrics.metric import register
from probekit.metrics.selectivity.index import (
    Array,
    IndexMetric,
    by_unit,
    enough_classes,
)
from probekit.metrics.selectivity.split_half import cross_index, mean_of_known, tables
from probekit.results.labels import attributes
from probekit.statistics.base import StatisticLike
from probekit.statistics.class_means import ClassMeans
from probekit.statistics.resampled import ResampledClassMeans
from probekit.statistics.silent import SilentCounts

# A class may have the highest mean if its gap to the highest is within this many standard errors.
_NEAR = 2.5
_FEW = 5
_RARE_SHARE = 0.05

_POPULATION = "end of the confidence interval for the mean index without noise in the class means."
_VARIABLES = {
    "selectivity_low": attributes(
        "class selectivity index, lower bound", "Lower end of the confidence interval."
    ),
    "selectivity_high": attributes(
        "class selectivity index, upper bound", "Upper end of the confidence interval."
    ),
    "selectivity_mean_low": attributes(
        "mean class selectivity index, lower bound", f"Lower {_POPULATION}", short_name="mean from"
    ),
    "selectivity_mean_high": attributes(
        "mean class selectivity index, upper bound", f"Upper {_POPULATION}", short_name="to"
    ),
    "fewest_samples": attributes(
        "fewest samples", "Number of samples of the rarest class.", short_name="fewest samples"
    ),
    "rarely_active_units": attributes(
        "rarely active units",
        f"Number of units that are active for fewer than {_FEW} samples.",
        short_name="rarely active",
    ),
}


@dataclass(frozen=True)
class SelectivityInterval(IndexMetric):
    """The metric `selectivity_interval`: confidence intervals of the index and of its means.

    The intervals are for the index of the population's class means. The plain index and its bootstrap
    replicates are both biased upward, because the highest of noisy class means is too high. A
    percentile interval therefore does not cover the true value. Instead:

    - A unit's index is the highest of the indices of all classes, and each of these has an ordinary
      bootstrap standard error. `selectivity_low` is the maximum of (index - critical value * standard
      error) and `selectivity_high` the maximum of (index + critical value * standard error), over the
      classes whose means cannot be distinguished from the highest. The lower critical value is
      corrected for the number of these classes (intersection bounds).
    - A layer's mean lies between a floor and a ceiling. The floor is the mean split-half index, which
      is biased downward, or the plain mean if that is lower. The ceiling is the plain mean or the plain
      mean minus its bootstrap bias, whichever is higher, which is biased upward. `selectivity_mean_low`
      and `selectivity_mean_high` account for the error of both. The network's mean is treated the same
      way, with the replicates of all layers together (`selectivity_mean_replicate`).

    Args:
        replicates: Number of bootstrap replicates.
        level: Coverage probability of the intervals.
        splits: Number of random splits for the split-half index.
        seed: Seed of the replicates and the splits.
        eps, negative: As for `class_selectivity`.
        memory: Maximum number of bytes for the sums: 8 * replicates * classes * units for the
            replicates, and at most the same amount again for the halves.

    Raises:
        OptionError: An option is not valid, or `memory` is too small for the replicates.

    Source:
        Poisson bootstrap: Chamandy et al. 2012; bounds on a highest value: Chernozhukov, Lee & Rosen
        2013 (Econometrica 81).

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> metrics = ["selectivity", pk.SelectivityInterval(replicates=50)]
        >>> units = pk.analyze(model, data, "layer3.2.relu2", metrics, limit=100)["units"]
        >>> bool((units["selectivity_low"] <= units["selectivity"]).all())
        True
    """

    name = "selectivity_interval"
    variables = _VARIABLES

    replicates: int = 200
    level: float = 0.95
    splits: int = 20
    seed: int = 0
    memory: int = field(default=2**31, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        number("level", self.level, least=0.5, below=1)
        integer("replicates", self.replicates, least=20)
        integer("splits", self.splits, least=2)

    @property
    def needs(self) -> Sequence[StatisticLike]:
        return (
            ClassMeans(),
            ResampledClassMeans(self.replicates, "poisson", self.seed, memory=self.memory),
            ResampledClassMeans(self.splits, "halves", self.seed, memory=self.memory),
            SilentCounts(),
        )

    def evaluate(
        self,
        class_mean: xr.DataArray,
        bootstrap: xr.Dataset,
        halves: xr.Dataset,
        silent: xr.Dataset,
    ) -> tuple[xr.Dataset, xr.Dataset]:
        enough_classes(class_mean.sizes["class"])
        formula = self.formula
        whole, parts = tables(class_mean, halves)
        counts = class_mean["count"].values.astype(np.float64)
        replicates = bootstrap["class_mean"].transpose("replicate", "unit", "class").values
        replicates = np.where(np.isnan(replicates), whole, replicates)
        active = (silent["count"] - silent["silent"]).values
        found = formula.at(whole)

        def ends(whole: Array, drawn: Array) -> Array:
            estimates, every = formula.of_classes(whole), formula.of_classes(drawn)
            return np.stack(bounds_of_highest(estimates, every, counts, self.level))

        low, high = by_unit(ends, whole, replicates)
        if self.negative != "keep":
            low, high = np.maximum(low, 0.0), np.minimum(high, 1.0)
        indices = np.where(np.isnan(found), np.nan, by_unit(formula.at, replicates))
        means = mean_of_known(indices, -1)
        plain_mean = mean_of_known(found, -1)
        layer = {
            "selectivity_mean_floor": min(
                mean_of_known(cross_index(whole, parts, formula), -1), plain_mean
            ),
            # The bias is subtracted only if this raises the mean: for sparse units it is overestimated.
            "selectivity_mean_ceiling": max(
                mean_of_known(2 * found - indices.mean(0), -1), plain_mean
            ),
            "selectivity_mean_replicate": (
                "replicate",
                means.mean() + (means - means.mean()) * _small_sample(counts).mean(),
            ),
            "fewest_samples": int(counts.min()),
            "rarely_active_units": int(((active > 0) & (active < _FEW)).sum()),
        }
        units = xr.Dataset({"selectivity_low": ("unit", low), "selectivity_high": ("unit", high)})
        return units, xr.Dataset(layer)

    def conclude(
        self, units: xr.Dataset, layers: xr.Dataset
    ) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
        """Computes the intervals of the means of the layers and of the network."""
        fewest = int(layers["fewest_samples"].min())
        critical = _critical((1 - self.level) / 2, np.array(fewest))
        floor, ceiling, drawn = (
            layers[f"selectivity_mean_{name}"].transpose("layer", ...)
            for name in ("floor", "ceiling", "replicate")
        )
        low, high = _between(floor.values, ceiling.values, drawn.values, critical)
        mean, highest, replicates = (one.mean("layer").values for one in (floor, ceiling, drawn))
        ends = _between(mean, highest, replicates, critical)
        names = ("selectivity_mean_low", "selectivity_mean_high")
        return (
            xr.Dataset(),
            xr.Dataset({names[0]: ("layer", low), names[1]: ("layer", high)}),
            xr.Dataset(dict(zip(names, ends, strict=True))),
        )

    def review(self, units: xr.Dataset, layers: xr.Dataset) -> list[str]:
        """Reports classes with very few samples, and units that are active for very few samples."""
        sentences = []
        fewest = int(layers["fewest_samples"].min())
        if fewest < _FEW:
            sentences.append(
                f"a class has {fewest} sample{'s' if fewest > 1 else ''}, and intervals of selectivity "
                f"are not reliable below {_FEW} samples per class; use more data or exclude such classes"
            )
        rare, all_units = layers["rarely_active_units"], layers["n_units"]
        high = rare > _RARE_SHARE * all_units
        if bool(high.any()):
            names = [str(name) for name in layers["layer"].values[high.values]]
            sentences.append(
                f"{int(rare[high].sum())} of {int(all_units[high].sum())} units are active for fewer "
                f"than {_FEW} samples, in {some_of(names)}: their intervals describe only these "
                "samples, and can be far too low; use more data"
            )
        return sentences


def bounds_of_highest(
    estimates: Array, replicates: Array, counts: Array, level: float
) -> tuple[Array, Array]:
    """A confidence interval for the maximum of several quantities that are estimated with errors.

    The ends are (unit,), from `estimates` (unit, class) and their bootstrap `replicates` (replicate, unit,
    class); `counts` are the samples per class, for Student's t and the small-sample factor.
    """
    scale = _small_sample(counts)
    error = replicates.std(0, ddof=1) * scale
    best = np.where(np.isnan(estimates), -np.inf, estimates).argmax(1)[:, None]
    gap = np.take_along_axis(estimates, best, 1) - estimates
    apart = replicates - np.take_along_axis(replicates, best[None], 2)
    near = gap <= _NEAR * apart.std(0, ddof=1) * scale
    tail = (1 - level) / 2
    lower = _critical(tail / np.maximum(near.sum(1), 1)[:, None], counts)
    upper = _critical(tail, counts)
    low = np.where(near, estimates - lower * error, -np.inf).max(1)
    high = np.where(near, estimates + upper * error, -np.inf).max(1)
    unknown = ~near.any(1)
    return np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)


def _critical(tail: Any, counts: Any) -> Any:
    """The value that Student's t exceeds with the probability `tail`.

    The degrees of freedom are 2 (n - 1): a class is compared with the mean of the other classes, whose
    error is known more precisely than its own.
    """
    from scipy import stats

    return stats.t.ppf(1 - tail, 2 * np.maximum(counts - 1, 1))


def _small_sample(counts: Array) -> Array:
    """The factor that makes the bootstrap standard error of a mean of n samples unbiased."""
    factor: Array = np.sqrt(counts / np.maximum(counts - 1, 1))
    return factor


def _between(one: Any, other: Any, replicates: Array, critical: float) -> tuple[Any, Any]:
    """A confidence interval for values between two estimates that share a standard error."""
    margin = critical * np.std(replicates, -1, ddof=1)
    return np.minimum(one, other) - margin, np.maximum(one, other) + margin


register(SelectivityInterval())
