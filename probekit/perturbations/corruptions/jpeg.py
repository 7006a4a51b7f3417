"""JPEG compression: real files, written and read."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import Tensor

__all__ = ["jpeg_compression", "through_pillow", "through_torchvision"]


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Write and read a JPEG file of this quality; on the CPU, image by image.

    Torchvision's and Pillow's libjpeg give the same bytes. Torchvision, which is faster, means to
    give up its codec; without it Pillow takes over.
    """
    levels = images.mul(255).round_().to(torch.uint8).cpu()
    through = through_torchvision if _torchvision_has_a_codec() else through_pillow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        read = [through(level, quality) for level in levels]  # threads were no faster
    return torch.stack(read).to(images.device, images.dtype).div_(255)


def through_torchvision(image: Tensor, quality: int) -> Tensor:
    """What a file of this quality gives back, uint8 (channels, height, width)."""
    from torchvision.io import decode_jpeg, encode_jpeg

    decoded: Tensor = decode_jpeg(encode_jpeg(image, quality=quality))
    return decoded


def through_pillow(image: Tensor, quality: int) -> Tensor:
    """What a file of this quality gives back, uint8 (channels, height, width)."""
    from PIL import Image

    pixels = image.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if len(image) == 1 else pixels).save(
        file, "JPEG", quality=quality
    )
    with Image.open(file, formats=["JPEG"]) as picture:
        read = torch.from_numpy(np.array(picture))
    return read.view(pixels.shape).permute(2, 0, 1).contiguous()


def _torchvision_has_a_codec() -> bool:
    try:
        from torchvision.io import decode_jpeg, encode_jpeg
    except ImportError:
        return False
    return all(hasattr(torch.ops.image, codec.__name__) for codec in (decode_jpeg, encode_jpeg))
