"""The one pass: a model over data, feeding the statistics that the metrics need."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from probekit.capture.layers import Layer, unwrap
from probekit.capture.plan import scout_layers
from probekit.capture.recorder import Layers, Tokens
from probekit.capture.sources import Source
from probekit.data.batches import Batch, Batches
from probekit.data.datasets import load_data
from probekit.errors import DataError, LayerError, ProbekitWarning
from probekit.metrics.registry import Metric, resolve
from probekit.models.image_model import as_module, borrow, content_hash
from probekit.models.loading import load_model
from probekit.results import provenance, strings, unit_coordinates
from probekit.statistics.base import distinct

__all__ = ["Pass", "analyze", "open_source"]


@dataclass
class Pass:
    """One pass of a model over data.

    Attributes:
        model: A module or an `ImageModel`.
        batches: The data.
        layers: The layers, as a scouting pass found them.
        statistics: Prototypes of what each layer feeds.
        tokens: Which tokens of a sequence count.
        output: Which tensor of a layer's output counts.
        device: Where to run; None stays where the model is.
        progress: Show a progress bar on a terminal.
    """

    model: Any
    batches: Batches
    layers: list[Layer]
    statistics: Sequence[Any]
    tokens: Tokens = "all"
    output: int | str | None = None
    device: str | torch.device | None = None
    progress: bool = True
    fed: dict[str, list[Any]] = field(default_factory=dict)
    label: list[Tensor] = field(default_factory=list)
    prediction: list[Tensor] = field(default_factory=list)
    index: list[Tensor] = field(default_factory=list)

    def run(self) -> Pass:
        """Streams the data through the model once.

        Raises:
            DataError: NaN or infinity in an activation (the layer is named), or bad data.
        """
        self.fed = {layer.name: [one.fresh() for one in self.statistics] for layer in self.layers}
        sources: list[Source] = distinct(one.source for one in self.statistics)
        sources.sort(key=lambda source: source.own_pass)
        with ExitStack() as stack:
            device = stack.enter_context(borrow(self.model, self.device))
            stack.enter_context(torch.no_grad())
            taps = [
                stack.enter_context(
                    source.open(self.model, self.layers, tokens=self.tokens, output=self.output)
                )
                for source in sources
            ]
            for batch in self._watched():
                batch = batch.to(device)
                result = self._forward(batch.images)
                for source, tap in zip(sources, taps, strict=True):
                    self._feed(source, tap(batch.images), batch)
                self._note(batch, result)
        return self

    def _forward(self, images: Tensor) -> Any:
        model = self.model
        return (unwrap(model) if isinstance(model, nn.Module) else model)(images)

    def _watched(self) -> Iterator[Batch]:
        bar = tqdm(
            total=self.batches.samples,
            unit="image",
            desc="analyze",
            disable=None if self.progress else True,
            leave=False,
        )
        with bar:
            for batch in self.batches:
                yield batch
                bar.update(len(batch))

    def _feed(self, source: Source, tables: dict[str, Tensor], batch: Batch) -> None:
        for layer in self.layers:
            table = tables.get(layer.name)
            if table is None:
                raise LayerError(f"layer {layer.name!r} was reached in the first batch but not now")
            if not bool(torch.isfinite(table).all()):
                raise DataError(
                    f"layer {layer.name!r} gives NaN or infinity for samples between "
                    f"{int(batch.index.min())} and {int(batch.index.max())}; look at the images and "
                    "the weights"
                )
            labels, index = batch.labels, batch.index
            if len(table) != len(labels):
                repeats = len(table) // len(labels)
                labels, index = labels.repeat_interleave(repeats), index.repeat_interleave(repeats)
            for one in self.fed[layer.name]:
                if one.source == source:
                    one.update(table, labels, index)

    def _note(self, batch: Batch, result: Any) -> None:
        self.label.append(batch.labels.cpu())
        self.index.append(batch.index)
        if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] > 1:
            self.prediction.append(result.argmax(1).cpu())

    def samples(self) -> xr.Dataset:
        """One row a sample: its label and, where the model classifies, its prediction."""
        table = xr.Dataset(
            {"label": ("sample", torch.cat(self.label).numpy())},
            coords={"sample": torch.cat(self.index).numpy()},
        )
        if len(self.prediction) == len(self.label):
            table["prediction"] = ("sample", torch.cat(self.prediction).numpy())
        return table


def open_source(model: Any, data: Any, **options: Any) -> tuple[Any, Batches]:
    """A model and batches of data, from objects or from their names."""
    if isinstance(model, str):
        model = load_model(model)
    as_module(model)
    if isinstance(data, str) or hasattr(data, "__fspath__"):
        data = load_data(data, model)
    return model, data if isinstance(data, Batches) else Batches(data, **options)


def analyze(
    model: Any,
    data: Any,
    layers: Layers = None,
    metrics: str | Metric | Sequence[str | Metric] = ("selectivity",),
    *,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
    tokens: Tokens = "all",
    output: int | str | None = None,
    workers: int | None = None,
) -> xr.DataTree:
    """Measures every unit of a model's layers on labelled data, in one pass.

    Args:
        model: A module (images go in as the data gives them), an `ImageModel`, or a name for
            `load_model`.
        data: Labelled images: what `load_data` gives or takes, a map-style data set, a
            `DataLoader`, or any iterable of (images, labels) batches.
        layers: Names, globs, types or predicates, as for `Recorder`; None is every
            activation-function output but the classifier's.
        metrics: Names or configured metric objects.
        batch_size: Samples a forward pass, for data that does not come in batches.
        limit: How many samples to use: a random sample of a map-style data set, the first ones of
            anything else.
        device: Where to run; None stays where the model is. The model goes back afterwards.
        seed: Seeds everything random.
        progress: Show a progress bar when on a terminal.
        tokens: For sequences of tokens: all, the patch tokens, or the class token.
        output: Which tensor to take from layers that give several.
        workers: Reading processes; None takes what the data set advises.

    Returns:
        A tree with `/units`, `/layers` and `/samples`, the network's means at the root, and
        `provenance` among the root's attributes.

    Raises:
        ProbekitError: What was asked cannot be done; the message says why and what to do.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> batch = (torch.rand(8, 1, 8, 8), torch.tensor([0, 1] * 4))
        >>> result = analyze(net, [batch])
        >>> result["units"].sizes["unit"], result["layers"]["layer"].values
        (4, array(['1'], dtype=object))
    """
    chosen = resolve(metrics)
    model, batches = open_source(
        model, data, batch_size=batch_size, limit=limit, seed=seed, workers=workers
    )
    _check_classes(batches)
    with borrow(model, device):
        first = _first_images(batches)
        found, _ = scout_layers(model, first, layers, tokens=tokens, output=output)
    wanted = distinct(statistic for metric in chosen for statistic in metric.needs)
    passed = Pass(
        model,
        batches,
        found,
        wanted,
        tokens=tokens,
        output=output,
        device=device,
        progress=progress,
    ).run()
    facts = {
        "model": _describe(model),
        "data": batches.provenance()
        | {"seen": sum(map(len, passed.label)), "skipped": batches.skipped},
        "layers": [layer.name for layer in found],
        "metrics": {metric.name: _options(metric) for metric in chosen},
        "tokens": tokens,
        "output": output,
        "seed": seed,
        "device": str(device) if device is not None else None,
    }
    result = _assemble(chosen, passed, batches.classes)
    result.attrs["provenance"] = provenance(**facts)
    if batches.skipped:
        _warn(f"{batches.skipped} images of {batches.name} could not be read and were left out")
    return result


def _first_images(batches: Batches) -> Tensor:
    """Two images, or as many as there are, to scout with."""
    source = batches.source
    if iter(source) is source if hasattr(source, "__next__") else False:
        batches.source = source = _Again(source)
    return next(iter(batches)).images[:2]


class _Again:
    """An iterator whose first batch, already taken, comes again."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._first: list[Any] = []
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        yield from self._first
        for item in self._iterator:
            if not self._first:
                self._first.append(item)
            yield item


def _check_classes(batches: Batches) -> None:
    labels = getattr(batches.source, "labels", None)
    if isinstance(labels, Tensor) and len(labels) and len(labels.unique()) < 2:
        name = batches.classes[int(labels[0])] if batches.classes else int(labels[0])
        raise DataError(f"{batches.name} has samples of one class only ({name}); give at least two")


def _assemble(metrics: Sequence[Metric], passed: Pass, classes: Sequence[str]) -> xr.DataTree:
    by_unit, by_layer = [], []
    prototypes = list(passed.statistics)
    for layer in passed.layers:
        arrays = [one.to_xarray() for one in passed.fed[layer.name]]
        units, numbers = xr.Dataset(), xr.Dataset({"n_units": layer.units})
        for metric in metrics:
            needed = [arrays[prototypes.index(need)] for need in metric.needs]
            for table, more in zip((units, numbers), metric.evaluate(*needed), strict=True):
                table.update(more)
            numbers.update(_summary(metric.name, units))
        by_unit.append(units)
        by_layer.append(numbers)
        passed.fed.pop(layer.name)
    units = xr.concat(by_unit, "unit", join="outer") if by_unit else xr.Dataset()
    units = units.assign_coords(unit_coordinates(passed.layers))
    layers = xr.concat(by_layer, "layer", join="outer")
    layers = layers.assign_coords(layer=strings([layer.name for layer in passed.layers]))
    root = xr.Dataset(
        {name: values.mean() for name, values in layers.items() if _is_mean(str(name))}
    )
    samples = passed.samples()
    if "class" in units.dims:
        units = _name_classes(units, classes)
        _say_what_is_absent(units, classes)
    if "prediction" in samples and _same_classes(passed.model, classes):
        root["accuracy"] = (samples["prediction"] == samples["label"]).mean()
    for metric in metrics:
        for sentence in metric.review(units, layers):
            _warn(sentence)
    return xr.DataTree.from_dict({"/": root, "units": units, "layers": layers, "samples": samples})


def _summary(name: str, units: xr.Dataset) -> xr.Dataset:
    """Mean and quartiles over units of a metric's own variable."""
    if name not in units or units[name].dims != ("unit",) or units[name].dtype.kind != "f":
        return xr.Dataset()
    values = units[name]
    quartiles = values.quantile([0.25, 0.5, 0.75], "unit", skipna=True)
    return xr.Dataset({f"{name}_mean": values.mean(), f"{name}_quartiles": quartiles})


def _is_mean(name: str) -> bool:
    return name.endswith("_mean")


def _name_classes(units: xr.Dataset, classes: Sequence[str]) -> xr.Dataset:
    if not classes:
        return units
    names = strings([classes[label] for label in units["class"].values])
    return units.assign_coords(class_name=("class", names))


def _say_what_is_absent(units: xr.Dataset, classes: Sequence[str]) -> None:
    present = set(units["class"].values.tolist())
    absent = [name for label, name in enumerate(classes) if label not in present]
    if absent:
        shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        _warn(f"{len(absent)} of {len(classes)} classes have no sample and are left out: {shown}")


def _same_classes(model: Any, classes: Sequence[str]) -> bool:
    known = getattr(model, "classes", ())
    return not known or not classes or tuple(known) == tuple(classes)


def _describe(model: Any) -> dict[str, Any]:
    known = dict(getattr(model, "provenance", {}) or {})
    module: nn.Module = as_module(model)
    return {"type": type(module).__name__, **known, "hash": content_hash(module)}


def _options(metric: Metric) -> dict[str, Any]:
    if not is_dataclass(metric):
        return {}
    return {
        name: value
        for name, value in asdict(metric).items()
        if isinstance(value, str | int | float | bool | None)
    }


def _warn(sentence: str) -> None:
    warnings.warn(sentence, ProbekitWarning, stacklevel=4)
