"""One pass of a model over data that updates the statistics of every layer."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from probekit.capture.layers import Layer
from probekit.capture.stream import PassOptions, stream
from probekit.data.batches import Batch, Batches
from probekit.data.labels import ClassNames
from probekit.errors import DataError
from probekit.models.image_model import Model
from probekit.models.inputs import tensors_of
from probekit.models.logits import ClassMap, ClassMatch, logits_of, match_classes, predicted
from probekit.results.labels import strings
from probekit.runtime.processes import processes
from probekit.statistics.base import distinct, merged
from probekit.statistics.feeding import Feeder

NO_CLASSES = "the data has no labels of classes"
_Key = tuple[int, int | None]
_CHECKED_VALUES = 64  # of each image


class Columns:
    """Columns of values with one row per sample, each in one growing block of memory.

    Small tensors, one per batch, would fragment memory between the large ones, and memory use would
    grow with the number of batches.
    """

    def __init__(self) -> None:
        self._columns: dict[str, array[Any]] = {}

    def append(self, **values: Tensor) -> None:
        """Appends (batch,) values to each column, in int64, float32 or float64."""
        for name, column in values.items():
            rows = column.detach().cpu().numpy()
            self._columns.setdefault(name, array(rows.dtype.char)).frombytes(rows.tobytes())

    @classmethod
    def joined(cls, parts: Iterable[Columns]) -> Columns:
        """The rows of all parts, one after another."""
        whole = cls()
        for part in parts:
            for name, column in part._columns.items():
                whole._columns.setdefault(name, array(column.typecode)).extend(column)
        return whole

    def __contains__(self, name: str) -> bool:
        """Whether every sample has a value in this column."""
        return name in self._columns and self.count(name) == len(self)

    def count(self, name: str) -> int:
        """The number of samples with a value in a column."""
        return len(self._columns.get(name, ()))

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """A column (samples,), a copy."""
        return np.array(self._columns[name])

    def __len__(self) -> int:
        return max(map(len, self._columns.values()), default=0)


def uses_labels(statistic: object) -> bool:
    """Whether a statistic uses labels; True if it has no attribute `uses_labels`."""
    return bool(getattr(statistic, "uses_labels", True))


class Pass:
    """One pass of a model over data that updates statistics.

    If samples have several labels (`attributes`), statistics that use labels are computed separately for
    each of them. `statistics` holds prototypes of the statistics of each layer.
    """

    def __init__(
        self, layers: Sequence[Layer], statistics: Sequence[Any], attributes: Sequence[str] = ()
    ) -> None:
        self.layers = list(layers)
        self.statistics = list(statistics)
        self.attributes = list(attributes)
        several = range(len(self.attributes)) if self.attributes else [None]
        self._prototypes: dict[_Key, Any] = {
            (place, attribute): deepcopy(one) if self.attributes else one
            for place, one in enumerate(self.statistics)
            for attribute in (several if uses_labels(one) else [None])
        }
        self.fed: dict[str, dict[_Key, Any]] = {
            layer.name: {key: one.fresh() for key, one in self._prototypes.items()}
            for layer in layers
        }
        self._columns = Columns()
        self._outputs = 0

    def evaluated(
        self, layer: Layer, needs: Sequence[Any], attribute: int | None = None
    ) -> list[xr.DataArray | xr.Dataset]:
        """The values of some statistics of a layer; for one attribute if they use labels."""
        fed = self.fed[layer.name]
        places = [self.statistics.index(need) for need in needs]
        keys = [(place, attribute if (place, attribute) in fed else None) for place in places]
        return [fed[key].to_xarray() for key in keys]

    def run(self, model: Model, batches: Batches, options: PassOptions) -> Pass:
        """Streams the data through the model once."""
        self._prepare(batches)
        feeders = {
            attribute: Feeder({
                name: [one for key, one in fed.items() if key[1] == attribute]
                for name, fed in self.fed.items()
            })
            for attribute in dict.fromkeys(attribute for _, attribute in self._prototypes)
        }  # fmt: skip
        readouts = distinct(one for feeder in feeders.values() for one in feeder.readouts)
        with stream(model, batches, self.layers, readouts, options) as observed:
            for observation in observed:
                for attribute, feeder in feeders.items():
                    tables = [observation.tables[readouts.index(one)] for one in feeder.readouts]
                    feeder.update(observation.batch.of(attribute), tables)
                self._note(observation.batch, observation.output)
            for feeder in feeders.values():
                feeder.flush()
        every = {(name, key): one for name, own in self.fed.items() for key, one in own.items()}
        for (name, key), whole in merged(every).items():
            self.fed[name][key] = whole
        together = processes()
        self._columns = Columns.joined(together.gather(self._columns))
        self._outputs = max(together.gather(self._outputs))
        return self

    def _prepare(self, batches: Batches) -> None:
        """Calls the methods `expect` and `check` of the statistics that have them.

        The first receives the labels, if they are known in advance; the second checks whether these layers
        fit into memory.
        """
        labels, index = self._labels(batches)
        for (_, attribute), one in self._prototypes.items():
            if hasattr(one, "expect"):
                own = labels
                if labels is not None and labels.ndim > 1:
                    own = labels[:, attribute or 0]
                one.expect(own, index, self.layers)
            if hasattr(one, "check"):
                one.check(self.layers, batches.samples or batches.part.limit)

    def _labels(self, batches: Batches) -> tuple[Tensor | None, Tensor | None]:
        """The labels and indices of all samples, if a statistic uses them and they can be known."""
        wanted = any(hasattr(one, "expect") for one in self.statistics)
        found = batches.known_labels() if wanted else None
        if found is None and any(getattr(one, "needs_labels", False) for one in self.statistics):
            found = batches.read_labels()
            if found is None and self.attributes:
                raise DataError(
                    "the chance level of attributes needs their labels before the pass, and "
                    f"{batches.name} can be read only once or lacks some; give a list of batches or a "
                    "data set"
                )
        return found or (None, None)

    def _note(self, batch: Batch, output: object) -> None:
        self._columns.append(sample=batch.index, image=_checksums(batch.images))
        if batch.labeled:
            self._columns.append(label=batch.labels)
        for attribute in range(len(self.attributes)):
            self._columns.append(**{f"label {attribute}": batch.of(attribute).labels})
        logits = logits_of(output, len(batch), self._outputs or None)
        if logits is not None:
            self._columns.append(prediction=predicted(logits))
            self._outputs = logits.shape[1]

    @property
    def images(self) -> str:
        """A hash of some values of each image, in the order of the samples; equal for equal images."""
        order = self._columns["sample"].argsort(kind="stable")
        digest = hashlib.sha256(self._columns["image"][order].tobytes())
        return f"sha256:{digest.hexdigest()}"

    def match(self, model: Model, classes: ClassNames, class_map: ClassMap) -> ClassMatch:
        """Matches the model's outputs to the data's classes."""
        if "label" not in self._columns:
            some = self._columns.count("label")
            why = (
                f"only {some} of {len(self._columns)} samples have a label" if some else NO_CLASSES
            )
            return ClassMatch(self._outputs, why_not=why)
        if "prediction" not in self._columns:
            why = "the model gives no logits (batch, classes) of two classes or more"
            return ClassMatch(0, why_not=why)
        labels = torch.from_numpy(self._columns["label"])
        return match_classes(model, classes, self._outputs, labels, class_map)

    def samples(self, match: ClassMatch) -> xr.Dataset:
        """One row per sample: its labels and, if the outputs match the classes, the predicted label."""
        table = xr.Dataset(coords={"sample": self._columns["sample"]})
        if "label" in self._columns:
            table["label"] = ("sample", self._columns["label"])
        if self.attributes:
            columns = [self._columns[f"label {at}"] for at in range(len(self.attributes))]
            table["label"] = (("sample", "attribute"), np.stack(columns, 1))
            table = table.assign_coords(attribute=strings(self.attributes))
        if not match.why_not:
            predicted = match.labels(torch.from_numpy(self._columns["prediction"]))
            table["prediction"] = ("sample", predicted.numpy())
        return table.sortby("sample") if processes().world > 1 else table


def _checksums(images: Any) -> torch.Tensor:
    """An integer for each sample, computed from evenly spaced values of its image."""
    found: list[torch.Tensor] = []
    for tensor in tensors_of(images):
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        flat = real.detach().reshape(len(tensor), -1)
        some = flat[:, :: max(1, flat.shape[1] // _CHECKED_VALUES)].float().contiguous()
        weights = 2 * torch.arange(some.shape[1], device=some.device) + 1
        found.append((some.view(torch.int32) * weights).sum(1))
    return sum(found[1:], found[0])
