"""The sections of a page, as variables of the template: key numbers, notes, layers and robustness."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from probekit.analysis.robustness.tables import averaged_types
from probekit.reports.model_results import ModelResults
from probekit.reports.page.layers import (
    LayerTable,
    column_names,
    layer_table,
    main_variable,
    range_of,
)
from probekit.reports.page.svg import Line, heat_map, line_chart, number, ticks
from probekit.reports.rows import interval_note, radius
from probekit.results.labels import ends, heading

# The corrected ratio comes first; the second name is its former name, used in older files.
_PARTICIPATION_RATIOS = (
    "participation_ratio_corrected_fraction",
    "participation_ratio_unbiased_fraction",
    "participation_ratio_fraction",
)
_MOST_RIDGES = 4


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
    accuracy = outcomes.get("accuracy")
    if accuracy is not None and "corruption" in accuracy.dims:
        averaged = averaged_types(accuracy)
        types, levels = (averaged.sizes[dim] for dim in ("corruption", "severity"))
        mean = 100 * float(averaged.mean("corruption").mean())
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


def sections(models: Sequence[ModelResults]) -> dict[str, Any]:
    """All template variables for the given models."""
    compared = _compared(models) if len(models) > 1 else None
    return {"models": [_model(one) for one in models], "compared": compared}


def _model(model: ModelResults) -> dict[str, Any]:
    return {
        "name": model.name,
        "numbers": key_numbers(model),
        "sentences": _sentences(model),
        "notes": notes(model),
        "layers": layer_table(model) if model.units.sizes.get("unit") else None,
        "robustness": _robustness(model),
        "facts": facts_about(model),
        "provenance": json.dumps(model.facts, indent=2, ensure_ascii=False),
    }


def _sentences(model: ModelResults) -> dict[str, Any] | None:
    """The most and the least selective layer, and the data used."""
    found: dict[str, Any] = {"data": str((model.facts.get("data") or {}).get("name") or "")}
    means, names = model.layers.get("selectivity_mean"), model.layer_names
    if means is not None and means.notnull().any():
        high, low = (names[int(at)] for at in (np.nanargmax(means), np.nanargmin(means)))
        found |= {"highest": (high, number(means.max())), "lowest": (low, number(means.min()))}
        found["single"] = len(names) == 1
    return found


def _robustness(model: ModelResults) -> dict[str, Any] | None:
    table = model.table("robustness")
    clean = float(table["clean_accuracy"]) if "clean_accuracy" in table else np.nan
    found: dict[str, Any] = {"clean": f"{100 * clean:.1f}%"}
    if "accuracy" in table and "corruption" in table["accuracy"].dims:
        found["corruptions"] = heat_map(table["accuracy"], clean)
    if "attack_accuracy" in table:
        found["attacks"], found["legend"] = _attacks(table, clean)
    return found if len(found) > 1 else None


def _attacks(table: xr.Dataset, clean: float) -> tuple[Markup, list[str]]:
    accuracy = table["attack_accuracy"].transpose("attack", "epsilon").sortby("epsilon")
    epsilons = accuracy["epsilon"].values.tolist()
    pairs = zip(accuracy["attack"].values, accuracy.values.tolist(), strict=True)
    lines = [
        Line(str(name), [0.0, *epsilons], [clean, *ys], at % 8)
        for at, (name, ys) in enumerate(pairs)
    ]
    marks = [(0.0, "0"), *((epsilon, radius(epsilon)) for epsilon in epsilons)]
    chart = line_chart(
        lines,
        x_label="radius",
        y_label="accuracy",
        x_ticks=_apart(marks),
        share=True,
        title="accuracy by radius of the attack",
    )
    return chart, [line.name for line in lines]


def _apart(marks: list[tuple[float, str]], least: float = 0.08) -> list[tuple[float, str]]:
    """The marks without those whose texts would overlap."""
    span = marks[-1][0] - marks[0][0] or 1.0
    kept = marks[:1]
    for mark in marks[1:]:
        if (mark[0] - kept[-1][0]) / span >= least:
            kept.append(mark)
    return kept


def _compared(models: Sequence[ModelResults]) -> dict[str, Any]:
    same = all(one.layer_names == models[0].layer_names for one in models) and models[0].layer_names
    return {
        "numbers": comparison(models),
        "extremes": _extremes(models),
        "ridges": _side_by_side(models) if same and len(models) <= _MOST_RIDGES else None,
        "charts": _by_depth(models, bool(same)),
    }


def _extremes(models: Sequence[ModelResults]) -> list[tuple[str, str]] | None:
    """The models with the highest and the lowest mean selectivity; None if they do not differ."""
    means = [(mean_selectivity(one), one.name) for one in models]
    known = sorted(((mean, name) for mean, name in means if np.isfinite(mean)), reverse=True)
    if len(known) < 2 or known[0][0] == known[-1][0]:
        return None
    return [(name, number(mean)) for mean, name in (known[0], known[-1])]


def _side_by_side(models: Sequence[ModelResults]) -> list[LayerTable] | None:
    """The ridges of each model with the same axis, for models with the same layers."""
    names = {main_variable(one) for one in models}
    if len(names) > 1 or "" in names:
        return None
    limits = range_of(models, *names)
    return [layer_table(one, limits) for one in models]


def _by_depth(models: Sequence[ModelResults], same: bool) -> list[dict[str, Any]]:
    """A chart over depth for each layer variable that at least two models have."""
    shown = [column_names(one.layers) for one in models]
    charts = []
    for name in dict.fromkeys(name for names in shown for name in names):
        having = [at for at, names in enumerate(shown) if name in names]
        if len(having) < 2:
            continue
        lines = [_depth_line(models[at], name, at % 8, same) for at in having]
        values = models[having[0]].layers[name]
        deepest = max(line.xs[-1] for line in lines)
        whole = [(x, f"{x:g}") for x in ticks(1.0, deepest) if x == int(x)]
        chart = line_chart(
            lines,
            x_ticks=whole if same else None,
            x_label="layer, in execution order" if same else "depth: fraction of the layers passed",
            y_label=heading(values),
            title=f"{heading(values)} by layer",
        )
        about = values.attrs.get("description", "")
        charts.append({"label": heading(values), "about": about, "svg": chart})
    return charts


def _depth_line(model: ModelResults, name: str, color: int, same: bool) -> Line:
    ys = model.layers[name].values.astype(np.float64).tolist()
    last = max(len(ys) - 1, 1)
    xs = [float(at + 1) if same else at / last for at in range(len(ys))]
    interval = [end.values.tolist() for end in ends(model.layers, name) or ()]
    return Line(model.name, xs, ys, color, *interval)
