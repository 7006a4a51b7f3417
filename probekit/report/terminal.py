"""Results as tables for the terminal; plain text when piped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from rich import markup
from rich.console import Console
from rich.table import Table

from probekit.errors import plain

__all__ = [
    "console",
    "layer_rows",
    "most_selective",
    "print_plan",
    "print_result",
    "print_sweep",
    "result_json",
]

_BLOCKS = " ▏▎▍▌▋▊▉█"


def console(*, stderr: bool = False) -> Console:
    """A console that does not fold tables when its output is piped."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=160, no_color=True)
    return made


def escape(text: str) -> str:
    """Text from elsewhere as a cell that shows it and obeys nothing in it.

    >>> escape("[red]cat")
    '\\\\[red]cat'
    """
    return markup.escape(plain(text))


def bar(share: float, width: int = 10) -> str:
    """A bar for a share in [0, 1].

    >>> bar(0.25, 4)
    '█   '
    """
    if not np.isfinite(share):
        return " " * width
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_BLOCKS[part] if part else "")).ljust(width)


def layer_rows(result: xr.DataTree) -> list[dict[str, Any]]:
    """The layer table as plain rows: every number a layer has, quantiles and the like by name."""
    layers = result["layers"].to_dataset()
    rows: list[dict[str, Any]] = [{"layer": str(name)} for name in layers["layer"].values]
    for name, values in layers.data_vars.items():
        others = [dim for dim in values.dims if dim != "layer"]
        if len(others) > 1 or "layer" not in values.dims:
            continue
        columns: Iterable[tuple[str, Any]] = [(str(name), values.values)]
        if others:
            if values.sizes[others[0]] > 5:
                continue
            columns = [
                (f"{name}[{label:g}]", values.isel({others[0]: at}).values)
                for at, label in enumerate(values[others[0]].values)
            ]
        for column, numbers in columns:
            for row, number in zip(rows, numbers, strict=True):
                row[column] = number.item()
    return rows


def most_selective(result: xr.DataTree, most: int = 10) -> list[dict[str, Any]]:
    """The units with the highest selectivity, with the class each prefers."""
    units = result["units"].to_dataset()
    if "selectivity" not in units:
        return []
    index = units["selectivity"].values
    order = np.argsort(-np.nan_to_num(index, nan=-np.inf), kind="stable")[:most]
    names = dict(zip(units["class"].values.tolist(), _class_names(units), strict=True))
    return [
        {
            "layer": str(units["layer"].values[at]),
            "channel": int(units["channel"].values[at]),
            "selectivity": float(index[at]),
            "preferred_class": names.get(int(units["preferred_class"].values[at]), "none"),
        }
        for at in order
    ]


def _class_names(units: xr.Dataset) -> list[str]:
    named = units["class_name"] if "class_name" in units.coords else units["class"]
    return [str(name) for name in named.values]


def result_json(result: xr.DataTree) -> str:
    """Summary of a result for programs."""
    return json.dumps(
        {
            "network": {str(name): float(value) for name, value in result.data_vars.items()},
            "layers": layer_rows(result),
            "most_selective": most_selective(result),
            "provenance": json.loads(result.attrs["provenance"]),
        },
        ensure_ascii=False,
    )


_SECTIONS = {
    "selectivity": {
        "n_units": "units",
        "selectivity_mean": "selectivity",
        "selectivity_quartiles[0.25]": "25%",
        "selectivity_quartiles[0.5]": "50%",
        "selectivity_quartiles[0.75]": "75%",
        "dead_units": "dead",
    },
    "dimensionality": {
        "n_dimensions": "dimensions",
        "n_samples": "samples",
        "participation_ratio": "PR",
        "participation_ratio_unbiased": "PR unbiased",
        "participation_ratio_fraction": "PR share",
        "components[0.9]": "PCs 90%",
        "components[0.95]": "PCs 95%",
        "components[0.99]": "PCs 99%",
    },
    "gradient variability": {
        "gradient_units": "units",
        "gradient_norm_cv_mean": "CV over samples",
        "gradient_norm_cv_across_units": "CV over units",
        "gradient_dead_units": "dead",
    },
}
_SHARES = {"selectivity_mean", "participation_ratio_fraction"}
_TOLD = ("n_", "negative_", "dead_", "too_few", "participation", "components", "gradient_")


def print_result(result: xr.DataTree, to: Console) -> None:
    """Prints what a person wants to see first of a result: a table a metric, then the best units."""
    rows = layer_rows(result)
    sections = dict(_SECTIONS)
    own = {name: _words(name) for name in rows[0] if name != "layer" and not _is_told(name)}
    sections["other metrics"] = dict(list(own.items())[:6])
    if "selectivity_mean" not in rows[0]:
        sections["selectivity"] = {"n_units": "units"}
    for headers in sections.values():
        shown = {name: header for name, header in headers.items() if name in rows[0]}
        if shown:
            to.print(_layer_table(rows, shown))
            to.print()
    _print_units(most_selective(result), to)
    facts = [f"{_words(str(name))} {float(value):.4f}" for name, value in result.data_vars.items()]
    if facts:
        to.print(f"network: {', '.join(facts)}")
    for name, options in (
        json.loads(result.attrs.get("provenance", "{}")).get("metrics", {}).items()
    ):
        if "method_used" in options:
            to.print(f"{_words(name)}: measured by {_words(str(options['method_used']))}")


def _is_told(name: str) -> bool:
    return name.startswith(_TOLD) or any(name in headers for headers in _SECTIONS.values())


def _layer_table(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> Table:
    table = Table("layer", box=None, pad_edge=False, header_style="bold")
    for name, header in shown.items():
        table.add_column(header, justify="right", no_wrap=True)
        if name in _SHARES:
            table.add_column("", no_wrap=True)
    for row in rows:
        cells = [escape(row["layer"])]
        for name in shown:
            cells.append(_number(row[name]))
            if name in _SHARES:
                cells.append(bar(row[name]))
        table.add_row(*cells)
    return table


def _print_units(units: Sequence[Mapping[str, Any]], to: Console) -> None:
    if not units:
        return
    table = Table(title="most selective units", box=None, pad_edge=False, title_justify="left")
    for name in ("layer", "channel", "selectivity", "preferred class"):
        table.add_column(name, justify="left" if name in ("layer", "preferred class") else "right")
    for unit in units:
        table.add_row(
            escape(unit["layer"]),
            str(unit["channel"]),
            f"{unit['selectivity']:.3f}",
            escape(unit["preferred_class"]),
        )
    to.print(table)
    to.print()


def print_plan(rows: Sequence[Mapping[str, Any]], to: Console) -> None:
    """Prints the plan of a recording, and what it adds up to."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = ("unit_axis", "units", "calls", "bytes_per_sample")
    for name in ("layer", "type", "shape", *numbers):
        table.add_column(_words(name), justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(
            escape(row["layer"]),
            escape(row["type"]),
            shape,
            *(f"{row[name]:,}" for name in numbers),
        )
    to.print(table)
    units = sum(row["units"] for row in rows)
    size = sum(row["bytes_per_sample"] for row in rows)
    to.print(f"\n{len(rows)} layers, {units:,} units, {size:,} bytes a sample")


def print_sweep(table: xr.Dataset, to: Console) -> None:
    """Prints a row a run of a sweep."""
    shown = Table(
        "alpha", "seed", "test accuracy", "mean selectivity", "", box=None, pad_edge=False
    )
    for alpha in table["alpha"].values:
        for seed in table["seed"].values:
            run = table.sel(alpha=alpha, seed=seed)
            index = float(run["selectivity_mean"])
            failure = str(run["failure"].values) if "failure" in table else ""
            shown.add_row(
                f"{alpha:g}",
                str(seed),
                _number(float(run["test_accuracy"])),
                _number(index),
                escape(failure) or bar(index),
            )
    to.print(shown)


def print_rows(rows: Sequence[Mapping[str, Any]], to: Console) -> None:
    """Prints rows of numbers under the names of their columns, in the order they first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            _words(name), justify="left" if name == columns[0] else "right", no_wrap=True
        )
    for row in rows:
        table.add_row(
            *(_number(row[name]) if row.get(name) is not None else "" for name in columns)
        )
    to.print(table)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return escape(str(value))
