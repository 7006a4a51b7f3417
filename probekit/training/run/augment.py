"""Augmentation of whole batches on their device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from probekit.checks import non_negative_int
from probekit.runtime.randomness import RandomStreams


@dataclass(frozen=True)
class Augmentation:
    """Mirrors images at random and shifts them by up to `shift` pixels, padding with black."""

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        non_negative_int("shift", self.shift)

    def __call__(self, images: Tensor, streams: RandomStreams) -> Tensor:
        """Augments images (batch, channels, height, width) of any type, each with its own stream."""
        if self.flip:
            mirrored = (streams.uniform(1)[:, 0] < 0.5).to(images.device).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        if self.shift:
            height, width = images.shape[2:]
            windows = functional.pad(images, (self.shift,) * 4)
            windows = windows.unfold(2, height, 1).unfold(3, width, 1)
            moves = streams.integers(2 * self.shift + 1, 2, field=1).to(images.device)
            images = windows[torch.arange(len(images), device=images.device), :, *moves.T]
        return images
