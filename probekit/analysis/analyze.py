"""Metrics of every unit of a model on labeled data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from probekit.analysis.classes import check_class_map, warn_of_guess
from probekit.analysis.one_pass import NO_CLASSES, Pass, uses_labels
from probekit.capture.layers import Layer, unit_coordinates
from probekit.capture.recorder import Layers, Tokens
from probekit.capture.stream import PassOptions, Precision, explore, open_model_and_data
from probekit.data.batches import Batches
from probekit.data.labels import LABEL_KEYS, ClassNames
from probekit.errors import DataError, OptionError, keep_notes, some_of, warn
from probekit.metrics.metric import Metric, metric_options, resolve
from probekit.metrics.selectivity.index import IndexMetric
from probekit.models.identity import describe
from probekit.models.image_model import Model, ModelOrName, borrow
from probekit.models.logits import ClassMap
from probekit.results.labels import attributes, class_names, strings
from probekit.results.provenance import provenance
from probekit.runtime.progress import print_speed
from probekit.runtime.settings import in_own_settings
from probekit.statistics.base import distinct
from probekit.statistics.class_means import ClassMeans

_QUARTILES = (0.25, 0.5, 0.75)
_N_UNITS = attributes("units", "Number of units.", short_name="units")
Attributes: TypeAlias = "Sequence[str] | Mapping[str, Any] | None"


@in_own_settings
@keep_notes
def analyze(
    model: ModelOrName,
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
    precision: Precision | None = None,
    compile: bool = False,
    class_map: ClassMap = None,
    attributes: Attributes = None,
) -> xr.DataTree:
    """Measures every unit of a model's layers on labeled data, in one pass.

    Args:
        model: A module, which receives the images unchanged, an `ImageModel`, or a name for
            `load_model`.
        data: Labeled images: a result or argument of `load_data`, a map-style data set, a
            `DataLoader`, or any iterable of (images, labels) batches.
        layers: Names, globs, types or predicates, as for `Recorder`; None selects every
            activation-function output except the classifier's.
        metrics: Names or configured metric objects.
        batch_size: Samples per forward pass, for data that does not come in batches.
        limit: Number of samples: a random sample of a map-style data set, or the first samples of
            other data.
        device: Where to run; None uses the model's device. The model is moved back afterwards.
        seed: Seed of all random draws.
        progress: Show a progress bar when on a terminal.
        tokens: For token sequences, which tokens to use: all, the patch tokens, or the class token.
        output: Which tensor to use from layers that return several.
        workers: Number of worker processes for reading; None uses the data set's own number.
        precision: `"bfloat16"` or `"float16"` runs the forward pass under `torch.autocast`, except for
            gradients; None runs the model unchanged. Statistics are always in float64.
        compile: Compile the model and the hooks that record it with `torch.compile`. Compilation takes
            minutes, so use it for long runs. The first batch runs compiled and uncompiled, and the
            results are compared; if that fails, the model runs uncompiled, with a warning.
        class_map: The output of each class of the data, if names do not determine it: a mapping from names
            or labels to the model's class names or output numbers, or `"index"`: label i is output i.
        attributes: For labels with several columns (multi-label, or named attributes such as color and
            shape): the names of the columns, or a mapping from each name to the names of its values.
            None uses the data's own `attributes` or `attr_names`, or the keys if labels are mappings.

    Returns:
        A tree with `/units`, `/layers` and `/samples`. The root holds the network's means, with
        `provenance` among its attributes. If the model's outputs are logits of the data's classes
        (`docs/definitions.md`), the root also has `accuracy`, and the samples have `prediction` (the
        predicted label; -1 for an output that belongs to no class of the data). With attributes,
        variables that depend on labels have the dimension `attribute`, and `preferred_value` is the name
        of the value with the highest mean; `result.sel(attribute="color")` selects one attribute.

    Raises:
        ProbekitError: The request cannot be fulfilled; the message explains why and what to do.

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> result = pk.analyze(model, data, "layer3.*.relu2", limit=100)
        >>> result["layers"]["selectivity_mean"].values.round(1)
        array([0.3, 0.5, 0.7])
    """
    chosen = resolve(metrics)
    _check_index(chosen)
    model, batches = open_model_and_data(
        model, data, batch_size=batch_size, limit=limit, seed=seed, workers=workers,
        attributes=attributes,
    )  # fmt: skip
    _check_labels(chosen, batches)
    options = PassOptions(tokens, output, device, progress, precision, compile)
    found, output_of_few = explore(model, batches, layers, options)
    check_class_map(model, output_of_few, batches, class_map)
    chosen = _fitted(chosen, model, batches, found, options)
    wanted = distinct(statistic for metric in chosen for statistic in metric.needs)
    passed = Pass(found, wanted, list(batches.attributes)).run(model, batches, options)
    print_speed(batches.samples or 0, batches.seconds, batches.waited, progress=progress)
    match = passed.match(model, batches.names, class_map)
    samples = passed.samples(match)
    facts = {
        "model": describe(model),
        "data": batches.provenance()
        | {
            "seen": samples.sizes["sample"],
            "skipped": batches.skipped,
            "images": passed.images,
        },
        "layers": [layer.name for layer in found],
        "metrics": {
            metric.name: metric_options(metric) | metric.describe(found) for metric in chosen
        },
        "tokens": tokens,
        "output": output,
        "seed": seed,
        "device": str(device) if device is not None else None,
        "precision": precision,
        "compile": compile,
        "classes": match.describe(),
    }
    result = _assemble(chosen, passed, samples, batches)
    if not match.why_not:
        result["accuracy"] = (samples["prediction"] == samples["label"]).mean()
    elif match.why_not != NO_CLASSES:
        warn(f"accuracy is left out: {match.why_not}")
    warn_of_guess(match)
    result.attrs["provenance"] = provenance(**facts)
    if batches.skipped:
        warn(f"{batches.skipped} images of {batches.name} could not be read and were left out")
    return result


def _fitted(
    metrics: Sequence[Metric],
    model: Model,
    batches: Batches,
    layers: Sequence[Layer],
    options: PassOptions,
) -> list[Metric]:
    """The metrics fitted to this model; some inspect it with a few images before the pass."""
    with borrow(model, options.device) as device:
        images = batches.peek().images[:2].to(device)
        fitted = [
            metric.fitted(model, images, layers, tokens=options.tokens, output=options.output)
            for metric in metrics
        ]
    for sentence in (sentence for _, sentence in fitted if sentence):
        warn(sentence)
    return [metric for metric, _ in fitted]


def _check_index(metrics: Sequence[Metric]) -> None:
    """Warns if metrics of the selectivity index, such as its interval, define it in different ways."""
    of_index = [metric for metric in metrics if isinstance(metric, IndexMetric)]
    for option in ("eps", "negative"):
        values = {metric.name: getattr(metric, option) for metric in of_index}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} has {value!r}" for name, value in values.items())
            warn(
                f"{option} differs between metrics of one index, so an interval or chance level may not "
                f"fit the index beside it: {listed}; give all the same"
            )


def _check_labels(metrics: Sequence[Metric], batches: Batches) -> None:
    """Rejects metrics that need labels if the data has none, and class selectivity for one class."""
    first = batches.peek()
    named = [metric.name for metric in metrics if _uses_labels(metric)]
    if named and not first.labeled and not batches.attributes:
        raise DataError(
            f"{named[0]} needs labels, and {batches.name} has none; give data=(images, labels), samples "
            f"(image, label) or mappings with one of the keys {', '.join(LABEL_KEYS)}, or ask for metrics "
            "that need no labels, as in metrics=['dimensionality']"
        )
    labels = getattr(getattr(batches.source, "data", None), "labels", None)
    if (
        any(ClassMeans() in metric.needs for metric in metrics)
        and isinstance(labels, Tensor)
        and labels.ndim == 1
        and len(labels)
        and int(labels.min()) == int(labels.max())
    ):
        name = batches.names.get(int(labels[0]), str(int(labels[0])))
        raise DataError(f"{batches.name} has samples of one class only ({name}); give at least two")


def _uses_labels(metric: Metric) -> bool:
    return any(map(uses_labels, metric.needs))


def _assemble(
    metrics: Sequence[Metric], passed: Pass, samples: xr.Dataset, batches: Batches
) -> xr.DataTree:
    attributes = batches.attributes
    free = [metric for metric in metrics if not attributes or not _uses_labels(metric)]
    tables = _tables(free, passed, batches.names)
    if attributes and (labeled := [metric for metric in metrics if metric not in free]):
        each = [
            _tables(labeled, passed, names, at, f"{attribute}: ")
            for at, (attribute, names) in enumerate(attributes.items())
        ]
        for place, (table, parts) in enumerate(zip(tables, zip(*each, strict=True), strict=True)):
            own = [part.drop_vars(list(table), errors="ignore") for part in parts]
            joined = [by_attribute(own, list(attributes)), table]
            tables[place] = xr.merge(joined, compat="no_conflicts", join="outer")
    units, layers, root = tables
    found = passed.layers
    columns = {
        "type": (
            strings([layer.type for layer in found]),
            "class of the module, or name of the function",
        ),
        "unit_axis": ([layer.unit_axis for layer in found], "axis of the units in the output"),
        "unit_axis_certain": (
            [layer.certain for layer in found],
            "whether the axes of samples and units are certain",
        ),
        "unit_axis_evidence": (
            strings([layer.evidence for layer in found]),
            "what the unit axis was decided by",
        ),
    }
    for name, (values, long_name) in columns.items():
        layers[name] = ("layer", values, {"long_name": long_name})
    return xr.DataTree.from_dict({"/": root, "units": units, "layers": layers, "samples": samples})


def _tables(
    metrics: Sequence[Metric],
    passed: Pass,
    classes: ClassNames,
    attribute: int | None = None,
    prefix: str = "",
) -> list[xr.Dataset]:
    """The tables of units, layers and the network; for one attribute if there are several."""
    each = []
    for layer in passed.layers:
        each.append(_evaluate(metrics, passed, layer, attribute))
        if not passed.attributes:
            passed.fed.pop(layer.name)
    by_unit, by_layer = zip(*each, strict=True)
    units = xr.concat(by_unit, "unit", join="outer")
    units = units.assign_coords(unit_coordinates(passed.layers))
    layers = xr.concat(by_layer, "layer", join="outer")
    layers = layers.assign_coords(layer=strings([layer.name for layer in passed.layers]))
    layers = _with_summaries(metrics, units, layers, passed.layers)
    root = xr.Dataset(
        {
            name: values.mean().assign_attrs(values.attrs)
            for name, values in layers.items()
            if str(name).endswith("_mean")
        }
    )
    if classes and "class" in units.dims:
        present = units["class"].values.tolist()
        names = strings([classes[label] for label in present])
        units = units.assign_coords(class_name=("class", names))
        if absent := [name for label, name in classes.items() if label not in present]:
            warn(
                f"{len(absent)} of {len(classes)} classes have no sample and are left out: "
                f"{some_of(absent)}"
            )
    for metric in metrics:
        for table, more in zip((units, layers, root), metric.conclude(units, layers), strict=True):
            if more.variables:
                table.update(metric.with_attributes(more))
        for sentence in metric.review(units, layers):
            warn(prefix + sentence)
    return [units, layers, root]


def _evaluate(
    metrics: Sequence[Metric], passed: Pass, layer: Layer, attribute: int | None
) -> list[xr.Dataset]:
    """The values of all metrics for the units of a layer, and for the layer."""
    wanted = distinct(need for metric in metrics for need in metric.needs)
    arrays = passed.evaluated(layer, wanted, attribute)
    tables: tuple[list[xr.Dataset], ...] = ([], [])
    for metric in metrics:
        found = metric.evaluate(*(arrays[wanted.index(need)] for need in metric.needs))
        for known, table in zip(tables, found, strict=True):
            if twice := [name for name in table for other in known if name in other]:
                raise OptionError(
                    f"metric {metric.name!r} gives {', '.join(sorted(map(str, twice)))}, which "
                    "another metric gives already; ask for one of them"
                )
            known.append(metric.with_attributes(table))
    return [
        xr.merge([one for one in known if one.data_vars], join="outer", compat="override")
        for known in tables
    ]


def _with_summaries(
    metrics: Sequence[Metric], units: xr.Dataset, layers: xr.Dataset, found: Sequence[Layer]
) -> xr.Dataset:
    """The table of layers with mean and quartiles over units of each metric's own variable."""
    ends = np.cumsum([layer.units for layer in found])
    summaries = [xr.Dataset({"n_units": ("layer", np.diff(ends, prepend=0), _N_UNITS)})]
    for metric in metrics:
        values = units.get(metric.name)
        if values is not None and values.dims == ("unit",) and values.dtype.kind == "f":
            summaries.append(_summary(metric.name, values, ends[:-1]))
        summaries.append(
            layers[[name for name in layers if layers[name].attrs["metric"] == metric.name]]
        )
    table = xr.merge(summaries, compat="override", join="outer")
    return table.assign_coords(layer=layers["layer"])


def _summary(name: str, values: xr.DataArray, ends: npt.NDArray[np.int64]) -> xr.Dataset:
    """Mean and quartiles over the units of each layer, without those that are NaN."""
    known = [part[~np.isnan(part)] for part in np.split(values.values, ends)]
    nothing = np.full(3, np.nan)
    means = [part.mean() if len(part) else np.nan for part in known]
    quartiles = [np.quantile(part, _QUARTILES) if len(part) else nothing for part in known]
    long_name = values.attrs.get("long_name") or name.replace("_", " ")
    of_mean, of_quartiles = (
        values.attrs
        | {"long_name": f"{what} {long_name}", "description": f"{of} over the units of the layer."}
        for what, of in (("mean", "Mean"), ("quartiles of", "Quartiles"))
    )
    if "short_name" in values.attrs:
        of_quartiles["short_name"] = "quartile"
    return xr.Dataset(
        {
            f"{name}_mean": ("layer", means, of_mean),
            f"{name}_quartiles": (("layer", "quantile"), quartiles, of_quartiles),
        },
        coords={"quantile": list(_QUARTILES)},
    )


def by_attribute(tables: Sequence[xr.Dataset], attributes: Sequence[str]) -> xr.Dataset:
    """Concatenates tables of one attribute each along the dimension `attribute`.

    Attributes may have different values; `class` is their union. A value that an attribute does not
    have gets no samples (`count` 0), no name and a NaN mean. `preferred_value` is the name of the
    preferred class, or its number as text; it is empty for a dead unit.
    """
    tables = [_with_preferred_value(table) for table in tables]
    absent = {"count": 0, "class_name": ""}  # of a class that an attribute does not have
    own = [name for name in absent if any(name in table.coords for table in tables)]
    joined = xr.concat(
        [table.reset_coords([name for name in own if name in table.coords]) for table in tables],
        xr.Variable("attribute", strings(attributes)),
        join="outer",
        coords="minimal",
        compat="override",
        fill_value=absent,
    )
    joined = joined.drop_vars(own).assign_coords({name: joined[name] for name in own})
    return joined.transpose("unit", "layer", "attribute", ..., missing_dims="ignore")


def _with_preferred_value(table: xr.Dataset) -> xr.Dataset:
    if "preferred_class" not in table:
        return table
    names = class_names(table)
    values = [names.get(label, "") for label in table["preferred_class"].values.tolist()]
    long_name = {"long_name": "value with the highest mean"}
    return table.assign(preferred_value=("unit", strings(values), long_name))
