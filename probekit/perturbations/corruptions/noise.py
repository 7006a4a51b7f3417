"""Noise: each value of the image is disturbed by itself.

There is little arithmetic in it, so that memory decides: what was drawn is written over on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.perturbations.corruptions.procedure import Draws, Procedure
from probekit.runtime.random_streams import RandomStreams

__all__ = [
    "PROCEDURES",
    "gaussian_noise",
    "impulse_noise",
    "poisson",
    "shot_noise",
    "speckle_noise",
]

_LEVELS = 256
_ALIAS = 0x3FF  # the bits of a table's entry that name its alias
_OFF_LEVEL = 2e-3  # how far from an 8-bit level, in levels, a value counts as lying on it


def gaussian_noise(images: Tensor, deviation: float, field: Tensor) -> Tensor:
    """Add normal noise of this standard deviation; field is standard normal."""
    return torch.add(images, field, alpha=deviation, out=field)


def speckle_noise(images: Tensor, deviation: float, field: Tensor) -> Tensor:
    """Add noise in proportion to the image: x + x·noise."""
    return torch.addcmul(images, images, field, value=deviation, out=field)


def impulse_noise(images: Tensor, share: float, words: Tensor) -> Tensor:
    """Salt and pepper on this share of the values, each channel by itself.

    ``words`` are uniform signed 32-bit numbers as floats: the lowest become pepper, 0 or less, the
    highest salt, 1 or more.
    """
    furthest = (1 - share) * 2.0**31
    # Words further than this from zero stay, 2 at least once scaled; clipping does the rest.
    impulses = torch.hardshrink(words, furthest, out=words)
    return torch.add(images, impulses, alpha=2 / furthest, out=impulses)


def shot_noise(
    images: Tensor, photons: float, words: Tensor, uniform: Callable[[], Tensor]
) -> Tensor:
    """Poisson(x·photons) / photons: photon counts, where photons are those of full brightness."""
    return poisson(images, photons, words, uniform).div_(photons)


def poisson(images: Tensor, photons: float, words: Tensor, uniform: Callable[[], Tensor]) -> Tensor:
    """Poisson counts of rate images·photons, exact in distribution.

    Rates are split into that of the next lower 8-bit level and the rest, for the sum of two Poisson
    variables is one too. The first is drawn from a table for each of the 256 levels by Walker's
    alias method (Electronics Letters 10, 1974), the rest, zero for images of 8 bits, by inverting
    the distribution.

    Args:
        images: values in [0, 1].
        photons: the rate of value 1.
        words: uniform int32 words of the images' shape.
        uniform: gives uniform numbers in [0, 1) of the images' shape; called only where images
            lie between 8-bit levels.
    """
    table = _alias_table(float(photons)).to(words.device)
    bits = (table.shape[1] - 1).bit_length()
    level = torch.add(images.new_tensor(_OFF_LEVEL), images, alpha=_LEVELS - 1).floor_()
    column = (words >> (32 - bits)).bitwise_and_((1 << bits) - 1)
    cell = level.to(torch.int32).mul_(1 << bits).add_(column)
    entry = torch.index_select(table.flatten(), 0, cell.flatten()).view(cell.shape)
    alias = torch.bitwise_and(entry, _ALIAS, out=cell)
    # What the column leaves of the word, in 31 bits. All ones where the column is kept, else zero:
    # the sign of a difference, spread.
    fraction = words.bitwise_and_((1 << (32 - bits)) - 1).bitwise_left_shift_(bits - 1)
    keep = fraction.sub_(entry).bitwise_right_shift_(31)
    below = torch.add(level, images, alpha=1 - _LEVELS)
    counts = level.copy_(column.sub_(alias).bitwise_and_(keep).add_(alias))
    if below.min() < -_OFF_LEVEL:
        rates = torch.nn.functional.hardshrink(below, _OFF_LEVEL) * (photons / (1 - _LEVELS))
        counts += _small_poisson(rates, uniform())
    return counts


def _small_poisson(rates: Tensor, uniform: Tensor) -> Tensor:
    """Counts of small rates (2 at most), by adding up probabilities until they pass the uniform."""
    probability = torch.exp(-rates)
    cumulative = probability.clone()
    counts = torch.zeros_like(rates)
    for number in range(1, 20):
        counts += uniform >= cumulative
        probability = probability * rates / number
        cumulative = cumulative + probability
    return counts


@functools.lru_cache(maxsize=16)
def _alias_table(photons: float) -> Tensor:
    """Alias tables of Poisson(level·photons/255) for the 256 levels, int32 (256, counts).

    An entry is the probability to keep the column, in 2⁻³¹ and rounded so that its low 10 bits are
    the alias. Tails beyond 12 standard deviations are left out.
    """
    widest = photons + 12 * photons**0.5 + 16
    columns = 1 << int(np.ceil(np.log2(widest)))
    counts = np.arange(columns)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    rates = np.linspace(0, photons, _LEVELS)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = counts * np.log(rates) - rates - log_factorials
    probabilities = np.exp(logs)
    probabilities[0] = counts == 0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    keep, alias = _walker(probabilities * columns)
    certain = keep >= 1 - 2.0**-22
    alias = np.where(certain, counts, alias)
    step = _ALIAS + 1
    steps = np.clip(np.round((keep * 2.0**31 - alias) / step), 0, 2**31 // step - 1)
    return torch.from_numpy(steps.astype(np.int32) * np.int32(step) + alias.astype(np.int32))


def _walker(
    weights: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Walker's table for each row of weights of mean 1: what to keep, and the alias for the rest.

    One column is settled in each step, for all rows at once: a small weight is filled up to 1 by
    the largest left, which becomes the next small one when it falls below 1.
    """
    rows = np.arange(len(weights))
    order = weights.argsort(axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    keep = np.ones_like(weights)
    alias = order.copy()
    small = np.zeros(len(weights), dtype=np.int64)
    large = np.full(len(weights), weights.shape[1] - 1)
    pending = np.full(len(weights), -1)
    for _ in range(weights.shape[1] - 1):
        column = np.where(pending >= 0, pending, small)
        small += pending < 0
        keep[rows, column] = np.minimum(weights[rows, column], 1)
        alias[rows, column] = order[rows, large]
        weights[rows, large] -= 1 - keep[rows, column]
        emptied = (weights[rows, large] < 1) & (large > 0)
        pending = np.where(emptied, large, -1)
        large -= emptied
    back = order.argsort(axis=1)
    return np.take_along_axis(keep, back, axis=1), np.take_along_axis(alias, back, axis=1)


def _draw_normal(streams: RandomStreams, images: Tensor, constants: float, room: Tensor) -> Draws:
    return (streams.normal(*images.shape[1:], out=room).to(images.dtype),)


def _draw_signed(streams: RandomStreams, images: Tensor, constants: float, room: Tensor) -> Draws:
    return (room.copy_(_words(streams, room)).to(images.dtype),)


def _draw_photons(streams: RandomStreams, images: Tensor, constants: float, room: Tensor) -> Draws:
    return _words(streams, room), lambda: streams.uniform(*images.shape[1:], field=1)


def _words(streams: RandomStreams, room: Tensor) -> Tensor:
    scratch = room.view(torch.int32).flatten(1)
    return streams.words(scratch.shape[1], scratch=scratch).view(room.shape)


PROCEDURES = {
    "gaussian_noise": Procedure(gaussian_noise, _draw_normal),
    "shot_noise": Procedure(shot_noise, _draw_photons),
    "impulse_noise": Procedure(impulse_noise, _draw_signed),
    "speckle_noise": Procedure(speckle_noise, _draw_normal),
}
