"""Augmentation compared with numpy, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torchvision.transforms import AugMix as Original
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.functional import equalize

import probekit as pk
from probekit.errors import OptionError
from probekit.models.image_model import ImageModel
from probekit.runtime.randomness import RandomStreams
from probekit.training.run.augment import (
    OPERATIONS,
    Adversary,
    Augmentation,
    AugMix,
    apply_operations,
)
from probekit.training.run.loop import TrainingLoop
from probekit.training.run.minibatches import Minibatches, load_run_data
from probekit.training.run.recipes import get_recipe


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
    weights, (operations, levels, signs) = AugMix(severity=4).draw(streams(20_000))
    assert torch.allclose(weights.sum(1), torch.ones(20_000))
    # Beta(1, 1) has mean 1/2 and variance 1/12. Each of the three chains gets a third of the rest.
    assert weights[:, 0].mean() == pytest.approx(0.5, abs=0.01)
    assert weights[:, 0].var() == pytest.approx(1 / 12, abs=0.002)
    assert weights[:, 1:].mean(0).tolist() == pytest.approx([1 / 6] * 3, abs=0.005)
    lengths = (operations >= 0).sum(2).flatten()
    assert (lengths.bincount() / len(lengths)).tolist() == pytest.approx(
        [0, *[1 / 3] * 3], abs=0.01
    )
    kinds = operations[operations >= 0].bincount()
    assert (kinds / kinds.sum()).tolist() == pytest.approx([1 / 9] * 9, abs=0.005)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    assert signs.float().mean() == pytest.approx(0, abs=0.01)


def test_mixing_unchanged_chains_keeps_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(4)
    weights, steps = AugMix().draw(streams(4))
    steps[0] = -1
    monkeypatch.setattr(AugMix, "draw", lambda *_: (weights, steps))
    difference = AugMix()(images, streams(4)).int() - images.int()
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


QUICK: dict[str, Any] = {
    "epochs": 2, "architecture": "resnet8", "limit": 96, "batch_size": 32, "device": "cpu",
    "progress": False, "pgd": (0.1, 2),
}  # fmt: skip


@pytest.fixture
def subject(model: ImageModel, labeled: Any) -> tuple[ImageModel, torch.Tensor, torch.Tensor]:
    images, labels = labeled
    return model, model.normalize(images), labels


def test_the_search_equals_pgd_by_hand(subject: Any) -> None:
    model, images, labels = subject
    attacked = Adversary(epsilon=0.2, steps=3)(model, images, labels, seed=5)
    start = pk.PGD(steps=1, seed=5, step_size=1e-9, keep="last")
    pixels = images * 0.5 + 0.3
    x = start.run(model, pixels, labels, 0.2, check=False).images[0]
    frozen = model.module.eval()
    moved = 0
    for _ in range(3):
        x.requires_grad_(True)
        loss = functional.cross_entropy(frozen((x - 0.3) / 0.5), labels)
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + 2.5 * 0.2 / 3 * gradient.sign()
        x = torch.minimum(torch.maximum(x, pixels - 0.2), pixels + 0.2).clamp(0, 1)
    prediction = model(pixels).argmax(1)
    for one, other, label, clean in zip(attacked * 0.5 + 0.3, x, labels, prediction, strict=True):
        if clean == label:
            moved += 1
            assert torch.allclose(one, other, atol=1e-5)
    assert moved > 3


def test_the_network_is_unchanged(subject: Any) -> None:
    model, images, labels = subject
    model.module.train()
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    Adversary(epsilon=0.2, steps=2)(model, images, labels, seed=0)
    assert all(torch.equal(x, before[name]) for name, x in model.module.state_dict().items())
    assert all(child.training for child in model.module.modules())
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    assert all(parameter.grad is None for parameter in model.module.parameters())


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_an_interrupted_run_ends_with_the_same_weights(
    alpha: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**QUICK, "augmix": 2, "checkpoint_minutes": 0}
    pk.train("resnet20-digits", alpha, 1, tmp_path / "whole", **options)
    real, steps = TrainingLoop._train_step, []

    def cut_off(self: Any, *given: Any) -> None:
        if len(steps) == 4:
            raise KeyboardInterrupt
        steps.append(1)
        real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "_train_step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            pk.train("resnet20-digits", alpha, 1, tmp_path / "cut", **options)
    pk.train("resnet20-digits", alpha, 1, tmp_path / "cut", **options)
    whole, cut = (load_file(tmp_path / name / "final.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
def test_adversarial_training_makes_a_network_more_robust(tmp_path: Path) -> None:
    options = {**QUICK, "epochs": 5, "limit": 640, "batch_size": 64}
    plain = pk.train("resnet20-digits", 0, 0, tmp_path / "plain", **{**options, "pgd": None})
    armed = pk.train("resnet20-digits", 0, 0, tmp_path / "armed", **options)
    images = pk.load_data("digits", split="test")
    found = [
        pk.PGD(steps=10).run(pk.load_model(run.folder), images.images / 255, images.labels, 0.1)
        for run in (plain, armed)
    ]
    assert found[1].accuracy[0] > found[0].accuracy[0] + 0.1


BAD = [
    ((0.0, 7), "epsilon of adversarial training"),
    ((8, 7), "units of images in"),
    ((0.1, 0), "steps of adversarial training"),
    ((0.1,), r"pgd must be \(epsilon, steps\)"),
    (0.1, r"pgd must be \(epsilon, steps\)"),
]


@pytest.mark.parametrize(("pgd", "message"), BAD)
def test_invalid_options_are_refused(pgd: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        get_recipe("resnet20-digits", pgd=pgd)


def test_a_folder_from_before_these_options_resumes(tmp_path: Path) -> None:
    import json

    options = {name: value for name, value in QUICK.items() if name != "pgd"}
    pk.train("resnet20-digits", 0, 0, tmp_path / "run", **options)
    file = tmp_path / "run" / "run.json"
    facts = json.loads(file.read_text())
    for name in ("augmix", "pgd"):
        del facts["recipe"][name]
    file.write_text(json.dumps(facts))
    assert pk.train("resnet20-digits", 0, 0, tmp_path / "run", **options).best_epoch >= 0


def test_the_attack_does_not_update_batch_norm(subject: Any) -> None:
    model, images, labels = subject
    norm = next(child for child in model.module.modules() if isinstance(child, nn.BatchNorm2d))
    before = norm.num_batches_tracked.clone()
    Adversary(epsilon=0.1, steps=2)(model, images, labels, seed=0)
    assert torch.equal(norm.num_batches_tracked, before)
