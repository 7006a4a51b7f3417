"""Blur corruptions: Gaussian, defocus, glass, motion and zoom."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from probekit.perturbations.corruptions.image_ops import center_zoom, correlate, smear, smooth
from probekit.runtime.randomness import RandomStreams

# In 8-bit levels: more than the rounding errors of float32, which must not lower a value by a whole level,
# and less than a neighbor's weight in the narrowest blur (sigma 0.25), which must.
SLACK = 2e-4


def gaussian_blur(images: Tensor, sigma: float, streams: RandomStreams) -> Tensor:
    return smooth(images, sigma)


def defocus_blur(images: Tensor, constants: tuple[float, float], streams: RandomStreams) -> Tensor:
    """Convolve with an anti-aliased disk; the constants are its radius and the alias sigma."""
    return correlate(images, defocus_kernel(*constants))


@functools.lru_cache(maxsize=32)
def defocus_kernel(radius: float, alias_sigma: float) -> Tensor:
    """The normalized disk, anti-aliased by a small Gaussian; float64, 17 by 17 or larger.

    The grid extends to ±8, or to ±radius for radii above 8. The Gaussian has 3×3 taps, or 5×5 for radii
    above 8, and mirrors values at the edge of the grid (d c b | a b c d).
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    offset = torch.arange(taps, dtype=torch.float64) - taps // 2
    gaussian = torch.exp(-(offset**2) / (2 * alias_sigma**2))
    gaussian /= gaussian.sum()
    return correlate(disk / disk.sum(), gaussian[:, None] * gaussian).clamp_(min=0)


def glass_blur(images: Tensor, constants: tuple[float, int, int], streams: RandomStreams) -> Tensor:
    """Blur, displace pixels at random among their neighbors, blur again.

    From bottom right to top left, every pixel takes the value of the pixel at a random offset in
    [−reach, reach), which may already have been replaced. (The published generators are written as a
    swap of the two pixels, but they assign through views of one array, so only one of the two changes.
    The published images were created this way.)

    The constants are the sigma of the blurs, the reach of the offsets and the number of rounds.
    """
    sigma, reach, rounds = constants
    height, width = images.shape[-2:]
    levels = (smooth(images, sigma) * 255 + SLACK).floor().flatten(2)
    for number in range(rounds):
        offsets = streams.integers(2 * reach, 2, height, width, field=number) - reach
        levels = levels.gather(2, _origins(offsets, reach)[:, None].expand_as(levels))
    return smooth(levels.view_as(images) / 255, sigma)


def _origins(offsets: Tensor, reach: int) -> Tensor:
    """The source pixel of each pixel after one round: positions in row-major order, int64 (n, height·width).

    A pixel whose neighbor was already replaced takes the neighbor's new value. Following these links
    for all pixels at once, twice as far in each step, gives the result of the sequential procedure.
    `offsets` are vertical and horizontal, up to a `reach`; the generators leave a border of about this width
    unchanged.
    """
    height, width = offsets.shape[-2:]
    replaced = offsets.new_zeros(height, width)
    replaced[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = 1
    shift = ((offsets[:, 0] * width + offsets[:, 1]) * replaced).flatten(1)
    count = height * width
    pixel = torch.arange(count, device=offsets.device)
    # Links from `count` on point to a pixel's value before the round, where a chain ends.
    before = (pixel + count).expand_as(shift)
    links = torch.cat([pixel + shift + count * (shift <= 0), before], 1)
    own = links[:, :count]
    while own.numel() and int(own.min()) < count:
        own.copy_(links.gather(1, own))
    return own - count


def motion_blur(images: Tensor, constants: tuple[int, float], streams: RandomStreams) -> Tensor:
    """Smear along a line at a random angle within ±45°; constants are radius and sigma in pixels."""
    return smear(images, *constants, angle=streams.uniform(1)[:, 0] * 90 - 45)


def zoom_blur(images: Tensor, factors: tuple[float, ...], streams: RandomStreams) -> Tensor:
    """Average the image and its center zooms at these factors, which include 1."""
    total = images.clone()
    for factor in factors:
        total += center_zoom(images, factor)
    return total / (len(factors) + 1)
