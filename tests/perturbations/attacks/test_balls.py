"""The balls of the attacks: bounds exact to the last bit, steps of unit length, and random points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probekit.perturbations.attacks.balls import Norm, ball_around

NORMS: tuple[Norm, ...] = ("linf", "l2")
DTYPES = (torch.float32, torch.float64)


def length(change: Tensor, norm: Norm) -> Tensor:
    order = {"linf": float("inf"), "l2": 2.0}[norm]
    return torch.linalg.vector_norm(change.flatten(1), ord=order, dim=1)


def hard_images(seed: int, dtype: torch.dtype, size: int = 200) -> Tensor:
    """Pixels prone to rounding errors: at the bounds, next to them, tiny, and multiples of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, size, generator=generator, dtype=dtype)
    images[1] = torch.randint(0, 256, (size,), generator=generator).to(dtype) / 255
    images[2] = images[2] ** 20
    images[3, ::3], images[3, 1::3] = 0, 1
    return images


@settings(max_examples=150, deadline=None)
@given(
    epsilon=st.one_of(
        st.floats(1e-6, 1.0), st.integers(1, 255).map(lambda level: level / 255), st.just(1 / 3)
    ),
    seed=st.integers(0, 1000),
    norm=st.sampled_from(NORMS),
    dtype=st.sampled_from(DTYPES),
)
def test_projection_never_leaves_ball_or_unit_cube(
    epsilon: float, seed: int, norm: Norm, dtype: torch.dtype
) -> None:
    images = hard_images(seed, dtype)
    ball = ball_around(images, epsilon, norm)
    generator = torch.Generator().manual_seed(seed + 1)
    directions = torch.randn(images.shape, generator=generator, dtype=dtype)
    for x in (
        images + 10 * directions,
        images + epsilon * directions.sign(),
        ball.random_points(seed, range(4), 0),
    ):
        for adversarial in (ball.project(x), ball.project(ball.project(x))):
            assert adversarial.dtype == dtype
            assert adversarial.min() >= 0
            assert adversarial.max() <= 1
            assert (length(adversarial - images, norm) <= epsilon).all()
            assert (length(adversarial.double() - images.double(), norm) <= epsilon).all()


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold_on_large_images(norm: Norm) -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    adversarial = ball_around(images, 0.5, norm).project(images + 1)
    distance = length(adversarial.double() - images.double(), norm)
    assert (distance <= 0.5).all()
    assert (distance >= 0.499).all()


def test_linf_reaches_the_largest_float_inside_the_ball() -> None:
    images = hard_images(0, torch.float32)
    ball = ball_around(images, 8 / 255, "linf")
    upper = ball.project(images + 1)
    beyond = torch.nextafter(upper, torch.full_like(upper, 2))
    radius = float(torch.nextafter(torch.tensor(8 / 255), torch.tensor(0.0)))
    inside = (beyond.double() - images.double() <= radius) & (beyond <= 1)
    assert not inside.any(), "a larger pixel value would still have been in the ball"


def test_plain_clipping_would_leave_the_ball() -> None:
    images = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0))
    plain = (images + 0.1).clamp(0, 1)
    assert ((plain - images) > 0.1).any(), "the rounding that LinfBall guards against is gone"


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_ascent_has_unit_length_at_any_scale(scale: float) -> None:
    gradient = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * scale
    images = torch.full_like(gradient, 0.5)
    assert torch.equal(ball_around(images, 0.1, "linf").ascent(gradient), gradient.sign())
    step = ball_around(images, 0.1, "l2").ascent(gradient)
    torch.testing.assert_close(length(step, "l2"), torch.ones(3))
    expected = (gradient.double() / length(gradient.double(), "l2").view(-1, 1, 1, 1)).float()
    torch.testing.assert_close(step, expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ascent_takes_no_step_along_nan(norm: Norm, dtype: torch.dtype) -> None:
    # More values than fit into a vector register, with a remainder after the last full one.
    gradient = torch.full((2, 37), torch.nan, dtype=dtype)
    gradient[1, ::2] = 1
    step = ball_around(torch.full_like(gradient, 0.5), 0.1, norm).ascent(gradient)
    assert torch.equal(step[0], torch.zeros(37, dtype=dtype))
    assert (step[1, ::2] > 0).all()
    assert (step[1, 1::2] == 0).all()


def test_ascent_of_zero_gradient_is_zero() -> None:
    zero = torch.zeros(2, 3)
    for norm in NORMS:
        assert torch.equal(ball_around(zero + 0.5, 0.1, norm).ascent(zero), zero)


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_depend_only_on_seed_index_and_restart(norm: Norm) -> None:
    images = torch.full((4, 5), 0.5)
    ball = ball_around(images, 0.1, norm)
    points = ball.random_points(0, [3, 1, 4, 2**40], 0)
    shuffled = ball.random_points(0, [2**40, 4, 3, 1], 0)
    assert torch.equal(points[[3, 2, 0, 1]], shuffled)
    alone = ball.select(torch.tensor([2])).random_points(0, [4], 0)
    assert torch.equal(points[2:3], alone)
    for other in (ball.random_points(1, [3, 1, 4, 2**40], 0), ball.random_points(0, [3] * 4, 1)):
        assert not torch.equal(points[0], other[0])
    assert not torch.equal(points[0], points[1])


def test_random_points_are_distributed_as_documented() -> None:
    images = torch.full((4000, 3), 0.5)
    linf = ball_around(images, 0.2, "linf").random_points(0, range(4000), 0) - 0.5
    assert abs(float(linf.mean())) < 0.004
    assert abs(float(linf.var()) - 0.2**2 * 4 / 12) < 0.0005
    l2 = ball_around(images, 0.2, "l2").random_points(0, range(4000), 0) - images
    quantiles = np.quantile(length(l2, "l2").numpy() / 0.2, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quantiles, [0.25, 0.5, 0.75], atol=0.03)
    assert l2.mean(dim=0).abs().max() < 0.005


@pytest.mark.parametrize("norm", NORMS)
def test_select_keeps_the_ball_of_each_image(norm: Norm) -> None:
    images = hard_images(0, torch.float32)
    ball = ball_around(images, 0.1, norm)
    rows = torch.tensor([3, 1])
    far = images + 1
    assert torch.equal(ball.select(rows).project(far[rows]), ball.project(far)[rows])
