"""Images of every mode decode to correct values in [0, 1] or are refused by name."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from probekit.data.decoding import ImageDecoder
from probekit.errors import DataError

SIZE = (3, 2, 2)


def saved(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """The image after a round trip through a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return Image.open(BytesIO(file.getvalue()))


def value_of(image: Image.Image, channels: int = 3) -> np.ndarray[Any, Any]:
    return ImageDecoder((channels, image.height, image.width)).read(image).numpy()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_images_keep_their_values(kind: str) -> None:
    values = np.array([[0, 257], [32768, 65535]], np.uint16)
    image = saved(Image.fromarray(values), kind)
    for channels in (1, 3):
        np.testing.assert_allclose(
            value_of(image, channels), np.repeat(values[None] / 65535, channels, 0), atol=1e-6
        )


def test_sixteen_bit_images_are_resized_without_clipping() -> None:
    values = np.full((8, 8), 30_000, np.uint16)
    np.testing.assert_allclose(
        ImageDecoder(SIZE).read(Image.fromarray(values)), 30_000 / 65535, atol=1e-5
    )


def test_floats_in_the_unit_range_are_read_and_others_refused() -> None:
    values = np.array([[0, 0.25], [0.5, 1]], np.float32)
    np.testing.assert_allclose(value_of(saved(Image.fromarray(values), "TIFF"))[1], values)
    for wrong in (values * 255, values - 0.5, values * np.nan):
        with pytest.raises(DataError, match=r"floating-point values.*\[0, 1\]"):
            value_of(Image.fromarray(wrong))


@pytest.mark.parametrize(("tag", "value"), [(258, 12), (262, 0)])
def test_tiff_files_whose_values_pillow_does_not_convert_are_refused(tag: int, value: int) -> None:
    file = BytesIO()
    Image.fromarray(np.full((1, 2), 4095, np.uint16)).save(file, "TIFF")
    one = struct.pack("<HHI", tag, 3, 1)  # an entry with one short integer
    before, after = file.getvalue().split(one, 1)
    changed = before + one + struct.pack("<H", value) + after[2:]
    with pytest.raises(DataError, match="TIFF of 12 bits, or one whose 0 is white"):
        value_of(Image.open(BytesIO(changed)))


def test_integers_of_unknown_scale_are_refused() -> None:
    image = saved(Image.fromarray(np.array([[0, 200]], np.int32)), "TIFF")
    with pytest.raises(DataError, match=r"32-bit integers from 0 to 200.*8 or 16 bits"):
        value_of(image)


@pytest.mark.parametrize(("orientation", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_photographs_are_oriented_upright(orientation: int, turned: int) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = saved(Image.fromarray(pixels), "PNG", exif=exif)
    expected = np.rot90(pixels, turned) / 255
    found = ImageDecoder((1, *expected.shape)).read(image)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_transparent_pixels_are_blended_with_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = (0, 255, 51)
    pixels[0, 1:, 0] = 255
    found = value_of(Image.fromarray(pixels, "RGBA"))
    np.testing.assert_allclose(found[:, 0].T, [[1, 1, 1], [1, 0, 0], [1, 0.8, 0.8]], atol=0.005)


@pytest.mark.parametrize(("shade", "ground"), [(0, 1.0), (255, 0.0)])
def test_a_shape_drawn_only_in_alpha_is_visible(shade: int, ground: float) -> None:
    alpha = np.array([[0, 255], [255, 0]], np.uint8)
    pixels = np.stack([np.full_like(alpha, shade), alpha], -1)
    found = value_of(Image.fromarray(pixels, "LA"), 1)[0]
    np.testing.assert_array_equal(found, np.where(alpha, shade / 255, ground))


def test_palettes_give_their_colors() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(value_of(saved(image, "PNG"))[:, 0].T, [[1, 0, 0], [0, 0, 1]])
    clear = value_of(saved(image, "PNG", transparency=0))
    np.testing.assert_array_equal(clear[:, 0].T, [[1, 1, 1], [0, 0, 1]])


def test_cmyk_and_single_bit_images_are_decoded() -> None:
    ink = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    np.testing.assert_array_equal(value_of(saved(ink, "TIFF"))[:, 0, 0], [1, 0, 0])
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    np.testing.assert_array_equal(value_of(bits, 1)[0], [[1, 0]])


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (255, 0)]
    for kind in ("GIF", "PNG", "TIFF"):
        found = value_of(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        np.testing.assert_array_equal(found, 1)


def test_other_numbers_of_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model takes 4"):
        ImageDecoder((4, 2, 2)).read(Image.new("RGB", (4, 4)))


def test_an_image_of_the_input_size_is_cropped_like_any_other() -> None:
    """timm and torchvision resize it to size / crop_pct first."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    larger = image.resize((20, 20), Image.Resampling.BICUBIC).crop((2, 2, 18, 18))
    found = ImageDecoder((3, 16, 16), crop_pct=0.8).read(image).permute(1, 2, 0) * 255
    np.testing.assert_allclose(found.numpy(), np.asarray(larger), atol=1e-4)
    whole = ImageDecoder((3, 16, 16)).read(image).permute(1, 2, 0) * 255
    np.testing.assert_allclose(whole.numpy(), pixels, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "coat_lite_tiny", "coat_lite_medium_384", "volo_d4_448"]
)
def test_photographs_are_prepared_as_by_timm(name: str) -> None:
    """One changes the aspect ratio, and the last one pads photographs with black."""
    published = timm.models.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config({}, pretrained_cfg=published)
    coarse = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    photograph = Image.fromarray(coarse).resize((300, 200), Image.Resampling.BICUBIC)
    expected = timm.data.create_transform(**config, is_training=False, normalize=False)(photograph)
    if expected.dtype == torch.uint8:
        expected = expected / 255
    decoder = ImageDecoder(
        config["input_size"],
        config["crop_pct"],
        config["interpolation"],
        config["crop_mode"],
    )
    found = decoder.read(photograph)
    assert config["crop_mode"] == ("squash" if "384" in name else "center")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(DataError, match="crop_mode 'border'"):
        ImageDecoder((3, 8, 8), crop_mode="border").read(photograph)


@pytest.mark.parametrize(("other", "ground"), [(0, 1.0), (65535, 0.0)])
def test_the_transparent_value_of_sixteen_bit_images_is_blended(other: int, ground: float) -> None:
    values = np.array([[1234, other], [other, other]], np.uint16)
    image = saved(Image.fromarray(values), "PNG", transparency=1234)
    assert image.mode.startswith("I")
    found = value_of(image, 1)[0]
    np.testing.assert_allclose(found, [[ground, other / 65535], [other / 65535] * 2], atol=1e-6)
