"""The spatter corruption: drops of water or mud on the lens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from probekit.perturbations.corruptions.image_ops import luma, smooth
from probekit.runtime.randomness import RandomStreams

_WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
_MUD = (63 / 255, 42 / 255, 20 / 255)
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
_TANGENT_22 = 13573 / 32768  # tan 22.5° in OpenCV's fixed point
_STEP, _DIAGONAL, _KNIGHT = 1.0, 1.4, 2.1969  # OpenCV's 5×5 mask for Euclidean distance


def spatter(images: Tensor, constants: tuple[float, ...], streams: RandomStreams) -> Tensor:
    """Cover part of the image with a liquid, in the shape of smoothed noise above a threshold.

    The constants are mean, standard deviation and smoothing of the noise; threshold; strength; and 0
    for water, which adds light shaded by the distance from the drops' edges, or 1 for mud, which is
    opaque.
    """
    mean, deviation, sigma, threshold, strength, is_mud = constants
    noise = streams.normal(1, *images.shape[-2:]).to(images.dtype)
    liquid = smooth(noise * deviation + mean, sigma)
    color = torch.tensor(_MUD if is_mud else _WATER).to(images).view(1, 3, 1, 1)
    if images.shape[1] == 1:
        color = luma(color)
    if is_mud:
        cover = smooth((liquid > threshold).to(images.dtype), strength)
        cover = F.threshold(cover, 0.8, 0)
        return images * (1 - cover) + color * cover
    liquid = F.threshold(liquid, threshold, 0)
    levels = liquid.mul(255).floor_().clamp_(max=255)
    shine = levels * _shading(levels)
    shine = shine / shine.amax((1, 2, 3), keepdim=True).clamp(min=1)
    return torch.addcmul(images, shine, color, value=strength)


def _shading(levels: Tensor) -> Tensor:
    """Light on the drops, integers from 0 to 255, (n, 1, height, width).

    This is the distance from the drops' edges, limited to 20, equalized and embossed, all in 8 bits as
    with OpenCV in the generators.
    """
    distance = distance_to(edges(levels[:, 0], 50, 150), limit=20).unsqueeze(1)
    distance = _mean3(distance).add_(1e-4).floor_()
    kernel = torch.tensor(_EMBOSS)[None, None].to(distance)
    shade = F.conv2d(_mirror(_equalized(distance)), kernel)
    return _mean3(shade.clamp_(0, 255)).round_()


def _mirror(images: Tensor) -> Tensor:
    return F.pad(images, (1, 1, 1, 1), mode="reflect")


def _mean3(images: Tensor) -> Tensor:
    return F.avg_pool2d(_mirror(images), 3, stride=1)


def _equalized(levels: Tensor) -> Tensor:
    """Equalizes the histogram of each image of integer levels; its lowest level becomes 0."""
    n = len(levels)
    flat = levels.flatten(1).long()
    counts = torch.zeros(n, 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    lowest = flat.amin(1, keepdim=True)
    of_lowest = counts.gather(1, lowest)
    others = flat.shape[1] - of_lowest
    below = counts.cumsum(1) - of_lowest
    table = (below.float() * (255 / others.clamp(min=1).float())).round_().clamp_(0, 255)
    table = torch.where(others == 0, lowest.float(), table).to(levels.dtype)
    return table.gather(1, flat).view(levels.shape)


def edges(levels: Tensor, low: float, high: float) -> Tensor:
    """Canny edges (PAMI 8, 1986) of images with integer levels, bool (n, height, width).

    Gradients are computed with Sobel filters; their magnitude is |gx| + |gy|. Ridges above `high` are
    edges, as are ridges above `low` that are connected to them.
    """
    padded = F.pad(levels.unsqueeze(1), (1, 1, 1, 1), mode="replicate")[:, 0]
    down = padded[:, 2:] - padded[:, :-2]
    across = padded[..., 2:] - padded[..., :-2]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    gx = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    size = gx.abs() + gy.abs()
    ridges = _is_ridge(gx, gy, size) & (size > low)
    neighbors = np.ones((1, 3, 3), dtype=bool)  # within an image, diagonals included
    sure, possible = ((ridges & (size > limit)).cpu().numpy() for limit in (high, low))
    joined = ndimage.binary_propagation(sure, structure=neighbors, mask=possible)
    return torch.from_numpy(joined).to(levels.device)


def _is_ridge(gx: Tensor, gy: Tensor, size: Tensor) -> Tensor:
    """Whether a gradient is the largest along its direction, quantized to four directions."""
    around = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[-2:]

    def neighbor(dy: int, dx: int) -> Tensor:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    x, y = gx.abs(), gy.abs()
    flat = y < x * _TANGENT_22
    steep = y > x * (_TANGENT_22 + 2)
    along_x = (size > neighbor(0, -1)) & (size >= neighbor(0, 1))
    along_y = (size > neighbor(-1, 0)) & (size >= neighbor(1, 0))
    falling = (size > neighbor(-1, -1)) & (size > neighbor(1, 1))
    rising = (size > neighbor(-1, 1)) & (size > neighbor(1, -1))
    opposite = (gx * gy) < 0
    diagonal = (opposite & rising) | (~opposite & falling)
    return (flat & along_x) | (steep & along_y) | (~flat & ~steep & diagonal)


def distance_to(marked: Tensor, limit: float) -> Tensor:
    """Distance of each pixel to the nearest marked one, float (n, height, width).

    This is the chamfer distance of Borgefors (CVGIP 34, 1986) with OpenCV's 5×5 mask, limited to
    `limit`. It takes one pass from top to bottom and one back.
    """
    n, height, width = marked.shape
    # Rows come first, so that each row is contiguous in memory.
    distance = torch.full((height, n, width), float(limit), device=marked.device)
    distance.masked_fill_(marked.transpose(0, 1), 0.0)
    ramp = torch.arange(width, dtype=torch.float32, device=marked.device) * _STEP
    for flipped in (False, True):
        if flipped:
            distance = distance.flip(0, 2)
        for row, here in enumerate(distance):
            if row > 0:
                near = F.pad(distance[row - 1], (2, 2), value=limit)
                _lower(here, near[:, 2:-2], _STEP)
                _lower(here, torch.minimum(near[:, 1:-3], near[:, 3:-1]), _DIAGONAL)
                knights = torch.minimum(near[:, :-4], near[:, 4:])
                if row > 1:
                    far = F.pad(distance[row - 2], (1, 1), value=limit)
                    knights = torch.minimum(knights, torch.minimum(far[:, :-2], far[:, 2:]))
                _lower(here, knights, _KNIGHT)
            torch.add((here - ramp).cummin(1).values, ramp, out=here)
    distance = distance.flip(0, 2)
    return distance.transpose(0, 1)


def _lower(here: Tensor, other: Tensor, step: float) -> None:
    torch.minimum(here, other + step, out=here)
