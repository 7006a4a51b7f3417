"""A data set under several conditions: every batch is repeated under each, clean or perturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from probekit.analysis.classes import Classifier
from probekit.data.batches import Batch, Batches
from probekit.errors import DataError
from probekit.perturbations.attacks.attack import Attack
from probekit.perturbations.attacks.gradient import PGD
from probekit.perturbations.corruptions.corruption import Corruption
from probekit.perturbations.corruptions.published import PublishedCorruptions

Outcomes: TypeAlias = Mapping[str, Tensor]
Perturbed: TypeAlias = tuple[Tensor, Outcomes]


@dataclass(frozen=True)
class Condition:
    """A corruption at a severity, an attack at an epsilon, or none (`clean`, at level 0).

    `options` are all other options that the results depend on, as text.
    """

    kind: Literal["clean", "corruption", "attack"]
    name: str
    level: float
    options: str = ""

    def __str__(self) -> str:
        return self.name if self.kind == "clean" else f"{self.name} at {self.level:.4g}"


CLEAN = Condition("clean", "clean", 0)


@dataclass(frozen=True)
class PerturbedBatch(Batch):
    """A batch under a condition, with the outcomes (batch, columns) that are already computed."""

    condition: Condition
    outcomes: Outcomes


@dataclass(frozen=True)
class Perturbation:
    """A function applied to batches before the model, for one or more conditions, in their order.

    `apply` takes the model, a batch and the levels of the conditions. It yields, for each level, the
    images and the outcomes that are already known. `data` are perturbed images without the clean ones,
    which replace the data of the run.
    """

    conditions: tuple[Condition, ...]
    apply: Callable[[Classifier, Batch, Sequence[float]], Iterable[Perturbed]]
    data: Batches | None = None

    def __call__(self, model: Classifier, batch: Batch) -> Iterator[PerturbedBatch]:
        """The batch under each condition."""
        found = self.apply(model, batch, [one.level for one in self.conditions])
        for condition, (images, outcomes) in zip(self.conditions, found, strict=True):
            yield PerturbedBatch(images, batch.labels, batch.index, condition, outcomes)


def unchanged(condition: Condition = CLEAN, data: Batches | None = None) -> Perturbation:
    """Leaves images unchanged, for clean data and for data that is already corrupted."""
    return Perturbation((condition,), lambda model, batch, levels: [(batch.images, {})], data)


def corrupted(name: str, severities: Iterable[int], seed: int, table: int | None) -> Perturbation:
    """One corruption type at several severities."""

    def apply(model: Classifier, batch: Batch, levels: Sequence[float]) -> Iterator[Perturbed]:
        for level in levels:
            yield Corruption(name, int(level), seed, table)(batch.images, batch.index), {}

    options = f"computed, seed={seed}" + (f", table={table}" if table else "")
    conditions = tuple(Condition("corruption", name, one, options) for one in severities)
    return Perturbation(conditions, apply)


def published_images(
    published: PublishedCorruptions, name: str, severities: Iterable[int]
) -> Perturbation:
    """One corruption type from published files whose images match the data's one to one."""

    def apply(model: Classifier, batch: Batch, levels: Sequence[float]) -> Iterator[Perturbed]:
        index = batch.index.tolist()
        channels, height, width = batch.images.shape[1:]
        for level in levels:
            data = published.dataset(name, int(level), (channels, height, width))
            if max(index) >= len(data):
                raise DataError(
                    f"{published.root} holds {len(data)} images of {name!r}, and the data "
                    f"has a sample {max(index)}; give the test set that the files were made from"
                )
            images, labels, _ = data.fetch(index)
            if not torch.equal(labels, batch.labels.cpu()):
                raise DataError(
                    f"{published.root} labels samples from {min(index)} to {max(index)} "
                    "differently from the data, so the images are not the same; give the "
                    "test set that the files were made from, in its order"
                )
            yield images.to(batch.images), {}

    options = f"published in {published.root}"
    conditions = tuple(Condition("corruption", name, one, options) for one in severities)
    return Perturbation(conditions, apply)


def attacked(
    attack: Attack, label: str, epsilons: Iterable[float], *, move_all: bool
) -> Perturbation:
    """An attack at several epsilons.

    `PGD(keep="best")` stops changing an image once it fools the model. Accuracy is measured with
    these images. If the change of activations is measured, its images come from the same attack
    with `keep="last"`, which moves every image for all steps.

    The outcomes are `correct`, `fooled` and `unmoved` (batch, 1), and for an untargeted attack with
    steps `correct_by_step` (batch, steps + 1).
    """

    def apply(model: Classifier, batch: Batch, levels: Sequence[float]) -> Iterator[Perturbed]:
        given = (model, batch.images, batch.labels, levels)
        evaluated = moved = attack.run(*given, index=batch.index, check=False)
        if move_all and isinstance(attack, PGD) and attack.keep == "best":
            moved = replace(attack, keep="last").run(*given, index=batch.index, check=False)
        for number, images in enumerate(moved.images):
            outcomes = {
                "correct": (evaluated.prediction[number] == evaluated.labels)[:, None],
                "fooled": evaluated.success[number][:, None],
                "unmoved": (images == batch.images).flatten(1).all(1)[:, None],
            }
            if evaluated.success_by_step is not None and not attack.targeted:
                outcomes["correct_by_step"] = ~evaluated.success_by_step[number].T
            yield images, outcomes

    conditions = tuple(Condition("attack", label, one, repr(attack)) for one in epsilons)
    return Perturbation(conditions, apply)
