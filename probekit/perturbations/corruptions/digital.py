"""Digital corruptions: contrast, saturation, pixelation, elastic deformation and JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probekit.perturbations.corruptions.image_ops import sample_bilinear, smooth
from probekit.runtime.randomness import RandomStreams

_HALF = 0.5 + 1e-4  # rounds to the nearest, with ties upwards despite rounding errors


def contrast(images: Tensor, factor: float, streams: RandomStreams) -> Tensor:
    """Move each channel towards its mean: (x − mean)·factor + mean."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def saturate(images: Tensor, constants: tuple[float, float], streams: RandomStreams) -> Tensor:
    """Change the HSV saturation to S·a + b, clipped; hue and value do not change.

    As in common HSV conversions, gray pixels are red with zero saturation, so b tints them. Images
    with one channel have no saturation and are not changed.
    """
    if images.shape[1] == 1:
        return images
    scale, shift = constants
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    saturation = (spread / value.clamp(min=1e-12) * scale + shift).clamp(0, 1)
    # Distance of each channel below the maximum, as a fraction of the largest distance.
    depth = (value - images) / spread.clamp(min=1e-12)
    depth[:, 1:] += (spread <= 1e-12).to(images.dtype)
    return value * (1 - saturation * depth)


def pixelate(images: Tensor, share: float, streams: RandomStreams) -> Tensor:
    """Box-resize to this fraction of the side and back, with 8-bit rounding as in Pillow."""
    height, width = images.shape[-2:]
    down, rows = (part.to(images.device) for part in _box_resize(height, share))
    across, columns = (part.to(images.device) for part in _box_resize(width, share))
    small = (images * 255 @ across.to(images).T + _HALF).floor()
    small = (down.to(images) @ small + _HALF).floor()
    return small.index_select(-2, rows).index_select(-1, columns) / 255


def _box_resize(length: int, share: float) -> tuple[Tensor, Tensor]:
    """A box resize of a line to a fraction of its pixels and back.

    Returns the weights of the reduction, which are means of whole pixels, float64 (smaller, length), and the
    reduced pixel shown by each pixel of the enlarged line, (length,). A pixel whose center is on the edge
    of a box belongs to the box that rounding errors choose; the operations are those of Pillow.
    """
    smaller = max(int(length * share), 1)
    scale = length / smaller
    pixel = torch.arange(length).double()
    center = ((torch.arange(smaller).double() + 0.5) * scale)[:, None]
    distance = (pixel - center + 0.5) * (1 / scale)
    first, end = ((center + reach + 0.5).floor() for reach in (-scale / 2, scale / 2))
    inside = (distance > -0.5) & (distance <= 0.5) & (pixel >= first) & (pixel < end)
    shown = ((pixel + 0.5) * (smaller / length)).long().clamp(max=smaller - 1)
    return inside / inside.sum(1, keepdim=True, dtype=torch.float64), shown


def elastic_transform(
    images: Tensor, constants: tuple[float, float, float], streams: RandomStreams
) -> Tensor:
    """Move the image by a random affine map, then by a smooth random displacement.

    Both interpolate bilinearly. The affine map mirrors at the centers of the outer pixels, and the
    displacement at their edges. The affine map moves three points by uniform amounts; the displacement
    is smoothed uniform noise. The constants are amplitude and smoothing of the displacement and the
    size of the affine map's moves, all in units of the image side.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    amplitude, sigma, move = (side * share for share in constants)
    moves = (streams.uniform(3, 2) * 2 - 1).cpu().double() * move
    inverse = _affine_back(height, width, moves).to(images)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=images.dtype, device=images.device),
        torch.arange(width, dtype=images.dtype, device=images.device),
        indexing="ij",
    )
    source = inverse[:, :, 0, None, None] * x + inverse[:, :, 1, None, None] * y
    source += inverse[:, :, 2, None, None]
    images = sample_bilinear(images, source[:, 0], source[:, 1], centers=True)
    if not amplitude:
        return images
    field = streams.uniform(2, height, width, field=1).to(images.dtype) * 2 - 1
    shift = smooth(field, sigma, truncate=3, mode="reflect") * amplitude
    return sample_bilinear(images, x + shift[:, 0], y + shift[:, 1], centers=False)


def _affine_back(height: int, width: int, moves: Tensor) -> Tensor:
    """Maps (n, 2, 3) from output to input positions that undo the moves (n, 3, 2) of three points.

    The points are corners of a square in the center of the image, with two thirds of its side.
    """
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    reach = min(height, width) // 3
    points = middle + reach * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]).double()
    moved = torch.nn.functional.pad(points + moves, (0, 1), value=1.0)
    solved: Tensor = torch.linalg.solve(moved, points.expand(len(moves), 3, 2))
    return solved.mT


def jpeg_compression(images: Tensor, quality: int, streams: RandomStreams) -> Tensor:
    """Encode and decode a JPEG file of this quality, on the CPU, image by image."""
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(levels)
    for pixels, into in zip(levels, decoded, strict=True):
        file = io.BytesIO()
        image = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file, formats=["JPEG"]) as picture:
            into[:] = np.asarray(picture).reshape(into.shape)
    return torch.from_numpy(decoded).to(images.device, images.dtype).permute(0, 3, 1, 2) / 255
