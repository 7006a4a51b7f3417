"""Adversarial training: the images of every step are attacked on the current network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probekit.checks import number, positive_int


@dataclass(frozen=True)
class Adversary:
    """Replaces the images of a training step with PGD adversarial images (Madry et al. 2018).

    The attack is `probekit.PGD` on images in [0, 1] (L-infinity, cross-entropy, a
    random start, steps of 2.5 epsilon / steps, the image after the last step). It runs in eval mode,
    so that it neither uses nor changes the batch's statistics in batch norm.
    """

    epsilon: float
    steps: int = 7

    def __post_init__(self) -> None:
        name = "epsilon of adversarial training (in the units of images in [0, 1])"
        number(name, self.epsilon, above=0, most=1)
        positive_int("steps of adversarial training", self.steps)

    def __call__(self, model: Any, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Attacks normalized images and returns the adversarial images, normalized."""
        from probekit.perturbations.attacks.gradient import PGD

        shape = (1, -1, 1, 1)
        mean, std = (images.new_tensor(values).view(shape) for values in (model.mean, model.std))
        pixels = (images * std + mean).clamp_(0, 1)
        attack = PGD(steps=self.steps, keep="last", seed=seed)
        found = attack.run(model, pixels, labels, self.epsilon, check=False)
        return (found.images[0] - mean) / std
