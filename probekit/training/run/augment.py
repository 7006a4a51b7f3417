"""Changes of the training images of whole batches: shifts and mirroring, AugMix, and attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import autocontrast  # that of v2 rounds differently
from torchvision.transforms.v2.functional import equalize

from probekit.checks import integer, non_negative_int, number, positive_int
from probekit.runtime.randomness import RandomStreams

OPERATIONS = (
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
    "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_SIGNED = 5  # The number of leading operations that move pixels, in either direction.
_STRONGEST = 10
_CHAINS, _LONGEST_CHAIN = 3, 3


@dataclass(frozen=True)
class Augmentation:
    """Mirrors images at random and shifts them by up to `shift` pixels, padding with black."""

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        non_negative_int("shift", self.shift)

    def __call__(self, images: Tensor, streams: RandomStreams) -> Tensor:
        """Augments images (batch, channels, height, width) of any type, each with its own stream."""
        if self.flip:
            mirrored = (streams.uniform(1)[:, 0] < 0.5).to(images.device).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(3), images)
        if self.shift:
            height, width = images.shape[2:]
            windows = functional.pad(images, (self.shift,) * 4)
            windows = windows.unfold(2, height, 1).unfold(3, width, 1)
            moves = streams.integers(2 * self.shift + 1, 2, field=1).to(images.device)
            images = windows[torch.arange(len(images), device=images.device), :, *moves.T]
        return images


@dataclass(frozen=True)
class AugMix:
    """AugMix with one random stream per image, independent of the batch and the device.

    The operations are those of the AugMix paper's robustness runs, without operations that are also
    corruptions (brightness, contrast, color, sharpness). The loss is the plain cross-entropy, without
    the paper's consistency term between three views, which triples the cost of a step.

    Source:
        Hendrycks et al. 2020 (arXiv 1912.02781), with the operations and strengths of
        `torchvision.transforms.AugMix(all_ops=False)`.
    """

    severity: int = 3

    def __post_init__(self) -> None:
        integer("severity of AugMix", self.severity, least=1, most=_STRONGEST)

    def draw(self, streams: RandomStreams) -> tuple[Tensor, Tensor]:
        """Draws the random numbers of each image from its own stream, on the CPU.

        Returns the weights (batch, 1 + chains) of the image itself and of each chain, whose rows sum to 1,
        and operations, levels and signs (3, batch, chains, longest chain); the operation is -1 past a
        chain's end.
        """
        chain = (_CHAINS, _LONGEST_CHAIN)
        # Dirichlet(1, ..., 1) equals exponential draws divided by their sum; Beta(1, 1) is uniform.
        chains = -torch.log1p(-streams.uniform(_CHAINS))
        own = streams.uniform(1, field=1)
        weights = torch.cat([own, (1 - own) * chains / chains.sum(1, keepdim=True)], 1)
        operations = streams.integers(len(OPERATIONS), *chain, field=2)
        length = 1 + streams.integers(_LONGEST_CHAIN, _CHAINS, 1, field=3)
        operations[torch.arange(_LONGEST_CHAIN).expand_as(operations) >= length] = -1
        levels = streams.integers(self.severity, *chain, field=4)
        signs = streams.integers(2, *chain, field=5) * 2 - 1
        return weights, torch.stack([operations, levels, signs])

    def __call__(self, images: Tensor, streams: RandomStreams) -> Tensor:
        """Mixes images (batch, 1 or 3, height, width), uint8."""
        weights, steps = self.draw(streams)
        weights = weights.to(images.device, non_blocking=True)[:, :, None, None, None]
        mixed = weights[:, 0] * images
        for chain in range(_CHAINS):
            changed = images
            for place in range(_LONGEST_CHAIN):
                changed = apply_operations(changed, *steps[:, :, chain, place])
            mixed += weights[:, 1 + chain] * changed
        return mixed.to(torch.uint8)


def apply_operations(images: Tensor, operations: Tensor, levels: Tensor, signs: Tensor) -> Tensor:
    """Applies one operation to each image (batch, channels, height, width), uint8.

    `operations` (batch,) are indices of `OPERATIONS`, -1 to leave an image unchanged; `levels` are 0 to 9.
    """
    share = levels.float() / (_STRONGEST - 1)
    matrices = _matrices(operations, share * signs, images.shape[2], images.shape[3])
    bits = 4 - (levels * 4 / (_STRONGEST - 1)).round().int()
    masks = (256 - 2 ** (8 - bits)).to(torch.uint8).view(-1, 1, 1, 1)
    thresholds = (255 - 255 * share).view(-1, 1, 1, 1)
    changed = images.clone()

    def change(chosen: Tensor, run: Callable[..., Tensor], *amounts: Tensor) -> None:
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            given = [amount[rows].to(images.device, non_blocking=True) for amount in amounts]
            rows = rows.to(images.device, non_blocking=True)
            changed.index_copy_(0, rows, run(images.index_select(0, rows), *given))

    change((operations >= 0) & (operations < _SIGNED), _moved, matrices)
    change(operations == OPERATIONS.index("Posterize"), torch.bitwise_and, masks)
    change(operations == OPERATIONS.index("Solarize"), _solarized, thresholds)
    change(operations == OPERATIONS.index("AutoContrast"), autocontrast)
    change(operations == OPERATIONS.index("Equalize"), equalize)
    return changed


def _matrices(operations: Tensor, amount: Tensor, height: int, width: int) -> Tensor:
    """Affine maps (batch, 2, 3) from output to input positions, both from -1 to 1."""
    zero = torch.zeros_like(amount)

    def of(name: str, values: Tensor) -> Tensor:
        return torch.where(operations == OPERATIONS.index(name), values, zero)

    angle = torch.deg2rad(of("Rotate", 30 * amount))
    # A shear leaves the first row or column in place.
    across = of("ShearX", 0.3 * amount) * height / width
    down = of("ShearY", 0.3 * amount) * width / height
    right = of("TranslateX", (amount * width / 3).trunc() * 2 / width)
    below = of("TranslateY", (amount * height / 3).trunc() * 2 / height)
    first = [angle.cos(), across - angle.sin() * height / width, across - right]
    second = [down + angle.sin() * width / height, angle.cos(), down - below]
    return torch.stack([torch.stack(first, 1), torch.stack(second, 1)], 1)


def _moved(images: Tensor, matrix: Tensor) -> Tensor:
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.float(), grid, mode="nearest", align_corners=False)
    return moved.to(torch.uint8)


def _solarized(images: Tensor, thresholds: Tensor) -> Tensor:
    return torch.where(images >= thresholds, 255 - images, images)


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
