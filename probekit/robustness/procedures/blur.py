"""Blurs: Gaussian, out of focus, behind frosted glass, by motion and by zoom."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from probekit.robustness.procedures.base import Draws, Procedure
from probekit.robustness.procedures.image_ops import correlate, smooth, zoom_matrices
from probekit.robustness.random_streams import RandomStreams

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


def glass_blur(images: Tensor, constants: tuple[float, int, int], offsets: Tensor) -> Tensor:
    """Blur, displace pixels at random among their neighbours, blur again.

    From bottom right to top left every pixel takes over the pixel at a random offset, which may
    itself have been replaced before. (The generators are written as if the two were swapped, but
    their assignment goes through views of one array, so that only one of the two changes; the
    published images are made so.)

    Args:
        images: (n, channels, height, width).
        constants: sigma of the blurs, reach of the offsets, rounds.
        offsets: vertical and horizontal offsets in [−reach, reach), int32
            (rounds, 2, n, height, width).
    """
    sigma, reach, rounds = constants
    levels = (smooth(images, sigma) * 255).add_(1e-3).floor_()
    origin = _origins(offsets[0], reach)
    for number in range(1, rounds):
        origin = origin.index_select(0, _origins(offsets[number], reach))
    # Flat indices of (n, height · width) become those of (n, channels, height · width).
    n, channels, height, width = images.shape
    plane = torch.arange(n, dtype=torch.int32, device=images.device) * (
        (channels - 1) * height * width
    )
    origin = origin.view(n, 1, -1) + plane.view(n, 1, 1)
    steps = torch.arange(channels, dtype=torch.int32, device=images.device) * (height * width)
    origin = (origin + steps.view(1, -1, 1)).flatten()
    shuffled = levels.flatten().index_select(0, origin)
    return smooth(shuffled.div_(255).view(images.shape), sigma)


def _origins(offsets: Tensor, reach: int) -> Tensor:
    """Where each pixel's value comes from after one round: flat int32 indices (n · height · width).

    A pixel whose neighbour was replaced before it holds what that neighbour got. Following
    these links all at once, twice as far in each step, gives what the sequence would.
    """
    _, n, height, width = offsets.shape
    pixels = n * height * width
    # The generators' loops run from side − reach down to reach + 1.
    outside = _outside_loops(height, width, reach, offsets.device)
    shift = (offsets[0] * width).add_(offsets[1]).mul_(1 - outside).flatten()
    # The first half stands for what pixels hold after the round, the second for what they held
    # before it, where a link ends.
    link = torch.arange(2 * pixels, dtype=torch.int32, device=offsets.device)
    origin = link[:pixels] + shift
    if reach == 1:
        return origin  # offsets −1 and 0 never point at a pixel replaced before
    # A link goes on where it points ahead, to a pixel that the loops have come by, or never come to
    # and whose own link ends.
    is_end = shift.sub_(1).bitwise_right_shift_(31).neg_()
    link[:pixels] = origin.add_(is_end, alpha=pixels)
    while pixels and int(link[:pixels].min()) < pixels:
        link[:pixels] = link.index_select(0, link[:pixels])
    return link[:pixels] - pixels


@functools.lru_cache(maxsize=32)
def _outside_loops(height: int, width: int, reach: int, device: torch.device) -> Tensor:
    """1 for the border pixels that glass blur leaves in place, else 0; int32 (height, width)."""
    outside = torch.ones(height, width, dtype=torch.int32, device=device)
    outside[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = 0
    return outside


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
    # Σ_z R_z X C_zᵀ as two products: across for all factors at once, then down and summed.
    across = torch.matmul(images, columns.flatten(0, 1).T)
    across = across.view(*images.shape[:-1], len(factors), width).transpose(-2, -3)
    across = across.flatten(-3, -2)
    total = torch.matmul(rows.transpose(0, 1).flatten(1), across)
    return total.add_(images).div_(len(factors) + 1)


def _draw_offsets(
    streams: RandomStreams, images: Tensor, constants: tuple[float, int, int], room: Tensor
) -> Draws:
    """Offsets of glass blur: both come from one word, the lower half across, the upper down."""
    _, reach, rounds = constants
    n, _, height, width = images.shape
    fields = torch.empty(rounds, 2, n, height, width, dtype=torch.int32, device=images.device)
    for number, (down, across) in enumerate(fields):
        words = streams.words(height * width, field=number).view(n, height, width)
        torch.bitwise_right_shift(words, 16, out=down).add_(1 << 15)
        torch.bitwise_and(words, 0xFFFF, out=across)
    return (fields.mul_(2 * reach).bitwise_right_shift_(16).sub_(reach),)


def _draw_angle(
    streams: RandomStreams, images: Tensor, constants: tuple[int, float], room: Tensor
) -> Draws:
    return (streams.uniform(1).flatten() * 90 - 45,)


PROCEDURES = {
    "gaussian_blur": Procedure(gaussian_blur),
    "defocus_blur": Procedure(defocus_blur),
    "glass_blur": Procedure(glass_blur, _draw_offsets),
    "motion_blur": Procedure(motion_blur, _draw_angle, storage="rounded", values_at_once=1 << 21),
    "zoom_blur": Procedure(zoom_blur),
}
