"""A data set under several conditions: every batch comes once for each of them, clean or perturbed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from probekit.capture.layers import unwrap
from probekit.data.batches import Batch, Batches
from probekit.models.image_model import as_module, device_of
from probekit.perturbations.attacks.gradient import PGD, Attack
from probekit.perturbations.corruptions.corruption import Corruption

__all__ = [
    "CLEAN",
    "Clean",
    "Condition",
    "Corrupted",
    "Kind",
    "Outcomes",
    "Perturbation",
    "Perturbed",
    "PerturbedBatches",
    "UnderAttack",
]

Kind: TypeAlias = Literal["clean", "corruption", "attack"]
Outcomes: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Condition:
    """One way to see every image.

    Attributes:
        kind: `clean`, `corruption` or `attack`.
        name: The corruption type, or the attack's label.
        level: The severity, or the epsilon; 0 for clean images.
        options: All else that its numbers depend on, as text.
    """

    kind: Kind
    name: str
    level: float
    options: str = ""

    def __str__(self) -> str:
        return self.name if self.kind == "clean" else f"{self.name} at {self.level:.4g}"


CLEAN = Condition("clean", "clean", 0)


@dataclass(frozen=True)
class Perturbed(Batch):
    """A batch under a condition, with what its perturbation knows of the outcome already.

    Attributes:
        condition: What was done to the images.
        outcomes: Tables (batch, columns) by name.
    """

    condition: Condition
    outcomes: Outcomes = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Perturbed:
        """The same samples on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


class Perturbation(Protocol):
    """A function on the batch before the model, under one or several conditions."""

    @property
    def conditions(self) -> Sequence[Condition]:
        """The conditions, in the order in which they come."""
        ...

    def apply(self, model: Any, batch: Batch) -> Iterator[tuple[Tensor, Outcomes]]:
        """The images under each condition, and what is known of the outcome."""
        ...

    def only(self, conditions: Sequence[Condition]) -> Self:
        """The same under some of its conditions."""
        ...


@dataclass(frozen=True)
class Clean:
    """Leaves the images as they are."""

    conditions: tuple[Condition, ...] = (CLEAN,)

    def apply(self, model: Any, batch: Batch) -> Iterator[tuple[Tensor, Outcomes]]:
        """The images themselves."""
        yield batch.images, {}

    def only(self, conditions: Sequence[Condition]) -> Self:
        """The same: there is one condition alone."""
        return self


@dataclass(frozen=True)
class Corrupted:
    """One corruption type, computed here, at several severities.

    Args:
        name: The type.
        severities: Each from 1 to 5.
        seed: Of the random streams.
        table: The published image size whose constants are used; None takes the nearest.
    """

    name: str
    severities: tuple[int, ...]
    seed: int = 0
    table: int | None = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """One for each severity."""
        options = f"computed, seed={self.seed}"
        options += f", table={self.table}" if self.table else ""
        return tuple(
            Condition("corruption", self.name, severity, options) for severity in self.severities
        )

    def apply(self, model: Any, batch: Batch) -> Iterator[tuple[Tensor, Outcomes]]:
        """The corrupted images."""
        for severity in self.severities:
            corruption = Corruption(self.name, severity, self.seed, self.table)
            yield corruption(batch.images, batch.index), {}

    def only(self, conditions: Sequence[Condition]) -> Self:
        """The same at some severities."""
        return replace(self, severities=tuple(int(one.level) for one in conditions))


@dataclass(frozen=True)
class UnderAttack:
    """An attack at several epsilons.

    `PGD(keep="best")` leaves an image alone once it fools the model. Its accuracy is measured so,
    but where the change of activations is measured, the images come from the same attack with
    `keep="last"`, which moves every image for all steps.

    Args:
        attack: The attack.
        label: What results call it.
        epsilons: Radii.
        move_all: Whether the change is measured.
    """

    attack: Attack
    label: str
    epsilons: tuple[float, ...]
    move_all: bool = True

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """One for each epsilon."""
        return tuple(
            Condition("attack", self.label, epsilon, repr(self.attack)) for epsilon in self.epsilons
        )

    def apply(self, model: Any, batch: Batch) -> Iterator[tuple[Tensor, Outcomes]]:
        """The adversarial images.

        The outcomes are `correct`, `fooled` and `unmoved` (batch, 1), and for an untargeted attack
        with steps `correct_by_step` (batch, steps + 1).
        """
        callable_model = unwrap(model) if isinstance(model, nn.Module) else model
        given = (callable_model, batch.images, batch.labels, self.epsilons)
        judged = self.attack.run(*given, index=batch.index, check=False)
        moved = judged
        if self.move_all and isinstance(self.attack, PGD) and self.attack.keep == "best":
            moved = replace(self.attack, keep="last").run(*given, index=batch.index, check=False)
        for number in range(len(self.epsilons)):
            images = moved.images[number]
            unmoved = (images == batch.images).flatten(1).all(1)
            outcomes = {
                "correct": (judged.prediction[number] == judged.labels)[:, None],
                "fooled": judged.success[number][:, None],
                "unmoved": unmoved[:, None],
            }
            if judged.success_by_step is not None and not self.attack.targeted:
                outcomes["correct_by_step"] = ~judged.success_by_step[number].T
            yield images, outcomes

    def only(self, conditions: Sequence[Condition]) -> Self:
        """The same at some epsilons."""
        return replace(self, epsilons=tuple(one.level for one in conditions))


class PerturbedBatches:
    """Every batch of some data under every condition of some perturbations, one after the other.

    It takes the place of the data in the one loop over a model: the batch is read once, and a
    perturbation works on the device where the model is.

    Args:
        model: The model that will see the batches.
        batches: The data.
        perturbations: What is done to each batch.
    """

    def __init__(self, model: Any, batches: Batches, perturbations: Sequence[Perturbation]) -> None:
        self.model = model
        self.batches = batches
        self.perturbations = list(perturbations)

    @property
    def conditions(self) -> list[Condition]:
        """The conditions of all perturbations, in order."""
        return [one for perturbation in self.perturbations for one in perturbation.conditions]

    @property
    def samples(self) -> int | None:
        """How many images are to come, all conditions together."""
        known = self.batches.samples
        return None if known is None else known * len(self.conditions)

    def indices(self) -> Tensor | None:
        """The indices of all samples; None where they are not known in advance."""
        return self.batches.indices()

    def share(self, rank: int, world: int) -> PerturbedBatches:
        """The part that one of several processes takes."""
        return PerturbedBatches(self.model, self.batches.share(rank, world), self.perturbations)

    @property
    def skipped(self) -> int:
        """How many unreadable images of the data were left out in the last pass."""
        return self.batches.skipped

    @skipped.setter
    def skipped(self, number: int) -> None:
        self.batches.skipped = number

    def __iter__(self) -> Iterator[Perturbed]:
        device = device_of(as_module(self.model))
        for read in self.batches:
            batch = read.to(device)
            for perturbation in self.perturbations:
                seen = perturbation.apply(self.model, batch)
                for condition, (images, outcomes) in zip(
                    perturbation.conditions, seen, strict=True
                ):
                    yield Perturbed(images, batch.labels, batch.index, condition, outcomes)
