"""AugMix in batches compared with torchvision's, and runs that train with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms import AugMix as Original
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import equalize

import probekit as pk
from probekit.errors import OptionError
from probekit.runtime.randomness import RandomStreams
from probekit.training.run.augmix import OPERATIONS, AugMix, Mixture, apply_operations
from probekit.training.run.minibatches import Minibatches, load_run_data
from probekit.training.run.recipes import get_recipe

CPU = torch.device("cpu")


def pictures(count: int, channels: int = 1) -> torch.Tensor:
    shape = (count, channels, 12, 12)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def streams(count: int, seed: int = 0) -> RandomStreams:
    return RandomStreams(f"seed {seed}", range(count))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_that_of_torchvision(name: str, channels: int) -> None:
    images = pictures(8, channels)
    images[-1] = 7  # a constant image, which autocontrast and equalize do not change
    space = Original(all_ops=False)._augmentation_space(10, (12, 12))
    assert tuple(space) == OPERATIONS
    strengths, signed = space[name]
    for level in range(10):
        for sign in (1, -1) if signed else (1,):
            chosen = torch.full((8,), OPERATIONS.index(name))
            found = apply_operations(
                images, chosen, torch.full((8,), level), torch.full((8,), sign)
            )
            strength = sign * float(strengths[level]) if strengths.ndim else 0.0
            expected = _apply_op(images, name, strength, InterpolationMode.NEAREST, None)
            # Nearest positions halfway between two pixels may round either way.
            share = (found != expected).float().mean()
            assert share <= (0.05 if signed else 0.0)


def test_each_image_has_its_own_operation() -> None:
    images = pictures(3)
    kinds = torch.tensor([-1, OPERATIONS.index("Equalize"), OPERATIONS.index("Solarize")])
    found = apply_operations(images, kinds, torch.full((3,), 9), torch.ones(3, dtype=torch.int64))
    assert torch.equal(found[0], images[0])
    assert torch.equal(found[1:2], equalize(images[1:2]))
    assert torch.equal(found[2], 255 - images[2])


def test_the_draws_have_the_distributions_of_the_paper() -> None:
    drawn = AugMix(severity=4).draw(streams(20_000))
    assert torch.allclose(drawn.weights.sum(1), torch.ones(20_000))
    # Beta(1, 1) has mean 1/2 and variance 1/12. Each of the three chains gets a third of the rest.
    assert drawn.weights[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.weights[:, 0].var() == pytest.approx(1 / 12, abs=0.002)
    assert drawn.weights[:, 1:].mean(0).tolist() == pytest.approx([1 / 6] * 3, abs=0.005)
    lengths = (drawn.operations >= 0).sum(2).flatten()
    assert (lengths.bincount() / len(lengths)).tolist() == pytest.approx(
        [0, *[1 / 3] * 3], abs=0.01
    )
    kinds = drawn.operations[drawn.operations >= 0].bincount()
    assert (kinds / kinds.sum()).tolist() == pytest.approx([1 / 9] * 9, abs=0.005)
    assert drawn.levels.unique().tolist() == [0, 1, 2, 3]
    assert drawn.signs.float().mean() == pytest.approx(0, abs=0.01)


def test_mixing_unchanged_chains_keeps_the_image() -> None:
    images = pictures(4)
    drawn = AugMix().draw(streams(4))
    same = Mixture(drawn.weights, torch.full_like(drawn.operations, -1), drawn.levels, drawn.signs)
    difference = AugMix().apply(images, same).int() - images.int()
    assert difference.abs().max() <= 1  # mixing truncates to integer levels


def test_the_global_generator_is_unchanged() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    AugMix()(pictures(4), streams(4))
    assert torch.equal(torch.rand(3), expected)


def test_the_seed_determines_the_images() -> None:
    images = pictures(8)
    one, again, other = (AugMix()(images, streams(8, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("severity", [0, 11, 2.5, True])
def test_a_severity_out_of_range_is_refused(severity: object) -> None:
    with pytest.raises(OptionError, match="severity of AugMix must be an integer from 1 to 10"):
        get_recipe("resnet20-digits", augmix=severity)


def test_images_differ_in_every_epoch_and_step_and_steps_can_resume() -> None:
    recipe = get_recipe("resnet20-digits", augmix=3, batch_size=40, shift=0, validation=0)
    data = load_run_data(recipe.with_options(limit=120), 0, None, 0)
    batches = Minibatches(data.train, recipe, 0, CPU)
    plain = Minibatches(data.train, recipe.with_options(augmix=None), 0, CPU)
    whole = [images for _, images, _ in batches.epoch(0)]
    rest = [images for _, images, _ in batches.epoch(0, first=2)]
    assert torch.equal(whole[2], rest[0])
    changed = [
        (one - other).abs().mean() for one, (_, other, _) in zip(whole, plain.epoch(0), strict=True)
    ]
    assert min(changed) > 0.01


def test_two_processes_give_the_images_of_one() -> None:
    recipe = get_recipe("resnet20-digits", augmix=3, batch_size=64, validation=0, limit=128)
    data = load_run_data(recipe, 0, None, 0)
    whole = next(iter(Minibatches(data.train, recipe, 0, CPU).epoch(0)))[1]
    halves = [
        next(iter(Minibatches(data.train, recipe, 0, CPU, rank, 2).epoch(0)))[1] for rank in (0, 1)
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_a_run_trains_with_augmix(tmp_path: Path) -> None:
    run = pk.train(
        "resnet20-digits", 0.0, 0, tmp_path / "run", epochs=1, architecture="resnet8", limit=96,
        batch_size=32, device="cpu", progress=False, augmix=3,
    )  # fmt: skip
    assert pk.load_model(run.folder).provenance["recipe"]["augmix"] == 3
