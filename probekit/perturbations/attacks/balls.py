"""The sets an attack may move in: a ball around each image, cut to [0, 1], kept exactly.

Adding a radius to a pixel rounds, and a rounded sum can lie outside the ball by one unit in the
last place; clipping to `image + epsilon`, as most libraries do, breaks the bound it is meant to
keep. Here no adversarial image does: `(adversarial - image).abs() <= epsilon` holds in the precision
of the images and in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from probekit.runtime.randomness import RandomStreams

__all__ = ["Ball", "L2Ball", "LinfBall", "Norm", "ball_around", "column"]

Norm: TypeAlias = Literal["linf", "l2"]


class Ball(Protocol):
    """The images an attack may reach, one ball for each image of the batch."""

    def ascent(self, gradient: Tensor) -> Tensor:
        """The unit step that raises the loss most, of the gradient's shape; none along NaN."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The points of the balls nearest to `x`, inside [0, 1]."""
        ...

    def random_points(self, seed: int, index: Sequence[int] | Tensor, restart: int) -> Tensor:
        """A draw from each ball, cut to [0, 1], that depends on (seed, index, restart) alone."""
        ...

    def select(self, chosen: Tensor) -> Self:
        """The balls of the images at some positions of the batch."""
        ...


@dataclass(frozen=True, eq=False)
class LinfBall:
    """Every pixel within epsilon of its own value.

    Attributes:
        images: Centers, (n, ...) in [0, 1].
        radius: Epsilon, rounded down to the images' precision.
        lower: The least value of each pixel.
        upper: The greatest value of each pixel.
    """

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
        return gradient.sign()  # that of NaN is 0

    def project(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.lower, self.upper)

    def random_points(self, seed: int, index: Sequence[int] | Tensor, restart: int) -> Tensor:
        noise = _streams(self.images, seed, index, restart).uniform(*self.images.shape[1:]) * 2 - 1
        return self.project(self.images + self.radius * noise.to(self.images.dtype))

    def select(self, chosen: Tensor) -> LinfBall:
        images, lower, upper = (
            part.index_select(0, chosen) for part in (self.images, self.lower, self.upper)
        )
        return LinfBall(images, self.radius, lower, upper)


@dataclass(frozen=True, eq=False)
class L2Ball:
    """Euclidean distance from the image within epsilon.

    Attributes:
        images: Centers, (n, ...) in [0, 1].
        radius: Epsilon less what the rounding of a norm and of a sum may add.
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
        # Scaled first: the squares of a small gradient would underflow to a norm of zero.
        largest = gradient.flatten(1).abs().amax(dim=1)
        scaled = gradient / column(largest.clamp(min=_tiny(gradient)), gradient)
        return scaled / column(_norm(scaled).clamp(min=1), gradient)

    def project(self, x: Tensor) -> Tensor:
        change = x - self.images
        shrink = (self.radius / _norm(change).clamp(min=_tiny(x))).clamp(max=1)
        return (self.images + change * column(shrink, change)).clamp_(0, 1)

    def random_points(self, seed: int, index: Sequence[int] | Tensor, restart: int) -> Tensor:
        # In a uniform draw from a ball of many dimensions nearly all points lie at its surface, from
        # which the climb is longer: the length is uniform instead, and the attack is stronger.
        streams = _streams(self.images, seed, index, restart)
        direction = streams.normal(*self.images.shape[1:]).to(self.images.dtype)
        length = streams.uniform(1, field=1)[:, 0].to(self.images.dtype) / _norm(direction)
        return self.project(self.images + self.radius * direction * column(length, direction))

    def select(self, chosen: Tensor) -> L2Ball:
        return L2Ball(self.images.index_select(0, chosen), self.radius)


def ball_around(images: Tensor, epsilon: float, norm: Norm) -> Ball:
    """The balls of radius `epsilon` around images in [0, 1].

    Example:
        >>> ball = ball_around(torch.tensor([[0.0, 0.5]]), 0.25, "linf")
        >>> ball.project(torch.tensor([[-1.0, 1.0]]))
        tensor([[0.0000, 0.7500]])
    """
    return LinfBall.around(images, epsilon) if norm == "linf" else L2Ball.around(images, epsilon)


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value for each image, (n,), in a shape that broadcasts with the images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _last_inside(images: Tensor, radius: float) -> Tensor:
    """The last number in the ball and in [0, 1], for each pixel, in the direction of the radius."""
    reached = images + radius
    outside = (reached.double() - images.double()).abs() > abs(radius)
    return torch.where(outside, torch.nextafter(reached, images), reached).clamp_(0, 1)


def _round_down(value: float, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return value
    rounded = np.float32(value)
    # A plain `rounded > value` would round the value before it compares.
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
