"""What every attack shares: checking the batch, minding the model, and gathering the results."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from probekit.errors import OptionError, close_matches
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

__all__ = ["Attack", "Attacked", "Batch", "Found", "check_choice", "picked"]

CHECKED_IMAGES = 32


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack made of a batch, for each epsilon.

    Attributes:
        epsilons: The radii, in the order asked for.
        labels: (n,) true classes.
        clean_prediction: (n,) classes predicted without attack.
        images: (epsilons, n, channels, height, width) adversarial images.
        prediction: (epsilons, n) classes predicted for `images`.
        success: (epsilons, n) whether the model is fooled; for a targeted attack, whether it
            predicts the target.
        success_by_step: (epsilons, steps + 1, n) the same after each number of steps of any of
            the restarts, row 0 being the start; None for an attack that has no steps to tell.
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
        """How many images each epsilon fooled, those wrong without attack included."""
        return tuple(int(count) for count in self.success.sum(dim=1))

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Fraction of images still classified as labelled, for each epsilon."""
        right = (self.prediction == self.labels).double().mean(dim=1)
        return tuple(float(value) for value in right)

    def __repr__(self) -> str:
        fooled = ", ".join(
            f"{count} at {epsilon:.4g}"
            for epsilon, count in zip(self.epsilons, self.n_fooled, strict=True)
        )
        return f"Attacked({len(self.labels)} images; fooled: {fooled})"


@dataclass(frozen=True, eq=False)
class Batch:
    """A checked batch, seen once by the model.

    Attributes:
        model: Images to logits.
        images: (n, ...) clean images.
        goal: What the attack wants of each.
        index: Number of each image in its data set.
        logits: (n, classes) on the clean images.
        prediction: (n,) classes predicted for them.
        gradient: Of what the attack raises, at the clean images, with NaN where the model gives
            it; None where not needed.
    """

    model: Model
    images: Tensor
    goal: Goal
    index: Sequence[int]
    logits: Tensor
    prediction: Tensor
    gradient: Tensor | None

    @cached_property
    def height(self) -> Tensor:
        """(n,) what the attack raises, at the clean images."""
        return self.goal.height(self.logits)


@dataclass(eq=False)
class Found:
    """The state of an attack at one epsilon: the image kept for each, and what it does.

    Attributes:
        images: (n, ...) images kept.
        prediction: (n,) classes predicted for them.
        success: (n,) whether they fool the model.
        by_step: (steps + 1, n) whether the model was fooled after each number of steps.
    """

    images: Tensor
    prediction: Tensor
    success: Tensor
    by_step: Tensor

    @classmethod
    def clean(cls, batch: Batch, steps: int) -> Found:
        """The clean images, which count as found where they fool the model already."""
        success = batch.goal.reached(batch.prediction)
        return cls(
            batch.images.clone(),
            batch.prediction.clone(),
            success,
            success.repeat(steps + 1, 1),
        )

    @classmethod
    def at_end(cls, batch: Batch, x: Tensor, steps: int) -> Found:
        """The images `x` in which an attack ends; the clean one where `x` would put it right again."""
        prediction = predicted_logits(batch.model, x).argmax(dim=1)
        before, reached = batch.goal.reached(batch.prediction), batch.goal.reached(prediction)
        success, moved = before | reached, reached >= before
        images, prediction = picked(moved, (x, prediction), (batch.images, batch.prediction))
        return cls(images, prediction, success, torch.stack([before] * steps + [success]))

    def fooled(self, step: int, rows: Tensor) -> None:
        """The images of the given rows fool the model from this step on."""
        self.success[rows] = True
        self.by_step[step:, rows] = True

    def join(self, other: Found) -> None:
        """Takes over what another run found, where it fools the model and this one did not."""
        new = other.success & ~self.success
        self.images, self.prediction = picked(
            new, (other.images, other.prediction), (self.images, self.prediction)
        )
        self.success |= new
        self.by_step |= other.by_step


class Attack(ABC):
    """A perturbation chosen against a model, inside a ball around each image and in [0, 1].

    A subclass is a frozen value and implements :meth:`search`; this class checks what is handed
    in, puts the model in eval mode with its parameters' gradients off, and puts it back.

    Attributes:
        name: What :func:`~probekit.perturbations.attacks.gradient.get_attack` knows it by.
        needs_clean_gradient: Whether the batch is to hold the gradient at the clean images.
        norm: `linf` or `l2`.
        steps: Steps that ``success_by_step`` tells of; 0 for none.
        targeted: Whether it goes to a target class.
        loss: What it raises.
    """

    name: ClassVar[str]
    needs_clean_gradient: ClassVar[bool] = False

    norm: Norm
    steps: int
    targeted: bool
    loss: Loss

    @abstractmethod
    def search(self, batch: Batch, ball: Ball, epsilon: float) -> Found:
        """Adversarial images in the ball, for one epsilon above zero."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
        """Adversarial images for one epsilon; see :meth:`run`."""
        return self.run(model, images, labels, epsilon).images[0]

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
    ) -> Attacked:
        """Attacks a batch at each epsilon.

        Each epsilon stands alone: its numbers do not depend on the others asked for.

        Args:
            model: Images in [0, 1] to logits (n, classes): a module, or what holds it as
                ``.module``. It runs in eval mode and is put back as it was.
            images: (n, channels, height, width) in [0, 1], on the model's device.
            labels: (n,) true classes.
            epsilons: Radii of the ball, in the units of the images: 8/255, not 8.
            targets: (n,) classes to reach, for a targeted attack; the least likely class that is
                not the label where left out.
            index: (n,) number of each image in its data set, from which its random start is
                drawn; 0 to n - 1 where left out.
            check: Whether to warn of a model whose accuracy under attack would mislead, from the
                first images (:func:`check_model_for_attack`). Say False from the second batch on.

        Raises:
            DataError: Images outside [0, 1] or not floating point; labels or targets that are
                not classes.
            ModelError: The output is not (n, classes), or has no gradient.
            OptionError: An epsilon in the wrong scale or negative; targets for an attack that has
                none.
        """
        check_images(images)
        radii = check_epsilons(epsilons, self.norm, math.prod(images.shape[1:]))
        if targets is not None and not self.targeted:
            raise OptionError(f"targets need a targeted attack: {self.name}(targeted=True)")
        if check:
            few = slice(CHECKED_IMAGES)
            check_model_for_attack(model, images[few], labels[few], loss=self.loss)
        with attackable(model):
            batch, labels = self._see(model, images.detach().clone(), labels, targets, index)
            found = [
                self.search(batch, ball_around(batch.images, radius, self.norm), radius)
                if radius > 0
                else Found.clean(batch, self.steps)
                for radius in radii
            ]
        by_step = [state.by_step for state in found]
        return Attacked(
            epsilons=radii,
            labels=labels,
            clean_prediction=batch.prediction,
            images=_stacked([state.images for state in found]),
            prediction=_stacked([state.prediction for state in found]),
            success=_stacked([state.success for state in found]),
            success_by_step=_stacked(by_step) if self.steps else None,
        )

    def _see(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        index: Sequence[int] | Tensor | None,
    ) -> tuple[Batch, Tensor]:
        numbers = _numbers(index, len(images))
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
            gradient = gradient_of(goal.height(logits, reduction="sum"), x)
        logits = logits.detach()
        prediction = logits.argmax(dim=1)
        return Batch(model, images.detach(), goal, numbers, logits, prediction, gradient), labels


def check_choice(option: str, asked: str, known: Sequence[str]) -> None:
    """Refuses an option's value that is not among the known ones."""
    if asked not in known:
        matches = close_matches(str(asked), known, what=option)
        raise OptionError(f"there is no {option} {asked!r}; {matches}")


def picked(
    chosen: Tensor, ones: tuple[Tensor, ...], others: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Values of the ones for the images chosen, of the others for the rest; no copy where all are."""
    if bool(chosen.all()):
        return ones
    return tuple(
        torch.where(column(chosen, one), one, other)
        for one, other in zip(ones, others, strict=True)
    )


def _stacked(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _numbers(index: Sequence[int] | Tensor | None, n: int) -> Sequence[int]:
    if index is None:
        return range(n)
    numbers = tuple(int(i) for i in index)
    if len(numbers) != n:
        raise OptionError(f"index needs one number for each of {n} images, not {len(numbers)}")
    return numbers
