"""Augmentation compared with numpy, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import OptionError
from probekit.runtime.randomness import RandomStreams
from probekit.training.run.augment import Augmentation


def _by_hand(image: np.ndarray, flip: bool, down: int, right: int, shift: int) -> np.ndarray:
    image = image[:, :, ::-1] if flip else image
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)))
    return padded[:, down : down + height, right : right + width]


@given(
    shift=st.integers(0, 4),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
@settings(max_examples=40, deadline=None)
def test_each_image_is_flipped_and_shifted_by_its_own_stream(
    shift: int, flip: bool, channels: int, size: tuple[int, int], seed: int, dtype: torch.dtype
) -> None:
    images = torch.randint(1, 255, (5, channels, *size)).to(dtype)
    augmentation = Augmentation(flip, shift)
    streams = RandomStreams(f"seed {seed}", range(5))
    mirrored = streams.uniform(1)[:, 0] < (0.5 if flip else 0.0)
    moves = streams.integers(2 * shift + 1, 2, field=1)
    expected = [
        _by_hand(image, bool(mirror), int(down), int(right), shift)
        for image, mirror, (down, right) in zip(images.numpy(), mirrored, moves, strict=True)
    ]
    found = augmentation(images, streams)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_draws_are_uniform_over_shifts_and_flips() -> None:
    # The 5 by 5 pixels have different values, so the center pixel identifies the draw.
    images = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(20_000, 1, 5, 5)
    middle = Augmentation(True, 2)(images, RandomStreams("draws", range(20_000)))[:, 0, 2, 2].long()
    found = Augmentation(False, 2)(images, RandomStreams("draws", range(20_000)))[:, 0, 2, 2].long()
    mirrored = middle != found
    # A flipped middle column cannot be distinguished from an unflipped one.
    assert abs(mirrored.float().mean().item() - 0.5 * 0.8) < 0.02
    for steps in ((found - 1) // 5, (found - 1) % 5):
        shares = torch.bincount(steps, minlength=5) / 20_000
        assert len(shares) == 5
        assert (shares - 0.2).abs().max() < 0.02


def test_the_seed_determines_the_augmentation() -> None:
    images = torch.rand(16, 3, 8, 8)
    first, again, other = (
        Augmentation(True, 2)(images, RandomStreams(f"seed {seed}", range(16)))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_is_augmented_equally_in_any_batch() -> None:
    images = torch.rand(6, 1, 5, 5)
    augmentation = Augmentation(True, 1)
    whole = augmentation(images, RandomStreams("epoch 0", range(6)))
    part = augmentation(images[2:5], RandomStreams("epoch 0", range(2, 5)))
    assert torch.equal(part, whole[2:5])


def test_the_default_changes_nothing() -> None:
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(Augmentation()(images, RandomStreams("draws", range(3))), images)


@pytest.mark.parametrize("shift", [-1, 1.5, True])
def test_a_shift_must_be_an_integer(shift: object) -> None:
    with pytest.raises(OptionError, match="shift must be a non-negative integer"):
        Augmentation(shift=shift)  # type: ignore[arg-type]
