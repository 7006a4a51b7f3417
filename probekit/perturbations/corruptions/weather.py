"""Weather corruptions: snow, frost, fog and brightness."""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from probekit.errors import OptionError
from probekit.perturbations.corruptions.image_ops import center_zoom, luma, smear
from probekit.runtime.randomness import RandomStreams

_PHOTOGRAPHS = 5  # the generators use only the first five of the six photographs


def snow(images: Tensor, constants: tuple[float, ...], streams: RandomStreams) -> Tensor:
    """Whiten the image and add a layer of snow and the same layer rotated by 180°.

    The constants are mean and standard deviation of the layer's noise; its zoom; the threshold below
    which there are no flakes; radius and sigma of the motion blur, whose angle is uniform from −135° to
    −45°; and the weight of the original image.
    """
    mean, deviation, zoom, threshold, radius, sigma, share = constants
    noise = streams.normal(1, *images.shape[-2:]).to(images.dtype)
    layer = center_zoom(noise * deviation + mean, zoom)
    layer = torch.nn.functional.threshold(layer, threshold, 0).clamp(max=1)
    layer = (layer * 255).floor() / 255
    layer = smear(layer, int(radius), sigma, streams.uniform(1, field=1)[:, 0] * 90 - 135)
    layer = (layer * 255).round() / 255
    white = torch.maximum(images, luma(images) * 1.5 + 0.5)
    return share * images + (1 - share) * white + layer + layer.flip(-1, -2)


def frost(images: Tensor, constants: tuple[float, float, float], streams: RandomStreams) -> Tensor:
    """Mix with random crops of frost photographs: a·x + b·frost; the last constant is their scale."""
    share, frost_share, scale = constants
    crops = frost_crops(streams, scale, *images.shape[-2:]).to(images)
    return images * share + (luma(crops) if images.shape[1] == 1 else crops) * frost_share


def frost_crops(streams: RandomStreams, scale: float, height: int, width: int) -> Tensor:
    """A random crop of one of the frost photographs per stream, (n, 3, height, width)."""
    photographs = list(frost_photographs(scale))
    for number, photograph in enumerate(photographs):
        factor = max((height + 1) / photograph.shape[1], (width + 1) / photograph.shape[2])
        if factor > 1:
            size = [math.ceil(side * factor) for side in photograph.shape[1:]]
            photographs[number] = interpolate(photograph[None], size=size, mode="bilinear")[0]
    crops = torch.empty(len(streams), 3, height, width)
    which = streams.integers(len(photographs), 1)[:, 0].tolist()
    corners = streams.uniform(2, field=1).tolist()
    for crop, number, (down, right) in zip(crops, which, corners, strict=True):
        photograph = photographs[number]
        top = int(down * (photograph.shape[1] - height))
        left = int(right * (photograph.shape[2] - width))
        crop.copy_(photograph[:, top : top + height, left : left + width])
    return crops


def fog(images: Tensor, constants: tuple[float, float], streams: RandomStreams) -> Tensor:
    """Add a plasma fractal of this strength and decay, and rescale to the image's maximum."""
    strength, decay = constants
    height, width = images.shape[-2:]
    side = 1 << max(height - 1, width - 1, 1).bit_length()
    heights = plasma(streams.uniform(side * side - 1).to(images.dtype), decay)
    brightest = images.amax((1, 2, 3), keepdim=True)
    fogged = images + strength * heights[:, None, :height, :width]
    return fogged * (brightest / (brightest + strength))


def plasma(uniform: Tensor, decay: float) -> Tensor:
    """Fractal landscapes in [0, 1] by diamond-square on a torus (Fournier et al., CACM 25, 1982).

    Every point is the mean of four known points plus a random amount in ±wibble². The wibble starts at
    100 and is divided by the decay at each level; each level halves the step. `uniform` are numbers in
    [0, 1), (n, side² − 1) for a side that is a power of two, in the order in which points are computed;
    the result is (n, side, side).
    """
    n = len(uniform)
    noise = uniform * 2 - 1
    heights = noise.new_zeros(n, 1, 1)
    size, used, wibble = 1, 0, 100.0
    while used < noise.shape[1]:
        fresh = noise[:, used : used + 3 * size * size].view(n, 3, size, size)
        heights = _refined(heights, fresh, wibble * wibble)
        used += 3 * size * size
        size, wibble = 2 * size, wibble / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights.div_(heights.amax((1, 2), keepdim=True))


def _refined(corners: Tensor, noise: Tensor, amplitude: float) -> Tensor:
    """Applies one level of diamond-square: (n, size, size) to (n, 2·size, 2·size)."""
    n, size, _ = corners.shape
    below = corners + corners.roll(-1, 1)
    middles = (below + below.roll(-1, 2)).div_(4).add_(noise[:, 0], alpha=amplitude)
    tops = (middles + middles.roll(1, 1)).add_(corners).add_(corners.roll(-1, 2))
    tops.div_(4).add_(noise[:, 1], alpha=amplitude)
    lefts = (middles + middles.roll(1, 2)).add_(below)
    lefts.div_(4).add_(noise[:, 2], alpha=amplitude)
    finer = corners.new_empty(n, size, 2, size, 2)
    finer[:, :, 0, :, 0] = corners
    finer[:, :, 0, :, 1] = tops
    finer[:, :, 1, :, 0] = lefts
    finer[:, :, 1, :, 1] = middles
    return finer.view(n, 2 * size, 2 * size)


def brightness(images: Tensor, amount: float, streams: RandomStreams) -> Tensor:
    """Increase the HSV value V, clipped at 1; hue and saturation do not change.

    This scales a pixel's channels by the change of their maximum; black becomes gray.
    """
    if images.shape[1] == 1:
        return images + amount
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    scaled = images * (brighter / value.clamp(min=1e-12))
    return torch.where(value <= 1e-12, brighter, scaled)


@functools.lru_cache(maxsize=4)
def frost_photographs(scale: float) -> tuple[Tensor, ...]:
    """The frost photographs at this scale, float (3, height, width) in [0, 1] on 8-bit levels.

    They are read from the files of the package imagecorruptions-imaug, which is not imported.
    """
    photographs = []
    for path in _frost_files():
        with Image.open(path) as image:
            values = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
        if scale != 1:
            size = [round(side * scale) for side in values.shape[1:]]
            values = _subsampled(values, size, scale)
        photographs.append(values)
    return tuple(photographs)


def _frost_files() -> list[Path]:
    package = importlib.util.find_spec("imagecorruptions")
    folders = list(package.submodule_search_locations or ()) if package else []
    found = [file for folder in folders for file in sorted(Path(folder, "frost").glob("frost*.*"))]
    if len(found) < _PHOTOGRAPHS:
        raise OptionError(
            "corruption 'frost' needs the frost photographs, which are not installed; "
            'install them with: pip install "probekit[frost]"'
        )
    return found[:_PHOTOGRAPHS]


def _subsampled(values: Tensor, size: list[int], scale: float) -> Tensor:
    """Resizes bilinearly without anti-aliasing, as OpenCV does with a scale factor."""
    for axis, length in zip((-2, -1), size, strict=True):
        side = values.shape[axis]
        position = ((torch.arange(length).double() + 0.5) / scale - 0.5).clamp(0, side - 1)
        lower = position.floor()
        shape = [-1, 1] if axis == -2 else [-1]
        share = (position - lower).to(values.dtype).view(shape)
        low = values.index_select(axis, lower.long())
        high = values.index_select(axis, (lower.long() + 1).clamp(max=side - 1))
        values = low + (high - low) * share
    return values.mul(255).round().div(255)
