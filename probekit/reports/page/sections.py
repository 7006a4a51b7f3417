"""The sections of a page, as variables of the template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from probekit.reports.model_results import ModelResults
from probekit.reports.page.layers import (
    LayerTable,
    column_names,
    layer_table,
    main_variable,
    range_of,
)
from probekit.reports.page.summary import (
    comparison,
    facts_about,
    key_numbers,
    mean_selectivity,
    notes,
)
from probekit.reports.page.svg import Line, heat_map, line_chart, number, ticks
from probekit.reports.rows import radius
from probekit.results.labels import ends, heading

_MOST_RIDGES = 4


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
    accuracy = table["attack_accuracy"].transpose("attack", "epsilon")
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
