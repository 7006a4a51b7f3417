"""AutoAttack compared with PGD."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from attacked_networks import Trained, distance, linear_batch, state_of
from probekit.errors import OptionError
from probekit.perturbations.attacks.gradient import PGD, AutoAttack, get_attack


def test_missing_autoattack_is_reported_with_its_installation(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    attack = get_attack("autoattack")
    with pytest.raises(OptionError, match=r'pip install "probekit\[autoattack\]"'):
        attack.run(trained.model, trained.images, trained.labels, 0.1)


def test_autoattack_needs_four_classes() -> None:
    model, images, labels = linear_batch()
    with pytest.raises(OptionError, match="4 classes or more"):
        AutoAttack().run(model, images, labels, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.25), ("l2", 1.2)])
def test_autoattack_is_stronger_than_two_short_steps_of_pgd(
    trained: Trained, norm: Any, epsilon: float
) -> None:
    pytest.importorskip("pyautoattack")
    images, labels = trained.images[:12], trained.labels[:12]
    before, drawn = state_of(trained.model), torch.random.get_rng_state()
    run = AutoAttack(norm=norm).run(trained.model, images, labels, epsilon)
    assert state_of(trained.model) == before
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert (distance(run.images[0], images, norm) <= epsilon).all()
    assert torch.equal(run.success, run.prediction != labels)
    assert run.success_by_step is None
    pgd = PGD(steps=2, step_size=epsilon / 5, norm=norm).run(trained.model, images, labels, epsilon)
    assert run.n_fooled[0] > pgd.n_fooled[0]
    again = AutoAttack(norm=norm).run(trained.model, images, labels, epsilon)
    assert torch.equal(run.images, again.images)
