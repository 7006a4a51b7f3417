"""Tests of whether one quantity rises or falls with another over replicates."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
import xarray as xr

from probekit.checks import number, one_of
from probekit.errors import DataError, OptionError, some_of, warn
from probekit.replicates.comparisons import adjust_p_values
from probekit.replicates.intervals import Array

Alternative: TypeAlias = Literal["two-sided", "increasing", "decreasing"]
_MOST_CONDITIONS = 12  # computing the exact distribution takes 2**conditions steps
_POWER_DRAWS = 1000


def rank_trend(
    x: xr.DataArray, y: xr.DataArray, *, level: float = 0.95, resamples: int = 5000, seed: int = 0
) -> xr.Dataset:
    """Tests whether one quantity rises with another over networks, by Spearman's rank correlation.

    The test assumes that all networks are independent. If networks share seeds, use `page_trend`, which
    compares them within each seed.

    Args:
        x: One number per network, any dimensions.
        y: The same for another quantity; pairs with a NaN are ignored.
        level: Coverage of the bootstrap interval.
        resamples: Number of bootstrap resamples of pairs.
        seed: Seed of the resampling.

    Returns:
        `correlation`, `low`, `high`, `p` (two-sided) and `count`; NaN for fewer than three pairs or if
        one of the quantities does not vary.

    Example:
        >>> x = xr.DataArray([1.0, 2.0, 3.0, 4.0], dims="network")
        >>> float(rank_trend(x, x**2)["correlation"])
        1.0
    """
    from scipy import stats

    pair = np.stack([part.values.ravel() for part in xr.broadcast(x, y)]).astype(np.float64)
    pair = pair[:, ~np.isnan(pair).any(0)]
    count = pair.shape[1]
    result = {"correlation": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "count": count}
    if count > 2 and (np.ptp(pair, axis=1) > 0).all():
        test = stats.spearmanr(*pair)
        drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
        ranks = stats.rankdata(pair[:, drawn], axis=-1)
        ranks -= ranks.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            bottom = np.sqrt((ranks**2).sum(-1).prod(0))
            correlations = (ranks[0] * ranks[1]).sum(-1) / bottom
        low, high = np.nanquantile(correlations, [(1 - level) / 2, (1 + level) / 2])
        result |= {"correlation": test.statistic, "p": test.pvalue, "low": low, "high": high}
    return xr.Dataset(result)


def page_trend(
    values: xr.DataArray,
    order: str = "alpha",
    dim: str = "seed",
    *,
    alternative: Alternative = "two-sided",
    effect: float = 0.5,
    level: float = 0.95,
) -> xr.Dataset:
    """Tests whether a quantity rises or falls over ordered conditions within seeds (Page's test).

    The conditions are ranked within each seed, so differences between seeds have no effect. The p-value
    is exact, even with ties: it is based on all permutations of the conditions within seeds. It assumes that
    without a trend every order is equally likely. If neighboring conditions share their noise, such as the
    epochs of a run, false trends are more frequent.

    Args:
        values: The dimensions `order` and `dim`, and any others. Seeds that lack a condition are
            ignored, with a warning.
        order: The dimension of the conditions, which are sorted by its coordinate if there is one, of
            distinct numbers.
        dim: The dimension of the replicates.
        alternative: The direction of the trend to detect.
        effect: The correlation within a seed for which `power` is computed.
        level: 1 minus the level of the test, for `power`.

    Returns:
        Over the other dimensions: Page's `statistic`, the sum over seeds and conditions of position
        times rank; the mean rank `correlation` within seeds, from -1 to 1; `p`, and `p_adjusted` by
        Holm's method over all tests; the `count` of seeds; and `power`, the probability of `p`
        <= 1 - level if position and (normal) value have the correlation `effect` within seeds. Also
        `correlation_each` along `dim`. NaN if all conditions are tied in every seed.

    Raises:
        OptionError: A dimension does not exist, there are fewer than 3 or more than 12 conditions, their
            labels have no order, or an option is out of range.
        DataError: No seed has all conditions.

    Source:
        Page 1963 (Journal of the American Statistical Association 58).

    Example:
        >>> table = [[0.2, 0.3, 0.5, 0.9], [0.1, 0.4, 0.3, 0.7], [0.3, 0.2, 0.6, 0.8]]
        >>> values = xr.DataArray(table, dims=("seed", "alpha"), coords={"alpha": [-2, -1, 0, 1]})
        >>> result = page_trend(values)
        >>> float(result["statistic"]), round(float(result["p"]), 4)
        (88.0, 0.0058)
    """
    one_of("alternative", alternative, get_args(Alternative))
    number("size of effect", abs(effect), above=0, below=1)
    number("level", level, above=0, below=1)
    table = _complete(values, order, dim)
    conditions, count = table.sizes[order], table.sizes[dim]
    others = [name for name in table.dims if name not in (order, dim)]
    blocks = table.transpose(*others, dim, order).values
    shape = blocks.shape[:-2]
    doubled = _doubled_ranks(blocks).reshape(-1, count, conditions)
    places = np.arange(1, conditions + 1)
    statistic = (doubled * places).sum((1, 2)) / 2
    p = np.array([_p_value(block, alternative) for block in doubled])
    each = _correlations(doubled.reshape(blocks.shape))
    axes = {name: table.coords[name] for name in others if name in table.coords}
    result = xr.Dataset(
        {
            "statistic": (others, statistic.reshape(shape)),
            "correlation": (others, np.nan_to_num(each).mean(-1)),
            "p": (others, p.reshape(shape)),
            "p_adjusted": (others, adjust_p_values(p).reshape(shape)),
            "correlation_each": ([*others, dim], each),
        },
        coords=axes | ({dim: table.coords[dim]} if dim in table.coords else {}),
    )
    result["correlation"] = result["correlation"].where(result["p"].notnull())
    facts = {"conditions": conditions, "effect": effect, "alternative": alternative}
    found = trend_power(count, **facts, size=1 - level)
    return result.assign(count=count, power=found).assign_attrs(facts)


def _complete(values: xr.DataArray, order: str, dim: str) -> xr.DataArray:
    """The values in the order of the conditions, for seeds that have all conditions."""
    for name in (order, dim):
        if name not in values.dims:
            raise OptionError(f"there is no dimension {name!r}, only {values.dims}")
    if not 3 <= values.sizes[order] <= _MOST_CONDITIONS:
        raise OptionError(
            f"a trend is tested over 3 to {_MOST_CONDITIONS} conditions, but {order!r} has "
            f"{values.sizes[order]}; choose some of them"
        )
    table = values.astype(np.float64)
    if order in table.indexes:
        index = table.indexes[order]
        if index.dtype.kind not in "biufmM" or not index.is_unique:
            raise OptionError(
                f"the coordinate {order!r} has no order: it has text, or a label twice; give one number per "
                f"condition, or drop_vars({order!r}) if the values are in order"
            )
        table = table.sortby(order)
    others = [name for name in table.dims if name != dim]
    missing = table.isnull().any(others)
    if bool(missing.all()):
        raise DataError(f"no replicate along {dim!r} has a value at every condition of {order!r}")
    if bool(missing.any()):
        gaps = table.isnull().any([name for name in table.dims if name != order])
        lacking = [str(value) for value in table[order].values[gaps.values]]
        warn(
            f"page_trend leaves out {int(missing.sum())} of {missing.size} replicates along "
            f"{dim!r}, which lack a value at {order} {some_of(lacking)}; choose conditions that "
            "all have"
        )
    return table.isel({dim: np.flatnonzero(~missing.values)})


def _doubled_ranks(blocks: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Twice the rank of each condition within its seed; with tied ranks averaged, it is an integer."""
    from scipy import stats

    return np.asarray(np.rint(2 * stats.rankdata(blocks, axis=-1)), np.int64)


def _correlations(doubled: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Array:
    """Spearman's correlation of rank with position in each seed; NaN if all are tied."""
    conditions = doubled.shape[-1]
    ranks = doubled - (conditions + 1)
    places = np.arange(1, conditions + 1) - (conditions + 1) / 2
    with np.errstate(invalid="ignore"):
        bottom = np.sqrt((ranks**2).sum(-1) * (places**2).sum())
        return np.asarray((ranks * places).sum(-1) / bottom)


def _p_value(doubled: np.ndarray[tuple[int, ...], np.dtype[np.int64]], alternative: str) -> float:
    """The exact p-value of one table of doubled ranks (seed, condition)."""
    if (doubled == doubled[:, :1]).all():
        return float("nan")
    total = int((doubled * np.arange(1, doubled.shape[1] + 1)).sum())
    up_to, from_on = _null_tails(tuple(sorted(tuple(sorted(block)) for block in doubled.tolist())))
    up, down = float(from_on[total]), float(up_to[total])
    return {"increasing": up, "decreasing": down}.get(alternative, min(1.0, 2 * min(up, down)))


@lru_cache(maxsize=100)
def _null_tails(ranks: tuple[tuple[int, ...], ...]) -> tuple[Array, Array]:
    """The lower and upper tail probability of each sum over seeds of position times doubled rank."""
    chance = np.ones(1)
    for block in ranks:
        chance = np.convolve(chance, _null(block))
    tails = np.cumsum(chance), np.cumsum(chance[::-1])[::-1]
    return np.minimum(tails[0], 1), np.minimum(tails[1], 1)


@lru_cache(maxsize=100)
def _null(ranks: tuple[int, ...]) -> Array:
    """The distribution of the sum of position times doubled rank over all permutations of the ranks.

    Ranks are assigned position by position. For each set of assigned ranks, the algorithm only counts
    how many orders lead to each sum.
    """
    size = len(ranks)
    longest = int(np.dot(np.arange(1, size + 1), ranks)) + 1  # sorted: the largest sum
    ways = np.zeros((2**size, longest))
    ways[0, 0] = 1
    for taken in range(2**size - 1):
        place = taken.bit_count() + 1
        for one, rank in enumerate(ranks):
            if not taken >> one & 1:
                step = place * rank
                ways[taken | 1 << one, step:] += ways[taken, : longest - step]
    return np.asarray(ways[-1] / ways[-1].sum())


@lru_cache(maxsize=100)
def trend_power(
    seeds: int, conditions: int, effect: float, alternative: Alternative, size: float
) -> float:
    """Estimates the probability that `page_trend` yields p <= `size`, by simulating normal values."""
    draws = np.random.default_rng(0)
    places = np.arange(conditions) - (conditions - 1) / 2
    places = places / places.std()
    sign = -1 if alternative == "decreasing" else 1
    noise = draws.normal(size=(_POWER_DRAWS, seeds, conditions))
    drawn = sign * abs(effect) * places + np.sqrt(1 - effect**2) * noise
    found = [_p_value(table, alternative) for table in _doubled_ranks(drawn)]
    return float(np.mean(np.array(found) <= size))
