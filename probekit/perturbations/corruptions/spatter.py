"""The spatter corruption: drops of water or mud on the lens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from probekit.perturbations.corruptions.edges import distance_to, edges
from probekit.perturbations.corruptions.image_ops import luma, smooth
from probekit.runtime.randomness import RandomStreams

_WATER = (175 / 255, 238 / 255, 238 / 255)  # pale turquoise
_MUD = (63 / 255, 42 / 255, 20 / 255)
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


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
