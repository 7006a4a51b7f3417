"""Smoothing, zooming and resampling of image batches, matching the libraries used in the papers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


def smooth(images: Tensor, sigma: float, *, truncate: float = 4, mode: str = "nearest") -> Tensor:
    """Gaussian blur over the last two axes, as `scipy.ndimage.gaussian_filter` defines it.

    The defaults are those of `skimage.filters.gaussian`; `sigma` is in pixels.
    """
    height, width = images.shape[-2:]
    down = _smoothing_matrix(height, sigma, truncate, mode).to(images)
    across = _smoothing_matrix(width, sigma, truncate, mode).to(images)
    return down @ (images @ across.T)


def _smoothing_matrix(length: int, sigma: float, truncate: float, mode: str) -> Tensor:
    """The weight of every input pixel of a line in every output pixel, float64 (length, length)."""
    radius = int(truncate * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    weights /= weights.sum()
    source = _inside(torch.arange(length)[:, None] + offset, length, mode)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, source, weights.expand(length, -1))


def _inside(position: Tensor, length: int, mode: str) -> Tensor:
    """Maps positions outside a line to pixels inside it, with SciPy's names for the modes.

    `nearest` repeats the border pixel (a a a | a b c), `reflect` mirrors at the outer edges
    (c b a | a b c), `mirror` mirrors at the centers of the outer pixels (d c b | a b c d).
    """
    if mode == "nearest":
        return position.clamp(0, length - 1)
    if mode == "reflect":
        position = position % (2 * length)
        return torch.minimum(position, 2 * length - 1 - position)
    period = max(2 * length - 2, 1)
    position = position % period
    return torch.minimum(position, period - position)


def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate (..., height, width) with an odd-sized kernel by FFT, with `mirror` borders."""
    height, width = images.shape[-2:]
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    rows = _inside(torch.arange(-up, height + up), height, "mirror").to(images.device)
    columns = _inside(torch.arange(-left, width + left), width, "mirror").to(images.device)
    padded = images.index_select(-2, rows).index_select(-1, columns)
    size = [next_fast_len(length, real=True) for length in (len(rows), len(columns))]
    response = torch.fft.rfft2(kernel.to(images), s=size).conj()
    correlated: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=size) * response, s=size)
    return correlated[..., :height, :width]


def smear(images: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Smear along a line, with the weights of half a Gaussian, as ImageMagick's motion blur does.

    The line has 2·radius + 1 pixels; `angle` (n,) is that of each image's line in degrees.
    """
    height, width = images.shape[-2:]
    taps = 2 * radius + 1
    step = torch.arange(taps, dtype=torch.float64)
    weights = torch.exp(-(step**2) / (2 * sigma**2))
    weights /= weights.sum()
    radians = torch.deg2rad(angle.cpu().double())[:, None]
    tops = taps + torch.ceil(step * radians.sin() - 0.5).long()
    lefts = taps + torch.ceil(step * radians.cos() - 0.5).long()
    padded = F.pad(images, (taps,) * 4, mode="replicate")
    smeared = torch.zeros_like(images)
    for total, source, down, right in zip(
        smeared, padded, tops.tolist(), lefts.tolist(), strict=True
    ):
        for weight, top, left in zip(weights.tolist(), down, right, strict=True):
            total.add_(source[:, top : top + height, left : left + width], alpha=weight)
    return smeared


def center_zoom(images: Tensor, factor: float) -> Tensor:
    """Zoom into the center of images (n, channels, height, width) by a factor, keeping their size.

    As in the generators, the central `ceil(side / factor)` pixels are enlarged bilinearly with aligned
    corners, and the excess is trimmed on both sides.
    """
    sides = images.shape[-2:]
    crops = [math.ceil(side / factor) for side in sides]
    zooms = [round(crop * factor) for crop in crops]
    middle = _middle(images, crops)
    return _middle(F.interpolate(middle, size=zooms, mode="bilinear", align_corners=True), sides)


def _middle(images: Tensor, sides: Sequence[int]) -> Tensor:
    top, left = ((old - new) // 2 for old, new in zip(images.shape[-2:], sides, strict=True))
    return images[..., top : top + sides[0], left : left + sides[1]]


def sample_bilinear(images: Tensor, x: Tensor, y: Tensor, *, centers: bool) -> Tensor:
    """Values of images (n, channels, height, width) at pixel positions x, y (n, height, width).

    Outside, the image is mirrored at the centers of its outer pixels or at its outer edges.
    """
    height, width = images.shape[-2:]
    if centers:
        grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=centers)


def luma(images: Tensor) -> Tensor:
    """Luma of color images with the weights of ITU-R BT.601, (n, 1, height, width)."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("nchw,c->nhw", images, weights).unsqueeze(1)
