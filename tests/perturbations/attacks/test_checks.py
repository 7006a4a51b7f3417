"""Warnings and errors for models and batches on which an attack would measure nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from probekit.errors import DataError, ModelError, OptionError, ProbekitWarning
from probekit.perturbations.attacks.checks import (
    attackable,
    check_classes,
    check_epsilons,
    check_images,
    check_model_for_attack,
)


class Picks(nn.Module):
    """Classifies by the brightest of 4 pixels, so that it is correct on `pictures`."""

    def __init__(self, after: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.after = after

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1) * self.scale
        return logits if self.after is None else self.after(logits)


def pictures(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 1, 2, 2, generator=generator)
    return images, images.flatten(1).argmax(dim=1)


def test_a_valid_model_gives_no_warning() -> None:
    assert check_model_for_attack(Picks().eval(), *pictures()) == ()


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise NotImplementedError("no backward on a CPU")


def refusing(logits: Tensor) -> Tensor:
    if logits.requires_grad:
        raise NotImplementedError("no backward on a CPU")
    return logits


@pytest.mark.parametrize("after", [refusing, Refusing.apply])
def test_a_model_that_refuses_gradients_is_reported(after: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ModelError, match="model cannot be differentiated: no backward on a CPU"):
        check_model_for_attack(Picks(after).eval(), *pictures())


def rounded(logits: Tensor) -> Tensor:
    return (logits * 100).round()


def saturated(logits: Tensor) -> Tensor:
    return logits * 1e6


def turned(logits: Tensor) -> Tensor:
    return logits.roll(1, dims=1)


WARNED = {
    "probabilities": (Picks(lambda logits: logits.softmax(dim=1)), "without its last softmax"),
    "rounding": (Picks(rounded), r"gradient is zero for \d+ of 40 correctly"),
    "saturation": (Picks(saturated), "loss=.margin."),
    "classes in another order": (Picks(turned), "no better than chance for 4 classes"),
}


@pytest.mark.parametrize("case", WARNED)
def test_unsuitable_models_give_a_warning(case: str) -> None:
    model, words = WARNED[case]
    with pytest.warns(ProbekitWarning, match=words):
        told = check_model_for_attack(model.eval(), *pictures())
    assert len(told) == 1


def test_training_mode_gives_a_warning_and_is_restored() -> None:
    model = nn.Sequential(Picks(), nn.Dropout(0.9), nn.Identity())
    model[2].eval()
    with pytest.warns(ProbekitWarning, match="in training mode"):
        check_model_for_attack(model, *pictures())
    assert [part.training for part in model] == [True, True, False]


def test_a_saturated_softmax_does_not_warn_with_the_margin_loss() -> None:
    assert check_model_for_attack(Picks(saturated).eval(), *pictures(), loss="margin") == ()


def test_few_images_give_no_warning_about_chance() -> None:
    images, labels = pictures(10)
    assert check_model_for_attack(Picks(turned).eval(), images, labels) == ()


def to_integers(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1, keepdim=True).expand(-1, 4)


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "detached": (lambda logits: logits.detach(), "has no gradient"),
    "constant": (lambda logits: torch.zeros(len(logits), 4, requires_grad=True), "has no gradient"),
    "numpy": (lambda logits: torch.from_numpy(logits.detach().numpy()), "has no gradient"),
    "tuple": (lambda logits: (logits, logits), r"returns tuple with 0 \(40, 4\)"),
    "map": (lambda logits: logits[:, :, None], r"returns \(40, 4, 1\)"),
    "one class": (lambda logits: logits[:, :1], "two or more classes"),
    "wrong batch": (lambda logits: logits[:7], r"returns \(7, 4\)"),
    "integers": (to_integers, "returns .* of torch.int64"),
    "nan": (lambda logits: logits * float("nan"), "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_models_are_refused(case: str) -> None:
    after, words = REFUSED[case]
    model = Picks(after)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=words):
        check_model_for_attack(model.eval(), *pictures())


def test_forward_under_no_grad_is_refused() -> None:
    model = torch.no_grad()(Picks().eval())
    with pytest.raises(ModelError, match="has no gradient"):
        check_model_for_attack(model, *pictures())


BAD_IMAGES: dict[str, tuple[object, str]] = {
    "uint8": (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), r"images.float\(\) / 255"),
    "0 to 255": (torch.full((2, 1, 2, 2), 200.0), "divide by 255"),
    "normalized": (torch.randn(2, 1, 9, 9), "before normalization"),
    "just over": (torch.full((2, 1, 2, 2), 1.001), "clamp them"),
    "nan": (torch.full((2, 1, 2, 2), float("nan")), "NaN"),
    "infinite": (torch.full((2, 1, 2, 2), float("inf")), "from inf to inf"),
    "half": (torch.zeros(2, 1, 2, 2, dtype=torch.float16), "float16 is too coarse"),
    "empty": (torch.zeros(0, 1, 2, 2), r"shape \(0, 1, 2, 2\)"),
    "one image's row": (torch.zeros(4), r"shape \(4,\)"),
    "array": (np.zeros((2, 1, 2, 2)), "ndarray"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_invalid_images_are_refused(case: str) -> None:
    images, words = BAD_IMAGES[case]
    with pytest.raises(DataError, match=words):
        check_images(images)  # type: ignore[arg-type]


BAD_CLASSES: dict[str, tuple[object, str]] = {
    "too high": ([0, 4], "hold class 4, which does not exist: the model has classes 0 to 3"),
    "negative": ([0, -1], "hold class -1"),
    "too few": ([0], "2 integers"),
    "floating": ([0.0, 1.0], "torch.float32"),
    "one-hot": (torch.eye(2, dtype=torch.int64), r"shape \(2, 2\)"),
}


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_invalid_classes_are_refused(case: str) -> None:
    classes, words = BAD_CLASSES[case]
    with pytest.raises(DataError, match=words):
        check_classes(classes, torch.zeros(2, 1, 2, 2), what="labels", n_classes=4)  # type: ignore[arg-type]


BAD_EPSILONS: dict[str, tuple[object, str]] = {
    "steps of 255": ([1 / 255, 8], "pass 8/255"),
    "negative": (-0.1, "from 0 to 1, not -0.1"),
    "nan": (float("nan"), "not nan"),
    "infinite": (float("inf"), "not inf"),
    "none": ([], "at least one epsilon"),
}


@pytest.mark.parametrize("case", BAD_EPSILONS)
def test_invalid_epsilons_are_refused(case: str) -> None:
    epsilons, words = BAD_EPSILONS[case]
    with pytest.raises(OptionError, match=words):
        check_epsilons(epsilons, "linf", 12)  # type: ignore[arg-type]


def test_l2_epsilon_may_exceed_one_but_not_the_unit_cube() -> None:
    assert check_epsilons(2, "l2", 12) == (2.0,)
    with pytest.raises(OptionError, match=r"are 3.464 apart"):
        check_epsilons(128, "l2", 12)


def test_attackable_restores_gradient_flags_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(2, 2)
    before = {name: p.requires_grad for name, p in model.named_parameters()}

    def fails() -> None:
        with attackable(model):
            assert not any(part.training for part in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fails()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert [part.training for part in model.modules()] == [True, True, False]
    assert torch.equal(model[0].weight.grad, torch.ones(2, 2))
