"""The sections of a page, as the template takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from probekit.reports.page.atlas import (
    Atlas,
    atlas,
    column_names,
    main_measure,
    span_of,
)
from probekit.reports.page.charts import Line, heat_map, line_chart, radius
from probekit.reports.page.figures import ticks
from probekit.reports.page.measures import LAYER_COLUMNS, measure_of, number
from probekit.reports.page.summary import (
    comparison,
    facts_about,
    key_numbers,
    mean_selectivity,
    notes,
)
from probekit.reports.subject import Subject

__all__ = ["sections"]

_MOST_RIDGES = 4


def sections(every: Sequence[Subject]) -> dict[str, Any]:
    """Everything that the template shows of some models."""
    models = [_model(one) for one in every]
    return {"models": models, "compared": _compared(every) if len(every) > 1 else None}


def _model(subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.name,
        "numbers": key_numbers(subject),
        "sentences": _sentences(subject),
        "notes": notes(subject),
        "atlas": atlas(subject)
        if subject.layer_names and subject.units.sizes.get("unit")
        else None,
        "robustness": _robustness(subject),
        "facts": facts_about(subject),
        "provenance": json.dumps(subject.facts, indent=2, ensure_ascii=False),
    }


def _sentences(subject: Subject) -> dict[str, Any] | None:
    """Which layers are the most and the least selective, and on what data this was seen."""
    layers = subject.layers
    data = (subject.facts.get("data") or {}).get("name") or ""
    found: dict[str, Any] = {"data": str(data)}
    if "selectivity_mean" in layers and layers["selectivity_mean"].notnull().any():
        means = layers["selectivity_mean"].values
        high, low = int(np.nanargmax(means)), int(np.nanargmin(means))
        names = subject.layer_names
        found |= {
            "highest": (names[high], number(means[high])),
            "lowest": (names[low], number(means[low])),
            "single": len(names) == 1,
        }
    return found


def _robustness(subject: Subject) -> dict[str, Any] | None:
    table = subject.table("robustness")
    clean = float(table["clean_accuracy"]) if "clean_accuracy" in table else np.nan
    found: dict[str, Any] = {"clean": f"{100 * clean:.1f}%"}
    if "accuracy" in table and "corruption" in table["accuracy"].dims:
        found["corruptions"] = heat_map(table["accuracy"], clean)
    if "attack_accuracy" in table:
        found["attacks"], found["legend"] = _attacks(table, clean)
    return found if len(found) > 1 else None


def _attacks(table: Any, clean: float) -> tuple[Markup, list[str]]:
    accuracy = table["attack_accuracy"].transpose("attack", "epsilon")
    epsilons = accuracy["epsilon"].values.tolist()
    lines = []
    for number_, name in enumerate(accuracy["attack"].values):
        ys = accuracy.values[number_].tolist()
        lines.append(Line(str(name), [0.0, *epsilons], [clean, *ys], number_ % 8))
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
    """Marks without those whose names would stand in one another."""
    span = marks[-1][0] - marks[0][0] or 1.0
    kept = marks[:1]
    for mark in marks[1:]:
        if (mark[0] - kept[-1][0]) / span >= least:
            kept.append(mark)
    return kept


def _compared(every: Sequence[Subject]) -> dict[str, Any]:
    same = all(one.layer_names == every[0].layer_names for one in every) and every[0].layer_names
    return {
        "numbers": comparison(every),
        "said": _extremes(every),
        "ridges": _side_by_side(every) if same and len(every) <= _MOST_RIDGES else None,
        "charts": _by_depth(every, bool(same)),
    }


def _extremes(every: Sequence[Subject]) -> list[tuple[str, str]] | None:
    """The models of the highest and of the lowest mean selectivity, where two models have any."""
    means = [(mean_selectivity(one), one.name) for one in every]
    known = sorted(((mean, name) for mean, name in means if np.isfinite(mean)), reverse=True)
    if len(known) < 2 or known[0][0] == known[-1][0]:
        return None
    return [(name, number(mean)) for mean, name in (known[0], known[-1])]


def _side_by_side(every: Sequence[Subject]) -> list[Atlas] | None:
    """The ridges of each model on one scale, for models with the same layers."""
    measures = [main_measure(one) for one in every]
    if measures[0] is None or any(measure != measures[0] for measure in measures):
        return None
    span = span_of(every, measures[0])
    return [atlas(one, span) for one in every]


def _by_depth(every: Sequence[Subject], same: bool) -> list[dict[str, Any]]:
    """A chart a number of layers that at least two models have, over their depth."""
    charts = []
    for name in ("selectivity_mean", *LAYER_COLUMNS):
        having = [at for at, one in enumerate(every) if name in column_names(one.layers)]
        if len(having) < 2:
            continue
        lines = [_depth_line(every[at], name, at % 8, same) for at in having]
        known = LAYER_COLUMNS.get(name) or measure_of(name.removesuffix("_mean"))
        label = known.label
        deepest = max(line.xs[-1] for line in lines)
        whole = [(x, f"{x:g}") for x in ticks(1.0, deepest) if x == int(x)]
        chart = line_chart(
            lines,
            x_ticks=whole if same else None,
            x_label="layer, in execution order" if same else "depth: share of the layers passed",
            y_label=label,
            title=f"{label} by layer",
        )
        charts.append({"label": label, "about": known.about, "svg": chart})
    return charts


def _depth_line(subject: Subject, name: str, colour: int, same: bool) -> Line:
    ys = subject.layers[name].values.astype(np.float64).tolist()
    last = max(len(ys) - 1, 1)
    xs = [float(at + 1) if same else at / last for at in range(len(ys))]
    ends = [f"{name}_low", f"{name}_high"]
    low, high = (
        subject.layers[end].values.tolist() if all(x in subject.layers for x in ends) else None
        for end in ends
    )
    return Line(subject.name, xs, ys, colour, low, high)
