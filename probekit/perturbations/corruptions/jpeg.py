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
    decoded = np.empty_like(levels)
    for pixels, into in zip(levels, decoded, strict=True):
        file = io.BytesIO()
        image = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        with Image.open(file, formats=["JPEG"]) as picture:
            into[:] = np.asarray(picture).reshape(into.shape)
    return torch.from_numpy(decoded).to(images.device, images.dtype).permute(0, 3, 1, 2) / 255
