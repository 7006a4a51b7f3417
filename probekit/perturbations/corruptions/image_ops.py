"""Smoothing, zooming and moving of image batches, each matching the library that the papers used."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "correlate",
    "luma",
    "mirrored",
    "mixed_across",
    "mixed_down",
    "sample_bilinear",
    "smooth",
    "zoom_matrices",
]

_LUMA = (0.299, 0.587, 0.114)


def mixed_across(images: Tensor, weights: Tensor) -> Tensor:
    """New columns, each a weighted sum of the old ones.

    Args:
        images: (..., height, width).
        weights: (new width, width).
    """
    if not _convolved_by_onednn(images):
        return torch.matmul(images, weights.T)
    new, old = weights.shape
    # Every row is a pixel, and the columns are its channels.
    rows = images.reshape(1, -1, 1, old).permute(0, 3, 1, 2)
    mixed = F.conv2d(rows, weights.reshape(new, old, 1, 1))
    return mixed.permute(0, 2, 3, 1).reshape(*images.shape[:-1], new)


def mixed_down(images: Tensor, weights: Tensor) -> Tensor:
    """New rows, each a weighted sum of the old ones.

    Args:
        images: (..., height, width).
        weights: (new height, height).
    """
    if not _convolved_by_onednn(images):
        return torch.matmul(weights, images)
    new, old = weights.shape
    *others, _, width = images.shape
    mixed = F.conv1d(images.reshape(-1, old, width), weights.reshape(new, old, 1))
    return mixed.view(*others, new, width)


def _convolved_by_onednn(images: Tensor) -> bool:
    """Whether torch hands convolutions of such images to oneDNN.

    Which takes half of the time that MKL takes for the same sums as a product, on AMD's processors.
    """
    if images.device.type != "cpu" or images.dtype != torch.float32:
        return False
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def smooth(
    images: Tensor,
    sigma: float,
    *,
    truncate: float = 4,
    mode: str = "nearest",
    times: float = 1,
) -> Tensor:
    """Gaussian blur over the last two axes, as ``scipy.ndimage.gaussian_filter`` has it.

    Each axis is mixed by a banded matrix, in which the borders are folded; a narrow band slides down
    instead. Defaults are those of ``skimage.filters.gaussian``.

    Args:
        images: (..., height, width).
        sigma: in pixels.
        truncate: the kernel ends after this many sigmas.
        mode: ``nearest`` repeats the border pixel, ``reflect`` mirrors with it.
        times: what the result is multiplied by, without a pass of its own.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return images if times == 1 else images * times
    height, width = images.shape[-2:]
    kind = (sigma, radius, mode, images.dtype, images.device)
    across = mixed_across(images, _smoothing_matrix(width, times, *kind))
    narrow = 2 * radius + 1 <= height // 2
    if narrow and mode == "nearest" and _convolved_by_onednn(images):
        return _slid_down(across, _gaussian(sigma, radius))
    return mixed_down(across, _smoothing_matrix(height, 1, *kind))


def _slid_down(images: Tensor, weights: Tensor) -> Tensor:
    """Every column convolved with symmetric weights, 2·radius + 1 of them; borders are repeated."""
    *_, height, width = images.shape
    radius = len(weights) // 2
    # Every image is one row of pixels, in which the columns are channels that are not mixed.
    rows = images.view(-1, 1, height, width).permute(0, 3, 1, 2)
    taps = weights.to(images).expand(width, 1, 1, -1)
    slid = F.conv2d(rows, taps, padding=(0, radius), groups=width)
    slid = slid.permute(0, 2, 3, 1).reshape(images.shape)
    # What lies outside counted as zero: the border's value is missing as often as weights fell there.
    outside = weights.cumsum(0)[:radius, None].to(images)
    slid[..., :radius, :].addcmul_(images[..., :1, :], outside.flip(0))
    slid[..., -radius:, :].addcmul_(images[..., -1:, :], outside)
    return slid


@functools.lru_cache(maxsize=32)
def _smoothing_matrix(
    length: int,
    times: float,
    sigma: float,
    radius: int,
    mode: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    weights = _gaussian(sigma, radius) * times
    offset = torch.arange(-radius, radius + 1)
    source = torch.arange(length)[:, None] + offset
    source = source.clamp(0, length - 1) if mode == "nearest" else mirrored(source, length)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, source, weights.expand(length, -1)).to(device, dtype)


@functools.lru_cache(maxsize=32)
def _gaussian(sigma: float, radius: int) -> Tensor:
    """Weights from −radius to radius, of sum 1; float64."""
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offset / sigma) ** 2)
    return weights / weights.sum()


def mirrored(position: Tensor, length: int) -> Tensor:
    """Whole positions folded into 0..length−1 by mirrors on the outer edges: d c b a | a b c d."""
    position = position % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position)


def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """Correlate (..., height, width) with an odd kernel; borders mirrored as d c b | a b c d.

    By Fourier transform, which beats direct sums on one channel from a few taps on.
    """
    height, width = images.shape[-2:]
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    rows = _reflected(torch.arange(-up, height + up), height).to(images.device)
    columns = _reflected(torch.arange(-left, width + left), width).to(images.device)
    padded = images.index_select(-2, rows).index_select(-1, columns)
    size = (_round_up(len(rows)), _round_up(len(columns)))
    response = torch.fft.rfft2(kernel.to(images), s=size).conj()
    spectrum = torch.fft.rfft2(padded, s=size).mul_(response)
    correlated: Tensor = torch.fft.irfft2(spectrum, s=size)
    return correlated[..., :height, :width]


def _reflected(position: Tensor, length: int) -> Tensor:
    """Whole positions folded by mirrors on the outer pixels' centres: d c b | a b c d."""
    if length == 1:
        return torch.zeros_like(position)
    position = position.abs() % (2 * length - 2)
    return torch.minimum(position, 2 * length - 2 - position)


def _round_up(length: int) -> int:
    """The next length that a Fourier transform likes: a multiple of 4 of small factors."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 4 == 0:
            return length
        length += 1


@functools.lru_cache(maxsize=64)
def zoom_matrices(
    length: int, factors: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Interpolation matrices of centre zooms along one axis, (factors, length, length).

    As the generators zoom: the middle ``ceil(length / factor)`` pixels are enlarged by
    ``scipy.ndimage.zoom`` (order 1, ends on ends), and what sticks out is trimmed on both sides.
    """
    matrices = [_zoom_matrix(length, factor) for factor in factors]
    return torch.stack(matrices).to(device, dtype)


def _zoom_matrix(length: int, factor: float) -> Tensor:
    crop = math.ceil(length / factor)
    start = (length - crop) // 2
    zoomed = round(crop * factor)
    trim = (zoomed - length) // 2
    position = (torch.arange(length).double() + trim) * ((crop - 1) / max(zoomed - 1, 1))
    lower = position.floor().clamp(0, max(crop - 2, 0))
    share = position - lower
    matrix = torch.zeros(length, length, dtype=torch.float64)
    row = torch.arange(length)
    low = lower.long() + start
    matrix[row, low] += 1 - share
    matrix[row, (low + 1).clamp(max=length - 1)] += share
    return matrix


def sample_bilinear(images: Tensor, x: Tensor, y: Tensor, *, centres: bool) -> Tensor:
    """Values of images (n, channels, height, width) at pixel positions x, y (n, height, width).

    Outside, the image is mirrored: on the centres of its outer pixels (d c b | a b c d) or on
    its outer edges (d c b a | a b c d).
    """
    height, width = images.shape[-2:]
    if centres:
        grid = torch.stack([x * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], -1)
    else:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=centres)


def luma(images: Tensor) -> Tensor:
    """Brightness of colour images by the weights of ITU-R BT.601, (n, 1, height, width)."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("nchw,c->nhw", images, weights).unsqueeze(1)
