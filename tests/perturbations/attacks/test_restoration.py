"""Attacks restore the model and the images, and refuse invalid arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacked_networks import EVERY, distance, linear_batch, mixed_model, state_of
from probekit.errors import DataError, ModelError, OptionError, ProbekitWarning
from probekit.perturbations.attacks.gradient import FGSM, PGD, AutoAttack, get_attack


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd last", "pgd l2"])
def test_model_is_restored(name: str) -> None:
    model = mixed_model()
    images = torch.rand(8, 1, 2, 3, requires_grad=True)
    clean = images.detach().clone()
    before = state_of(model)
    run = EVERY[name].run(model, images, torch.zeros(8, dtype=torch.int64), 0.1, check=False)
    assert state_of(model) == before
    assert images.grad is None
    assert images.requires_grad
    assert torch.equal(images, clean)
    assert not run.images.requires_grad
    again = EVERY[name].run(model, images, torch.zeros(8, dtype=torch.int64), 0.1, check=False)
    assert torch.equal(run.images, again.images), "dropout was on: the model was not in eval mode"


class FailsOnCall(nn.Module):
    def __init__(self, call: int) -> None:
        super().__init__()
        self.countdown = call

    def forward(self, x: Tensor) -> Tensor:
        self.countdown -= 1
        if self.countdown == 0:
            raise RuntimeError("of the model's own")
        return x


@pytest.mark.parametrize("call", [1, 2, 4])
def test_model_is_restored_after_an_exception(call: int) -> None:
    model = mixed_model().append(FailsOnCall(call))
    before = state_of(model)
    with pytest.raises(RuntimeError, match="of the model's own"):
        PGD(steps=5, keep="last").run(
            model, torch.rand(8, 1, 2, 3), torch.zeros(8, dtype=torch.int64), 0.1, check=False
        )
    assert state_of(model) == before


class Counts(nn.Module):
    """Counts its images in a buffer, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x


def test_state_that_the_model_changes_is_restored() -> None:
    model = nn.Sequential(Counts(), nn.Flatten(), nn.Linear(6, 3)).eval()
    images, labels = torch.rand(8, 1, 2, 3), torch.zeros(8, dtype=torch.int64)
    model(images)
    for attack in (FGSM(), PGD(steps=2)):
        with pytest.warns(
            ProbekitWarning, match="changes its own state when it runs, such as 'seen'"
        ):
            attack.run(model, images, labels, 0.1, check=False)
        assert model[0].seen == 8


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd l2"])
def test_attacks_run_when_the_caller_has_disabled_gradients(
    context: Callable[[], Any], name: str
) -> None:
    model, images, labels = linear_batch()
    expected = EVERY[name](model, images, labels, 0.1)
    with context():
        assert torch.equal(EVERY[name](model, images.clone(), labels.clone(), 0.1), expected)
        assert not torch.is_grad_enabled()


def test_a_callable_that_holds_a_module_is_restored_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        module: nn.Module

        def __call__(self, images: Tensor) -> Tensor:
            return self.module(images * 2 - 1)

    model = mixed_model()
    before = state_of(model)
    images, labels = torch.rand(8, 1, 2, 3), torch.zeros(8, dtype=torch.int64)
    with pytest.warns(ProbekitWarning, match="training mode"):
        first = PGD(steps=3).run(Holder(model), images, labels, 0.1)
    assert state_of(model) == before
    again = PGD(steps=3).run(Holder(model), images, labels, 0.1, check=False)
    assert torch.equal(first.images, again.images)


class RootOfDistance(nn.Module):
    """Its gradient is NaN wherever a pixel equals one half."""

    def forward(self, images: Tensor) -> Tensor:
        root = (images.flatten(1) - 0.5).abs().sqrt().sum(dim=1)
        return torch.stack([root, 2 - root], dim=1)


@pytest.mark.parametrize("name", ["fgsm", "pgd margin", "pgd l2"])
def test_nan_gradients_do_not_reach_the_images(name: str) -> None:
    images = torch.tensor([[0.5, 0.2, 0.7], [0.5, 0.5, 0.5]])
    labels = torch.tensor([0, 1])
    run = EVERY[name].run(RootOfDistance().eval(), images, labels, 0.1, check=False)
    adversarial = run.images[0]
    assert torch.isfinite(adversarial).all()
    assert (distance(adversarial, images, EVERY[name].norm) <= 0.1).all()


# --- invalid arguments --------------------------------------------------------------------------


BAD_OPTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "norm": (lambda: PGD(norm="l3"), "norm must be 'linf' or 'l2', not 'l3'"),  # type: ignore[arg-type]
    "loss": (lambda: FGSM(loss="crossentropy"), "loss must be 'cross_entropy' or"),  # type: ignore[arg-type]
    "keep": (lambda: PGD(keep="first"), "keep must be .* not 'first'"),  # type: ignore[arg-type]
    "version": (lambda: AutoAttack(version="std"), "version must be .* not 'std'"),  # type: ignore[arg-type]
    "steps": (lambda: PGD(steps=0), "steps must be a positive integer, not 0"),
    "restarts": (lambda: PGD(restarts=0), "restarts must be a positive integer, not 0"),
    "same runs": (lambda: PGD(restarts=2, random_start=False), "needs random_start=True"),
    "step size": (lambda: PGD(step_size=-0.1), "step_size must be a positive number, not -0.1"),
    "step scale": (lambda: PGD(step_size=2), "pass 2/255"),
    "name": (lambda: get_attack("pdg"), "there is no attack 'pdg'; close matches: pgd"),
    "type": (lambda: get_attack(int), "there is no attack 'type'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_invalid_options_are_refused(case: str) -> None:
    make, words = BAD_OPTIONS[case]
    with pytest.raises(OptionError, match=words):
        make()


BAD_RUNS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "epsilon": ({"epsilons": 8}, OptionError, "pass 8/255"),
    "images": ({"images": torch.full((50, 1, 2, 3), 99.0)}, DataError, "divide by 255"),
    "labels": ({"labels": torch.full((50,), 3)}, DataError, "labels hold class 3"),
    "label count": ({"labels": torch.zeros(49, dtype=torch.int64)}, DataError, "as 50 integers"),
    "targets": ({"targets": torch.full((50,), 7)}, DataError, "targets hold class 7"),
    "index": ({"index": [1, 2]}, DataError, "2 entries for 50 images"),
    "model": ({"model": lambda images: images.flatten(1).detach()}, ModelError, "no gradient"),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("case", BAD_RUNS)
def test_invalid_runs_are_refused(case: str, check: bool) -> None:
    changed, error, words = BAD_RUNS[case]
    model, images, labels = linear_batch()
    asked = {"model": model, "images": images, "labels": labels, "epsilons": 0.1} | changed
    with pytest.raises(error, match=words):
        PGD(steps=2, targeted="targets" in asked).run(**asked, check=check)


def test_targets_without_a_targeted_attack_are_refused() -> None:
    model, images, labels = linear_batch()
    with pytest.raises(OptionError, match=r"pgd\(targeted=True\)"):
        PGD().run(model, images, labels, 0.1, targets=labels)


def test_attacks_are_immutable_and_comparable() -> None:
    assert get_attack("PGD") == PGD()
    assert get_attack("fgsm") == FGSM()
    assert get_attack(PGD(steps=3)) == PGD(steps=3)
    assert len({PGD(), PGD(steps=40), PGD(steps=41)}) == 2
    assert eval(repr(PGD(steps=7, norm="l2"))) == PGD(steps=7, norm="l2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        PGD().steps = 3  # type: ignore[misc]
