"""Converts image tensors to what a model expects, if the conversion is unambiguous."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probekit.data.decoding import is_channels_last
from probekit.errors import DataError, warn
from probekit.models.image_model import module_of
from probekit.models.inputs import KeywordInputs, one_tensor

_LOWEST, _HIGHEST = -0.5, 1.5
_NEGATIVE, _MOST_NEGATIVE = -0.1, 0.1  # interpolation leaves fewer values below
_DARKEST = 0.004  # just above 1/255
_SEVERAL = 16  # images, of which one would be brighter
_IMAGES = 4
_BYTES = 16  # images in [0, 255] have brighter pixels than this


def fit_to(model: Any) -> Callable[[Any], Any]:
    """Returns a function that converts a batch of images to what a model expects.

    For a plain module, floating-point images are cast to the type of its parameters, and other inputs
    are unchanged; images that seem to be in [0, 255] cause a warning. For an `ImageModel`, uint8 and
    boolean images become floats in [0, 1]; arrays (batch, height, width, channels) become (batch,
    channels, height, width), as do gray images (batch, height, width); and gray images are repeated for
    a model that takes RGB.
    """
    size = getattr(model, "input_size", None)
    module = module_of(model)
    kind = None if module is None else parameter_type(module)
    if isinstance(model, nn.Module) or size is None:
        return _PlainModuleInputs(kind)
    # Half-precision networks cast normalized images to their type; the images stay exact.
    kind = torch.float64 if kind is torch.float64 else torch.float32
    scaled = all(mean <= 1 for mean in getattr(model, "mean", ()))
    return lambda images: _of_type(_pixels(one_tensor(images, "an ImageModel"), size, scaled), kind)


class _PlainModuleInputs:
    """Casts images or keyword inputs for a plain module to the type of its parameters."""

    def __init__(self, kind: torch.dtype | None) -> None:
        self._kind = kind
        self._warned = False

    def __call__(self, images: Any) -> Any:
        if isinstance(images, KeywordInputs):
            return images.map(partial(_of_type, kind=self._kind))
        checked = not self._warned and images.ndim == _IMAGES and images.is_floating_point()
        if checked and images.numel():
            low, high = (float(end) for end in images.aminmax())
            if low >= 0 and _BYTES < high < float("inf"):
                self._warned = True
                warn(
                    f"images lie from {low:.4g} to {high:.4g} and are passed to the model unchanged; "
                    "if it was trained on images in [0, 1], divide them by 255"
                )
        return _of_type(images, self._kind)


def parameter_type(module: nn.Module) -> torch.dtype | None:
    """The floating-point type of a module's parameters, if they have one.

    >>> parameter_type(nn.Linear(2, 2)), parameter_type(nn.ReLU())
    (torch.float32, None)
    """
    types = {one.dtype for one in module.parameters() if one.is_floating_point()}
    return types.pop() if len(types) == 1 else None


def _of_type(images: Tensor, kind: torch.dtype | None) -> Tensor:
    return images.to(kind) if kind is not None and images.is_floating_point() else images


def _pixels(images: Tensor, size: tuple[int, int, int], scaled: bool) -> Tensor:
    """Images (batch, channels, height, width) in [0, 1], or unscaled for a model of other images."""
    if images.dtype == torch.uint8:
        images = images.float() / 255 if scaled else images.float()
    elif images.dtype == torch.bool:
        images = images.float()
    elif not images.is_floating_point():
        raise DataError(
            f"images are {images.dtype}, whose full scale is not known; give uint8 images, or floats "
            "in [0, 1]"
        )
    if images.ndim == _IMAGES - 1:  # gray images without an axis of channels
        images = images[:, None]
    if images.ndim == _IMAGES:
        images = _with_channels(images, size)
    low, high = (float(end) for end in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not scaled and low >= 0 and 0 < high <= 1:
        warn(
            "images lie in [0, 1], and the model's mean is above 1, as for images from 0 to 255, so these "
            "are almost black to it; divide mean and std of the ImageModel by 255"
        )
    if scaled:
        negative = low < _NEGATIVE and float((images < _NEGATIVE).float().mean()) > _MOST_NEGATIVE
        if low < _LOWEST or high > _HIGHEST or negative:
            raise DataError(
                f"images lie from {low:.4g} to {high:.4g}, and an ImageModel takes images in [0, 1] and "
                "normalizes them itself; divide 0 to 255 by 255, and give images that are not "
                "normalized yet"
            )
        if 0 < high <= _DARKEST and len(images) >= _SEVERAL:
            warn(
                "images lie from 0 to 1/255, so they are almost black; if they are binary (uint8 images of 0 "
                "and 1), give them as bool or as floats of 0 and 1"
            )
    return images


def _with_channels(images: Tensor, size: tuple[int, int, int]) -> Tensor:
    channels = size[0]
    if is_channels_last(images.shape[1:], {1, channels}, size):
        images = images.movedim(3, 1).contiguous()
    if images.shape[1] == channels:
        return images
    if images.shape[1] != 1:
        raise DataError(
            f"images have the shape {tuple(images.shape)}, and the model takes "
            f"{channels} channel{'s' * (channels != 1)}; give (batch, {channels}, height, width)"
        )
    return images.expand(-1, channels, -1, -1).contiguous()
