"""Sections of a page that show the output of `compare` or `survey`: charts and one table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import xarray as xr
from markupsafe import Markup

from probekit.errors import some_of
from probekit.reports.model_results import Results
from probekit.reports.page.svg import Line, line_chart, number
from probekit.results.labels import ends, label
from probekit.results.provenance import facts_of
from probekit.results.trees import as_tree

_MOST_CHARTS = 4
_MOST_UNITS = 10


@dataclass(frozen=True)
class Section:
    """A section: its charts as (label, note, drawing), its legend, and tables as (title, head, rows)."""

    anchor: str
    title: str
    hint: str
    charts: Sequence[tuple[str, str, Markup]]
    legend: Sequence[str]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    notes: Sequence[str] = ()


def take_sections(results: Results) -> tuple[Results, list[Section]]:
    """Separates the outputs of `compare` and `survey` from results of models, and describes them."""
    sections: list[Section] = []
    if isinstance(results, dict):
        named = results
    else:
        named = dict(enumerate(results if isinstance(results, list | tuple) else [results]))
    rest = {}
    for key, one in named.items():
        kind = _kind(one)
        if kind is None:
            rest[key] = one
            continue
        tree = as_tree(one)
        sections.append(_comparison(tree) if kind == "first" else _survey(tree))
    if not sections:
        return results, []
    return (rest if isinstance(results, dict) else list(rest.values())), sections


def _kind(given: object) -> str | None:
    """`first` for the output of `compare`, `survey` for that of `survey`, otherwise None."""
    attrs: Mapping[Any, Any] = {}
    if isinstance(given, xr.DataTree):
        attrs = given.attrs
    elif isinstance(given, str | Path) and os.path.isfile(given):
        # A file that cannot be read is reported when it is opened.
        with suppress(Exception), xr.open_dataset(given, engine="h5netcdf") as opened:
            attrs = opened.attrs
    facts = facts_of(attrs)
    return next((kind for kind in ("first", "survey") if kind in facts), None)


def _comparison(tree: xr.DataTree) -> Section:
    layers, facts = tree["layers"].to_dataset(), facts_of(tree.attrs)
    names = [str(name) for name in layers["layer"].values]
    variables = [
        str(name).removesuffix("_difference")
        for name in layers
        if str(name).endswith("_difference")
    ]
    variables.sort(key=lambda name: f"{name}_low" not in layers)  # those with intervals first
    charts = []
    for name in variables[:_MOST_CHARTS]:
        values = layers[f"{name}_difference"]
        interval = [end.values.tolist() for end in ends(layers, name) or ()]
        xs = [float(at + 1) for at in range(len(names))]
        line = Line(label(values), xs, values.values.tolist(), 0, *interval)
        chart = line_chart(
            [line, Line("no difference", [xs[0], xs[-1]], [0.0, 0.0], 7)],
            x_ticks=[(x, f"{x:g}") for x in xs[:: max(1, len(xs) // 10)]],
            x_label="layer, in execution order", y_label=label(values), title=label(values),
        )  # fmt: skip
        charts.append((label(values), "band: interval over units" if interval else "", chart))
    models = [(facts[side].get("model") or {}) for side in ("first", "second")]
    called = [str(one.get("name") or one.get("type") or "unknown") for one in models]
    tables = [_layer_differences(layers, names, variables)]
    if "units" in tree.children and tree["units"].data_vars:
        tables.append(_unit_differences(tree["units"].to_dataset(), variables))
    return Section(
        "differences",
        "Differences between two results",
        f"Second minus first; the first is {called[0]}, the second {called[1]}. Intervals have a "
        f"coverage of {100 * float(facts.get('level', 0.95)):g}% and are over the "
        f"{'pairs of ' if facts.get('paired') else ''}units of a layer.",
        charts,
        [],
        tables,
    )


def _layer_differences(
    layers: xr.Dataset, names: Sequence[str], variables: Sequence[str]
) -> tuple[str, list[str], list[list[str]]]:
    def text(name: str) -> list[str]:
        return [number(value) for value in layers[name].values]

    sides = zip(*(layers[f"n_units_{side}"].values for side in ("first", "second")), strict=True)
    units = [" / ".join(dict.fromkeys(f"{int(count):,}" for count in both)) for both in sides]
    columns = [("layer", list(names)), ("units", units)]
    for name in variables:
        about, difference = name.replace("_", " "), text(f"{name}_difference")
        if f"{name}_low" not in layers:
            columns.append((f"{about}: difference", difference))
            continue
        parts = zip(difference, text(f"{name}_low"), text(f"{name}_high"), strict=True)
        columns += [
            (f"{about}: first", text(f"{name}_first")),
            ("second", text(f"{name}_second")),
            ("difference", [f"{x} ({low} to {high})" for x, low, high in parts]),
        ]
    head, values = zip(*columns, strict=True)
    return "Layers", list(head), [list(row) for row in zip(*values, strict=True)]


def _unit_differences(
    units: xr.Dataset, variables: Sequence[str]
) -> tuple[str, list[str], list[list[str]]]:
    """The units whose first variable changed most."""
    name = next(f"{name}_difference" for name in variables if f"{name}_difference" in units)
    sizes = np.nan_to_num(np.abs(units[name].values), nan=-1.0)
    order = np.argsort(-sizes, kind="stable")[:_MOST_UNITS]
    rows = [
        [str(one["layer"].values), str(int(one["channel"])), number(one[name])]
        for one in (units.isel(unit=at) for at in order.tolist())
    ]
    about = name.removesuffix("_difference").replace("_", " ")
    head = ["layer", "channel", "difference"]
    return f"Units with the largest difference of {about}", head, rows


def _survey(tree: xr.DataTree) -> Section:
    models, layers = tree.to_dataset(), tree["layers"].to_dataset().transpose("model", ...)
    names = [str(name) for name in models["model"].values]
    by_text: dict[str, list[str]] = {}
    notes_of = models["notes"].values if "notes" in models else [""] * len(names)
    for name, notes in zip(names, notes_of, strict=True):
        for sentence in str(notes).splitlines():
            by_text.setdefault(sentence, []).append(name)
    remarks = [f"{some_of(having, 3)}: {sentence}" for sentence, having in by_text.items()]
    failed = int((models["failure"] != "").sum())
    return Section(
        "survey", f"{len(names)} models on the same data", f"{failed} failed." if failed else "",
        _survey_charts(models, layers, names), names, [_survey_table(models, names)], remarks,
    )  # fmt: skip


def _survey_charts(
    models: xr.Dataset, layers: xr.Dataset, names: Sequence[str]
) -> list[tuple[str, str, Markup]]:
    """Selectivity, or another mean, over depth, and its mean over the layers against accuracy."""
    variable = "selectivity_mean"
    if variable not in layers:
        means = (str(name) for name in layers if str(name).endswith("_mean"))
        variable = next(means, "n_units")
    measured = variable in layers  # False if all models failed
    text = label(layers[variable]) if measured else variable
    charts = []
    lines = []
    for at, name in enumerate(names if measured else []):
        known = layers["layer_name"].values[at] != ""
        if known.any():
            xs, ys = (layers[one].values[at][known].astype(float) for one in ("depth", variable))
            lines.append(Line(name, xs.tolist(), ys.tolist(), at % 8))
    if lines:
        title, about = f"{text} over depth", "depth: fraction of the layers passed"
        drawn = line_chart(lines, x_label=about, y_label=text, title=title)
        charts.append((title, "", drawn))
    has_accuracy = "accuracy" in models and models["accuracy"].notnull().any()
    across = "accuracy" if has_accuracy else "parameters"
    if variable in models:
        values = (models[one].values.tolist() for one in (across, variable))
        dots = [
            Line(name, [x], [y], at % 8)
            for at, (name, x, y) in enumerate(zip(names, *values, strict=True))
            if np.isfinite(x) and np.isfinite(y)
        ]
        if dots:
            title = f"{text} against {across}"
            drawn = line_chart(dots, x_label=across, y_label=text, title=title)
            charts.append((title, "one dot per model", drawn))
    return charts


def _survey_table(
    models: xr.Dataset, names: Sequence[str]
) -> tuple[str, list[str], list[list[str]]]:
    """The numbers of each model, and why it failed."""
    first = ["accuracy", "parameters", "n_layers", "n_units"]
    shown = [
        str(name) for name in models
        if models[name].dims == ("model",) and models[name].dtype.kind in "fiu"
    ]  # fmt: skip
    shown.sort(key=lambda name: first.index(name) if name in first else len(first))
    cells = [[_cell(value, name in first[1:]) for value in models[name].values] for name in shown]
    rows = [
        list(row) for row in zip(names, *cells, map(str, models["failure"].values), strict=True)
    ]
    return "", ["model", *(label(models[name]) for name in shown), "failure"], rows


def _cell(value: SupportsFloat, whole: bool) -> str:
    return f"{value:,.0f}" if whole and np.isfinite(float(value)) else number(value)
