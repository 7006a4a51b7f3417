"""Noise corruptions, which change each value of the image independently."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from probekit.runtime.randomness import RandomStreams

_LEVELS = 256
_OFF_LEVEL = 2e-3  # in 8-bit levels; values this close to a level are treated as equal to it


def gaussian_noise(images: Tensor, deviation: float, streams: RandomStreams) -> Tensor:
    """Add normal noise of this standard deviation."""
    return images + streams.normal(*images.shape[1:]).mul_(deviation)


def speckle_noise(images: Tensor, deviation: float, streams: RandomStreams) -> Tensor:
    """Add normal noise proportional to the image: x + x·noise."""
    return images + images * streams.normal(*images.shape[1:]).mul_(deviation)


def impulse_noise(images: Tensor, share: float, streams: RandomStreams) -> Tensor:
    """Salt-and-pepper noise on this fraction of the values, independently per channel."""
    uniform = streams.uniform(*images.shape[1:])
    return images.masked_fill(uniform < share / 2, 0).masked_fill_(uniform >= 1 - share / 2, 1)


def shot_noise(images: Tensor, photons: float, streams: RandomStreams) -> Tensor:
    """Draw Poisson(x·photons) / photons, where photons is the mean count at full brightness.

    The counts are exact in distribution. The rate is split into that of the next lower 8-bit level and
    the remainder, since the sum of two Poisson variables is Poisson. For 8-bit images the remainder is
    zero.
    """
    shape = images.shape[1:]
    level = (images * (_LEVELS - 1) + _OFF_LEVEL).floor()
    counts = _level_counts(level.int(), float(photons), streams.uniform(*shape)).to(images.dtype)
    rest = images * (_LEVELS - 1) - level
    if rest.numel() and rest.max() > _OFF_LEVEL:
        rates = rest.clamp(min=0) * (photons / (_LEVELS - 1))
        counts += torch.where(
            rest > _OFF_LEVEL, _small_counts(rates, streams.uniform(*shape, field=1)), 0
        )
    return counts / photons


def _level_counts(level: Tensor, photons: float, uniform: Tensor) -> Tensor:
    """Poisson counts for 8-bit levels by the alias method (Walker, Electronics Letters 10, 1974)."""
    keep, alias = (table.to(level.device) for table in _alias_tables(photons))
    position = uniform * keep.shape[1]
    column = position.int()
    cell = (level * keep.shape[1] + column).flatten()
    keeps = position - column < keep.flatten().index_select(0, cell).view_as(position)
    return torch.where(keeps, column, alias.flatten().index_select(0, cell).view_as(column))


def _small_counts(rates: Tensor, uniform: Tensor) -> Tensor:
    """Poisson counts for rates of at most 2, by inversion of the cumulative distribution."""
    probability = torch.exp(-rates)
    cumulative = probability.clone()
    counts = torch.zeros_like(rates)
    for number in range(1, 20):
        counts += uniform >= cumulative
        probability = probability * rates / number
        cumulative = cumulative + probability
    return counts


@functools.lru_cache(maxsize=16)
def _alias_tables(photons: float) -> tuple[Tensor, Tensor]:
    """Tables of the alias method for Poisson(level·photons/255), one row per 8-bit level.

    Returns the probability of keeping a column, float32 (256, counts), and the count that replaces it
    otherwise, int32. Tails beyond 12 standard deviations are left out.
    """
    counts = np.arange(int(photons + 12 * photons**0.5 + 16))
    rates = np.linspace(0, photons, _LEVELS)[:, None]
    rows = [_alias_table(row) for row in poisson.pmf(counts, rates) * len(counts)]
    keep, alias = zip(*rows, strict=True)
    return torch.tensor(keep, dtype=torch.float32), torch.tensor(alias, dtype=torch.int32)


def _alias_table(
    weights: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[list[float], list[int]]:
    """The probability of keeping each column and the column that replaces it, for weights of mean 1."""
    left: list[float] = weights.tolist()
    keep, alias = [1.0] * len(left), list(range(len(left)))
    small = [column for column in alias if left[column] < 1]
    large = [column for column in alias if left[column] >= 1]
    while small and large:
        column = small.pop()
        keep[column], alias[column] = left[column], large[-1]
        left[large[-1]] -= 1 - left[column]
        if left[large[-1]] < 1:
            small.append(large.pop())
    return keep, alias
