"""The key numbers of each model, notes on them, and the provenance as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekit.reports.model_results import ModelResults
from probekit.reports.page.svg import number
from probekit.reports.rows import interval_note
from probekit.results.labels import ends

# The corrected ratio comes first; the second name is its former name, used in older files.
_PARTICIPATION_RATIOS = (
    "participation_ratio_corrected_fraction",
    "participation_ratio_unbiased_fraction",
    "participation_ratio_fraction",
)


@dataclass(frozen=True)
class Fact:
    """A key number: its value, its label, and its error or composition."""

    value: str
    label: str
    detail: str = ""


def key_numbers(model: ModelResults) -> list[Fact]:
    """The key numbers of a model, the most important first."""
    parts = (_selectivity, _accuracy, _dimensions, _gradients, _perturbed, _units)
    return [fact for part in parts for fact in part(model)]


def comparison(models: Sequence[ModelResults]) -> list[tuple[str, list[Fact | None]]]:
    """Each key number of several models side by side: its label, and the numbers (or None)."""
    columns = [{fact.label: fact for fact in key_numbers(one)} for one in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    return [(label, [column.get(label) for column in columns]) for label in labels]


def mean_selectivity(model: ModelResults) -> float:
    """The mean over layers of the means over units; NaN if not measured."""
    root = model.result.to_dataset(inherit=False)
    if "selectivity_mean" in root:
        return float(root["selectivity_mean"])
    if "selectivity_mean" in model.layers:
        return float(model.layers["selectivity_mean"].mean())
    return float("nan")


def _selectivity(model: ModelResults) -> Iterator[Fact]:
    root, value = model.result.to_dataset(inherit=False), mean_selectivity(model)
    if not np.isfinite(value):
        return
    detail = "mean over layers of the units' means"
    if interval := ends(root, "selectivity_mean"):
        low, high = interval
        metrics = model.facts.get("metrics") or {}
        level = (metrics.get("selectivity_interval") or {}).get("level", 0.95)
        detail = f"{100 * level:g}% interval {number(low)} to {number(high)}"
    yield Fact(number(value), "mean class selectivity", detail)


def _accuracy(model: ModelResults) -> Iterator[Fact]:
    root = model.result.to_dataset(inherit=False)
    outcomes = model.table("robustness")
    if "accuracy" in root:
        value = float(root["accuracy"])
    elif "clean_accuracy" in outcomes:
        value = float(outcomes["clean_accuracy"])
    else:
        return
    samples = int(outcomes["n_samples"]) if "n_samples" in outcomes else 0
    if "samples" in model.result.children:
        samples = int(model.table("samples").sizes["sample"])
    error = np.sqrt(value * (1 - value) / samples) * 100 if samples else np.nan
    detail = f"± {error:.1f} (standard error), {samples:,} images" if samples else ""
    yield Fact(f"{100 * value:.1f}%", "accuracy", detail)


def _dimensions(model: ModelResults) -> Iterator[Fact]:
    for name in _PARTICIPATION_RATIOS:
        if name in model.layers and model.layers[name].notnull().all():
            values = 100 * model.layers[name].values
            detail = f"participation ratio over units; {values.min():.0f}% to {values.max():.0f}% by layer"
            yield Fact(f"{values.mean():.0f}%", "dimensions used", detail)
            return


def _gradients(model: ModelResults) -> Iterator[Fact]:
    values = model.layers.get("gradient_norm_cv_mean")
    if values is not None and values.notnull().any():
        yield Fact(number(values.mean(), 2), "gradient CV", "over images, mean over layers")


def _perturbed(model: ModelResults) -> Iterator[Fact]:
    outcomes = model.table("robustness")
    if "accuracy_mean" in outcomes:
        types, levels = (outcomes["accuracy"].sizes[dim] for dim in ("corruption", "severity"))
        mean = 100 * float(outcomes["accuracy_mean"])
        of = f"mean over types ({types}) and severities ({levels})"
        yield Fact(f"{mean:.1f}%", "accuracy under corruption", of)
    attacked = outcomes.get("attack_accuracy")
    if attacked is not None and attacked.notnull().any():
        worst = 100 * float(attacked.min())
        yield Fact(f"{worst:.1f}%", "accuracy under attack", "lowest over attacks and radii")


def _units(model: ModelResults) -> Iterator[Fact]:
    if count := model.units.sizes.get("unit", 0):
        dead = int(model.units["dead"].sum()) if "dead" in model.units else 0
        detail = f"in {len(model.layer_names)} layers" + (f", {dead:,} dead" if dead else "")
        yield Fact(f"{count:,}", "units", detail)


def notes(model: ModelResults) -> list[str]:
    """Notes on the limitations of the key numbers."""
    found = []
    layers, units = model.layers, model.units
    if model.remark:
        found.append(f"This robustness result is shown as a separate model: {model.remark}.")
    if "negative_class_mean" in units and (below := int(units["negative_class_mean"].sum())):
        options = (model.facts.get("metrics") or {}).get("selectivity") or {}
        found.append(
            f"{below:,} units have class means below zero, where the index may leave [0, 1] "
            f"(handled by negative={options.get('negative', 'clip')!r})."
        )
    if "too_few_samples" in layers and (few := int(layers["too_few_samples"].sum())):
        found.append(
            f"{few} layers have fewer samples than dimensions: their plain participation ratios are too "
            "low."
        )
    if "fewest_samples" in layers and (fewest := int(layers["fewest_samples"].min())) < 20:
        found.append(
            f"A class has only {fewest} images: the index is biased upward for few images."
        )
    if explained := interval_note(layers):
        found.append(f"{explained[:1].upper()}{explained[1:]}.")
    skipped = (model.facts.get("data") or {}).get("skipped")
    if skipped:
        found.append(f"{skipped} images could not be read and were left out.")
    return found


def facts_about(model: ModelResults) -> list[tuple[str, str]]:
    """The provenance as labels and texts; unknown entries are omitted."""
    facts = model.facts
    about, data = facts.get("model") or {}, facts.get("data") or {}
    versions = facts.get("versions") or {}
    metrics = facts.get("metrics") or {}
    rows: list[tuple[str, object]] = [
        ("Model", _and(about.get("name"), about.get("type"))),
        ("Weights", _and(about.get("weights"), about.get("hash"))),
        ("Data", _and(data.get("name"), data.get("fingerprint"))),
        ("Images", _images(data)),
        ("Layers", f"{len(model.layer_names)}: {', '.join(model.layer_names)}"),
        ("Metrics", "; ".join(f"{name} ({_options(how)})" for name, how in metrics.items())),
        ("Conditions", "; ".join(map(str, facts.get("conditions") or ()))),
        ("Seed", facts.get("seed")),
        ("Precision", facts.get("precision") or "as the model's"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Command", facts.get("command")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _and(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _images(data: dict[str, Any]) -> str:
    used, known = data.get("seen", data.get("samples")), data.get("samples")
    if used is None:
        return ""
    limit = f", drawn with limit={data['limit']}" if data.get("limit") else ""
    return f"{used:,}" + (f" of {known:,}" if known and known != used else "") + limit


def _options(options: object) -> str:
    given = options.items() if isinstance(options, dict) else ()
    shown = [f"{name}={value!r}" for name, value in given if not isinstance(value, list | dict)]
    return ", ".join(shown) or "no options"
