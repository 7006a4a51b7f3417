"""Conditions of a data set, clean or perturbed, and the store of those that are finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import xarray as xr
from torch import Tensor

from probekit.analysis.classes import Classifier
from probekit.data.batches import Batch, Batches
from probekit.errors import DataError
from probekit.perturbations.attacks.attack import Attack
from probekit.perturbations.attacks.gradient import PGD
from probekit.perturbations.corruptions.corruption import Corruption
from probekit.perturbations.corruptions.published import PublishedCorruptions
from probekit.results.folders import claim, locked
from probekit.results.trees import open_result, save_result
from probekit.runtime.processes import processes

Outcomes: TypeAlias = Mapping[str, Tensor]
Perturbed: TypeAlias = tuple[Tensor, Outcomes]
IDENTITY = "identity.json"


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

    def condition(severity: int) -> Condition:
        content = published.dataset(name, severity).fingerprint.removeprefix("sha256:")[:12]
        options = f"published in {published.root}, content {content}"
        return Condition("corruption", name, severity, options)

    return Perturbation(tuple(map(condition, severities)), apply)


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


class ConditionStore:
    """Results of conditions, keyed by everything they depend on, in a folder or in memory.

    A folder holds `identity.json` and one netCDF file per condition, written atomically. With several
    processes, only the first one writes.
    """

    def __init__(
        self, folder: str | Path | None, identity: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self._identity = identity
        self._found: dict[Condition, xr.DataTree] = {}
        self._writes = processes().is_main

    def __contains__(self, condition: Condition) -> bool:
        return condition in self._found or (
            self.folder is not None and self._path(self.folder, condition).exists()
        )

    def __getitem__(self, condition: Condition) -> xr.DataTree:
        if condition not in self._found and self.folder is not None:
            self._found[condition] = open_result(self._path(self.folder, condition))
        return self._found[condition]

    def __setitem__(self, condition: Condition, found: xr.DataTree) -> None:
        self._found[condition] = found
        if self.folder is not None and self._writes:
            found.attrs["condition"] = json.dumps(asdict(condition))
            save_result(found, self._path(self.folder, condition), overwrite=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Prevents other runs from writing to the folder.

        Raises:
            OutputError: The folder belongs to another run (the message names the differences), holds
                something else, or cannot be written.
        """
        if self.folder is None or not self._writes:
            yield
            return
        with locked(self.folder / IDENTITY):
            claim(self.folder / IDENTITY, self._identity(), "robustness run")
            yield

    def _path(self, folder: Path, condition: Condition) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(condition)).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.=-]+", "_", f"{condition.kind}-{condition.name}-{condition.level:.6g}")
        return folder / f"{name[:80]}-{digest}.nc"
