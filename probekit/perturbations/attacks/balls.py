"""The sets an attack may move in: a ball around each image, cut with [0, 1], kept exactly.

Adding a radius to a pixel rounds, and a rounded sum can lie outside the ball by one unit in the
last place; clipping to ``image + epsilon``, as most libraries do, therefore breaks the bound it
is meant to keep. Here no adversarial image ever does: ``(adversarial - image).abs() <= epsilon``
holds in the arithmetic of the images and in that of the reals.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ball", "L2Ball", "LinfBall", "Norm", "ball_around", "column"]

Norm: TypeAlias = Literal["linf", "l2"]

_WORD = 2**64 - 1

_Row: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float32]]"


class Ball(Protocol):
    """The images an attack may reach, one ball for each image of the batch."""

    def ascent(self, gradient: Tensor) -> Tensor:
        """The unit step that raises the loss most, of the shape of the gradient; none along NaN."""
        ...

    def project(self, x: Tensor) -> Tensor:
        """The points of the balls next to `x`, inside [0, 1]."""
        ...

    def random_points(self, seed: int, index: Sequence[int], restart: int) -> Tensor:
        """A draw from each ball, cut to [0, 1], from (seed, index, restart) alone."""
        ...

    def select(self, chosen: Tensor) -> Self:
        """The balls of the images at some positions of the batch."""
        ...


@dataclass(frozen=True, eq=False)
class LinfBall:
    """Every pixel within epsilon of its own value.

    Attributes:
        images: Centres, (n, ...) in [0, 1].
        radius: Epsilon, rounded down to the images' precision.
    """

    images: Tensor
    radius: float

    @classmethod
    def around(cls, images: Tensor, epsilon: float) -> LinfBall:
        return cls(images, _round_down(epsilon, images.dtype))

    @functools.cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest value of each pixel."""
        up = torch.ones_like(self.images)
        return self.furthest(-up), self.furthest(up)

    def furthest(self, direction: Tensor) -> Tensor:
        """The last number inside, for each pixel, on its way down (−1) or up (1); itself for 0."""
        reached = torch.add(self.images, direction, alpha=self.radius)
        # What rounding took away is exact where the smaller is taken from what the larger left of
        # the sum (Dekker's Fast2Sum); where the radius is the larger on a way down, that ends below 0.
        rest = reached - self.images.clamp(min=self.radius)
        spare = self.images.clamp(max=self.radius).addcmul_(rest, direction, value=-1)
        # What was rounded out of the ball goes one unit in the last place back, which is one in the
        # bits; a number below zero may go the wrong way, and is cut off in any case.
        bits = _bits(reached)
        bits.addcmul_(_minus_one_below_zero(spare), direction.to(bits.dtype))
        return reached.clamp_(0, 1)

    def ascent(self, gradient: Tensor) -> Tensor:
        return gradient.sign()  # that of NaN is 0

    def project(self, x: Tensor) -> Tensor:
        return torch.clamp(x, *self.bounds)

    def random_points(self, seed: int, index: Sequence[int], restart: int) -> Tensor:
        def fill(row: _Row, generator: np.random.Generator) -> None:
            generator.random(dtype=np.float32, out=row)

        noise = _drawn(self.images, fill, seed, index, restart).mul_(2).sub_(1)
        return self.project(self.images + self.radius * noise)

    def select(self, chosen: Tensor) -> LinfBall:
        ball = LinfBall(self.images.index_select(0, chosen), self.radius)
        # To pick bounds is less work than to reckon them again.
        vars(ball)["bounds"] = tuple(bound.index_select(0, chosen) for bound in self.bounds)
        return ball


@dataclass(frozen=True, eq=False)
class L2Ball:
    """Euclidean distance from the image within epsilon.

    Attributes:
        images: Centres, (n, ...) in [0, 1].
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

    def random_points(self, seed: int, index: Sequence[int], restart: int) -> Tensor:
        # In a uniform draw from a ball of many dimensions nearly all lies at its surface, whence
        # the climb is longer: the length is uniform instead, and the attack is stronger for it.
        def fill(row: _Row, generator: np.random.Generator) -> None:
            generator.standard_normal(dtype=np.float32, out=row)
            row *= np.float32(generator.random() / np.linalg.norm(row))

        draws = _drawn(self.images, fill, seed, index, restart)
        return self.project(self.images + self.radius * draws)

    def select(self, chosen: Tensor) -> L2Ball:
        return L2Ball(self.images.index_select(0, chosen), self.radius)


def ball_around(images: Tensor, epsilon: float, norm: Norm) -> Ball:
    """The balls of radius `epsilon` around images in [0, 1].

    >>> ball = ball_around(torch.tensor([[0.0, 0.5]]), 0.25, "linf")
    >>> ball.project(torch.tensor([[-1.0, 1.0]]))
    tensor([[0.0000, 0.7500]])
    """
    return LinfBall.around(images, epsilon) if norm == "linf" else L2Ball.around(images, epsilon)


def _round_down(value: float, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return value
    rounded = np.float32(value)
    # A plain `rounded > value` would round the value before it compares.
    return float(np.nextafter(rounded, np.float32(0)) if float(rounded) > value else rounded)


def _bits(x: Tensor) -> Tensor:
    """The same memory as whole numbers, in the order of the floats from 0 on."""
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def _minus_one_below_zero(x: Tensor) -> Tensor:
    """−1 where a number is below zero, else 0, written over it; the sign bit, so let there be no −0."""
    return _bits(x).bitwise_right_shift_(8 * x.itemsize - 1)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def column(values: Tensor, like: Tensor) -> Tensor:
    """One value for each image, (n,), in a form that goes with the images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _drawn(
    like: Tensor,
    fill: Callable[[_Row, np.random.Generator], None],
    seed: int,
    index: Sequence[int],
    restart: int,
) -> Tensor:
    """Values for each image, filled in from its own random stream, in the form of the images."""
    rows = np.empty((len(index), like[0].numel()), np.float32)
    key = np.array([seed & _WORD, 0], dtype=np.uint64)
    stream = np.random.Philox(key=key, counter=np.array([0, 0, 0, restart], dtype=np.uint64))
    generator, state = np.random.Generator(stream), stream.state
    # Moving one generator from stream to stream takes a quarter of the time of making new ones.
    for row, i in zip(rows, index, strict=True):
        state["state"]["key"][1] = i & _WORD
        stream.state = state
        fill(row, generator)
    return torch.from_numpy(rows).view(like.shape).to(like.device, like.dtype)
