"""Smoothing and zooming of image batches compared with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from probekit.perturbations.corruptions.image_ops import center_zoom, correlate, smooth

DTYPES = [torch.float32, torch.float64]


def batch(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def precision(dtype):
    return 2e-6 if dtype == torch.float32 else 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["nearest", "reflect"])
# Kernels narrower and wider than the image, and some that reflect it several times.
@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.5, 2.1, 12.0])
@pytest.mark.parametrize("shape", [(2, 3, 40, 24), (1, 1, 5, 9), (3, 1, 1, 7), (40, 24), (1, 1)])
def test_smoothing_equals_that_of_scipy(dtype, mode, sigma, shape):
    images = batch(*shape, dtype=dtype)
    expected = ndimage.gaussian_filter(
        images.double().numpy(), sigma, mode=mode, truncate=3, axes=(-2, -1)
    )
    smoothed = smooth(images, sigma, truncate=3, mode=mode)
    assert smoothed.dtype == dtype
    assert smoothed.shape == images.shape
    np.testing.assert_allclose(smoothed.numpy(), expected, atol=precision(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 40, 24), (1, 1, 5, 9), (3, 1, 1, 7), (40, 24)])
def test_correlation_equals_that_of_scipy(dtype, shape):
    images, kernel = batch(*shape, dtype=dtype), batch(7, 5, dtype=torch.float64) / 10
    expected = ndimage.correlate(
        images.double().numpy(), kernel.numpy()[(None,) * (len(shape) - 2)], mode="mirror"
    )
    found = correlate(images, kernel).numpy()
    np.testing.assert_allclose(found, expected, atol=precision(dtype))


@pytest.mark.parametrize("factor", [1, 1.01, 1.24, 1.75, 4.5])
@pytest.mark.parametrize("side", [28, 33, 64])
def test_center_zoom_equals_scipys_zoom_of_the_center(factor, side):
    image = batch(1, 1, side, side, dtype=torch.float64)
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    zoomed = ndimage.zoom(image[0, 0, top : top + crop, top : top + crop].numpy(), factor, order=1)
    trim = (len(zoomed) - side) // 2
    expected = zoomed[trim : trim + side, trim : trim + side]
    np.testing.assert_allclose(center_zoom(image, factor)[0, 0].numpy(), expected, atol=1e-12)


def test_images_may_be_views():
    images = batch(4, 3, 32, 20)[::2].transpose(-1, -2)
    torch.testing.assert_close(smooth(images, 1.0), smooth(images.contiguous(), 1.0))
