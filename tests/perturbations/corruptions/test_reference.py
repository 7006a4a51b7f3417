"""Every corruption type compared with a reference for one image in numpy, scipy and Pillow.

Both use the same random streams.
"""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from skimage import color, data, filters, transform

from probekit.perturbations.corruptions.corruption import (
    _PROCEDURES,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    TABLE_SIZES,
    constants_of,
)
from probekit.perturbations.corruptions.noise import shot_noise
from probekit.perturbations.corruptions.spatter import distance_to
from probekit.perturbations.corruptions.weather import frost_crops, frost_photographs, plasma
from probekit.runtime.randomness import RandomStreams

SEVERITIES = (1, 2, 3, 4, 5)


def photographs(side):
    """Two photographs as 8-bit images, (2, side, side, 3)."""
    pictures = [Image.fromarray(image) for image in (data.astronaut(), data.chelsea())]
    return np.stack([np.asarray(p.crop((0, 0, 300, 300)).resize((side, side))) for p in pictures])


def gaussian(values, sigma):
    return filters.gaussian(
        values, sigma, mode="nearest", truncate=4, channel_axis=-1 if values.ndim == 3 else None
    )


def gaussian_noise(x, deviation, field):
    return x + deviation * np.moveaxis(field, 0, -1)


def speckle_noise(x, deviation, field):
    return x + x * deviation * np.moveaxis(field, 0, -1)


def impulse_noise(x, share, field):
    rank = np.moveaxis(field, 0, -1)
    return np.where(rank >= 1 - share / 2, 1, np.where(rank < share / 2, 0, x))


def gaussian_blur(x, sigma):
    return gaussian(x, sigma)


def defocus_blur(x, constants):
    radius, alias = constants
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    offset = np.arange(taps) - taps // 2
    weights = np.exp(-(offset**2) / (2 * alias**2))
    weights /= weights.sum()
    kernel = disk / disk.sum()
    for side in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights, axis=side, mode="mirror")
    return np.stack([ndimage.correlate(x[..., c], kernel, mode="mirror") for c in range(3)], -1)


def glass_blur(x, constants, *offsets):
    sigma, reach, rounds = constants
    values = np.floor(gaussian(x, sigma) * 255)
    side = len(x)
    assert len(offsets) == rounds
    for down, across in offsets:
        assert (min(down.min(), across.min()), max(down.max(), across.max())) == (-reach, reach - 1)
        for h in range(side - reach, reach, -1):
            for w in range(side - reach, reach, -1):
                values[h, w] = values[h + down[h, w], w + across[h, w]]
    return gaussian(values / 255, sigma)


def smeared(values, radius, sigma, angle):
    """ImageMagick's motion blur: taps along a line from each pixel, with edge values repeated."""
    taps = 2 * radius + 1
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(taps)]
    height, width = values.shape[:2]
    total = np.zeros(values.shape)
    for i, weight in enumerate(weights):
        down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += weight / sum(weights) * values[rows][:, columns]
    return total


def motion_blur(x, constants, angle):
    return smeared(x, *constants, float(angle))


def center_zoom(values, factor):
    side = len(values)
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    zooms = (factor, factor) + (1,) * (values.ndim - 2)
    zoomed = ndimage.zoom(values[top : top + crop, top : top + crop], zooms, order=1)
    trim = (len(zoomed) - side) // 2
    return zoomed[trim : trim + side, trim : trim + side]


def zoom_blur(x, factors):
    return (x + sum(center_zoom(x, factor) for factor in factors)) / (len(factors) + 1)


def snow(x, constants, field, angle):
    mean, deviation, zoom, threshold, radius, sigma, share = constants
    layer = center_zoom(field[0] * deviation + mean, zoom)
    layer[layer < threshold] = 0
    layer = np.floor(np.clip(layer, 0, 1) * 255) / 255
    layer = np.round(smeared(layer, radius, sigma, float(angle)) * 255) / 255
    gray = x @ (0.299, 0.587, 0.114)
    white = np.maximum(x, (gray * 1.5 + 0.5)[..., None])
    return share * x + (1 - share) * white + (layer + np.rot90(layer, 2))[..., None]


def frost(x, constants, crop):
    return constants[0] * x + constants[1] * np.moveaxis(crop, 0, -1)


def fog(x, constants, heights):
    strength, _ = constants
    return (x + strength * heights[0][..., None]) * x.max() / (x.max() + strength)


def brightness(x, amount):
    hsv = color.rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
    return color.hsv2rgb(hsv)


def saturate(x, constants):
    hsv = color.rgb2hsv(x)
    hsv[..., 1] = np.clip(hsv[..., 1] * constants[0] + constants[1], 0, 1)
    return color.hsv2rgb(hsv)


def contrast(x, factor):
    mean = x.mean((0, 1))
    return (x - mean) * factor + mean


def elastic_transform(x, constants, corners, field):
    side = len(x)
    amplitude, sigma, move = (side * share for share in constants)
    middle, reach = side // 2, side // 3
    points = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    solved = np.linalg.solve(np.column_stack([points, np.ones(3)]), points + move * corners)
    matrix = transform.AffineTransform(np.vstack([solved.T, [0, 0, 1]])).inverse
    rows, columns = np.mgrid[:side, :side].astype(float)
    places = matrix(np.stack([columns.ravel(), rows.ravel()], -1)).T[::-1].reshape(2, side, side)
    moved = [
        ndimage.map_coordinates(c, places, order=1, mode="mirror") for c in np.moveaxis(x, -1, 0)
    ]
    if amplitude:
        dx, dy = (ndimage.gaussian_filter(f, sigma, truncate=3, mode="reflect") for f in field)
        places = np.stack([rows + amplitude * dy, columns + amplitude * dx])
        moved = [ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in moved]
    return np.stack(moved, -1)


def pixelate(x, share):
    picture = Image.fromarray(np.uint8(np.round(x * 255)))
    small = int(len(x) * share)
    picture = picture.resize((small, small), Image.Resampling.BOX)
    return np.asarray(picture.resize((len(x), len(x)), Image.Resampling.BOX)) / 255


def jpeg_compression(x, quality):
    file = io.BytesIO()
    Image.fromarray(np.uint8(np.round(x * 255))).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def mud(x, constants, field):
    mean, deviation, sigma, threshold, strength, _ = constants
    liquid = gaussian(field[0] * deviation + mean, sigma)
    cover = gaussian((liquid > threshold).astype(float), strength)[..., None]
    cover[cover < 0.8] = 0
    return x * (1 - cover) + cover * np.array([63, 42, 20]) / 255


def water(x, constants, field):
    """The operations of the original generators, computed with the library that they use."""
    cv2 = pytest.importorskip("cv2")
    mean, deviation, sigma, threshold, strength, _ = constants
    liquid = gaussian(field[0] * deviation + mean, sigma)
    liquid[liquid < threshold] = 0
    liquid = np.clip(liquid * 255, 0, 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    shade = cv2.blur(cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, emboss), (3, 3))
    shine = liquid.astype(float) * shade
    shine /= max(shine.max(), 1)
    return x + strength * shine[..., None] * np.array([175, 238, 238]) / 255


def spatter(x, constants, field):
    return (mud if constants[-1] else water)(x, constants, field)


REFERENCES = {
    reference.__name__: reference
    for reference in (
        *(gaussian_noise, speckle_noise, impulse_noise, gaussian_blur, defocus_blur, glass_blur),
        *(motion_blur, zoom_blur, snow, frost, fog, brightness, saturate, contrast),
        *(elastic_transform, pixelate, jpeg_compression, spatter),
    )
}


def draws(corruption, constants, side, streams):
    """The random numbers that a type draws for images of this size; nothing for deterministic types."""
    match corruption:
        case "gaussian_noise" | "speckle_noise":
            return [streams.normal(3, side, side)]
        case "impulse_noise":
            return [streams.uniform(3, side, side)]
        case "glass_blur":
            _, reach, rounds = constants
            return [
                streams.integers(2 * reach, 2, side, side, field=number) - reach
                for number in range(rounds)
            ]
        case "motion_blur":
            return [streams.uniform(1)[:, 0] * 90 - 45]
        case "snow":
            return [streams.normal(1, side, side), streams.uniform(1, field=1)[:, 0] * 90 - 135]
        case "frost":
            return [frost_crops(streams, constants[2], side, side)]
        case "fog":
            heights = plasma(streams.uniform(4 ** (side - 1).bit_length() - 1), constants[1])
            return [heights[:, None, :side, :side]]
        case "elastic_transform":
            field = streams.uniform(2, side, side, field=1)
            return [streams.uniform(3, 2) * 2 - 1, field * 2 - 1]
        case "spatter":
            return [streams.normal(1, side, side)]
    return []


# Intermediate truncation to 8 bits occasionally turns rounding errors into whole steps; this share of
# values may differ. The narrowest glass blurs move many values only slightly below a step.
STEPS_ON_THE_WAY = {"glass_blur": 0.03, "snow": 0.005, "pixelate": 0.005, "spatter": 0.005}


def test_every_type_except_shot_noise_has_a_reference():
    # Shot noise is compared in distribution, below.
    assert {*REFERENCES, "shot_noise"} == {*CORRUPTIONS, *EXTRA_CORRUPTIONS}


@pytest.mark.parametrize("size", TABLE_SIZES)
@pytest.mark.parametrize("corruption", REFERENCES)
def test_each_type_equals_its_reference(corruption, size):
    if corruption == "frost":
        pytest.importorskip("imagecorruptions", exc_type=ImportError)
    pictures = photographs(size)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255
    procedure = _PROCEDURES[corruption]
    for severity in SEVERITIES if size < 224 else (1, 4):
        constants = constants_of(corruption, severity, size)
        streams = RandomStreams(f"test {severity}", [3, 4])
        damaged = procedure(images, constants, streams)
        drawn = draws(corruption, constants, size, streams)
        for number, picture in enumerate(pictures):
            mine = damaged[number].permute(1, 2, 0).clamp(0, 1).numpy()
            own = [draw[number].numpy() for draw in drawn]
            theirs = REFERENCES[corruption](picture / 255, constants, *own).clip(0, 1)
            off = np.abs(mine - theirs)
            if corruption in STEPS_ON_THE_WAY:
                share = STEPS_ON_THE_WAY[corruption]
                assert (off > 1e-4).mean() < share, (severity, off.max())
            else:
                assert off.max() < 1e-5, severity


@pytest.mark.parametrize(("height", "width"), [(61, 40), (17, 90), (33, 47), (1, 19)])
def test_pixels_on_the_edge_of_a_box_are_pixelated_as_by_pillow(height, width):
    levels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    for severity in SEVERITIES:
        share = constants_of("pixelate", severity, 32)
        small = max(int(width * share), 1), max(int(height * share), 1)
        picture = Image.fromarray(levels).resize(small, Image.Resampling.BOX)
        picture = np.asarray(picture.resize((width, height), Image.Resampling.BOX)) / 255
        images = torch.from_numpy(levels / 255)[None, None]
        own = _PROCEDURES["pixelate"](images, share, RandomStreams("test", [0]))[0, 0].numpy()
        assert np.abs(own - picture).max() < 1e-9, severity


@pytest.mark.parametrize("decay", [3, 1.75])
def test_plasma_equals_pointwise_diamond_square(decay):
    side = 16
    uniform = torch.rand(1, side * side - 1, generator=torch.Generator().manual_seed(0))
    numbers = iter((uniform[0].double() * 2 - 1).tolist())
    heights = np.zeros((side, side))
    step, wibble = side, 100.0
    while step > 1:
        half = step // 2
        for dy, dx in ((half, half), (0, half), (half, 0)):
            ways = [(-half, -half), (-half, half), (half, -half), (half, half)]
            if (dy, dx) != (half, half):
                ways = [(-half, 0), (half, 0), (0, -half), (0, half)]
            for y in range(dy, side, step):
                for x in range(dx, side, step):
                    around = [heights[(y + a) % side, (x + b) % side] for a, b in ways]
                    heights[y, x] = sum(around) / 4 + wibble**2 * next(numbers)
        step, wibble = half, wibble / decay
    heights -= heights.min()
    mine = plasma(uniform.double(), decay)[0].numpy()
    assert np.allclose(mine, heights / heights.max(), atol=1e-9)


@pytest.mark.parametrize("photons", [500, 60, 3])
@pytest.mark.parametrize("value", [0.0, 1 / 255, 100 / 255, 0.3337, 1.0])
def test_shot_noise_is_poisson(photons, value):
    n = 200_000
    streams = RandomStreams(f"{photons} {value}", [0])
    noisy = shot_noise(torch.full((1, 1, 1, n), value), photons, streams)
    counts = (noisy * photons).round().flatten().numpy().astype(int)
    expected = stats.poisson(photons * np.float32(value)).pmf(np.arange(counts.max() + 2)) * n
    observed = np.bincount(counts, minlength=len(expected))
    if value == 0:
        assert observed[0] == n
        return
    often = expected > 20
    observed = np.append(observed[often], observed[~often].sum())
    expected = np.append(expected[often], n - expected[often].sum())
    expected = np.maximum(expected, 1e-9)
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, len(expected) - 1) > 1e-4


def test_chamfer_distances_equal_those_of_the_mask():
    marked = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.98
    mine = distance_to(marked, limit=20).numpy()
    rows, columns = np.mgrid[:20, :30]
    for image, distances in zip(marked.numpy(), mine, strict=True):
        best = np.full((20, 30), 20.0)
        for y, x in zip(*image.nonzero(), strict=True):
            far = np.maximum(abs(rows - y), abs(columns - x))
            near = np.minimum(abs(rows - y), abs(columns - x))
            knights = np.where(2 * near <= far, near, far - near)
            diagonals = np.where(2 * near <= far, 0, 2 * near - far)
            straight = np.where(2 * near <= far, far - 2 * near, 0)
            best = np.minimum(best, 2.1969 * knights + 1.4 * diagonals + straight)
        assert np.allclose(distances, best, atol=1e-4)


@pytest.mark.parametrize("scale", [0.2, 0.3])
def test_frost_photographs_are_sampled_without_antialiasing(scale):
    pytest.importorskip("imagecorruptions", exc_type=ImportError)
    whole, small = frost_photographs(1)[0].numpy(), frost_photographs(scale)[0].numpy()
    rows, columns = ((np.arange(side) + 0.5) / scale - 0.5 for side in small.shape[1:])
    places = np.meshgrid(rows, columns, indexing="ij")
    for channel in range(3):
        expected = ndimage.map_coordinates(whole[channel], places, order=1, mode="nearest")
        assert np.abs(small[channel] - expected).max() <= 0.51 / 255
