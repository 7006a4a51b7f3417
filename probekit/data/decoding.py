"""Decodes image files and PIL images of any mode to tensors in [0, 1]."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.nn import functional

from probekit.errors import DataError, first_line

_MOST_PIXELS = 2**26
_SIXTEEN_BITS = 65535
_INTEGER_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
_RESAMPLING = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos")
}


@dataclass(frozen=True)
class ImageDecoder:
    """Converts images that are not arrays yet to tensors (channels, height, width) in [0, 1] for a model.

    These are PIL images, the contents (bytes) or the path of an image file, and mappings with one of
    both, as in undecoded columns of Hugging Face data sets.

    The image is rotated according to its EXIF orientation. Only the first frame of an animation is
    used. 16-bit values are divided by 65535. Transparent pixels are shown on white, or on black if all
    visible pixels are white. See the table in `docs/data.md`. `crop_pct` is the share of the resized image
    that the crop keeps; the `crop_mode` `center` preserves the aspect ratio, `squash` does not.
    """

    size: tuple[int, int, int]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: str = "center"

    @classmethod
    def of(cls, model: Any) -> ImageDecoder | None:
        """The decoder for an `ImageModel`; None for a plain module, whose input size is not known."""
        size = getattr(model, "input_size", None)
        names = ("crop_pct", "interpolation", "crop_mode")
        return size and cls(size, **{x: getattr(model, x) for x in names if hasattr(model, x)})

    def __call__(self, image: object, what: str) -> Tensor:
        try:
            return self.read(image)
        except Exception as error:  # damaged files may raise any exception
            raise DataError(f"{what} cannot be read: {first_line(error)}") from error

    def read(self, image: Any) -> Tensor:
        """Opens and prepares an image; may raise any exception."""
        if isinstance(image, Mapping):
            image = image.get("bytes") or image["path"]
        if not isinstance(image, Image.Image):
            with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
                return self.read(opened)
        return self._prepared(image)

    @staticmethod
    def reads(image: object) -> bool:
        """Whether a value is an image of one of these kinds."""
        if isinstance(image, Mapping):
            return bool(image) and set(image) <= {"bytes", "path"}
        return isinstance(image, Image.Image | bytes | str | os.PathLike)

    def _prepared(self, image: Image.Image) -> Tensor:
        channels, height, width = self.size
        if channels not in (1, 3):
            raise DataError(
                f"images are read as 1 (gray) or 3 (RGB) channels, and the model takes {channels}; give "
                "tensors of its own channels"
            )
        if self.crop_mode not in ("center", "squash"):
            raise DataError(
                f"images cannot be prepared with crop_mode {self.crop_mode!r}; give tensors"
            )
        image = _of_known_scale(image, channels)
        whole = int(height / self.crop_pct), int(width / self.crop_pct)
        if image.size != (width, height) or whole != (height, width):
            if self.crop_mode == "squash":
                high, wide = whole
            else:
                scale = max(whole[0] / image.height, whole[1] / image.width)
                # With a share above 1, the image is smaller than the crop, which pads it with black.
                wide = max(min(width, whole[1]), int(image.width * scale + 1e-4))
                high = max(min(height, whole[0]), int(image.height * scale + 1e-4))
            left, top = _middle(wide, width), _middle(high, height)
            if wide * high <= _MOST_PIXELS:
                image = image.resize((wide, high), _RESAMPLING[self.interpolation])
                image = image.crop((left, top, left + width, top + height))
            else:  # for a very narrow image, only the cropped part is enlarged
                across, up = image.width / wide, image.height / high
                part = (left * across, top * up, (left + width) * across, (top + height) * up)
                image = image.resize((width, height), _RESAMPLING[self.interpolation], box=part)
        array: np.ndarray[Any, np.dtype[np.float32]] = np.array(image, dtype=np.float32)
        if image.mode == "F":
            array = array.clip(0, 1)  # bicubic and lanczos overshoot
            array = np.repeat(array[None], channels, 0)
        else:
            array /= 255
            array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy()
        return torch.from_numpy(array)


def _middle(whole: int, part: int) -> int:
    """Where a part in the middle begins, with the rounding of torchvision; below zero for a larger part."""
    return round((whole - part) / 2) if whole >= part else -((part - whole) // 2)


# For data that is loaded without a model.
DEFAULT_DECODER = ImageDecoder((3, 224, 224))


def _of_known_scale(image: Image.Image, channels: int) -> Image.Image:
    """An upright image of 8 bits, gray or RGB, or of floats in [0, 1] (mode F)."""
    file_format = image.format
    tags = getattr(image, "tag_v2", {})
    if image.mode in (*_INTEGER_MODES, "F") and (tags.get(262) == 0 or 12 in tags.get(258, ())):
        raise DataError(
            "it is a TIFF of 12 bits, or one whose 0 is white; save it with 8 or 16 bits as PNG"
        )
    image.load()  # damaged pixels raise here; reading EXIF data would load them and hide the error
    orientation = 1  # upright
    with suppress(Exception):  # damaged EXIF data may raise any exception in Pillow
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in _INTEGER_MODES:
        return _from_integers(image, file_format)
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise DataError(
                f"it has floating-point values from {values.min():.4g} to {values.max():.4g} and "
                "should lie in [0, 1]; scale its values"
            )
        return image
    target = "L" if channels == 1 else "RGB"
    return _on_background(image, target) if image.has_transparency_data else image.convert(target)


def _from_integers(image: Image.Image, file_format: str | None) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    sixteen = image.mode != "I" or file_format in _SIXTEEN_BIT_FORMATS
    if not sixteen or values.min() < 0 or values.max() > _SIXTEEN_BITS:
        raise DataError(
            f"it has 32-bit integers from {values.min():.0f} to {values.max():.0f}, whose full scale "
            "is not known; save it with 8 or 16 bits"
        )
    if (transparent := image.info.get("transparency")) is not None:
        visible = values[values != transparent]
        white = bool(visible.size) and visible.min() == _SIXTEEN_BITS
        values[values == transparent] = 0 if white else _SIXTEEN_BITS
    return Image.fromarray((values / _SIXTEEN_BITS).astype(np.float32))


def _on_background(image: Image.Image, target: str) -> Image.Image:
    """Shows transparent pixels on white, or on black if all visible pixels are white."""
    layered = image.convert("RGBA")
    alpha = np.asarray(layered.getchannel("A"))
    if alpha.min() == 255:
        return image.convert(target)
    visible = np.asarray(layered)[..., :3][alpha > 0]
    shade = "black" if len(visible) and visible.min() == 255 else "white"
    background = Image.new("RGBA", layered.size, shade)
    return Image.alpha_composite(background, layered).convert(target)


def is_channels_last(
    shape: Sequence[int], channels: Iterable[int], size: Sequence[int] | None
) -> bool:
    """Whether images of some shape have their channels, one of several numbers, in the last axis.

    Where both ends may be channels, `size` (channels, height, width) of the model decides.

    >>> is_channels_last((28, 28, 3), (1, 3), None), is_channels_last((3, 8, 3), (1, 3), (3, 8, 3))
    (True, False)
    """
    first, *_, last = shape
    if size is not None and tuple(shape) == tuple(size):
        return False
    if size is not None and tuple(shape) == (*size[1:], size[0]):
        return True
    if first in channels and last in channels:
        raise DataError(
            f"images of the shape {tuple(shape)} may have their channels first or last; give tensors "
            "(batch, channels, height, width) of the model's input size"
        )
    return last in channels


def resize(images: Tensor, size: tuple[int, int, int] | None) -> Tensor:
    """Resizes images (n, channels, height, width), and converts between gray and color if needed."""
    if size is None or tuple(images.shape[1:]) == size:
        return images
    channels, height, width = size
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.contiguous()
