"""Augmentation of whole batches, on the device that they lie on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from probekit.checks import non_negative_int
from probekit.runtime.randomness import RandomStreams

__all__ = ["Augmentation", "Draw"]


@dataclass(frozen=True)
class Draw:
    """What was drawn for each image of a batch.

    Attributes:
        flip: (batch,) whether to mirror it.
        down: (batch,) row of the padded image at which the crop begins.
        right: (batch,) column of the padded image at which the crop begins.
    """

    flip: Tensor
    down: Tensor
    right: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Mirrors images at random and shifts them by up to a few pixels, filling up with black.

    Args:
        flip: Mirror each image left to right with probability 1/2.
        shift: Shift by at most so many pixels in each direction (a crop of the padded image).

    Raises:
        OptionError: The shift is not a non-negative integer.

    Example:
        >>> images = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
        >>> Augmentation(flip=True)(images, RandomStreams("flips", [0])).flatten().tolist()
        [0, 1, 2, 3]
        >>> Augmentation(flip=True)(images, RandomStreams("flips", [1])).flatten().tolist()
        [1, 0, 3, 2]
    """

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        non_negative_int("shift", self.shift)

    def draw(self, streams: RandomStreams) -> Draw:
        """Draws for each image, from its own stream."""
        flip = streams.uniform(1)[:, 0] < (0.5 if self.flip else 0.0)
        down, right = streams.integers(2 * self.shift + 1, 2, field=1).unbind(1)
        return Draw(flip, down, right)

    def apply(self, images: Tensor, drawn: Draw) -> Tensor:
        """Images (batch, channels, height, width) of any type, changed as drawn."""
        device = images.device
        if self.flip:
            mirror = drawn.flip.to(device, non_blocking=True).view(-1, 1, 1, 1)
            images = torch.where(mirror, images.flip(3), images)
        if self.shift:
            height, width = images.shape[2:]
            padded = functional.pad(images, (self.shift,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            down = drawn.down.to(device, non_blocking=True)
            right = drawn.right.to(device, non_blocking=True)
            images = windows[torch.arange(len(images), device=device), :, down, right]
        return images

    def __call__(self, images: Tensor, streams: RandomStreams) -> Tensor:
        """Draws for a batch and applies it."""
        return self.apply(images, self.draw(streams))
