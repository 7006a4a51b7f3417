"""What a reader wants first: the key numbers of each model, and a sentence on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekit.reports.page.measures import PARTICIPATION_RATIOS, number
from probekit.reports.subject import Subject

__all__ = ["Fact", "comparison", "facts_about", "key_numbers", "mean_selectivity", "notes"]


@dataclass(frozen=True)
class Fact:
    """A key number: itself, what it is, and how sure it is or what it is made of."""

    value: str
    label: str
    detail: str = ""


def key_numbers(subject: Subject) -> list[Fact]:
    """The numbers of a whole model, those first that readers look for first."""
    found: list[Fact | None] = [
        _selectivity(subject),
        _accuracy(subject),
        _dimensions(subject),
        _gradients(subject),
        *_perturbed(subject),
        _units(subject),
    ]
    return [fact for fact in found if fact]


def comparison(every: Sequence[Subject]) -> list[tuple[str, list[Fact | None]]]:
    """Each key number of several models side by side: its name, and the numbers (None: not there)."""
    columns = [{fact.label: fact for fact in key_numbers(one)} for one in every]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    return [(label, [column.get(label) for column in columns]) for label in labels]


def mean_selectivity(subject: Subject) -> float:
    """The network's mean: of the units within a layer first, then of the layers; or NaN."""
    root = subject.result.to_dataset(inherit=False)
    if "selectivity_mean" in root:
        return float(root["selectivity_mean"])
    if "selectivity_mean" in subject.layers:
        return float(subject.layers["selectivity_mean"].mean())
    return float("nan")


def _selectivity(subject: Subject) -> Fact | None:
    root, value = subject.result.to_dataset(inherit=False), mean_selectivity(subject)
    if not np.isfinite(value):
        return None
    detail = "mean over layers of the units' means"
    if "selectivity_mean_low" in root:
        low, high = (float(root[f"selectivity_mean_{end}"]) for end in ("low", "high"))
        metrics = subject.facts.get("metrics") or {}
        level = (metrics.get("selectivity_interval") or {}).get("level", 0.95)
        detail = f"{100 * level:g}% interval {number(low)} to {number(high)}"
    return Fact(number(value), "mean class selectivity", detail)


def _accuracy(subject: Subject) -> Fact | None:
    root = subject.result.to_dataset(inherit=False)
    outcomes = subject.table("robustness")
    if "accuracy" in root:
        value = float(root["accuracy"])
    elif "clean_accuracy" in outcomes:
        value = float(outcomes["clean_accuracy"])
    else:
        return None
    samples = _samples(subject)
    error = np.sqrt(value * (1 - value) / samples) * 100 if samples else np.nan
    detail = f"± {error:.1f} (standard error), {samples:,} images" if samples else ""
    return Fact(f"{100 * value:.1f}%", "accuracy", detail)


def _samples(subject: Subject) -> int:
    if "samples" in subject.result.children:
        return int(subject.table("samples").sizes["sample"])
    outcomes = subject.table("robustness")
    return int(outcomes["n_samples"]) if "n_samples" in outcomes else 0


def _dimensions(subject: Subject) -> Fact | None:
    for name in PARTICIPATION_RATIOS:
        if name in subject.layers and subject.layers[name].notnull().all():
            values = subject.layers[name].values
            return Fact(
                f"{100 * values.mean():.0f}%",
                "dimensions used",
                f"participation ratio over units; {100 * values.min():.0f}% to "
                f"{100 * values.max():.0f}% by layer",
            )
    return None


def _gradients(subject: Subject) -> Fact | None:
    if "gradient_norm_cv_mean" not in subject.layers:
        return None
    values = subject.layers["gradient_norm_cv_mean"].values
    if not np.isfinite(values).any():
        return None
    return Fact(number(np.nanmean(values), 2), "gradient CV", "over images, mean over layers")


def _perturbed(subject: Subject) -> list[Fact]:
    outcomes = subject.table("robustness")
    found = []
    if "accuracy_mean" in outcomes:
        types, levels = (outcomes["accuracy"].sizes[dim] for dim in ("corruption", "severity"))
        mean = 100 * float(outcomes["accuracy_mean"])
        detail = f"{types} types at {levels} severities"
        found.append(Fact(f"{mean:.1f}%", "accuracy under corruption", detail))
    if "attack_accuracy" in outcomes:
        worst = outcomes["attack_accuracy"]
        if worst.notnull().any():
            mean = 100 * float(worst.min())
            found.append(
                Fact(f"{mean:.1f}%", "accuracy under attack", "lowest over attacks and radii")
            )
    return found


def _units(subject: Subject) -> Fact | None:
    count = subject.units.sizes.get("unit", 0)
    if not count:
        return None
    dead = int(subject.units["dead"].sum()) if "dead" in subject.units else 0
    detail = f"in {len(subject.layer_names)} layers" + (f", {dead:,} dead" if dead else "")
    return Fact(f"{count:,}", "units", detail)


def notes(subject: Subject) -> list[str]:
    """What the reader must know of the numbers."""
    told = []
    layers, units = subject.layers, subject.units
    if subject.remark:
        told.append(f"This robustness result is shown as a model of its own: {subject.remark}.")
    if "negative_class_mean" in units and (below := int(units["negative_class_mean"].sum())):
        options = (subject.facts.get("metrics") or {}).get("selectivity") or {}
        told.append(
            f"{below:,} units have class means below zero, where the index is not simply a share "
            f"(handled by negative={options.get('negative', 'clip')!r})."
        )
    if "too_few_samples" in layers and (few := int(layers["too_few_samples"].sum())):
        told.append(
            f"{few} layers have fewer samples than dimensions: their plain participation ratios are too "
            "low."
        )
    if "fewest_samples" in layers and (fewest := int(layers["fewest_samples"].min())) < 20:
        told.append(f"A class has only {fewest} images: indices of few images are too high.")
    skipped = (subject.facts.get("data") or {}).get("skipped")
    if skipped:
        told.append(f"{skipped} images could not be read and were left out.")
    return told


def facts_about(subject: Subject) -> list[tuple[str, str]]:
    """The provenance, in the words of a reader; what is not known is left out."""
    facts = subject.facts
    model, data = facts.get("model") or {}, facts.get("data") or {}
    versions = facts.get("versions") or {}
    metrics = facts.get("metrics") or {}
    rows: list[tuple[str, Any]] = [
        ("Model", _and(model.get("name"), model.get("type"))),
        ("Weights", _and(model.get("weights"), model.get("hash"))),
        ("Data", _and(data.get("name"), data.get("fingerprint"))),
        ("Images", _images(data)),
        ("Layers", f"{len(subject.layer_names)}: {', '.join(subject.layer_names)}"),
        ("Measures", "; ".join(f"{name} ({_options(how)})" for name, how in metrics.items())),
        ("Conditions", "; ".join(map(str, facts.get("conditions") or ()))),
        ("Seed", facts.get("seed")),
        ("Precision", facts.get("precision") or "as the model's"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Command", facts.get("command")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _and(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _images(data: dict[str, Any]) -> str:
    seen, known = data.get("seen", data.get("samples")), data.get("samples")
    if seen is None:
        return ""
    limit = f", drawn with limit={data['limit']}" if data.get("limit") else ""
    return f"{seen:,}" + (f" of {known:,}" if known and known != seen else "") + limit


def _options(options: Any) -> str:
    if not isinstance(options, dict) or not options:
        return "no options"
    shown = {name: value for name, value in options.items() if not isinstance(value, list | dict)}
    return ", ".join(f"{name}={value!r}" for name, value in shown.items()) or "no options"
