"""The constraint sets of attacks: exact balls around each image, clipped to [0, 1].

The sum of a pixel and a radius is rounded, and can lie outside the ball by one unit in the last
place. Clipping to `image + epsilon`, as most libraries do, can therefore violate the bound. Here
`(adversarial - image).abs() <= epsilon` holds for every adversarial image, in the precision of the
images and in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from probekit.runtime.randomness import RandomStreams

Norm: TypeAlias = Literal["linf", "l2"]


@dataclass(frozen=True, eq=False)
class LinfBall:
    """The L-infinity ball: every pixel within epsilon, rounded down to the images' precision."""

    images: Tensor
    radius: float
    lower: Tensor
    upper: Tensor

    @classmethod
    def around(cls, images: Tensor, epsilon: float) -> LinfBall:
        radius = _round_down(epsilon, images.dtype)
        lower, upper = (_last_inside(images, edge) for edge in (-radius, radius))
        return cls(images, radius, lower, upper)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The unit step that increases the loss most, in the gradient's shape; zero where it is NaN."""
        return gradient.sign()

    def project(self, x: Tensor) -> Tensor:
        """The points of the balls nearest to `x`, inside [0, 1]."""
        return torch.clamp(x, self.lower, self.upper)

    def random_points(self, seed: int, index: Sequence[int] | Tensor, restart: int) -> Tensor:
        """A draw from each ball, clipped to [0, 1], that depends only on (seed, index, restart)."""
        noise = _streams(self.images, seed, index, restart).uniform(*self.images.shape[1:]) * 2 - 1
        return self.project(self.images + self.radius * noise.to(self.images.dtype))

    def select(self, chosen: Tensor) -> LinfBall:
        """The balls of the images at some positions of the batch."""
        images, lower, upper = (
            part.index_select(0, chosen) for part in (self.images, self.lower, self.upper)
        )
        return LinfBall(images, self.radius, lower, upper)


@dataclass(frozen=True, eq=False)
class L2Ball:
    """The L2 ball: Euclidean distance from the image at most epsilon.

    `radius` is epsilon minus the maximum rounding error of a norm and a sum.
    """

    images: Tensor
    radius: float

    @classmethod
    def around(cls, images: Tensor, epsilon: float) -> L2Ball:
        precision = torch.finfo(images.dtype).eps
        root = math.sqrt(images[0].numel())
        sum_rounding = precision / 4 * root
        return cls(images, max(0.0, epsilon * (1 - precision * (8 + root)) - sum_rounding))

    def ascent(self, gradient: Tensor) -> Tensor:
        gradient = gradient.nan_to_num(nan=0.0)
        # Scale first: the squares of a small gradient would underflow to a norm of zero.
        largest = gradient.flatten(1).abs().amax(dim=1)
        scaled = gradient / column(largest.clamp(min=_tiny(gradient)), gradient)
        return scaled / column(_norm(scaled).clamp(min=1), gradient)

    def project(self, x: Tensor) -> Tensor:
        change = x - self.images
        shrink = (self.radius / _norm(change).clamp(min=_tiny(x))).clamp(max=1)
        return (self.images + change * column(shrink, change)).clamp_(0, 1)

    def random_points(self, seed: int, index: Sequence[int] | Tensor, restart: int) -> Tensor:
        # In high dimensions, nearly all points of a uniform draw from a ball lie near its surface, from
        # which the optimization takes longer. A uniform length makes the attack stronger.
        streams = _streams(self.images, seed, index, restart)
        direction = streams.normal(*self.images.shape[1:]).to(self.images.dtype)
        length = streams.uniform(1, field=1)[:, 0].to(self.images.dtype) / _norm(direction)
        return self.project(self.images + self.radius * direction * column(length, direction))

    def select(self, chosen: Tensor) -> L2Ball:
        return L2Ball(self.images.index_select(0, chosen), self.radius)


Ball: TypeAlias = LinfBall | L2Ball


def ball_around(images: Tensor, epsilon: float, norm: Norm) -> Ball:
    """The balls of radius `epsilon` around images in [0, 1]."""
    return LinfBall.around(images, epsilon) if norm == "linf" else L2Ball.around(images, epsilon)


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes one value per image, (n,), so that it broadcasts with the images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _last_inside(images: Tensor, radius: float) -> Tensor:
    """For each pixel, the last value in the ball and in [0, 1] in the direction of the radius."""
    reached = images + radius
    outside = (reached.double() - images.double()).abs() > abs(radius)
    return torch.where(outside, torch.nextafter(reached, images), reached).clamp_(0, 1)


def _round_down(value: float, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return value
    rounded = np.float32(value)
    # `rounded > value` would round the value before the comparison.
    return float(np.nextafter(rounded, np.float32(0)) if float(rounded) > value else rounded)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _streams(
    images: Tensor, seed: int, index: Sequence[int] | Tensor, restart: int
) -> RandomStreams:
    return RandomStreams(f"random start, seed {seed}, restart {restart}", index, images.device)
