"""Published corrupted images, used in place of computed ones or as separate data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from probekit.analysis.classes import Classifier
from probekit.analysis.robustness.conditions import (
    Condition,
    Perturbation,
    Perturbed,
    of_corruption,
)
from probekit.data.batches import Batch, Batches
from probekit.errors import DataError, warn
from probekit.perturbations.corruptions.published import PublishedCorruptions


def published_images(
    published: PublishedCorruptions, name: str, severities: Sequence[int]
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

    return Perturbation(published_conditions(published, name, severities), apply)


def one_to_one(published: PublishedCorruptions, batches: Batches) -> bool:
    """Whether published images match those of the data, in the same order, judging by their labels.

    Warns:
        ProbekitWarning: The layout suggests a match, but the labels or their number differ.
    """
    if published.layout != "npy":
        return False
    labels = published.dataset(published.corruptions[0], 1).labels
    found = batches.known_labels()
    if found is None:
        return True
    mine, index = found
    index = torch.arange(len(mine)) if index is None else index
    whole = batches.samples if batches.limit is None else None
    same_size = whole is None or whole == len(labels)
    if same_size and int(index.max()) < len(labels) and torch.equal(labels[index], mine):
        return True
    warn(
        f"{published.root} has different labels than the data, or a different number of them, so its "
        "images are not those of the data: accuracy is measured, the change of activations is not"
    )
    return False


def published_conditions(
    published: PublishedCorruptions, name: str, severities: Sequence[int]
) -> tuple[Condition, ...]:
    """The conditions of one type from published files."""
    return of_corruption(name, severities, f"published in {published.root}")
