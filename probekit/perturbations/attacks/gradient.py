"""Worst-case perturbations: FGSM and projected gradient descent on any model of images in [0, 1].

These attacks are implemented here because no library meets the needs of a measurement. captum.robust
ignores gradients below 1e-6, so it does not change confidently classified images; it also has no
restarts, and draws from the global generator. captum, foolbox and torchattacks clip to `image +
epsilon`, which can lie outside the ball due to rounding. None of them reports accuracy as a function
of the number of steps, and in all of them an image's random start depends on the other images in the
batch. The tests compare the results with theirs.

An image that is misclassified without attack counts as fooled at every epsilon, so one minus the
fraction fooled is the accuracy under attack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from probekit.checks import integer, number, one_of, positive_int
from probekit.errors import OptionError, close_matches
from probekit.perturbations.attacks.attack import Attack, AttackBatch, Candidates
from probekit.perturbations.attacks.auto_attack import AutoAttack
from probekit.perturbations.attacks.balls import Ball, Norm
from probekit.perturbations.attacks.goals import Loss, loss_gradient, predicted_logits

Keep: TypeAlias = Literal["best", "last"]


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow et al. 2015): one step of epsilon, L-infinity.

    The step is applied to every image, including misclassified ones. Only if the step would correct
    the prediction is the clean image returned, because it fools the model and is in the ball.

    Args:
        targeted: Step towards a target class instead of away from the label.
        loss: `cross_entropy`, or `margin` between logits, for a model whose softmax is saturated.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False)).eval()
        >>> _ = model[1].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
        >>> images, labels = torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])
        >>> FGSM().run(model, images, labels, [0.05, 0.2])
        AttackResult(1 images; fooled: 0 at 0.05, 1 at 0.2)
        >>> FGSM()(model, images, labels, 0.2)
        tensor([[[[0.4000, 0.6000]]]])
    """

    targeted: bool = False
    loss: Loss = "cross_entropy"

    norm: Norm = field(default="linf", init=False, repr=False)
    steps: int = field(default=1, init=False, repr=False)

    name: ClassVar[str] = "fgsm"
    needs_clean_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of("loss", self.loss, get_args(Loss))
        if not isinstance(self.targeted, bool):  # as a model is, which other libraries take first
            raise OptionError(
                f"targeted must be True or False, not {type(self.targeted).__name__}; the model is an "
                "argument of the call, as in pk.FGSM()(model, images, labels, epsilon)"
            )

    def search(self, batch: AttackBatch, ball: Ball, epsilon: float) -> Candidates:
        assert batch.gradient is not None
        stepped = ball.project(batch.images + epsilon * ball.ascent(batch.gradient))
        return Candidates.at_end(batch, stepped, self.steps)


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018), the standard strong first-order attack.

    To implement a variant, override `start` for other starting points or `step` for another update.

    Args:
        steps: Gradient steps of each run.
        step_size: Length of a step in the units of the images; by default 2.5 epsilon / steps.
        norm: `linf` or `l2`: determines the ball and the direction of a step in it.
        random_start: Start at a random point of the ball, determined by (seed, the image's index,
            restart), rather than at the image. The point is uniform for `linf`, with uniform direction
            and length for `l2`.
        restarts: Number of runs from different starts; more than one requires `random_start`.
        targeted: Step towards a target class instead of away from the label.
        seed: Seed of the random starts.
        loss: `cross_entropy`, or `margin` between logits, for a model whose softmax is saturated.
        keep: `best` returns the first image that fools the model and stops there, or otherwise the
            image with the highest loss. This attack is stronger and faster, and accuracy never rises
            with more steps; an image that is misclassified without attack is not changed. `last`
            returns the image after the last step, as in Madry et al.: every image moves for all steps.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> images, labels = pk.images_at(data, range(8))
        >>> attacked = pk.PGD(steps=3).run(model, images, labels, [1 / 255, 8 / 255])
        >>> attacked.images.shape, bool(attacked.accuracy[0] >= attacked.accuracy[1])
        (torch.Size([2, 8, 1, 28, 28]), True)
    """

    steps: int = 40
    step_size: float | None = None
    norm: Norm = "linf"
    random_start: bool = True
    restarts: int = 1
    targeted: bool = False
    seed: int = 0
    loss: Loss = "cross_entropy"
    keep: Keep = "best"

    name: ClassVar[str] = "pgd"

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)
        positive_int("restarts", self.restarts)
        integer("seed", self.seed)
        one_of("norm", self.norm, get_args(Norm))
        one_of("loss", self.loss, get_args(Loss))
        one_of("keep", self.keep, get_args(Keep))
        if self.restarts > 1 and not self.random_start:
            raise OptionError(
                f"PGD with {self.restarts} restarts needs random_start=True: without it every run "
                "is the same"
            )
        if self.step_size is not None:
            number("step_size", self.step_size, above=0)
            if self.step_size > 1 and self.norm == "linf":
                raise OptionError(
                    f"step_size {self.step_size:g} is more than the whole range of a pixel, because "
                    "images are in [0, 1]; for 2 steps of 255 pass 2/255"
                )

    def search(self, batch: AttackBatch, ball: Ball, epsilon: float) -> Candidates:
        step_size = self.step_size or 2.5 * epsilon / self.steps
        candidates = Candidates.clean(batch, self.steps)
        for restart in range(self.restarts):
            start = self.start(batch, ball, restart)
            if self.keep == "best":
                self._keep_best(candidates, batch, ball, start, step_size)
            elif not restart:
                candidates = self._keep_last(batch, ball, start, step_size)
            else:
                candidates.join(self._keep_last(batch, ball, start, step_size))
        return candidates

    def start(self, batch: AttackBatch, ball: Ball, restart: int) -> Tensor:
        """The images from which a run starts."""
        if not self.random_start:
            return batch.images
        return ball.random_points(self.seed, batch.index, restart)

    def step(self, x: Tensor, gradient: Tensor, ball: Ball, step_size: float) -> Tensor:
        """The images after a step along the gradient."""
        return ball.project(x + step_size * ball.ascent(gradient))

    def _keep_best(
        self,
        candidates: Candidates,
        batch: AttackBatch,
        ball: Ball,
        start: Tensor,
        step_size: float,
    ) -> None:
        """Attacks images until they fool the model; those that do are removed from the batch."""
        rows = torch.nonzero(~candidates.success)[:, 0]
        x, ball, goal = start.index_select(0, rows), ball.select(rows), batch.goal.select(rows)
        for step in range(self.steps):
            if not len(rows):
                return
            logits, gradient = loss_gradient(batch.model, x, goal)
            left = candidates.update(step, rows, x, logits, goal)
            if len(left) < len(rows):
                rows, x, gradient = (part.index_select(0, left) for part in (rows, x, gradient))
                ball, goal = ball.select(left), goal.select(left)
            x = self.step(x, gradient, ball, step_size)
        if len(rows):
            candidates.update(self.steps, rows, x, predicted_logits(batch.model, x), goal)

    def _keep_last(self, batch: AttackBatch, ball: Ball, x: Tensor, step_size: float) -> Candidates:
        """Moves all images for all steps."""
        by_step = []
        for _ in range(self.steps):
            logits, gradient = loss_gradient(batch.model, x, batch.goal)
            by_step.append(batch.goal.reached(logits.argmax(dim=1)))
            x = self.step(x, gradient, ball, step_size)
        end = Candidates.at_end(batch, x, self.steps)
        end.by_step[:-1] |= torch.stack(by_step)
        return end


ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (FGSM, PGD, AutoAttack)}


def get_attack(attack: str | Attack | type[Attack]) -> Attack:
    """Returns an attack by name or class with its defaults, or the given attack itself."""
    if isinstance(attack, type) and issubclass(attack, Attack):
        return attack()
    if isinstance(attack, Attack):
        return attack
    if not isinstance(attack, str) or attack.lower() not in ATTACKS:
        asked = attack if isinstance(attack, str) else type(attack).__name__
        raise OptionError(
            f"there is no attack {asked!r}; {close_matches(asked, ATTACKS, what='attack')}"
        )
    return ATTACKS[attack.lower()]()
