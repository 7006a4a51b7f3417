"""Differences between the means of replicates: tests, equivalence and corrected p-values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.checks import number, one_of
from probekit.errors import DataError, OptionError, first_line
from probekit.replicates.intervals import Array

Correction: TypeAlias = Literal["holm", "bh"]
_QUADRATURE = 512  # number of points for averaging over the estimated standard deviation
_ROUNDING = 1e-12  # relative variation below this is treated as rounding error


def adjust_p_values(p: npt.ArrayLike, method: Correction = "holm") -> Array:
    """Corrects p-values for the number of tests.

    Args:
        p: p-values of one family, in any shape; NaN marks a test that could not be run and stays NaN.
        method: `"holm"` controls the probability of any false discovery, under any dependence between
            tests; `"bh"` controls the expected proportion of false discoveries, for independent or
            positively dependent tests.

    Raises:
        OptionError: The method is unknown, or a value is outside 0 to 1.

    Source:
        Holm 1979 (Scandinavian Journal of Statistics 6); Benjamini & Hochberg 1995 (JRSS B 57).

    Example:
        >>> adjust_p_values([0.01, 0.04, 0.03]).round(3)
        array([0.03, 0.06, 0.06])
        >>> adjust_p_values([0.01, 0.04, 0.03], "bh").round(3)
        array([0.03, 0.04, 0.04])
    """
    from scipy import stats

    given = np.asarray(p, dtype=np.float64)
    one_of("method", method, get_args(Correction))
    known = ~np.isnan(given)
    values = given[known]
    if ((values < 0) | (values > 1)).any():
        raise OptionError("p-values must be between 0 and 1")
    result = np.full(given.shape, np.nan)
    if method == "bh" and len(values):
        result[known] = stats.false_discovery_control(values)
        return result
    order = values.argsort(kind="stable")
    adjusted = np.maximum.accumulate(np.arange(len(values), 0, -1) * values[order])
    result[known] = np.minimum(adjusted, 1.0)[order.argsort()]
    return result


def compare_means(
    values: xr.DataArray,
    baseline: xr.DataArray,
    dim: str = "seed",
    *,
    paired: bool = False,
    correction: Correction = "holm",
    level: float = 0.95,
) -> xr.Dataset:
    """Compares means with a baseline mean, with t intervals and corrected p-values.

    Networks with the same seed share initialization, data split and data order, so pair them. The
    difference is then computed within each seed, which removes the effect of the seed.

    Args:
        values: Any dimensions, including `dim`; all comparisons form one family of tests.
        baseline: Replicates along `dim` that broadcast against `values`. NaN is ignored in both.
        dim: The dimension of the replicates.
        paired: Whether to match the replicates, by the coordinate `dim` if both have one, otherwise
            by position. Replicates without a match are ignored.
        correction: As for `adjust_p_values`.
        level: Coverage of the intervals, which are not corrected for the number of tests.

    Returns:
        `difference`, the interval `low` to `high`, the standard `error`, the degrees of freedom `df`,
        `p` (two-sided, from Student's t-test of the differences if paired, otherwise Welch's t-test),
        `p_adjusted`, and `count`, the number of pairs or of replicates on the smaller side. If paired,
        also `difference_each` along `dim`. `p` and the interval are NaN if a side has fewer than two
        replicates, or if nothing varies.

    Raises:
        DataError: There are no replicates, one is repeated, or coordinates differ.
        OptionError: The replicates cannot be paired.

    Source:
        Student 1908 (Biometrika 6); Welch 1947 (Biometrika 34).

    Example:
        >>> values = xr.DataArray([[5.0, 5.1, 5.2], [1.0, 1.3, 1.1]], dims=("alpha", "seed"))
        >>> baseline = xr.DataArray([0.9, 1.1, 1.0], dims="seed")
        >>> result = compare_means(values, baseline, paired=True)
        >>> (result["p_adjusted"] < 0.05).values.tolist()
        [True, False]
        >>> result["difference_each"].values.round(6).tolist()
        [[4.1, 4.0, 4.2], [0.1, 0.2, 0.1]]
    """
    found = _difference(values, baseline, dim, paired)
    number("level", level, above=0, below=1)
    low, high = _interval(found, level)
    p = 2 * _tail(found, -abs(found["difference"]))
    p_adjusted = p.copy(data=adjust_p_values(p, correction))
    return found.assign(low=low, high=high, p=p, p_adjusted=p_adjusted)


def equivalence(
    values: xr.DataArray,
    baseline: xr.DataArray,
    margin: float | tuple[float, float],
    dim: str = "seed",
    *,
    paired: bool = False,
    correction: Correction = "holm",
    level: float = 0.95,
) -> xr.Dataset:
    """Tests whether a difference of means lies within a margin: two one-sided tests.

    A non-significant difference is not evidence of equivalence; this test provides such evidence.
    Choose the margin before you see the data.

    Args:
        margin: The largest difference that does not matter, in the unit of `values`, or a lower and an
            upper bound. With an infinite bound only the other one is tested: `(-0.005, inf)` tests
            that `values` are not inferior by more than 0.005.
        values, baseline, dim, paired, correction: As for `compare_means`.
        level: 1 minus the level of each of the two tests.

    Returns:
        `difference`; `low` and `high`, the ends of its interval with coverage 2 * level - 1 (which lies
        within the margin if and only if `p` <= 1 - level); `error`, `df` and `count`; `p_low` and
        `p_high` of the two tests, `p` (their maximum) and `p_adjusted`; the margin as `margin_low` and
        `margin_high`; and `power`, the probability of `p` <= 1 - level if there is no true difference
        and the variation is as estimated. If paired, also `difference_each`.

    Raises:
        DataError: As for `compare_means`.
        OptionError: As for `compare_means`, or the margin excludes 0 or is infinite on both sides.

    Source:
        Schuirmann 1987 (Journal of Pharmacokinetics and Biopharmaceutics 15); Lakens 2017 (Social
        Psychological and Personality Science 8).

    Example:
        >>> values = xr.DataArray([0.901, 0.899, 0.902, 0.898], dims="seed")
        >>> baseline = xr.DataArray([0.900, 0.900, 0.901, 0.899], dims="seed")
        >>> result = equivalence(values, baseline, 0.005, paired=True)
        >>> round(float(result["p"]), 4), round(float(result["power"]), 2)
        (0.0016, 1.0)
    """
    try:
        bottom, top = map(float, margin if isinstance(margin, Sequence) else (-margin, margin))
    except (TypeError, ValueError):  # not numbers, or not two of them
        bottom = top = np.nan
    if not bottom < 0 < top or (np.isinf(bottom) and np.isinf(top)):
        raise OptionError(
            "margin must be a positive number, or a negative and a positive bound of which one may be "
            f"infinite, not {margin!r}"
        )
    number("level", level, above=0.5, below=1)
    found = _difference(values, baseline, dim, paired)
    low, high = _interval(found, 2 * level - 1)
    p_low = _tail(found, bottom - found["difference"])
    p_high = _tail(found, found["difference"] - top)
    p = p_low.copy(data=np.maximum(p_low, p_high))
    reached = equivalence_power(found["error"], found["df"], (bottom, top), level=level)
    return found.assign(
        low=low,
        high=high,
        p_low=p_low,
        p_high=p_high,
        p=p,
        p_adjusted=p.copy(data=adjust_p_values(p, correction)),
        power=p.copy(data=reached),
        margin_low=bottom,
        margin_high=top,
    )


def power(
    error: npt.ArrayLike, df: npt.ArrayLike, effect: npt.ArrayLike, *, level: float = 0.95
) -> Array:
    """Computes the power of a two-sided t-test: the probability of detecting a true difference.

    Choose a relevant `effect` in advance: the power at the observed difference adds no information to its
    p-value. NaN where the standard error `error` is NaN.
    """
    from scipy import stats

    scaled = np.abs(np.asarray(effect, np.float64)) / np.asarray(error, np.float64)
    freedom = np.asarray(df, np.float64)[..., None]
    spread = _estimated_over_true(freedom)
    critical = stats.t.ppf((1 + level) / 2, freedom) * spread
    shift = np.expand_dims(scaled, -1)
    either = stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift)
    return np.asarray(either.mean(-1))


def equivalence_power(
    error: npt.ArrayLike, df: npt.ArrayLike, margin: tuple[float, float], *, level: float = 0.95
) -> Array:
    """Computes the power of `equivalence`: the probability of success if there is no difference."""
    from scipy import stats

    freedom = np.asarray(df, np.float64)[..., None]
    critical = stats.t.ppf(level, freedom) * _estimated_over_true(freedom)
    low, high = (bound / np.asarray(error, np.float64)[..., None] for bound in margin)
    between = stats.norm.cdf(high - critical) - stats.norm.cdf(low + critical)
    return np.asarray(np.maximum(between, 0).mean(-1))


def _interval(found: xr.Dataset, coverage: float) -> tuple[xr.DataArray, xr.DataArray]:
    from scipy import stats

    margin = found["error"] * stats.t.ppf((1 + coverage) / 2, found["df"])
    return found["difference"] - margin, found["difference"] + margin


def _tail(found: xr.Dataset, distance: xr.DataArray) -> xr.DataArray:
    """The probability that a t statistic is below a distance divided by the standard error."""
    from scipy import stats

    return distance.copy(data=stats.t.cdf(distance / found["error"], found["df"]))


def _difference(values: xr.DataArray, baseline: xr.DataArray, dim: str, paired: bool) -> xr.Dataset:
    """The `difference` of means, its standard `error`, degrees of freedom `df`, and `count`."""
    for what, part in (("values", values), ("baseline", baseline)):
        if dim not in part.dims:
            raise OptionError(f"{what} have no dimension {dim!r} of replicates, only {part.dims}")
        if not part.sizes[dim]:
            raise DataError(f"{what} have no replicates along {dim!r}")
    one, other = values.astype(np.float64), baseline.astype(np.float64)
    if paired:
        one, other = _matched(one, other, dim)
    first = one.isel({dim: 0}, drop=True), other.isel({dim: 0}, drop=True)
    try:
        frame = xr.broadcast(*xr.align(*first, join="exact"))[0]
    except ValueError as problem:  # AlignmentError of xarray
        raise DataError(
            "values and baseline have different coordinates, or the same in another order: "
            f"{first_line(problem)}"
        ) from problem
    ours, theirs = (part.broadcast_like(frame).transpose(*frame.dims, dim) for part in (one, other))
    each = (ours - theirs).rename(None) if paired else None
    sides = [ours.values, theirs.values] if each is None else [each.values]
    count, mean, variance = zip(*(_moments(side) for side in sides), strict=True)
    shares = np.stack([part / number for part, number in zip(variance, count, strict=True)])
    error = np.sqrt(shares.sum(0))
    scale = np.fmax(*(np.fmax.reduce(np.abs(part.values), -1) for part in (ours, theirs)))
    error = np.where(error > _ROUNDING * scale, error, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.stack([number - 1 for number in count])
        df = shares.sum(0) ** 2 / (shares**2 / freedom).sum(0)
    columns = {
        "difference": mean[0] - mean[1] if each is None else mean[0],
        "error": error,
        "df": np.where(np.isnan(error), np.nan, df),
        "count": np.min(count, 0).astype(np.int64),
    }
    found = xr.Dataset({name: (frame.dims, part) for name, part in columns.items()}, frame.coords)
    return found if each is None else found.assign(difference_each=each)


def _matched(one: xr.DataArray, other: xr.DataArray, dim: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Aligns both arrays along `dim`, with NaN where a replicate is missing."""
    named = [dim in part.indexes for part in (one, other)]
    if any(named) != all(named):
        raise OptionError(
            f"replicates are paired by the coordinate {dim!r}, which only one side has; give it to "
            "both, or drop it"
        )
    if not any(named):
        if one.sizes[dim] != other.sizes[dim]:
            raise OptionError(
                f"replicates without a coordinate {dim!r} are paired by position, but there are "
                f"{one.sizes[dim]} and {other.sizes[dim]}; give both sides the coordinate"
            )
        return one, other
    for part in (one, other):
        if not part.indexes[dim].is_unique:
            raise DataError(f"a replicate of {dim!r} occurs twice; pairs need each only once")
    if not one.indexes[dim].intersection(other.indexes[dim]).size:
        raise DataError(f"no replicate of {dim!r} is on both sides, so none can be paired")
    return xr.align(one, other, join="outer", exclude={*one.dims, *other.dims} - {dim})


def _moments(table: Array) -> tuple[Array, Array, Array]:
    """Count, mean and variance along the last axis, ignoring NaN; NaN if there are too few values."""
    count = np.asarray((~np.isnan(table)).sum(-1), np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(table, -1) / count
        squares = np.nansum((table - mean[..., None]) ** 2, -1)
        variance = np.where(count > 1, squares / (count - 1), np.nan)
    return count, mean, variance


def _estimated_over_true(df: Array) -> Array:
    """Ratios of estimated to true standard deviation, at equally probable points."""
    from scipy import stats

    points = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE
    each, place = np.unique(df, return_inverse=True)
    ratio = np.sqrt(stats.chi2.ppf(points, each[:, None]) / each[:, None])
    return np.asarray(ratio[place.reshape(df.shape[:-1])])
