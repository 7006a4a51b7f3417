"""Digital: contrast, colour, pixels, compression and elastic deformation."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from probekit.perturbations.corruptions.image_ops import (
    mixed_across,
    mixed_down,
    sample_bilinear,
    smooth,
)
from probekit.perturbations.corruptions.jpeg import jpeg_compression
from probekit.perturbations.corruptions.procedure import Draws, Procedure
from probekit.runtime.random_streams import RandomStreams

__all__ = ["PROCEDURES", "contrast", "elastic_transform", "pixelate", "saturate"]


_HALF = 0.5 + 1e-4  # to round to the nearest, ties upwards in spite of rounding errors


def contrast(images: Tensor, factor: float) -> Tensor:
    """Draw each channel towards its mean: (x − mean)·factor + mean."""
    mean = images.mean((2, 3), keepdim=True)
    return torch.add(mean * (1 - factor), images, alpha=factor)


def saturate(images: Tensor, constants: tuple[float, float]) -> Tensor:
    """Change the saturation of HSV to S·a + b, clipped; hue and value stay.

    Grey pixels count as red of no saturation, as in the usual conversions, so that b tints them.
    Images of one channel have no saturation and stay as they are.
    """
    if images.shape[1] == 1:
        return images
    scale, shift = constants
    value = images.amax(1, keepdim=True)
    spread = value - images.amin(1, keepdim=True)
    saturation = spread / value.clamp(min=1e-12)
    wanted = saturation.mul_(scale).add_(shift).clamp_(0, 1)
    # How far each channel lies below the maximum, as a share of the furthest.
    depth = (value - images) / spread.clamp(min=1e-12)
    is_grey = (spread <= 1e-12).to(images.dtype)
    depth[:, 1:] += is_grey
    return torch.addcmul(value, depth, wanted * value, value=-1)


def pixelate(images: Tensor, share: float) -> Tensor:
    """Box-resize to this share of the side and back, in steps of 8 bits as Pillow resizes."""
    height, width = images.shape[-2:]
    small_height, small_width = max(int(height * share), 1), max(int(width * share), 1)
    kind = (images.dtype, images.device)
    across, columns = _box_matrix(width, small_width, 255, *kind)
    down, rows = _box_matrix(height, small_height, 1, *kind)
    small = mixed_across(images, across).add_(_HALF).floor_()
    small = mixed_down(small, down).add_(_HALF).floor_().div_(255)
    return small.index_select(-1, columns).index_select(-2, rows)


@functools.lru_cache(maxsize=32)
def _box_matrix(
    length: int, smaller: int, scale_by: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A box resize to fewer pixels and back, along one axis.

    Returns:
        The weights of the way there, means of whole pixels times ``scale_by``, (smaller, length),
        and for each pixel of the way back the one that it shows, (length,).
    """
    scale = length / smaller
    centre = (torch.arange(smaller).double() + 0.5) * scale
    distance = (torch.arange(length).double() - centre[:, None] + 0.5) / scale
    inside = ((distance > -0.5) & (distance <= 0.5)).double()
    weights = inside * scale_by / inside.sum(1, keepdim=True)
    shown = ((torch.arange(length).double() + 0.5) / scale).long().clamp(max=smaller - 1)
    return weights.to(device, dtype), shown.to(device)


def elastic_transform(
    images: Tensor,
    constants: tuple[float, float, float],
    corners: Tensor,
    field: Tensor,
) -> Tensor:
    """Move the image by a random affine map, then by a smooth random displacement.

    Both are bilinear; the first mirrors on the centres of the outer pixels, the second on their
    edges.

    Args:
        images: (n, channels, height, width).
        constants: amplitude and smoothing of the displacement and size of the affine's moves, all
            in sides of the image.
        corners: how three points of the image move, x and y, uniform in [−1, 1], (n, 3, 2).
        field: the displacements before smoothing, x and y, uniform in [−1, 1],
            (n, 2, height, width).
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    amplitude, sigma, move = (side * share for share in constants)
    inverse = _affine_back(height, width, corners.double().cpu() * move).to(images)
    y, x = torch.meshgrid(
        torch.arange(height, dtype=images.dtype, device=images.device),
        torch.arange(width, dtype=images.dtype, device=images.device),
        indexing="ij",
    )
    source = inverse[:, :, 0, None, None] * x + inverse[:, :, 1, None, None] * y
    source += inverse[:, :, 2, None, None]
    images = sample_bilinear(images, source[:, 0], source[:, 1], centres=True)
    if not amplitude:
        return images
    shift = smooth(field, sigma, truncate=3, mode="reflect") * amplitude
    return sample_bilinear(images, x + shift[:, 0], y + shift[:, 1], centres=False)


def _affine_back(height: int, width: int, moves: Tensor) -> Tensor:
    """Maps from output to input positions (n, 2, 3) that undo the moves (n, 3, 2) of three points.

    The points are corners of a square of two thirds of the side around the image's middle.
    """
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    reach = min(height, width) // 3
    points = middle + reach * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]).double()
    moved = torch.nn.functional.pad(points + moves, (0, 1), value=1.0)
    solved: Tensor = torch.linalg.solve(moved, points.expand(len(moves), 3, 2))
    return solved.mT


def _draw_elastic(
    streams: RandomStreams, images: Tensor, constants: tuple[float, float, float], room: Tensor
) -> Draws:
    corners = streams.uniform(3, 2).mul_(2).sub_(1)
    return corners, streams.uniform(2, *images.shape[-2:], field=1).mul_(2).sub_(1)


PROCEDURES = {
    "contrast": Procedure(contrast),
    "elastic_transform": Procedure(elastic_transform, _draw_elastic),
    "pixelate": Procedure(pixelate, storage="as it is"),
    "jpeg_compression": Procedure(jpeg_compression, storage="as it is"),
    "saturate": Procedure(saturate),
}
