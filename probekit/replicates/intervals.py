"""Confidence intervals for a mean over replicates."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.checks import number, positive_int
from probekit.errors import OptionError

Array: TypeAlias = npt.NDArray[np.float64]
_BLOCK = 500  # number of rows that are resampled at once, which bounds memory


def mean_interval(values: xr.DataArray, dim: str = "seed", *, level: float = 0.95) -> xr.Dataset:
    """Computes the mean over replicates with Student's t interval.

    For approximately normal replicates, the interval has its nominal coverage with as few as two
    replicates. A percentile bootstrap needs about twenty.

    Args:
        values: Any dimensions, including `dim`; NaN is ignored.
        dim: The dimension of the replicates.
        level: Coverage of the interval.

    Returns:
        `mean`, `low`, `high`, `error` (the standard error of the mean) and `count` over the other
        dimensions. With fewer than two replicates, all except `mean` and `count` are NaN.

    Raises:
        OptionError: The dimension does not exist, or the level is not between 0 and 1.

    Source:
        Student 1908, The probable error of a mean (Biometrika 6).

    Example:
        >>> result = mean_interval(xr.DataArray([1.0, 2.0, 3.0], dims="seed"))
        >>> float(result["mean"]), round(float(result["low"]), 3), round(float(result["high"]), 3)
        (2.0, -0.484, 4.484)
    """
    from scipy import stats

    _check(values, dim, level)
    table = values.astype(np.float64)
    count = table.notnull().sum(dim)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = table.std(dim, ddof=1).where(count > 1) / np.sqrt(count)
        critical = stats.t.ppf((1 + level) / 2, count - 1)
    mean = table.mean(dim)
    margin = error * critical
    columns = {"mean": mean, "low": mean - margin, "high": mean + margin, "error": error}
    return xr.Dataset(columns).assign(count=count)


def bootstrap_interval(
    values: xr.DataArray,
    dim: str = "seed",
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> xr.Dataset:
    """Computes the mean over replicates with a percentile bootstrap interval.

    With few replicates the interval is too narrow, because resampled means never exceed the range of
    the replicates. With three replicates, whose extremes are its ends, it misses the true mean in one case
    of four. Use `mean_interval` in this case.

    Args:
        values: Any dimensions, including `dim`; NaN is ignored.
        dim: The dimension of the replicates.
        level: Proportion of resampled means inside the interval.
        resamples: Number of resampled means.
        seed: Seed of the resampling.

    Returns:
        `mean`, `low`, `high` and `count` over the other dimensions. With fewer than two replicates,
        `low` and `high` are NaN.

    Raises:
        OptionError: The dimension does not exist, or the level is not between 0 and 1.

    Source:
        Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Example:
        >>> result = bootstrap_interval(xr.DataArray([1.0, 2.0, 3.0], dims="seed"))
        >>> float(result["mean"]), float(result["low"]), float(result["high"])
        (2.0, 1.0, 3.0)
    """
    _check(values, dim, level)
    positive_int("resamples", resamples)
    parts: Any = xr.apply_ufunc(
        lambda table: resampled_mean(table, level, resamples, seed),
        values.astype(np.float64).compute(),
        input_core_dims=[[dim]],
        output_core_dims=[[], [], []],
    )
    result = xr.Dataset(dict(zip(("mean", "low", "high"), parts, strict=True)))
    return result.assign(count=values.notnull().sum(dim))


def resampled_mean(
    table: Array, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """`bootstrap_interval` for an array (..., replicate): mean, lower and upper end, each (...)."""
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


def _check(values: xr.DataArray, dim: str, level: float) -> None:
    if dim not in values.dims:
        raise OptionError(f"there is no dimension {dim!r} of replicates, only {values.dims}")
    number("level", level, above=0, below=1)
