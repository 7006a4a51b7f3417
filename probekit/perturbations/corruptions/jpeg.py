"""JPEG compression by encoding and decoding real files."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probekit.runtime.randomness import RandomStreams


def jpeg_compression(images: Tensor, quality: int, streams: RandomStreams) -> Tensor:
    """Encode and decode a JPEG file of this quality, on the CPU, image by image."""
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    read = np.stack([_compressed(level, quality) for level in levels])
    pixels = torch.from_numpy(read).to(images.device, images.dtype).permute(0, 3, 1, 2)
    return pixels / 255


def _compressed(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], quality: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The image decoded from a file of this quality, (height, width, channels)."""
    file = io.BytesIO()
    image = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    with Image.open(file, formats=["JPEG"]) as picture:
        return np.asarray(picture).reshape(pixels.shape)
