"""Smoothing and mixing of image batches, on every way that they take, against scipy and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from probekit.perturbations.corruptions import image_ops
from probekit.perturbations.corruptions.image_ops import mixed_across, mixed_down, smooth

DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["oneDNN", "products"])
def way(request, monkeypatch):
    """Sums by oneDNN's convolutions, where they may be, or by products."""
    if request.param == "products":
        monkeypatch.setattr(image_ops, "_convolved_by_onednn", lambda images: False)
    return request.param


def batch(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["nearest", "reflect"])
# Bands up to half of the height and above, and such as fold the image several times.
@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.5, 2.1, 12.0])
@pytest.mark.parametrize("shape", [(2, 3, 40, 24), (1, 1, 5, 9), (3, 1, 1, 7), (40, 24), (1, 1)])
def test_smoothing_is_scipys(way, dtype, mode, sigma, shape):
    images = batch(*shape, dtype=dtype)
    expected = ndimage.gaussian_filter(
        images.double().numpy(), sigma, mode=mode, truncate=3, axes=(-2, -1)
    )
    smoothed = smooth(images, sigma, truncate=3, mode=mode, times=2.5)
    assert smoothed.dtype == dtype
    assert smoothed.shape == images.shape
    precision = 2e-6 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(smoothed.numpy(), 2.5 * expected, atol=precision)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 1, 1, 5), (2, 1, 6, 1), (6, 5)])
def test_mixing_is_a_product(way, dtype, shape):
    images = batch(*shape, dtype=dtype)
    *_, height, width = shape
    right, left = batch(4, width, dtype=dtype) - 0.5, batch(7, height, dtype=dtype) - 0.5
    precision = 1e-6 if dtype == torch.float32 else 1e-12
    wide = images.double().numpy()
    across, down = mixed_across(images, right), mixed_down(images, left)
    assert across.dtype == down.dtype == dtype
    np.testing.assert_allclose(across.numpy(), wide @ right.double().numpy().T, atol=precision)
    np.testing.assert_allclose(down.numpy(), left.double().numpy() @ wide, atol=precision)


def test_images_may_be_views():
    images = batch(4, 3, 32, 20)[::2].transpose(-1, -2)
    contiguous = images.contiguous()
    weights = batch(5, 32)
    torch.testing.assert_close(mixed_across(images, weights), mixed_across(contiguous, weights))
    torch.testing.assert_close(smooth(images, 1.0), smooth(contiguous, 1.0))
