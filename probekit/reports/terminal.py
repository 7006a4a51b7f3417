"""Results as tables for the terminal; plain text when piped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from rich import markup
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from probekit.errors import plain, some_of
from probekit.reports.rows import layer_rows, most_selective, result_json

__all__ = [
    "console",
    "layer_rows",
    "most_selective",
    "print_plan",
    "print_result",
    "print_rows",
    "print_sweep",
    "print_verification",
    "result_json",
]

# The most columns of a table of metrics that have no table of their own.
_MOST_COLUMNS = 6
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
        "participation_ratio_corrected": "PR corrected",
        "participation_ratio_corrected_error": "error",
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
# On a terminal these have a bar too, whose full length is the highest of the column.
_SIZES = {"gradient_norm_cv_mean", "gradient_norm_cv_across_units"}
_BAR_STYLE = "cyan"
_TOLD = (
    "n_",
    "negative_",
    "dead_",
    "too_few",
    "participation",
    "components",
    "gradient_",
    "unit_axis",
)


def print_result(result: xr.DataTree, to: Console) -> None:
    """Prints what a person wants to see first of a result: a table a metric, then the best units."""
    rows = layer_rows(result)
    sections = dict(_SECTIONS)
    own = {name: _words(name) for name in rows[0] if name != "layer" and not _is_told(name)}
    shown_columns = dict(list(own.items())[:_MOST_COLUMNS])
    sections["other metrics"] = shown_columns
    if "selectivity_mean" not in rows[0]:
        sections["selectivity"] = {"n_units": "units"}
    for headers in sections.values():
        shown = {name: header for name, header in headers.items() if name in rows[0]}
        if shown:
            always = {name: 1.0 for name in shown if name in _SHARES}
            more = always | {name: _most(rows, name) for name in shown if name in _SIZES}
            _print_fitting(to, *(partial(_layer_table, rows, shown, one) for one in (more, always)))
            if headers is shown_columns and len(own) > len(shown_columns):
                left_out = [escape(name) for name in list(own.values())[_MOST_COLUMNS:]]
                to.print(
                    f"and {len(left_out)} more columns (--json has all): {', '.join(left_out)}"
                )
            to.print()
    _print_units(most_selective(result), to)
    over = f" over {len(rows)} layer{'s' * (len(rows) != 1)}"
    facts = [
        f"{_words(str(name))} {float(value):.4f}{over * str(name).endswith('_mean')}"
        for name, value in result.data_vars.items()
    ]
    if facts:
        to.print(f"network: {', '.join(facts)}")
        names = [row["layer"] for row in rows]
        outer = [name for name in names if any(one.startswith(f"{name}.") for one in names)]
        if outer:
            to.print(
                f"note: {len(outer)} of the layers contain others ({escape(some_of(outer, 3))}); a mean over "
                "layers counts all of them"
            )
    for name, options in (
        json.loads(result.attrs.get("provenance", "{}")).get("metrics", {}).items()
    ):
        if "method_used" in options:
            to.print(f"{_words(name)}: measured by {_words(str(options['method_used']))}")


def _print_fitting(to: Console, rich: Callable[[], Table], spare: Callable[[], Table]) -> None:
    """Prints the table with more bars on a terminal that is wide enough, and the other elsewhere.

    Piped output is for other programs too, and stays as it is.
    """
    if not to.is_terminal:
        to.print(spare())
        return
    table = rich()
    wide = Measurement.get(to, to.options.update(max_width=10_000), table).maximum > to.width
    to.print(spare() if wide else table)


def _most(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None and np.isfinite(row[name])]
    return max(values, default=0.0)


def _is_told(name: str) -> bool:
    return name.startswith(_TOLD) or any(name in headers for headers in _SECTIONS.values())


def _layer_table(
    rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str], bars: Mapping[str, float]
) -> Table:
    """A row a layer; `bars` gives, for the columns with a bar, what a full bar stands for."""
    table = Table("layer", box=None, pad_edge=False, header_style="bold")
    for name, header in shown.items():
        table.add_column(header, justify="right", no_wrap=True)
        if name in bars:
            table.add_column("", no_wrap=True, style=_BAR_STYLE)
    for row in rows:
        cells = [escape(row["layer"])]
        for name in shown:
            cells.append(_number(row[name]))
            if name in bars:
                cells.append(bar(row[name] / bars[name] if bars[name] else 0.0))
        table.add_row(*cells)
    return table


def _print_units(units: Sequence[Mapping[str, Any]], to: Console) -> None:
    if not units:
        return

    def table(bars: bool) -> Table:
        made = Table(title="most selective units", box=None, pad_edge=False, title_justify="left")
        for name in ("layer", "channel", "selectivity", *[""] * bars, "preferred class"):
            left = name in ("", "layer", "preferred class")
            made.add_column(
                name, justify="left" if left else "right", style="" if name else _BAR_STYLE
            )
        for unit in units:
            made.add_row(
                escape(unit["layer"]),
                str(unit["channel"]),
                f"{unit['selectivity']:.3f}",
                *[bar(unit["selectivity"])] * bars,
                escape(unit["preferred_class"]),
            )
        return made

    _print_fitting(to, partial(table, True), partial(table, False))
    to.print()


def print_plan(rows: Sequence[Mapping[str, Any]], to: Console) -> None:
    """Prints the plan of a recording, and what it adds up to; on a terminal with a bar for the bytes."""

    def table(bars: bool) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        numbers = ("unit_axis", "units", "calls", "bytes_per_sample")
        for name in ("layer", "type", "shape", *numbers):
            made.add_column(
                _words(name), justify="right" if name in numbers else "left", no_wrap=True
            )
        if bars:
            made.add_column("", no_wrap=True, style=_BAR_STYLE)
        most = _most(rows, "bytes_per_sample") or 1.0
        for row in rows:
            made.add_row(
                escape(row["layer"]),
                escape(row["type"]),
                " x ".join(map(str, row["shape"])),
                *(f"{row[name]:,}" for name in numbers),
                *[bar(row["bytes_per_sample"] / most)] * bars,
            )
        return made

    _print_fitting(to, partial(table, True), partial(table, False))
    units = sum(row["units"] for row in rows)
    size = sum(row["bytes_per_sample"] for row in rows)
    to.print(f"\n{len(rows)} layers, {units:,} units, {size:,} bytes a sample")


def print_verification(
    rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], to: Console
) -> None:
    """Prints what a comparison with a plain pass found, each layer that is not right by its name."""
    wrong = [row["layer"] for row in rows if not (row["values"] and row["complete"])]
    kinds = Counter(row["axis"] for row in rows)
    sizes = " and ".join(" x ".join(map(str, size)) for size in about["image_sizes"])
    to.print(f"\nverified with 2 and 3 images of {sizes} pixels: ", end="")
    to.print(
        f"{len(rows) - len(wrong)} of {len(rows)} layers have the values and calls of a plain pass"
    )
    to.print("unit axis by " + ", ".join(f"{kind}: {count}" for kind, count in kinds.items()))
    for title, names in (("not right", wrong), ("not recorded", about["missing"])):
        if names:
            to.print(f"{title}: {', '.join(names)}", markup=False)


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


def print_rows(
    rows: Sequence[Mapping[str, Any]], to: Console, *, bars: Sequence[str] = ("mean",)
) -> None:
    """Prints rows of numbers under the names of their columns, in the order they first come.

    Args:
        rows: The rows; a column that a row lacks stays empty.
        to: Where.
        bars: Columns of shares in [0, 1] that have a bar on a terminal.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def table(barred: Sequence[str]) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            made.add_column(
                _words(name), justify="left" if name == columns[0] else "right", no_wrap=True
            )
            if name in barred:
                made.add_column("", no_wrap=True, style=_BAR_STYLE)
        for row in rows:
            cells = []
            for name in columns:
                known = row.get(name) is not None
                cells.append(_number(row[name]) if known else "")
                if name in barred:
                    cells.append(bar(row[name]) if known else "")
            made.add_row(*cells)
        return made

    _print_fitting(to, partial(table, bars), partial(table, ()))


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
