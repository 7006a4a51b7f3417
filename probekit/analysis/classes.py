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
    logits = required_logits(output, _images_explored(output, batches), purpose)
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


def check_class_map(model: Model, output: object, batches: Batches, class_map: ClassMap) -> None:
    """Raises `OptionError` for a `class_map` that does not fit, before the pass instead of after it."""
    if class_map is None or not batches.peek().labeled:
        return
    known = None if batches.names else batches.known_labels()
    logits = logits_of(output, _images_explored(output, batches))
    if logits is not None and (batches.names or known):
        labels = known and known[0]
        match_classes(model, batches.names, logits.shape[1], labels, class_map)


def _images_explored(output: object, batches: Batches) -> int:
    """For how many images `explore` returned an output: 1 if the model takes one at a time, otherwise 2."""
    return 1 if batches.part.size == 1 and logits_of(output, 1) is not None else 2


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
