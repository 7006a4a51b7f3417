"""Adversarial training: the images of every step are attacked on the current network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probekit.checks import number, positive_int


@dataclass(frozen=True)
class Adversary:
    """Replaces the images of a training step with PGD adversarial images.

    The attack is `probekit.PGD` on images in [0, 1] (L-infinity, cross-entropy, a
    random start, steps of 2.5 epsilon / steps, the image after the last step). It runs in eval mode,
    so that it neither uses nor changes the batch's statistics in batch norm.

    Source:
        Madry et al. 2018 (arXiv 1706.06083).

    Example:
        >>> import torch
        >>> from probekit.models.image_model import ImageModel
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> model = ImageModel(module, (0.5,), (0.5,), (1, 2, 2))
        >>> images, labels = model.normalize(torch.rand(3, 1, 2, 2)), torch.tensor([0, 1, 0])
        >>> attacked = Adversary(epsilon=0.1, steps=2)(model, images, labels, seed=0)
        >>> bool(((attacked - images).abs() <= 0.1 / 0.5 + 1e-5).all())
        True
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
