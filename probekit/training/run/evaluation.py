"""The metrics of a network after each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from probekit.capture.layers import Layer
from probekit.capture.readouts import Activations
from probekit.capture.stream import PassOptions, stream
from probekit.data.batches import Batches
from probekit.data.images import TensorImages
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.models.image_model import ImageModel
from probekit.models.logits import required_logits
from probekit.statistics.base import merged
from probekit.statistics.class_means import ClassMeans
from probekit.training.run.recipes import Precision

_BATCH_SIZE = 500
_OUTCOMES = ""  # no layer has this name


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of a network on labeled images."""

    loss: float
    accuracy: float
    selectivity: Mapping[str, float]
    dead_units: Mapping[str, int]

    @property
    def selectivity_mean(self) -> float:
        """Mean over the layers of the mean over each layer's units."""
        return sum(self.selectivity.values()) / len(self.selectivity)


def evaluate(
    model: ImageModel, data: TensorImages, layers: Sequence[Layer], precision: Precision
) -> EpochMetrics:
    """Measures loss, accuracy, selectivity and dead units in one pass shared by all processes."""
    means = {name: ClassMeans() for name in (_OUTCOMES, *(layer.name for layer in layers))}
    batches = Batches(data, batch_size=_BATCH_SIZE)
    half = precision if precision in ("bfloat16", "float16") else None
    options = PassOptions(progress=False, precision=half)
    with stream(model, batches, layers, [Activations()], options) as observed:
        for observation in observed:
            labels = observation.batch.labels
            logits = required_logits(observation.output, len(labels), "training").float()
            loss = functional.cross_entropy(logits, labels, reduction="none")
            outcomes = torch.stack([loss, (logits.argmax(1) == labels).to(loss)], 1)
            for name, table in (observation.tables[0] | {_OUTCOMES: outcomes}).items():
                means[name].update(table, labels)
    whole = merged(means)
    totals = whole.pop(_OUTCOMES).state
    loss, accuracy = (totals["sum"].sum(0) / totals["count"].sum()).tolist()
    found = {name: Selectivity().evaluate(one.to_xarray()) for name, one in whole.items()}
    return EpochMetrics(
        loss=loss,
        accuracy=accuracy,
        selectivity={
            name: float(units["selectivity"].mean()) for name, (units, _) in found.items()
        },
        dead_units={name: int(table["dead_units"]) for name, (_, table) in found.items()},
    )
