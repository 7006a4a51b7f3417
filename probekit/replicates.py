"""What can be concluded from a few replicates: intervals, comparisons and corrected p-values."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import DataError, OptionError

__all__ = ["adjust_p_values", "bootstrap_interval", "compare_means", "rank_trend"]

Array: TypeAlias = npt.NDArray[np.float64]
Correction: TypeAlias = Literal["holm", "bh"]
_BLOCK = 500  # rows resampled at once, so that memory does not grow with them


def bootstrap_interval(
    values: xr.DataArray,
    dim: str = "seed",
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """The mean over replicates with its percentile bootstrap interval.

    With few replicates the interval is narrower than its name says (resampled means never leave the
    range of the replicates, the truth may): show the replicates beside it.

    Args:
        values: Any dimensions, `dim` among them; NaN is left out.
        dim: The replicates.
        level: The share of resampled means that the interval holds.
        resamples: How many.
        seed: Of the draws.

    Returns:
        `mean`, `low`, `high` and `count` over the other dimensions; `low` and `high` are NaN for
        fewer than two replicates.

    Raises:
        OptionError: No such dimension, or a level that is none.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Example:
        >>> found = bootstrap_interval(xr.DataArray([1.0, 2.0, 3.0], dims="seed"))
        >>> float(found["mean"]), float(found["low"]), float(found["high"])
        (2.0, 1.0, 3.0)
    """
    if dim not in values.dims:
        raise OptionError(f"there is no dimension {dim!r} to resample, only {values.dims}")
    if not 0 < level < 1 or resamples < 1:
        raise OptionError(f"level is above 0 and below 1, and resamples from 1, not {level!r}")
    parts = xr.apply_ufunc(
        lambda table: resampled_mean(table, level, resamples, seed),
        values.astype(np.float64),
        input_core_dims=[[dim]],
        output_core_dims=[[], [], []],
    )
    found = xr.Dataset(dict(zip(("mean", "low", "high"), parts, strict=True)))
    return found.assign(count=values.notnull().sum(dim))


def resampled_mean(
    table: Array, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """The mean of replicates and the ends of its interval, as in `bootstrap_interval`.

    Args:
        table: (..., replicate); NaN is left out.
        level: As there.
        resamples: As there.
        seed: As there.

    Returns:
        Mean, lower and upper end, (...) each.
    """
    draws = np.random.default_rng(seed)
    known = ~np.isnan(table)
    count = known.sum(-1)
    mean, low, high = (np.full(count.shape, np.nan) for _ in range(3))
    for size in np.unique(count[count > 0]):
        rows = count == size
        column = table[rows][known[rows]].reshape(-1, size)
        mean[rows] = column.mean(-1)
        if size > 1:
            drawn = draws.integers(0, size, (resamples, size))
            shares = np.stack([np.bincount(one, minlength=size) for one in drawn], -1) / size
            tails = [(1 - level) / 2, (1 + level) / 2]
            ends = [
                np.quantile(column[start : start + _BLOCK] @ shares, tails, axis=-1)
                for start in range(0, len(column), _BLOCK)
            ]
            low[rows], high[rows] = np.concatenate(ends, -1)
    return mean, low, high


def adjust_p_values(p: npt.ArrayLike, method: Correction = "holm") -> Array:
    """p-values corrected for their number.

    Args:
        p: Any shape, all of one family; NaN is no test and stays NaN.
        method: `"holm"` keeps the probability of any false discovery below the level, whatever the
            tests' dependence; `"bh"` the expected share of false discoveries, for independent or
            positively dependent tests.

    Raises:
        OptionError: An unknown method, or values that are no probabilities.

    Source:
        Holm 1979 (Scandinavian Journal of Statistics 6); Benjamini & Hochberg 1995 (JRSS B 57).

    Example:
        >>> adjust_p_values([0.01, 0.04, 0.03]).round(3)
        array([0.03, 0.06, 0.06])
        >>> adjust_p_values([0.01, 0.04, 0.03], "bh").round(3)
        array([0.03, 0.04, 0.04])
    """
    given = np.asarray(p, dtype=np.float64)
    if method not in ("holm", "bh"):
        raise OptionError(f"method is 'holm' or 'bh', not {method!r}")
    known = ~np.isnan(given)
    values = given[known]
    if ((values < 0) | (values > 1)).any():
        raise OptionError("p-values lie between 0 and 1")
    order = values.argsort(kind="stable")
    count, ranks = len(values), np.arange(1, len(values) + 1)
    ordered = values[order]
    if method == "holm":
        adjusted = np.maximum.accumulate((count - ranks + 1) * ordered)
    else:
        adjusted = np.minimum.accumulate((count / ranks * ordered)[::-1])[::-1]
    found = np.full(given.shape, np.nan)
    corrected = np.empty(count)
    corrected[order] = np.minimum(adjusted, 1.0)
    found[known] = corrected
    return found


def compare_means(
    values: xr.DataArray,
    baseline: xr.DataArray,
    dim: str = "seed",
    *,
    correction: Correction = "holm",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """Differences of means from a baseline's, with intervals and corrected p-values.

    Args:
        values: Any dimensions, `dim` among them; all comparisons in it are one family.
        baseline: Replicates along `dim` that broadcast against `values`; its replicates are
            resampled apart from those of `values`, as is right for separately trained networks.
        dim: The replicates.
        correction: As for `adjust_p_values`.
        level: Of the bootstrap intervals, which are not corrected.
        resamples: How many.
        seed: Of the draws.

    Returns:
        `difference`, `low`, `high`, `p` (Welch's t-test, two-sided) and `p_adjusted`. `p` is NaN for
        fewer than two replicates, or where neither side varies.

    Raises:
        DataError: No replicates at all.

    Example:
        >>> values = xr.DataArray([[5.0, 5.1, 5.2], [1.0, 1.1, 0.9]], dims=("alpha", "seed"))
        >>> found = compare_means(values, xr.DataArray([1.0, 1.1, 0.9], dims="seed"))
        >>> found["difference"].values.round(6), (found["p_adjusted"] < 0.05).values
        (array([4.1, 0. ]), array([ True, False]))
    """
    from scipy import stats

    one = values.astype(np.float64).transpose(..., dim)
    other = baseline.astype(np.float64).rename({dim: "_other"})
    other = other.broadcast_like(one.isel({dim: 0}, drop=True)).transpose(*one.dims[:-1], "_other")
    if not one.sizes[dim] or not other.sizes["_other"]:
        raise DataError(f"there are no replicates along {dim!r} to compare")
    ours, theirs = one.values, other.values
    draws = np.random.default_rng(seed)
    difference = np.nanmean(ours, -1) - np.nanmean(theirs, -1)
    resampled = _resampled(ours, resamples, draws) - _resampled(theirs, resamples, draws)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.nanquantile(resampled, tails, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.asarray(
            stats.ttest_ind(ours, theirs, axis=-1, equal_var=False, nan_policy="omit").pvalue
        )
    p = np.where(np.isclose(difference, 0) & np.isnan(p), np.nan, p)
    axes = one.dims[:-1]
    columns = {
        "difference": difference,
        "low": low,
        "high": high,
        "p": p,
        "p_adjusted": adjust_p_values(p, correction),
    }
    coords = one.isel({dim: 0}, drop=True).coords
    return xr.Dataset({name: (axes, column) for name, column in columns.items()}, coords=coords)


def rank_trend(
    x: xr.DataArray, y: xr.DataArray, *, level: float = 0.95, resamples: int = 5000, seed: int = 0
) -> xr.Dataset:
    """Whether one quantity rises with another over networks: Spearman's rank correlation.

    Args:
        x: One number a network, any dimensions.
        y: The same for another quantity; pairs with a NaN are left out.
        level: Of the bootstrap interval.
        resamples: How many, of whole pairs.
        seed: Of the draws.

    Returns:
        `correlation`, `low`, `high`, `p` (two-sided) and `count`; NaN for fewer than three pairs or
        where one of the two does not vary.

    Example:
        >>> x = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="network")
        >>> float(rank_trend(x, x**2)["correlation"])
        1.0
    """
    from scipy import stats

    pair = np.stack([part.values.ravel() for part in xr.broadcast(x, y)]).astype(np.float64)
    pair = pair[:, ~np.isnan(pair).any(0)]
    count = pair.shape[1]
    found = {"correlation": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "count": count}
    if count > 2 and (np.ptp(pair, axis=1) > 0).all():
        test = stats.spearmanr(*pair)
        drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
        ranks = stats.rankdata(pair[:, drawn], axis=-1)
        ranks -= ranks.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            bottom = np.sqrt((ranks**2).sum(-1).prod(0))
            correlations = (ranks[0] * ranks[1]).sum(-1) / bottom
        low, high = np.nanquantile(correlations, [(1 - level) / 2, (1 + level) / 2])
        found |= {"correlation": test.statistic, "p": test.pvalue, "low": low, "high": high}
    return xr.Dataset(found)


def _resampled(table: Array, resamples: int, draws: np.random.Generator) -> Array:
    """Means of resampled replicates, (..., resamples)."""
    size = table.shape[-1]
    drawn = draws.integers(0, size, (resamples, size))
    means: Array = np.nanmean(table[..., drawn], -1)
    return means
