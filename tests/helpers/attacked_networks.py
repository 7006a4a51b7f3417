"""Networks to attack, attacks of every kind, and distances between images."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from probekit.perturbations.attacks.gradient import FGSM, PGD, Attack

NOISE = 0.01  # one image in a hundred: the effect of a different random start on an accuracy


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A small network and the digits held out from its training."""

    model: nn.Sequential
    images: Tensor
    labels: Tensor

    def accuracy(self, images: Tensor) -> float:
        with torch.no_grad():
            return float((self.model(images).argmax(dim=1) == self.labels).double().mean())


class Linear(nn.Module):
    """Logits whose last bit does not depend on the batch, unlike those of a matrix product."""

    def __init__(self, classes: int = 3, features: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(classes, features, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([(images.flatten(1) * row).sum(dim=1) for row in self.weight], dim=1)


def linear_batch(n: int = 50) -> tuple[Linear, Tensor, Tensor]:
    model = Linear().eval()
    images = torch.rand(n, 1, 2, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 3
    return model, images, labels


def distance(images: Tensor, others: Tensor, norm: str) -> Tensor:
    change = (images.double() - others.double()).flatten(1)
    return torch.linalg.vector_norm(change, ord={"linf": float("inf"), "l2": 2}[norm], dim=1)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


# --- contents of a result ----------------------------------------------------------------------


EVERY: dict[str, Attack] = {
    "fgsm": FGSM(),
    "fgsm margin": FGSM(loss="margin"),
    "fgsm targeted": FGSM(targeted=True),
    "pgd": PGD(steps=6),
    "pgd last": PGD(steps=6, keep="last"),
    "pgd l2": PGD(steps=6, norm="l2"),
    "pgd l2 last": PGD(steps=6, norm="l2", keep="last", restarts=2),
    "pgd targeted": PGD(steps=6, targeted=True),
    "pgd margin": PGD(steps=6, loss="margin", random_start=False),
    "pgd restarts": PGD(steps=3, restarts=3, seed=5),
}


# --- the model and the images are restored -----------------------------------------------------


def state_of(model: nn.Module) -> list[object]:
    modes = [part.training for part in model.modules()]
    hooks = [len(part._forward_hooks) + len(part._backward_hooks) for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone().tolist() for p in model.parameters()]
    values = [value.clone().tolist() for value in model.state_dict().values()]
    return [modes, hooks, flags, grads, values]


def mixed_model() -> nn.Sequential:
    """In training mode except for its batch norm, with one frozen parameter and one that has a gradient."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model[2].eval()
    model[1].bias.requires_grad_(False)
    model[1].weight.grad = torch.ones(3, 6)
    return model
