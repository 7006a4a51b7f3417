"""The base of all attacks: checks the batch, prepares the model, and gathers the results."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from probekit.checks import sample_indices
from probekit.errors import OptionError
from probekit.perturbations.attacks.balls import Ball, Norm, ball_around, column
from probekit.perturbations.attacks.checks import (
    attackable,
    check_classes,
    check_epsilons,
    check_images,
    check_model_for_attack,
)
from probekit.perturbations.attacks.goals import (
    Goal,
    Loss,
    Model,
    gradient_of,
    least_likely,
    model_logits,
    predicted_logits,
)
from probekit.runtime.settings import in_own_settings

CHECKED_IMAGES = 32


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The result of an attack on n images, along `epsilons` where it depends on them.

    Attributes:
        images: (epsilons, n, channels, height, width) adversarial images.
        prediction: (epsilons, n) classes predicted for `images`.
        success: (epsilons, n) whether the model is fooled; for a targeted attack, whether it
            predicts the target.
        success_by_step: (epsilons, steps + 1, n) whether any restart succeeds after each number of
            steps; row 0 is the start. None for an attack without steps.
    """

    epsilons: tuple[float, ...]
    labels: Tensor
    clean_prediction: Tensor
    images: Tensor
    prediction: Tensor
    success: Tensor
    success_by_step: Tensor | None

    @property
    def n_fooled(self) -> tuple[int, ...]:
        """Number of images that fool the model at each epsilon, including those misclassified clean."""
        return tuple(int(count) for count in self.success.sum(dim=1))

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Fraction of images still classified as labeled, for each epsilon."""
        right = (self.prediction == self.labels).double().mean(dim=1)
        return tuple(float(value) for value in right)

    def __repr__(self) -> str:
        fooled = ", ".join(
            f"{count} at {epsilon:.4g}"
            for epsilon, count in zip(self.epsilons, self.n_fooled, strict=True)
        )
        return f"AttackResult({len(self.labels)} images; fooled: {fooled})"


@dataclass(frozen=True, eq=False)
class AttackBatch:
    """A checked batch with the model's output on the clean images.

    `gradient` is that of the attack's objective at the clean images, including any NaN that the model
    produces; None if not needed.
    """

    model: Model
    images: Tensor
    goal: Goal
    index: Sequence[int]
    logits: Tensor
    prediction: Tensor
    gradient: Tensor | None


@dataclass(eq=False)
class Candidates:
    """The best image found so far for each image of a batch, at one epsilon.

    `by_step` (steps + 1, n) is whether the model was fooled after each number of steps.
    """

    images: Tensor
    prediction: Tensor
    objective: Tensor
    success: Tensor
    by_step: Tensor

    @classmethod
    def clean(cls, batch: AttackBatch, steps: int) -> Candidates:
        """The clean images, which count as a success if they already fool the model."""
        success = batch.goal.reached(batch.prediction)
        return cls(
            batch.images.clone(),
            batch.prediction.clone(),
            batch.goal.objective(batch.logits),
            success,
            success.repeat(steps + 1, 1),
        )

    @classmethod
    def at_end(cls, batch: AttackBatch, x: Tensor, steps: int) -> Candidates:
        """The final images; the clean one instead if `x` would restore a correct classification."""
        logits = predicted_logits(batch.model, x)
        prediction, objective = logits.argmax(dim=1), batch.goal.objective(logits)
        end = cls(x, prediction, objective, batch.goal.reached(prediction), torch.empty(0))
        end.by_step = torch.stack([batch.goal.reached(batch.prediction)] * steps + [end.success])
        end.join(cls.clean(batch, steps))
        return end

    def update(self, step: int, rows: Tensor, x: Tensor, logits: Tensor, goal: Goal) -> Tensor:
        """Updates some of the rows with new images that fool the model or raise the objective.

        Returns the positions, within these rows, of the images that do not fool the model.
        """
        prediction, objective = logits.argmax(dim=1), goal.objective(logits)
        reached = goal.reached(prediction)
        better = reached | (objective > self.objective.index_select(0, rows))
        replaced = rows[better]
        self.images[replaced] = x[better]
        self.prediction[replaced] = prediction[better]
        self.objective[replaced] = objective[better]
        self.success[rows] |= reached
        self.by_step[step:, rows] |= reached
        return torch.nonzero(~reached)[:, 0]

    def join(self, other: Candidates) -> None:
        """Takes over candidates of another run that fool the model if the own candidates do not."""
        new = other.success & ~self.success
        self.images = torch.where(column(new, self.images), other.images, self.images)
        self.prediction = torch.where(new, other.prediction, self.prediction)
        self.objective = torch.where(new, other.objective, self.objective)
        self.success = self.success | new
        self.by_step = self.by_step | other.by_step


class Attack(ABC):
    """A perturbation computed against a model, within a ball around each image and within [0, 1].

    A subclass is a frozen dataclass that implements `search`. This class checks the arguments, puts
    the model in eval mode, disables the gradients of its parameters, and restores it afterwards.
    `needs_clean_gradient` is whether the batch must hold the gradient at the clean images; `steps` is the
    number of steps in `success_by_step`, 0 for none.
    """

    name: ClassVar[str]
    needs_clean_gradient: ClassVar[bool] = False

    norm: Norm
    steps: int
    targeted: bool
    loss: Loss

    @abstractmethod
    def search(self, batch: AttackBatch, ball: Ball, epsilon: float) -> Candidates:
        """Adversarial images in the ball, for one epsilon above zero."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """Adversarial images for one epsilon; see `run`."""
        return self.run(model, images, labels, epsilon).images[0]

    @in_own_settings
    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        epsilons: float | Sequence[float],
        *,
        targets: Tensor | None = None,
        index: Sequence[int] | Tensor | None = None,
        check: bool = True,
    ) -> AttackResult:
        """Attacks a batch at each epsilon.

        The results at one epsilon do not depend on the other epsilons.

        Args:
            model: A function from images in [0, 1] to logits (n, classes): a module, or an object with
                an attribute `module`. It runs in eval mode and is restored afterwards.
            images: (n, channels, height, width) in [0, 1], on the model's device.
            labels: (n,) true classes.
            epsilons: Radii of the ball, in the units of the images: 8/255, not 8.
            targets: (n,) target classes for a targeted attack; by default the least likely class
                that is not the label.
            index: (n,) index of each image in its data set, which determines its random start; by
                default 0 to n - 1.
            check: Whether to warn, based on the first images, if accuracy under attack would be
                misleading for this model (`check_model_for_attack`). Pass False from the second batch
                on.
        """
        check_images(images)
        radii = check_epsilons(epsilons, self.norm, math.prod(images.shape[1:]))
        if targets is not None and not self.targeted:
            raise OptionError(f"targets need a targeted attack: {self.name}(targeted=True)")
        if check:
            few = slice(CHECKED_IMAGES)
            check_model_for_attack(model, images[few], labels[few], loss=self.loss)
        with attackable(model):
            batch, labels = self._prepare(model, images.detach().clone(), labels, targets, index)
            found = [
                self.search(batch, ball_around(batch.images, radius, self.norm), radius)
                if radius > 0
                else Candidates.clean(batch, self.steps)
                for radius in radii
            ]
        names = ("images", "prediction", "success", "by_step")
        stacked = (torch.stack([getattr(state, name) for state in found]) for name in names)
        images, prediction, success, by_step = stacked
        return AttackResult(
            radii, labels, batch.prediction, images, prediction, success,
            by_step if self.steps else None,
        )  # fmt: skip

    def _prepare(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        index: Sequence[int] | Tensor | None,
    ) -> tuple[AttackBatch, Tensor]:
        numbers = sample_indices(index, len(images))
        x = images.requires_grad_(self.needs_clean_gradient)
        with torch.set_grad_enabled(self.needs_clean_gradient):
            logits = model_logits(model, x)
        n_classes = logits.shape[1]
        labels = check_classes(labels, images, what="labels", n_classes=n_classes)
        aim = labels
        if self.targeted and targets is None:
            aim = least_likely(logits.detach(), labels)
        elif targets is not None:
            aim = check_classes(targets, images, what="targets", n_classes=n_classes)
        goal = Goal(aim, self.targeted, self.loss)
        gradient = None
        if self.needs_clean_gradient:
            gradient = gradient_of(goal.objective(logits, reduction="sum"), x)
        logits = logits.detach()
        prediction = logits.argmax(dim=1)
        return AttackBatch(
            model, images.detach(), goal, numbers, logits, prediction, gradient
        ), labels
