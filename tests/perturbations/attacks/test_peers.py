"""FGSM and PGD compared with manual computation, captum, foolbox and torchattacks."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import captum.robust
import foolbox
import pytest
import torch
from torch import nn

from attacked_networks import NOISE, Linear, Scaled, Trained
from probekit.perturbations.attacks.gradient import FGSM, PGD


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_fgsm_of_two_linear_classes_by_hand(targeted: bool, loss: Any) -> None:
    model = Linear(classes=2).eval()
    images = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[0] = 1 - labels[0]
    towards = (model.weight[1] - model.weight[0]).detach().sign() * (1 - 2 * labels[:, None])
    stepped = (images + 0.1 * towards.view(20, 1, 2, 3)).clamp(0, 1)
    run = FGSM(targeted=targeted, loss=loss).run(model, images, labels, 0.1)
    with torch.no_grad():
        prediction = model(stepped).argmax(dim=1)
    rescued = (run.clean_prediction != labels) & (prediction == labels)
    expected = torch.where(rescued.view(20, 1, 1, 1), images, stepped)
    torch.testing.assert_close(run.images[0], expected)
    assert torch.equal(run.success[0], (prediction != labels) | (run.clean_prediction != labels))


def test_fgsm_equals_captum_with_loss_and_bounds_given(trained: Trained) -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    peer = captum.robust.FGSM(trained.model, loss, lower_bound=0, upper_bound=1)
    peer.zero_thresh = 0
    for epsilon in (1 / 255, 0.1):
        theirs = peer.perturb(trained.images.clone(), epsilon=epsilon, target=trained.labels)
        ours = FGSM()(trained.model, trained.images, trained.labels, epsilon)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-7)


def test_captums_default_fgsm_skips_small_gradients(trained: Trained) -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    confident = nn.Sequential(trained.model, Scaled(3.0)).eval()
    peer = captum.robust.FGSM(confident, loss, lower_bound=0, upper_bound=1)
    theirs = peer.perturb(trained.images.clone(), epsilon=0.1, target=trained.labels)
    ours = FGSM()(confident, trained.images, trained.labels, 0.1)
    spared = (theirs == trained.images).flatten(1).all(dim=1)
    moved = (ours != trained.images).flatten(1).any(dim=1)
    assert (spared & moved).any(), "the reason to have an FGSM of our own is gone"


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_last_iterate_equals_that_of_foolbox_and_torchattacks(
    trained: Trained, torchattacks: Any, norm: Any
) -> None:
    epsilon, steps = {"linf": (0.1, 5), "l2": (0.8, 5)}[norm]
    size = epsilon / 3
    attack = PGD(steps=steps, step_size=size, norm=norm, random_start=False, keep="last")
    run = attack.run(trained.model, trained.images, trained.labels, epsilon)
    clean_right = run.clean_prediction == trained.labels
    peer: Any = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    of_torchattacks = peer(trained.model, eps=epsilon, alpha=size, steps=steps, random_start=False)(
        trained.images, trained.labels
    )
    kind: Any = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }[norm]
    model = foolbox.PyTorchModel(trained.model, bounds=(0, 1), device="cpu")
    of_foolbox, _, _ = kind(steps=steps, abs_stepsize=size, random_start=False)(
        model, trained.images, trained.labels, epsilons=epsilon
    )
    for theirs in (of_torchattacks, of_foolbox):
        far = (run.images[0] - theirs).abs()[clean_right] > 1e-4
        assert far.double().mean() < 0.005, "more than the sign of some gradient near zero"


@pytest.mark.parametrize(
    ("norm", "epsilon"), [("linf", 0.05), ("linf", 0.1), ("l2", 0.3), ("l2", 0.7)]
)
def test_pgd_is_as_strong_as_foolbox_and_torchattacks(
    trained: Trained, torchattacks: Any, norm: Any, epsilon: float
) -> None:
    steps, size = 15, epsilon / 6
    peer: Any = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    kind: Any = {
        "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
        "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    }[norm]
    model = foolbox.PyTorchModel(trained.model, bounds=(0, 1), device="cpu")
    images, labels = trained.images, trained.labels
    # Random starts change the result for a few images.
    ours, of_torchattacks, of_foolbox = [], [], []
    for seed in range(4):
        attack = PGD(steps=steps, step_size=size, norm=norm, seed=seed)
        run = attack.run(trained.model, images, labels, epsilon)
        assert trained.accuracy(run.images[0]) == pytest.approx(run.accuracy[0], abs=NOISE)
        ours.append(run.accuracy[0])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = peer(trained.model, eps=epsilon, alpha=size, steps=steps)(images, labels)
            of_torchattacks.append(trained.accuracy(found))
            _, _, fooled = kind(steps=steps, abs_stepsize=size)(
                model, images, labels, epsilons=epsilon
            )
            of_foolbox.append(1 - float(fooled.double().mean()))
    assert fmean(ours) <= min(fmean(of_torchattacks), fmean(of_foolbox)) + NOISE
    assert 0.02 < fmean(ours) < 0.9, "an epsilon at which the attacks could differ"


def test_targeted_pgd_is_as_strong_as_torchattacks(trained: Trained, torchattacks: Any) -> None:
    targets = (trained.labels + 1) % 10
    peer = torchattacks.PGD(trained.model, eps=0.2, alpha=0.03, steps=15)
    peer.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10, quiet=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peer(trained.images, trained.labels)
    with torch.no_grad():
        reached = (trained.model(theirs).argmax(dim=1) == targets).double().mean()
    run = PGD(steps=15, step_size=0.03, targeted=True).run(
        trained.model, trained.images, trained.labels, 0.2, targets=targets
    )
    assert torch.equal(run.success[0], run.prediction[0] == targets)
    assert run.success.double().mean() >= reached - NOISE
    assert reached > 0.3, "an epsilon at which targets can be reached"
