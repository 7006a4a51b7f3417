"""Adversarial training: images equal those of PGD, the search leaves the network unchanged, runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import probekit as pk
from probekit.errors import OptionError
from probekit.models.image_model import ImageModel
from probekit.training.run.adversary import Adversary
from probekit.training.run.loop import TrainingLoop
from probekit.training.run.recipes import get_recipe

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
