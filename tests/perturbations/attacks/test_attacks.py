"""The contents of an attack's result, which seeds and batches do not change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacked_networks import EVERY, Scaled, Trained, distance, linear_batch
from probekit.errors import OptionError, ProbekitWarning
from probekit.perturbations.attacks.gradient import FGSM, PGD


@pytest.mark.parametrize("name", EVERY)
def test_result_is_consistent_and_respects_its_bounds(trained: Trained, name: str) -> None:
    attack = EVERY[name]
    epsilons = (0.1, 0.0, 0.3, 1 / 255)
    images, labels = trained.images[:60], trained.labels[:60].clone()
    labels[0] = (labels[0] + 1) % 10
    run = attack.run(trained.model, images, labels, epsilons)
    assert run.epsilons == epsilons
    assert run.images.shape == (4, *images.shape)
    assert run.success_by_step is not None
    assert run.success_by_step.shape == (4, attack.steps + 1, 60)
    assert torch.equal(run.success_by_step[:, -1], run.success)
    assert run.n_fooled == tuple(run.success.sum(dim=1).tolist())
    for epsilon, adversarial, prediction in zip(epsilons, run.images, run.prediction, strict=True):
        assert (distance(adversarial, images, attack.norm) <= epsilon).all()
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1
        with torch.no_grad():
            again = trained.model(adversarial).argmax(dim=1)
        assert (again == prediction).double().mean() > 0.98, "but for ties in the last bit"
    if not attack.targeted:
        assert torch.equal(run.success, run.prediction != labels)
        assert run.success[:, 0].all(), "wrong without attack is fooled at every epsilon"
    assert torch.equal(run.images[1], images), "epsilon 0 gives the clean images"
    assert torch.equal(run.prediction[1], run.clean_prediction)
    assert f"{run.n_fooled[0]} at 0.1" in repr(run)


@pytest.mark.parametrize("name", EVERY)
def test_each_epsilon_is_attacked_independently(name: str) -> None:
    model, images, labels = linear_batch()
    together = EVERY[name].run(model, images, labels, [0.3, 0.02, 0.1])
    alone = EVERY[name].run(model, images, labels, 0.1)
    assert torch.equal(together.images[2], alone.images[0])
    assert torch.equal(EVERY[name](model, images, labels, 0.1), alone.images[0])


@settings(max_examples=60, deadline=None)
@given(
    epsilon=st.one_of(st.floats(1e-6, 1.0), st.integers(1, 255).map(lambda level: level / 255)),
    name=st.sampled_from(sorted(EVERY)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_bounds_are_exact(epsilon: float, name: str, dtype: torch.dtype) -> None:
    model, images, labels = linear_batch(20)
    images = images.to(dtype)
    adversarial = EVERY[name](model.to(dtype), images, labels, epsilon)
    assert adversarial.dtype == dtype
    assert (distance(adversarial, images, EVERY[name].norm) <= epsilon).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_more_steps_never_raise_accuracy_when_the_best_is_kept(trained: Trained) -> None:
    attack = PGD(steps=12, step_size=0.01)
    run = attack.run(trained.model, trained.images, trained.labels, [0.05, 0.1])
    assert run.success_by_step is not None
    fooled = run.success_by_step.sum(dim=2)
    assert (fooled.diff(dim=1) >= 0).all()
    assert (fooled[:, -1] > fooled[:, 0]).all()


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_success_by_step_equals_attacks_with_fewer_steps(keep: Any, norm: Any) -> None:
    model, images, labels = linear_batch()
    long = PGD(steps=8, step_size=0.02, keep=keep, norm=norm)
    run = long.run(model, images, labels, 0.2)
    assert run.success_by_step is not None
    assert run.success_by_step[0, 0].sum() < run.success_by_step[0, -1].sum()
    for steps in (1, 3, 7):
        short = dataclasses.replace(long, steps=steps).run(model, images, labels, 0.2)
        assert torch.equal(short.success[0], run.success_by_step[0, steps])


def test_images_that_stop_early_do_not_affect_others() -> None:
    model, images, labels = linear_batch(200)
    attack = PGD(steps=6, step_size=0.03)
    together = attack.run(model, images, labels, 0.1)
    assert 20 < together.n_fooled[0] < 180
    assert together.success_by_step is not None
    assert len(together.success_by_step[0].sum(dim=1).unique()) > 3, "they leave at many steps"
    for i in range(0, 200, 7):
        alone = attack.run(model, images[i : i + 1], labels[i : i + 1], 0.1, index=[i])
        assert torch.equal(alone.images[0, 0], together.images[0, i])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_restarts_never_weaken_the_attack(trained: Trained, keep: Any) -> None:
    attack = PGD(steps=2, step_size=0.05, keep=keep)
    runs = [
        dataclasses.replace(attack, restarts=restarts).run(
            trained.model, trained.images, trained.labels, 0.1
        )
        for restarts in (1, 2, 6)
    ]
    assert (runs[0].success <= runs[1].success).all()
    assert (runs[1].success <= runs[2].success).all()
    assert runs[2].n_fooled[0] > runs[0].n_fooled[0]


def test_margin_loss_works_with_a_saturated_softmax(trained: Trained) -> None:
    saturated = nn.Sequential(trained.model, Scaled(1e3)).eval()
    attack = PGD(steps=10, random_start=False)
    with pytest.warns(ProbekitWarning, match="gradient is zero"):
        blind = attack.run(saturated, trained.images, trained.labels, 0.1)
    sharp = dataclasses.replace(attack, loss="margin")
    sees = sharp.run(saturated, trained.images, trained.labels, 0.1)
    assert sees.accuracy[0] < blind.accuracy[0] - 0.1


def test_default_targets_are_the_least_likely_classes(trained: Trained) -> None:
    run = FGSM(targeted=True).run(trained.model, trained.images, trained.labels, 0.05)
    with torch.no_grad():
        ranks = trained.model(trained.images).argsort(dim=1)
    targets = torch.where(ranks[:, 0] == trained.labels, ranks[:, 1], ranks[:, 0])
    given_targets = FGSM(targeted=True).run(
        trained.model, trained.images, trained.labels, 0.05, targets=targets
    )
    assert torch.equal(run.images, given_targets.images)


# --- seeds and batches --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_batch_split_and_order_change_nothing(name: str) -> None:
    model, images, labels = linear_batch()
    attack = EVERY[name]
    whole = attack.run(model, images, labels, 0.1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for rows in order.split(17):
        part = attack.run(model, images[rows], labels[rows], 0.1, index=rows, check=False)
        assert torch.equal(part.images[0], whole.images[0, rows])
        assert torch.equal(part.success[0], whole.success[0, rows])


def test_splitting_a_batch_changes_a_network_only_by_rounding(trained: Trained) -> None:
    attack = PGD(steps=10)
    whole = attack.run(trained.model, trained.images, trained.labels, 0.08)
    parts = [
        attack.run(trained.model, trained.images[rows], trained.labels[rows], 0.08, index=rows)
        for rows in torch.arange(200).split(64)
    ]
    success = torch.cat([part.success[0] for part in parts])
    assert (success == whole.success[0]).double().mean() >= 0.99


def test_seed_and_index_determine_the_start() -> None:
    model, images, labels = linear_batch()

    def start(seed: int, first: int) -> Tensor:
        attack = PGD(steps=1, step_size=1e-9, keep="last", seed=seed)
        return attack.run(model, images, labels, 0.1, index=range(first, first + 50)).images

    assert torch.equal(start(0, 0), start(0, 0))
    assert not torch.equal(start(0, 0), start(1, 0))
    assert not torch.equal(start(0, 0), start(0, 50))


def test_global_generators_are_unchanged() -> None:
    model, images, labels = linear_batch()
    before = torch.random.get_rng_state()
    PGD(steps=2, restarts=2).run(model, images, labels, 0.1)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("attack", [FGSM, PGD])
def test_a_model_is_not_taken_for_an_option(attack: Any) -> None:
    with pytest.raises(OptionError, match=r"True or False, not Linear|must be a positive integer"):
        attack(torch.nn.Linear(2, 2))
