"""What is measured of a network after each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from probekit.capture.layers import Layer
from probekit.capture.readouts import Activations
from probekit.capture.stream import Reading, stream
from probekit.data.batches import Batches
from probekit.data.images import TensorImages
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.models.image_model import ImageModel
from probekit.models.logits import required_logits
from probekit.runtime.machine import Machine
from probekit.statistics.base import merged
from probekit.statistics.class_means import ClassMeans
from probekit.training.run.recipes import Precision

__all__ = ["Measured", "measure"]


@dataclass(frozen=True)
class Measured:
    """A network on labelled images.

    Attributes:
        loss: Mean cross-entropy.
        accuracy: Share of right predictions.
        selectivity: Mean class selectivity of each layer.
        dead_units: Dead units of each layer.
    """

    loss: float
    accuracy: float
    selectivity: Mapping[str, float]
    dead_units: Mapping[str, int]

    @property
    def selectivity_mean(self) -> float:
        """Mean over the layers of the mean over each layer's units."""
        return sum(self.selectivity.values()) / len(self.selectivity)


def measure(
    model: ImageModel,
    data: TensorImages,
    layers: Sequence[Layer],
    precision: Precision,
    machine: Machine,
    *,
    batch_size: int = 500,
) -> Measured:
    """Loss, accuracy, selectivity and dead units, in one pass.

    Args:
        model: In eval mode or not; its modes come back as they were.
        data: Labelled images with their class names.
        layers: Where selectivity is measured.
        precision: Type of the activations.
        machine: Its processes share the data.
        batch_size: Images a forward pass.

    Raises:
        DataError: NaN or infinity in an activation.
    """
    means = {layer.name: ClassMeans() for layer in layers}
    totals = torch.zeros(3, dtype=torch.float64)
    batches = Batches(data, batch_size=batch_size)
    half = precision if precision in ("bfloat16", "float16") else None
    reading = Reading(progress=False, precision=half)
    with stream(model, batches, layers, [Activations()], reading) as observed:
        for seen in observed:
            labels = seen.batch.labels
            logits = required_logits(seen.output, len(labels), "training").float()
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            hits = (logits.argmax(1) == labels).sum()
            totals += torch.stack([loss, hits, loss.new_tensor(len(labels))]).cpu().double()
            for name, table in seen.tables[0].items():
                means[name].update(table, labels)
    totals = machine.sum(totals)
    found = {name: Selectivity().evaluate(one.to_xarray()) for name, one in merged(means).items()}
    loss_sum, hits_sum, count = totals.tolist()
    return Measured(
        loss=loss_sum / count,
        accuracy=hits_sum / count,
        selectivity={
            name: float(units["selectivity"].mean()) for name, (units, _) in found.items()
        },
        dead_units={name: int(table["dead_units"]) for name, (_, table) in found.items()},
    )
