"""Images are converted to what a model expects when that is unambiguous, and refused otherwise."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import probekit as pk
from probekit.data.batches import Batches
from probekit.data.fitting import fit_to
from probekit.errors import DataError, ProbekitWarning

PIXELS = torch.randint(0, 256, (4, 3, 6, 5), dtype=torch.uint8)
SHARES = PIXELS.float() / 255


def image_model(channels: int = 3, **options: Any) -> pk.ImageModel:
    return pk.ImageModel(nn.Conv2d(channels, 2, 1), (0.5,), (0.25,), (channels, 6, 5), **options)


@pytest.mark.parametrize(
    "images",
    [PIXELS, SHARES, SHARES.double(), PIXELS.permute(0, 2, 3, 1), SHARES.permute(0, 2, 3, 1)],
)
def test_unambiguous_images_are_converted(images: Tensor) -> None:
    found = fit_to(image_model())(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, SHARES)


def test_gray_images_are_repeated_for_a_color_model() -> None:
    for gray in (SHARES[:, :1], SHARES[:, :1].permute(0, 2, 3, 1), SHARES[:, 0]):
        torch.testing.assert_close(fit_to(image_model())(gray), SHARES[:, :1].repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (PIXELS.float(), r"images lie from .* \[0, 1\]"),
        ((SHARES - 0.45) / 0.22, r"images lie from -.* not normalized yet"),
        (PIXELS.long(), r"images are torch.int64"),
        (torch.rand(4, 2, 6, 5), r"the model takes 3 channels"),
    ],
)
def test_ambiguous_images_are_refused(images: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_to(image_model())(images)


def test_images_in_the_unit_range_are_reported_for_a_model_of_bytes() -> None:
    network = nn.Conv2d(3, 2, 1)
    shares = pk.ImageModel(network, (0.5,) * 3, (0.25,) * 3, (3, 6, 5))
    of_bytes = pk.ImageModel(network, (127.5,) * 3, (63.75,) * 3, (3, 6, 5))
    torch.testing.assert_close(of_bytes(fit_to(of_bytes)(PIXELS)), shares(SHARES))
    with pytest.warns(
        ProbekitWarning, match=r"\[0, 1\], and the model's mean is above 1.* divide mean"
    ):
        fit_to(of_bytes)(SHARES)


def test_the_message_counts_the_channels() -> None:
    with pytest.raises(DataError, match=r"the model takes 1 channel; give \(batch, 1, height"):
        fit_to(image_model(1))(torch.rand(4, 3, 6, 5))


def test_networks_of_other_dtypes_receive_their_dtype() -> None:
    images = torch.randn(2, 3, 4, 4) * 100
    for kind in (torch.float64, torch.bfloat16):
        assert torch.equal(fit_to(nn.Conv2d(3, 1, 1).to(kind))(images), images.to(kind))
    model = image_model()
    expected = model(SHARES)
    model.module.bfloat16()
    torch.testing.assert_close(model(fit_to(model)(SHARES)).float(), expected, atol=0.05, rtol=0.05)


def test_bytes_are_refused_by_a_plain_module_that_does_not_accept_them(
    network: nn.Module,
) -> None:
    data = [(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 3)]
    with pytest.raises(DataError, match=r"uint8, which the model does not accept.*ImageModel"):
        pk.analyze(network, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_with_non_finite_values_is_named(value: float, network: nn.Module) -> None:
    images = torch.rand(6, 1, 8, 8)
    images[4, 0, 3, 3] = value
    with pytest.raises(DataError, match="sample 4 of tensors has NaN or infinity"):
        pk.analyze(network, (images, torch.arange(6) % 3))


def test_images_of_0_to_255_for_a_plain_module_are_reported_once() -> None:
    fit = fit_to(nn.Conv2d(3, 2, 1))
    with pytest.warns(
        ProbekitWarning, match=r"images lie from \d+ to 2.. and are passed .* by 255"
    ):
        torch.testing.assert_close(fit(PIXELS.float()), PIXELS.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(PIXELS.float())
        fit_to(nn.Conv2d(3, 2, 1))((SHARES - 0.45) / 0.22)


@pytest.mark.parametrize("shape", [(6, 8, 8, 3), (6, 1, 8, 8), (6, 8, 8)])
def test_images_of_another_shape_are_refused_with_one_sentence(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(DataError, match=r"the model fails on images of the shape .*: "):
        pk.analyze(net, (torch.rand(shape), torch.arange(6) % 2), progress=False)


def test_a_plain_module_is_given_advice_on_the_shape_of_images() -> None:
    network, labels = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), torch.arange(4) % 2
    for images, advice in (
        (
            SHARES.permute(0, 2, 3, 1),
            r"look like \(height, width, channels\): give images\.permute",
        ),
        (SHARES[:, :1], r"if it takes RGB, repeat gray images"),
        (SHARES[:, :2], r"give images of the shape that it takes"),
    ):
        with pytest.raises(DataError, match=advice):
            pk.analyze(network, (images, labels))


def test_different_numbers_of_images_and_labels_are_refused() -> None:
    with pytest.raises(DataError, match="there are 4 images and 3 labels"):
        pk.analyze(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), (SHARES, torch.arange(3)))


def test_the_input_size_tells_which_axis_is_the_channels() -> None:
    model = pk.ImageModel(nn.Conv2d(3, 2, 1), (0.5,), (0.25,), (3, 3, 5))
    images = torch.rand(4, 3, 3, 5)
    for given in (images, images.permute(0, 2, 3, 1)):
        torch.testing.assert_close(fit_to(model)(given), images)
    with pytest.raises(DataError, match=r"\(3, 9, 3\) may have their channels first or last"):
        fit_to(model)(torch.rand(4, 3, 9, 3))


def test_bright_images_after_a_dark_batch_are_reported() -> None:
    fit = fit_to(nn.Conv2d(3, 2, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(torch.rand(4, 3, 6, 5))
    with pytest.warns(ProbekitWarning, match="divide them by 255"):
        fit(torch.rand(4, 3, 6, 5) * 255)


def test_bytes_in_memory_reach_a_plain_module_unchanged() -> None:
    labels = torch.arange(PIXELS.shape[0]) % 2
    for data in (
        (PIXELS, labels),
        {"image": PIXELS, "label": labels},
        TensorDataset(PIXELS, labels),
    ):
        (batch,) = Batches(data, fit=fit_to(nn.ReLU()))
        assert torch.equal(batch.images, PIXELS)
        (batch,) = Batches(data, fit=fit_to(image_model()))
        torch.testing.assert_close(batch.images, SHARES)


def test_normalized_and_binary_images_are_noticed() -> None:
    with pytest.raises(DataError, match="not normalized yet"):
        fit_to(image_model())(SHARES - 0.5)
    fit_to(image_model())(SHARES - 0.09)  # as an interpolation may leave them
    bits = SHARES.repeat(4, 1, 1, 1) > 0.5
    for binary in (bits.to(torch.uint8), bits.float() / 255):
        with pytest.warns(ProbekitWarning, match="almost black; if they are binary"):
            fit_to(image_model())(binary)
