"""AugMix in batches against torchvision's own, and runs that train with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms import AugMix as Original

import probekit as pk
from probekit.errors import OptionError
from probekit.training.run.augmix import AugMix
from probekit.training.run.minibatches import Minibatches, load_run_data
from probekit.training.run.recipes import get_recipe

CPU = torch.device("cpu")


def pictures(count: int, channels: int = 1) -> torch.Tensor:
    shape = (count, channels, 12, 12)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_each_group_is_what_torchvision_makes_of_it(channels: int) -> None:
    images = pictures(10, channels)
    mixed = AugMix(severity=5, together=4)(images, [3, 4, 5])
    for group, found, seed in zip(images.split(4), mixed.split(4), (3, 4, 5), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(found, Original(severity=5, all_ops=False)(group))
    assert not torch.equal(mixed, images)


def test_the_users_generator_goes_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    AugMix()(pictures(4), [0])
    assert torch.equal(torch.rand(3), expected)


def test_the_seed_decides_and_there_must_be_enough() -> None:
    images = pictures(8)
    one, again, other = (AugMix(together=4)(images, [seed, 7]) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one[:4], other[:4])
    assert torch.equal(one[4:], other[4:])
    with pytest.raises(OptionError, match="8 images are mixed in 2 groups"):
        AugMix(together=4)(images, [0])


@pytest.mark.parametrize("severity", [0, 11, 2.5, True])
def test_a_severity_out_of_range(severity: object) -> None:
    with pytest.raises(OptionError, match="severity of AugMix is a whole number from 1 to 10"):
        get_recipe("resnet20-digits", augmix=severity)


def test_every_epoch_and_step_mixes_anew_and_steps_can_be_taken_up() -> None:
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


def test_two_processes_mix_as_one() -> None:
    recipe = get_recipe("resnet20-digits", augmix=3, batch_size=64, validation=0, limit=128)
    data = load_run_data(recipe, 0, None, 0)
    whole = next(iter(Minibatches(data.train, recipe, 0, CPU).epoch(0)))[1]
    halves = [
        next(iter(Minibatches(data.train, recipe, 0, CPU, rank, 2).epoch(0)))[1] for rank in (0, 1)
    ]
    assert torch.equal(whole, torch.cat(halves))


def test_a_run_trains_with_it(tmp_path: Path) -> None:
    run = pk.train(
        "resnet20-digits", 0.0, 0, tmp_path / "run", epochs=1, architecture="resnet8", limit=96,
        batch_size=32, device="cpu", progress=False, augmix=3,
    )  # fmt: skip
    assert pk.load_model(run.folder).provenance["recipe"]["augmix"] == 3
