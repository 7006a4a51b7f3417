"""Intervals for means over replicates, such as the seeds of a sweep."""

from __future__ import annotations

import numpy as np

from probekit.plot.reading import Array

__all__ = ["bootstrap"]


def bootstrap(
    values: Array, *, level: float = 0.95, resamples: int = 2000
) -> tuple[Array, Array, Array]:
    """Mean over replicates with its percentile bootstrap interval.

    Args:
        values: (replicate, ...); NaN where a replicate has no value.
        level: Of the interval.
        resamples: How many; the draws are the same in each call.

    Returns:
        Mean, lower and upper end, (...) each; the ends are NaN for fewer than two replicates.

    Example:
        >>> mean, low, high = bootstrap(np.array([[1.0], [2.0], [3.0]]))
        >>> float(mean[0]), float(low[0]), float(high[0])
        (2.0, 1.0, 3.0)
    """
    known = np.isfinite(values)
    count = known.sum(0)
    filled = np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, filled.sum(0) / count, np.nan)
        if len(values) < 2:
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
        weights = np.stack([np.bincount(draw, minlength=len(values)) for draw in draws])
        sums = np.tensordot(weights, filled, 1)
        means = sums / np.tensordot(weights, known.astype(float), 1)
    several = count > 1
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(np.where(several, means, 0.0), [tail, 100 - tail], axis=0)
    return mean, np.where(several, low, np.nan), np.where(several, high, np.nan)
