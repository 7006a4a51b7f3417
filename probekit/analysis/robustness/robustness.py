"""The robustness of a model, its layers and its units to corruptions and attacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from probekit.analysis.classes import compared_classes
from probekit.analysis.robustness.choices import (
    Attacks,
    Corruptions,
    Epsilons,
    choose_attacks,
    choose_corruptions,
    choose_severities,
)
from probekit.analysis.robustness.conditions import (
    CLEAN,
    Condition,
    ConditionStore,
    Perturbation,
    corrupted,
    published_images,
    unchanged,
)
from probekit.analysis.robustness.measure import Measurement
from probekit.analysis.robustness.tables import (
    check_reference,
    corruption_errors,
    layer_tables,
    outcome_tables,
    unit_tables,
)
from probekit.capture.readouts import Activations
from probekit.capture.recorder import Layers, Tokens
from probekit.capture.stream import PassOptions, explore, open_model_and_data, peek_output, streams
from probekit.data.batches import Batches
from probekit.data.labels import ClassNames
from probekit.errors import DataError, OptionError, keep_notes, remember, warn
from probekit.metrics.dimensionality import Dimensionality
from probekit.metrics.metric import Metric
from probekit.metrics.selectivity.selectivity import Selectivity
from probekit.models.identity import describe, model_identity
from probekit.models.image_model import Model, ModelOrName, borrow
from probekit.models.inputs import one_tensor
from probekit.models.logits import ClassMap
from probekit.perturbations.corruptions.published import PublishedCorruptions
from probekit.results.provenance import differences, facts_of, in_two_sizes, provenance
from probekit.results.trees import open_result
from probekit.runtime.settings import in_own_settings

_MANY_UNMOVED = 0.1


@in_own_settings
@keep_notes
def robustness(
    model: ModelOrName,
    data: Any,
    corruptions: Corruptions = "all",
    severities: int | Sequence[int] = (1, 2, 3, 4, 5),
    attacks: Attacks = None,
    epsilons: Epsilons = (1 / 255, 2 / 255, 4 / 255, 8 / 255),
    *,
    layers: Layers = None,
    dimensionality: bool = True,
    selectivity: bool = True,
    reference: xr.DataTree | xr.Dataset | str | Path | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
    store: str | Path | None = None,
    tokens: Tokens = "all",
    workers: int | None = None,
    table: int | None = None,
    memory: int = 4 * 2**30,
    class_map: ClassMap = None,
    compile: bool = False,
) -> xr.DataTree:
    """Measures a model, its layers and its units under corruptions and attacks.

    Every condition (a corruption type at a severity, an attack at an epsilon) uses the same images as
    the clean pass. All severities of a type, and all epsilons of an attack, share one pass over
    the data. See `docs/robustness.md` for all definitions.

    Args:
        model: An `ImageModel`, a module that takes images in [0, 1], or a name for `load_model`.
        data: Labeled images in [0, 1], as for `analyze`, that can be read several times.
        corruptions: `"all"` for the 15 standard types, `"extra"` for the 4 others, names, or several
            of these; the result of `load_published`, to use published images; None for no corruptions.
        severities: Integers from 1 to 5.
        attacks: Names or configured attacks; None for no attacks.
        epsilons: Radii in the units of the images (8/255, not 8), for all attacks, or a mapping from
            attacks to radii.
        layers: As for `Recorder`.
        dimensionality: Measure the dimensionality of the change in each layer.
        selectivity: Measure class selectivity on the perturbed images. If this and `dimensionality`
            are both off, no layer is recorded.
        reference: A result of another model (or its file), for mCE and relative mCE.
        seed: Seed of the data sample and of the corruptions; each attack has a seed of its own.
        store: A folder for finished conditions, from which an interrupted run resumes. Only one run
            at a time can write to it.
        table: The published image size, 32, 64 or 224, whose constants the corruptions use. None uses
            the nearest size, with a warning if it is not that of the images.
        memory: Maximum number of bytes for the statistics of one pass. If they would need more, fewer
            severities or epsilons share a pass. Up to a quarter of it is used for the clean activations,
            which are otherwise computed again for each type and attack.
        batch_size, limit, device, progress, tokens, workers, class_map: As for `analyze`.
        compile: As for `analyze`. The model is compiled once for all conditions; attacks compute their
            gradients with the uncompiled model.

    Returns:
        A tree with `/robustness`, `/units` and `/layers`. Its units and layers are those that
        `analyze` returns for the same model and layers.

    Raises:
        ProbekitError: The request cannot be fulfilled; the message explains why and what to do.

    Source:
        Hendrycks & Dietterich 2019 (arXiv 1903.12261); Leavitt & Morcos 2020 (arXiv 2010.07693).

    Example:
        >>> import probekit as pk
        >>> model = pk.load_model("probekit:resnet20-fashion-mnist")
        >>> data = pk.load_data("fashion-mnist", model)
        >>> result = pk.robustness(
        ...     model, data, ["fog", "contrast"], (1, 5), layers="layer3.2.relu2",
        ...     dimensionality=False, limit=30, table=32)
        >>> dict(result["robustness"]["accuracy"].sizes)
        {'corruption': 2, 'severity': 2}
    """
    model, batches = open_model_and_data(
        model, data, batch_size=batch_size, limit=limit, seed=seed, workers=workers
    )
    _check_input(batches, corruptions, attacks)
    options = PassOptions(tokens, None, device, progress, compile=compile)
    found, output = (
        explore(model, batches, layers, options)
        if dimensionality or selectivity
        else ([], peek_output(model, batches, options))
    )
    match = compared_classes(model, output, batches, class_map, "robustness")
    classes = batches.names or match.names(tuple(getattr(model, "classes", ())))
    measurement = Measurement(
        model, batches, found, dimensionality, selectivity, memory, len(classes), match
    )
    perturbations = [unchanged()]
    if attacks:
        with borrow(model, device) as place:
            few, move = batches.peek().to(place), bool(found)
            classifier = measurement.classifier
            perturbations += choose_attacks(
                attacks, epsilons, classifier, few.images, few.labels, move=move
            )
    levels = choose_severities(severities)
    if isinstance(corruptions, PublishedCorruptions):
        perturbations += _published(model, batches, _numbered(corruptions, classes), levels)
    elif corruptions:
        names = choose_corruptions(corruptions, batches.peek().images, levels[0], table)
        perturbations += [corrupted(name, levels, seed, table) for name in names]
    conditions = [condition for one in perturbations for condition in one.conditions]
    facts: dict[str, Any] = {
        "model": model_identity(model),
        "data": batches.provenance(),
        "layers": [layer.name for layer in found],
        "dimensionality": dimensionality,
        "selectivity": selectivity,
        "tokens": tokens,
        "seed": seed,
        "classes": match.describe(),
    }
    baseline = _reference(reference, conditions, facts)
    stored = ConditionStore(store, lambda: facts | {"data": batches.identity()})
    readouts = [Activations()] if found else []
    with stored.writing(), streams(model, found, readouts, options) as observe:
        for one in perturbations:
            measurement.run(one, stored, observe)
    for one in perturbations:
        if one.data is None:
            _check_samples(stored, one.conditions, batches.name)
    for condition in conditions:  # also those that an earlier run measured
        remember(str(stored[condition].attrs.get("notes", "")).splitlines())
    result = _assemble({one: stored[one] for one in conditions}, classes, baseline)
    result.attrs["provenance"] = provenance(
        **facts | {"model": describe(model)},
        conditions=[f"{one} ({one.options})" for one in conditions[1:]],
        device=None if device is None else str(device),
        compile=compile,
    )
    return result


def _check_samples(stored: ConditionStore, conditions: Sequence[Condition], name: str) -> None:
    """Raises `DataError` if a pass had other numbers of samples than the pass over clean images."""
    clean, *others = (
        stored[one].to_dataset()["samples_by_class"].values for one in (CLEAN, *conditions)
    )
    for condition, found in zip(conditions, others, strict=True):
        if not np.array_equal(found, clean):
            raise DataError(
                f"{name} yielded {found.sum()} samples for {condition} and {clean.sum()} before, or samples "
                "of other classes; give data that stays the same: a list of batches, a DataLoader or a data "
                "set"
            )


def _check_input(batches: Batches, corruptions: Corruptions, attacks: Attacks) -> None:
    if not corruptions and not attacks:
        raise OptionError("there are neither corruptions nor attacks; give at least one")
    if not batches.repeatable:
        raise DataError(
            f"{batches.name} can be read only once, or its order differs each time, but "
            "robustness needs the same images for each condition; give a list of batches, a "
            "DataLoader or a data set"
        )
    images = one_tensor(batches.peek().images, "robustness")
    if not images.is_floating_point():
        raise DataError(
            f"the images of {batches.name} are {images.dtype}, and robustness takes floating-point "
            "numbers in [0, 1]; give images.float() / 255"
        )


def _published(
    model: Model, batches: Batches, published: PublishedCorruptions, severities: tuple[int, ...]
) -> list[Perturbation]:
    """Published images, which replace those of the data or are separate data."""
    perturbations = [
        published_images(published, name, severities) for name in published.corruptions
    ]
    if _one_to_one(published, batches):
        return perturbations
    size, part = getattr(model, "input_size", None), batches.part
    reading = {name: getattr(part, name) for name in ("limit", "seed", "workers")}
    found = []
    for condition in (condition for one in perturbations for condition in one.conditions):
        images = published.dataset(condition.name, int(condition.level), size)
        found.append(unchanged(condition, Batches(images, batch_size=part.size, **reading)))
    return found


def _numbered(published: PublishedCorruptions, classes: ClassNames) -> PublishedCorruptions:
    """Published images with the labels that the data has for classes of the same names."""
    theirs, label_of = published.classes, {name: label for label, name in classes.items()}
    if theirs and len(label_of) == len(classes) and label_of.keys() >= set(theirs):
        numbers = tuple(label_of[name] for name in theirs)
        in_order = numbers == tuple(range(len(theirs)))
        return published if in_order else replace(published, numbers=numbers)
    if theirs and classes and len(theirs) != len(classes):
        raise DataError(
            f"the model has {len(classes)} classes and {published.root} has {len(theirs)}, so "
            "predictions cannot be compared with labels; give data with the names of its classes"
        )
    if theirs and classes:
        warn(
            f"class {classes[min(classes)]!r} of the model is {theirs[0]!r} in {published.root}; accuracy is "
            "not valid unless both list the same classes in the same order"
        )
    elif theirs and published.layout == "folders":
        warn(
            f"accuracy under corruption is a guess: the classes of the data have no names, and those of "
            f"{published.root} are taken in the order of their folders"
        )
    return published


def _one_to_one(published: PublishedCorruptions, batches: Batches) -> bool:
    """Whether published images match those of the data, in the same order, judging by their labels."""
    if published.layout != "npy":
        return False
    labels = published.dataset(published.corruptions[0], 1).labels
    known = batches.known_labels()
    if known is None:
        return True
    mine, index = known
    index = torch.arange(len(mine)) if index is None else index
    whole = batches.samples if batches.part.limit is None else None
    same_size = whole is None or whole == len(labels)
    if same_size and int(index.max()) < len(labels) and torch.equal(labels[index], mine):
        return True
    warn(
        f"{published.root} has different labels than the data, or a different number of them, so its "
        "images are not those of the data: accuracy is measured, the change of activations is not"
    )
    return False


def _options_of(conditions: Iterable[str]) -> dict[str, str]:
    """The options of conditions except for the seed, by type and level, as `fog at 1 (seed=0, table=32)`."""
    parts = (one.partition(" (") for one in conditions)
    return {name: re.sub(r", seed=-?\d+", "", options.rstrip(")")) for name, _, options in parts}


def _samples_of(*facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the provenance of two results says about their samples, whatever the size of the images."""
    data = [one["data"] for one in facts]
    names = ["name", "split", "samples", "limit"]
    if all(one.get("content") for one in data):
        names.append("content")
    elif all(one.get("image_shape") for one in data) and not in_two_sizes(*data):
        names.append("first_image")
    return [
        {name: one["data"].get(name) for name in names}
        | {"seed": one.get("seed") if one["data"].get("limit") else None}
        for one in facts
    ]


def _reference(
    given: object, conditions: Sequence[Condition], own: Mapping[str, Any]
) -> xr.Dataset | None:
    if given is None:
        return None
    corrupted = [one for one in conditions if one.kind == "corruption"]
    if isinstance(given, str | Path):
        given = open_result(given)
    same_images = True
    if isinstance(given, xr.DataTree):
        same_images = _compare_reference(given, corrupted, own)
        given = given["robustness"].to_dataset() if "robustness" in given.children else given
    if not isinstance(given, xr.Dataset):
        raise OptionError(
            "reference must be a result of robustness, its file, or its table /robustness, not "
            f"{type(given).__name__}"
        )
    names = list(dict.fromkeys(one.name for one in corrupted))
    check_reference(given, names, sorted({int(one.level) for one in corrupted}))
    # Other images are reported once.
    return given if same_images else given.drop_vars("samples_by_class", errors="ignore")


def _compare_reference(
    reference: xr.DataTree, corrupted: Sequence[Condition], own: Mapping[str, Any]
) -> bool:
    """Warns of a reference under other conditions; returns whether its images are the same."""
    whole = facts_of(reference.attrs)
    every = [whole, *whole.get("merged", ())]  # merged with an analysis
    about = next((one for one in every if "conditions" in one), whole)
    theirs = about if about.get("data") else own
    compared = _samples_of(theirs, own)
    others = differences(*compared)
    if not others and "content" not in compared[0] and in_two_sizes(theirs["data"], own["data"]):
        sizes = [one["data"]["image_shape"] for one in (theirs, own)]
        warn(
            f"the images of the reference have the shape {sizes[0]} and these {sizes[1]}, so it cannot be "
            "checked whether they are the same, which mCE needs"
        )
    if others:
        warn(
            "the reference was measured on other images, which makes mCE meaningless: "
            f"{'; '.join(others)}"
        )
    stored = _options_of(about.get("conditions") or ())
    asked = _options_of(f"{one} ({one.options})" for one in corrupted)
    both = stored.keys() & asked.keys()
    if differing := differences(*({name: one[name] for name in both} for one in (stored, asked))):
        warn(
            "the reference was measured under other corruptions, which makes mCE meaningless: "
            f"{'; '.join(differing)}"
        )
    return not others


def _assemble(
    found: dict[Condition, xr.DataTree], classes: ClassNames, reference: xr.Dataset | None
) -> xr.DataTree:
    outcomes = outcome_tables(found, classes)
    if reference is not None and "accuracy" in outcomes:
        outcomes = outcomes.merge(corruption_errors(outcomes, reference), compat="override")
    nodes = {"/": xr.Dataset(), "robustness": outcomes}
    if "units" in found[CLEAN].children:
        units = unit_tables(found)
        layers = layer_tables(found, units)
        nodes |= {"units": units, "layers": layers}
        metrics: list[Metric] = [Selectivity()] if "selectivity" in units else []
        metrics += [Dimensionality()] if "participation_ratio" in layers else []
        counted = units.assign_coords(count=outcomes["samples_by_class"])
        for metric in metrics:
            for sentence in metric.review(counted, layers):
                warn(sentence)
        _warn_of_unmoved(outcomes)
    return xr.DataTree.from_dict(nodes)


def _warn_of_unmoved(outcomes: xr.Dataset) -> None:
    """Warns about attacks whose change covers only some of the images."""
    if "attack_unmoved" not in outcomes:
        return
    unmoved = outcomes["attack_unmoved"].where(outcomes["epsilon"] > 0).max("epsilon")
    total = int(outcomes["n_samples"])
    for one in unmoved:
        if one > _MANY_UNMOVED * total:
            warn(
                f"{one['attack'].item()} left up to {int(one)} of {total} images unchanged, so the "
                "change of activations depends mostly on the number of images that it changed"
            )
