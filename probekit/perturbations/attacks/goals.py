"""The objective of an attack on the model's logits, and its gradient with respect to the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from probekit.errors import ModelError
from probekit.models.inputs import copied, reported_refusal
from probekit.models.logits import required_logits
from probekit.runtime.settings import caller_device

Model: TypeAlias = Callable[[Tensor], Tensor]
Loss: TypeAlias = Literal["cross_entropy", "margin"]


@dataclass(frozen=True, eq=False)
class Goal:
    """The goal of an attack: to leave the label (n,), or to reach a target class.

    The `margin` loss is the highest other logit minus that of the class (Carlini & Wagner 2017, f6), whose
    gradient does not vanish if the softmax is saturated.
    """

    classes: Tensor
    targeted: bool = False
    loss: Loss = "cross_entropy"

    def objective(self, logits: Tensor, *, reduction: Literal["none", "sum"] = "none") -> Tensor:
        """The objective that the attack maximizes: (n, classes) -> (n,) per image, or their sum."""
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if self.loss == "cross_entropy":
            objective = functional.cross_entropy(logits, self.classes, reduction=reduction)
        else:
            own = self.classes[:, None]
            others = logits.scatter(1, own, -torch.inf).amax(dim=1)
            objective = others - logits.gather(1, own)[:, 0]
            objective = objective.sum() if reduction == "sum" else objective
        return -objective if self.targeted else objective

    def reached(self, prediction: Tensor) -> Tensor:
        """Which of the predicted classes (n,) fulfill the goal."""
        return prediction == self.classes if self.targeted else prediction != self.classes

    def select(self, chosen: Tensor) -> Goal:
        """The goal of the images at some positions of the batch."""
        return Goal(self.classes.index_select(0, chosen), self.targeted, self.loss)


def least_likely(logits: Tensor, labels: Tensor) -> Tensor:
    """The class with the lowest logit that is not the label (Kurakin et al. 2017), (n,)."""
    return logits.scatter(1, labels[:, None], torch.inf).argmin(dim=1)


def model_logits(model: Model, images: Tensor) -> Tensor:
    """Runs the model and checks that its output has one row of class logits per image."""
    with caller_device(), reported_refusal():
        return required_logits(model(copied(images)), len(images), "an attack")


def predicted_logits(model: Model, images: Tensor) -> Tensor:
    """Logits (n, classes) without a graph."""
    with torch.no_grad():
        return model_logits(model, images)


def loss_gradient(model: Model, images: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """Logits (n, classes), and the gradient of the objective of each image."""
    x = images.detach().requires_grad_(True)
    logits = model_logits(model, x)
    return logits.detach(), gradient_of(goal.objective(logits).sum(), x)


def gradient_of(total: Tensor, x: Tensor) -> Tensor:
    """Gradient of a sum over images with respect to `x`."""
    gradient = None
    if total.requires_grad:
        with reported_refusal():
            (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    if gradient is None:
        raise ModelError(
            "the model's output has no gradient with respect to the images, so no gradient "
            "attack can be run; look for detach(), no_grad, .data, numpy or argmax in its forward"
        )
    return gradient
