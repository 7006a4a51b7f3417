"""Worst-case perturbations: FGSM and projected gradient descent on any model of images in [0, 1].

The attacks are our own, for no library does what a measurement needs. captum.robust ignores
gradients below 1e-6, and so leaves confidently classified images alone, has no restarts, and
draws from the global generator; captum, foolbox and torchattacks clip to ``image + epsilon``,
which rounding may put outside the ball; none tells accuracy over the number of steps, and in all
of them an image's random start depends on its neighbours in the batch. The tests hold our numbers
against theirs.

An image that the model gets wrong without any attack counts as fooled at every epsilon, so that
one minus the fraction fooled is the accuracy under attack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from probekit.errors import OptionError, close_matches
from probekit.perturbations.attacks.attack import (
    Attack,
    Attacked,
    Batch,
    Found,
    check_choice,
    picked,
)
from probekit.perturbations.attacks.auto_attack import AutoAttack
from probekit.perturbations.attacks.balls import Ball, LinfBall, Norm
from probekit.perturbations.attacks.goals import Goal, Loss, loss_gradient, predicted_logits

__all__ = ["ATTACKS", "FGSM", "PGD", "Attack", "Attacked", "AutoAttack", "get_attack"]

Keep: TypeAlias = Literal["best", "last"]


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow et al. 2015): one step of epsilon, L-infinity.

    Every image takes the step, also one that is wrong without it; only where the step would put a
    wrong image right is the clean image kept, for it fools the model and is in the ball.

    Args:
        targeted: Step towards a target class instead of away from the label.
        loss: `cross_entropy`, or `margin` between logits, for a model whose softmax is saturated.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False)).eval()
    >>> _ = model[1].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
    >>> images, labels = torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])
    >>> FGSM().run(model, images, labels, [0.05, 0.2])
    Attacked(1 images; fooled: 0 at 0.05, 1 at 0.2)
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
        check_choice("loss", self.loss, get_args(Loss))

    def search(self, batch: Batch, ball: Ball, epsilon: float) -> Found:
        assert batch.gradient is not None
        assert isinstance(ball, LinfBall)
        return Found.at_end(batch, ball.furthest(ball.ascent(batch.gradient)), self.steps)


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018), the standard strong first-order attack.

    Args:
        steps: Gradient steps of each run.
        step_size: Length of a step in the units of the images; 2.5 epsilon / steps where left out.
        norm: `linf` or `l2`; the ball, and the direction of a step in it.
        random_start: Start at a draw from the ball, by (seed, the image's index, restart), rather
            than at the image: uniform for `linf`, of uniform direction and length for `l2`.
        restarts: Runs from different starts; more than one needs `random_start`.
        targeted: Towards a target class instead of away from the label.
        seed: Of the random starts.
        loss: `cross_entropy`, or `margin` between logits, for a model whose softmax is saturated.
        keep: `best` keeps the first image that fools the model and attacks it no further, or else
            the image of the highest loss: the stronger and faster attack, whose accuracy falls
            with every step; an image that is wrong without attack stays as it is. `last` keeps
            the image after the last step, as Madry et al. do: every image moves for all steps.

    >>> PGD(steps=40, norm="l2").restarts
    1
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
        for option in ("steps", "restarts"):
            value = getattr(self, option)
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"PGD needs {option} of 1 or more, not {value!r}")
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("loss", self.loss, get_args(Loss))
        check_choice("keep", self.keep, get_args(Keep))
        if self.restarts > 1 and not self.random_start:
            raise OptionError(
                f"PGD with {self.restarts} restarts needs random_start=True: without it every run "
                "is the same"
            )
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise OptionError(f"PGD needs a step_size above 0, not {self.step_size}")
        if self.step_size is not None and self.step_size > 1 and self.norm == "linf":
            raise OptionError(
                f"step_size {self.step_size:g} is more than the whole range of a pixel, for images "
                "are in [0, 1]; for 2 steps of 255 say 2/255"
            )

    def search(self, batch: Batch, ball: Ball, epsilon: float) -> Found:
        step_size = self.step_size or 2.5 * epsilon / self.steps
        starts = (self._start(batch, ball, restart) for restart in range(self.restarts))
        if self.keep == "best":
            found = Found.clean(batch, self.steps)
            best = _Seen(found.images, found.prediction, batch.height.clone())
            for start in starts:
                self._climb_to_best(found, best, batch, ball, start, step_size)
            return found
        runs = (self._climb_to_last(batch, ball, start, step_size) for start in starts)
        found = next(runs)
        for other in runs:
            found.join(other)
        return found

    def _start(self, batch: Batch, ball: Ball, restart: int) -> Tensor:
        if not self.random_start:
            return batch.images
        return ball.random_points(self.seed, batch.index, restart)

    def _climb_to_best(
        self, found: Found, best: _Seen, batch: Batch, ball: Ball, start: Tensor, step_size: float
    ) -> None:
        """Climbs with the images that still stand; one that falls leaves the batch."""
        rows = torch.nonzero(~found.success)[:, 0]
        standing = _Standing(found, best, rows, best.select(rows))
        x, ball, goal = start.index_select(0, rows), ball.select(rows), batch.goal.select(rows)
        for step in range(self.steps):
            if not len(x):
                return
            logits, height, gradient = loss_gradient(batch.model, x, goal)
            stand = standing.look(step, _Seen(x, logits.argmax(dim=1), height), goal)
            if len(stand) < len(x):
                x, gradient = x.index_select(0, stand), gradient.index_select(0, stand)
                ball, goal = ball.select(stand), goal.select(stand)
            x = ball.project(torch.add(x, ball.ascent(gradient), alpha=step_size))
        if len(x):
            logits = predicted_logits(batch.model, x)
            standing.look(self.steps, _Seen(x, logits.argmax(dim=1), goal.height(logits)), goal)
            standing.put()

    def _climb_to_last(self, batch: Batch, ball: Ball, x: Tensor, step_size: float) -> Found:
        """Climbs with all images for all steps."""
        by_step = []
        for _ in range(self.steps):
            logits, _, gradient = loss_gradient(batch.model, x, batch.goal)
            by_step.append(batch.goal.reached(logits.argmax(dim=1)))
            x = ball.project(torch.add(x, ball.ascent(gradient), alpha=step_size))
        found = Found.at_end(batch, x, self.steps)
        found.by_step[:-1] |= torch.stack(by_step)
        return found


class _Seen(NamedTuple):
    """Images, the classes predicted for them, and what the attack raises, at them."""

    images: Tensor
    prediction: Tensor
    height: Tensor

    def select(self, chosen: Tensor) -> _Seen:
        return _Seen(*(values.index_select(0, chosen) for values in self))


@dataclass(eq=False)
class _Standing:
    """The images of a batch that no step has brought to fall.

    Attributes:
        found: The state of the attack.
        best: The best seen of all images of the batch, in the memory of `found`.
        rows: Which images still stand.
        highest: The best seen of these.
    """

    found: Found
    best: _Seen
    rows: Tensor
    highest: _Seen

    def look(self, step: int, seen: _Seen, goal: Goal) -> Tensor:
        """Takes what a step has come to: what fools the model, or rises higher, is the best now.

        Returns:
            Positions of the images that still stand.
        """
        reached = goal.reached(seen.prediction)
        better = reached | (seen.height > self.highest.height)
        self.highest = _Seen(*picked(better, seen, self.highest))
        stand = torch.nonzero(~reached)[:, 0]
        if len(stand) < len(reached):
            self.put()
            self.found.fooled(step, self.rows[reached])
            self.rows, self.highest = self.rows.index_select(0, stand), self.highest.select(stand)
        return stand

    def put(self) -> None:
        """Writes down the best seen."""
        for kept, now in zip(self.best, self.highest, strict=True):
            kept.index_copy_(0, self.rows, now)


ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (FGSM, PGD, AutoAttack)}


def get_attack(attack: str | Attack) -> Attack:
    """An attack by its name with its defaults, or the attack itself.

    Raises:
        OptionError: No attack has that name.

    >>> get_attack("fgsm")
    FGSM(targeted=False, loss='cross_entropy')
    """
    if isinstance(attack, Attack):
        return attack
    if not isinstance(attack, str) or attack.lower() not in ATTACKS:
        asked = attack if isinstance(attack, str) else type(attack).__name__
        raise OptionError(
            f"there is no attack {asked!r}; {close_matches(asked, ATTACKS, what='attack')}"
        )
    return ATTACKS[attack.lower()]()
