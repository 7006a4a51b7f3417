"""Perturbed images, and measures of them, computed in handwritten loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import probekit as pk
from probekit.models.image_model import ImageModel

LAYERS = ["2", "4", "7"]
EPSILONS = [2 / 255, 16 / 255]
Array = np.ndarray[Any, Any]
Data = tuple[Tensor, Tensor]


def look(model: ImageModel, images: Tensor) -> tuple[Tensor, dict[str, Array]]:
    """Predictions, and activations pooled over positions, from plain hooks."""
    kept: dict[str, Array] = {}
    modes = {part: part.training for part in model.module.modules()}
    model.module.eval()
    handles = [
        model.module[int(name)].register_forward_hook(
            lambda m, i, out, name=name: kept.__setitem__(name, out.clone().double().numpy())
        )
        for name in LAYERS
    ]
    with torch.no_grad():
        prediction = model(images).argmax(1)
    for handle in handles:
        handle.remove()
    for part, mode in modes.items():
        part.training = mode
    return prediction, {
        name: maps.reshape(*maps.shape[:2], -1).mean(2) for name, maps in kept.items()
    }


def index_by_hand(table: Array, labels: Array) -> tuple[list[float], list[int]]:
    """Selectivity index and preferred class of each unit; 0 and -1 where it is dead."""
    index, preferred = [], []
    for unit in range(table.shape[1]):
        means = [table[labels == c, unit].mean() for c in range(3)]
        best = int(np.argmax(means))
        rest = (sum(means) - means[best]) / 2
        index.append((means[best] - rest) / (means[best] + rest + 1e-6))
        preferred.append(best if max(means) > 0 else -1)
    return index, preferred


def participation_by_hand(table: Array) -> float:
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(table.T)))
    return float(values.sum() ** 2 / (values**2).sum()) if values.any() else 0.0


def components_by_hand(table: Array, share: float) -> int:
    values = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(table.T))))[::-1].clip(min=0)
    explained = np.cumsum(values) / values.sum() if values.sum() else np.ones(1)
    return int(np.argmax(explained >= share - 1e-12)) + 1 if values.sum() else 0


def conditions(model: ImageModel, data: Data) -> dict[tuple[str, str, float], tuple[Tensor, Any]]:
    """The images of every condition, and the result that the attack itself reports."""
    x, y = data
    found: dict[tuple[str, str, float], tuple[Tensor, Any]] = {}
    for name in ("fog", "gaussian_noise"):
        for severity in (1, 5):
            found["corruption", name, severity] = (pk.corrupt(x, name, severity), None)
    for label, attack in (
        ("fgsm", pk.FGSM()),
        ("pgd(steps=4, keep=last)", pk.PGD(steps=4, keep="last")),
    ):
        attacked = attack.run(model, x, y, EPSILONS, check=False)
        for number, epsilon in enumerate(EPSILONS):
            found["attack", label, epsilon] = (attacked.images[number], attacked)
    return found


AXES = {"corruption": ("corruption", "severity"), "attack": ("attack", "epsilon")}
