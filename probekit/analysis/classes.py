"""Matches a model's outputs to the classes of the data, to compare predictions with labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probekit.capture.layers import runnable
from probekit.data.batches import Batches
from probekit.errors import DataError, warn
from probekit.models.image_model import Model, as_module
from probekit.models.logits import ClassMap, ClassMatch, logits_of, match_classes, required_logits


def compared_classes(
    model: Model, output: object, batches: Batches, class_map: ClassMap, purpose: str
) -> ClassMatch:
    """Matches a model's outputs to the data's classes before a pass that compares them."""
    alone = batches.part.size == 1 and logits_of(output, 1) is not None
    logits = required_logits(output, 1 if alone else 2, purpose)
    first = batches.peek()
    if not first.labeled:
        found = "several attributes" if batches.attributes else "no labels"
        raise DataError(
            f"{purpose} compares predictions with labels, and {batches.name} has {found}; give data with "
            "one label per sample"
        )
    known = batches.known_labels()
    labels = first.labels if known is None else known[0]
    match = match_classes(model, batches.names, logits.shape[1], labels, class_map)
    if match.why_not:
        raise DataError(
            f"{purpose} compares predictions with labels, and {match.why_not}; give "
            "class_map={class of the data: class or output of the model, ...}, or class_map='index' "
            "where label i is output i"
        )
    warn_of_guess(match)
    return match


def warn_of_guess(match: ClassMatch) -> None:
    """Warns if a match of outputs and classes rests on an assumption."""
    if match.guess:
        warn(
            f"accuracy is a guess: {match.guess}; confirm it with class_map='index', or give the mapping"
        )


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model that returns logits (batch, outputs) with the data's classes first, in their order."""

    model: Model
    match: ClassMatch

    @property
    def module(self) -> nn.Module:
        return as_module(self.model)

    def __call__(self, images: Tensor) -> Any:
        output = runnable(self.model)(images)
        logits = logits_of(output, len(images), self.match.outputs)
        return output if logits is None else self.match.arrange(logits)
