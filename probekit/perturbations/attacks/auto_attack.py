"""AutoAttack, based on the code of its authors, if installed.

The `autoattack` extra installs `pyautoattack`, which is the code of Croce & Hein with their
settings. torchattacks also has an AutoAttack, but with 10 iterations instead of the paper's 100.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from probekit.checks import one_of
from probekit.errors import DataError, OptionError, optional
from probekit.perturbations.attacks.attack import Attack, AttackBatch, Candidates
from probekit.perturbations.attacks.balls import Ball, Norm
from probekit.perturbations.attacks.goals import Loss, Model, model_logits

Version: TypeAlias = Literal["standard", "plus", "rand"]

TARGET_CLASSES = 9
FEWEST_CLASSES = 4


@dataclass(frozen=True)
class AutoAttack(Attack):
    """An ensemble of parameter-free attacks (Croce & Hein 2020): APGD, targeted APGD, FAB, Square.

    This is the strongest attack in the package, and roughly a hundred times slower than PGD with 40
    steps. Images must have four dimensions. The results are projected onto the ball and classified
    again by the model. The attack is seeded, but draws random numbers for the batch as a whole, so the
    result for an image may depend on its batch.

    Args:
        norm: `linf` or `l2`.
        version: `standard`; `plus`, with more restarts; `rand`, for a model that is random in
            eval mode.
        seed: Seed of all random draws.

    Raises:
        OptionError: On use, if the `autoattack` extra is not installed.

    Example:
        >>> AutoAttack(norm="l2")
        AutoAttack(norm='l2', version='standard', seed=0)
    """

    norm: Norm = "linf"
    version: Version = "standard"
    seed: int = 0
    steps: int = field(default=0, init=False, repr=False)
    targeted: bool = field(default=False, init=False, repr=False)
    loss: Loss = field(default="cross_entropy", init=False, repr=False)

    name: ClassVar[str] = "autoattack"

    def __post_init__(self) -> None:
        one_of("norm", self.norm, get_args(Norm))
        one_of("version", self.version, get_args(Version))

    def search(self, batch: AttackBatch, ball: Ball, epsilon: float) -> Candidates:
        n_classes = batch.logits.shape[1]
        if n_classes < FEWEST_CLASSES:
            raise OptionError(
                f"AutoAttack needs {FEWEST_CLASSES} classes or more, because its loss compares the three "
                f"highest logits, and the model has {n_classes}; use PGD"
            )
        if batch.images.ndim != 4:
            raise DataError(
                "AutoAttack needs images of shape (n, channels, height, width), not "
                f"{tuple(batch.images.shape)}"
            )
        with optional("pyautoattack", "AutoAttack"):
            package = importlib.import_module("pyautoattack")
        ensemble = package.AutoAttack(
            _Logits(batch.model),
            norm={"linf": "Linf", "l2": "L2"}[self.norm],
            eps=epsilon,
            seed=self.seed,
            version=self.version,
            device=batch.images.device,
        )
        for part in (ensemble.apgd_targeted, ensemble.fab):
            part.n_target_classes = min(TARGET_CLASSES, n_classes - 1)
        tracer = sys.gettrace()
        devices = [batch.images.device] if batch.images.is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                adversarial, _ = ensemble.run_standard_evaluation(
                    batch.images, batch.goal.classes, batch_size=len(batch.images)
                )
        finally:
            sys.settrace(tracer)  # the package disables tracing, which coverage and debuggers need
        return Candidates.at_end(batch, ball.project(adversarial), self.steps)


class _Logits(nn.Module):
    """Wraps any callable as a module, as the package requires, without registering it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.call = (model,)

    def forward(self, images: Tensor) -> Tensor:
        return model_logits(self.call[0], images)
