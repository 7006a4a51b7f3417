"""Blurs: Gaussian, out of focus, behind frosted glass, by motion and by zoom."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from probekit.perturbations.corruptions.image_ops import (
    correlate,
    mixed_across,
    mixed_down,
    smooth,
    zoom_matrices,
)
from probekit.perturbations.corruptions.procedure import Draws, Procedure
from probekit.runtime.random_streams import RandomStreams

__all__ = [
    "PROCEDURES",
    "defocus_blur",
    "defocus_kernel",
    "gaussian_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
]


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    return smooth(images, sigma)


def defocus_blur(images: Tensor, constants: tuple[float, float]) -> Tensor:
    """Convolve with an anti-aliased disk; constants are its radius and the alias sigma."""
    return correlate(images, defocus_kernel(*constants))


@functools.lru_cache(maxsize=32)
def defocus_kernel(radius: float, alias_sigma: float) -> Tensor:
    """The normalized disk, anti-aliased by a small Gaussian; float64, 17 by 17 or larger.

    The grid goes to ±8, or ±radius above 8, and the Gaussian has 3×3 taps, 5×5 above 8. What the
    Gaussian would carry over the edge of the grid is mirrored back (d c b | a b c d).
    """
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).double()
    offset = torch.arange(taps, dtype=torch.float64) - taps // 2
    gaussian = torch.exp(-(offset**2) / (2 * alias_sigma**2))
    gaussian /= gaussian.sum()
    return correlate(disk / disk.sum(), gaussian[:, None] * gaussian).clamp_(min=0)


def glass_blur(images: Tensor, constants: tuple[float, int, int], *displacements: Tensor) -> Tensor:
    """Blur, displace pixels at random among their neighbours, blur again.

    From bottom right to top left every pixel takes over the pixel at a random offset, which may
    itself have been replaced before. (The generators are written as if the two were swapped, but
    their assignment goes through views of one array, so that only one of the two changes; the
    published images are made so.)

    Args:
        images: (n, channels, height, width).
        constants: sigma of the blurs, reach of the offsets, rounds.
        displacements: for each round how many pixels further on, row after row, each pixel finds
            what it takes over, by offsets in [−reach, reach) both ways; int32 (n, height, width).
            They are written over.
    """
    sigma, reach, _ = constants
    levels = smooth(images, sigma, times=255).add_(1e-3).floor_()
    # The 8-bit channels of a pixel move together, as one whole number.
    pixels = levels[:, -1]
    for channel in reversed(levels.unbind(1)[:-1]):
        pixels = torch.add(channel, pixels, alpha=256)
    pixels = pixels.flatten()
    links = _Links(len(pixels), images.device)
    for displacement in displacements:
        pixels = pixels.index_select(0, links.origins(displacement, reach))
    pixels = pixels.view_as(levels[:, 0])
    for channel in levels.unbind(1)[:-1]:
        rest = torch.mul(pixels, 1 / 256).floor_()
        torch.add(pixels, rest, alpha=-256, out=channel)
        pixels = rest
    levels[:, -1] = pixels
    return smooth(levels, sigma, times=1 / 255)


class _Links:
    """Where pixels get their values from, for so many pixels in all.

    A link below the number of pixels goes to what a pixel holds after a round, a link from there on
    to what it held before, where a way along links ends. So the second half links to itself.
    """

    def __init__(self, pixels: int, device: torch.device) -> None:
        self._pixels = pixels
        self._links = torch.empty(2 * pixels, dtype=torch.int32, device=device)
        torch.arange(pixels, 2 * pixels, out=self._links[pixels:])
        self._further = torch.empty_like(self._links)
        self._further[pixels:] = self._links[pixels:]

    def origins(self, displacement: Tensor, reach: int) -> Tensor:
        """Where each pixel's value comes from after one round: flat int32 indices.

        A pixel whose neighbour was replaced before it holds what that neighbour got. Following
        these links all at once, twice as far in each step, gives what the sequence would.

        Args:
            displacement: of one round, and reach: as those of :func:`glass_blur`.
        """
        _, height, width = displacement.shape
        pixels = self._pixels
        shift = displacement.mul_(_in_loops(height, width, reach, displacement.device)).flatten()
        torch.add(self._links[pixels:], shift, out=self._links[:pixels])
        if reach > 1:  # offsets −1 and 0 never point at a pixel replaced before
            # A link goes on where it points ahead, to a pixel that the loops have come by, or never
            # come to and whose own link ends.
            ahead = shift.clamp_(0, 1)
            self._links[:pixels].add_(ahead, alpha=-pixels)
            self._follow()
        return self._links[:pixels].sub_(pixels)

    def _follow(self) -> None:
        """Moves all links on until they end."""
        pixels, steps = self._pixels, 0
        # Almost half of them go on, so that ways of up to sixteen links are to be expected: only
        # from there on it is worth looking.
        while steps < 4 or (pixels and int(self._links[:pixels].min()) < pixels):
            torch.index_select(self._links, 0, self._links[:pixels], out=self._further[:pixels])
            self._links, self._further = self._further, self._links
            steps += 1


@functools.lru_cache(maxsize=32)
def _in_loops(height: int, width: int, reach: int, device: torch.device) -> Tensor:
    """1 for pixels that glass blur replaces, 0 for the border that it leaves; int32 (height, width).

    The generators' loops run from side − reach down to reach + 1.
    """
    inside = torch.zeros(height, width, dtype=torch.int32, device=device)
    inside[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = 1
    return inside


def motion_blur(images: Tensor, constants: tuple[int, float], angle: Tensor) -> Tensor:
    """Smear along a line, with weights of half a Gaussian, as ImageMagick's motion blur does.

    Args:
        images: (n, channels, height, width).
        constants: radius (the kernel has 2·radius + 1 taps) and sigma, in pixels.
        angle: of each image's line, in degrees, (n,).
    """
    radius, sigma = constants
    taps = 2 * radius + 1
    step = torch.arange(taps, dtype=torch.float64)
    weights = torch.exp(-(step**2) / (2 * sigma**2))
    weights /= weights.sum()
    radians = torch.deg2rad(angle.cpu().double())
    down = torch.ceil(step * radians.sin()[:, None] - 0.5).long()
    right = torch.ceil(step * radians.cos()[:, None] - 0.5).long()
    paths, group_of = torch.unique(torch.stack([down, right], 1), dim=0, return_inverse=True)
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (taps,) * 4, mode="replicate")
    blurred = torch.empty_like(images)
    for group, path in enumerate(paths.tolist()):
        members = (group_of == group).nonzero().flatten().to(images.device)
        source = padded[members]
        total = torch.zeros_like(images[: len(members)])
        for weight, dy, dx in zip(weights.tolist(), *path, strict=True):
            top, start = taps + dy, taps + dx
            total.add_(source[..., top : top + height, start : start + width], alpha=weight)
        blurred[members] = total
    return blurred


def zoom_blur(images: Tensor, factors: tuple[float, ...]) -> Tensor:
    """The mean of the image and its centre zooms at these factors (which hold 1 too)."""
    height, width = images.shape[-2:]
    rows = zoom_matrices(height, factors, images.dtype, images.device)
    columns = zoom_matrices(width, factors, images.dtype, images.device)
    # Σ_z R_z X C_zᵀ in two goes: across for all factors at once, then down and summed.
    across = mixed_across(images, columns.flatten(0, 1))
    across = across.view(*images.shape[:-1], len(factors), width).transpose(-2, -3)
    across = across.flatten(-3, -2)
    total = mixed_down(across, rows.transpose(0, 1).flatten(1))
    return total.add_(images).div_(len(factors) + 1)


def _draw_displacements(
    streams: RandomStreams, images: Tensor, constants: tuple[float, int, int], room: Tensor
) -> Draws:
    """Of glass blur: both offsets come from one word, the lower half across, the upper down."""
    _, reach, rounds = constants
    n, _, height, width = images.shape
    down = torch.empty(n, height * width, dtype=torch.int32, device=images.device)

    def displacement(number: int) -> Tensor:
        across = streams.words(height * width, field=number, scratch=down)
        torch.bitwise_right_shift(across, 16, out=down)
        across.bitwise_and_(0xFFFF)
        for half in (down, across):
            half.mul_(2 * reach).bitwise_right_shift_(16)
        # Of the two halves only the upper has a sign, so that it lies around zero already.
        return across.sub_(reach).add_(down, alpha=width).view(n, height, width)

    return tuple(displacement(number) for number in range(rounds))


def _draw_angle(
    streams: RandomStreams, images: Tensor, constants: tuple[int, float], room: Tensor
) -> Draws:
    return (streams.uniform(1).flatten() * 90 - 45,)


PROCEDURES = {
    "gaussian_blur": Procedure(gaussian_blur),
    "defocus_blur": Procedure(defocus_blur),
    "glass_blur": Procedure(glass_blur, _draw_displacements),
    "motion_blur": Procedure(motion_blur, _draw_angle, storage="rounded", values_at_once=1 << 21),
    "zoom_blur": Procedure(zoom_blur, values_at_once=1 << 15),
}
