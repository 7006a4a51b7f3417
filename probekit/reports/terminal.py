"""Results as tables for the terminal; plain text when piped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from rich import markup
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table

from probekit.errors import plain, some_of
from probekit.reports.rows import by_attribute, interval_note, most_selective
from probekit.results.labels import ends, heading, is_share, label, summary_variables
from probekit.results.provenance import facts_of

# Maximum number of columns for a metric whose variables have no short names.
_MOST_COLUMNS = 6
_MOST_PLACES = 5  # maximum number of columns along an additional dimension
_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Column:
    """A column of a table in the terminal, with right-aligned numbers or left-aligned text.

    `full` is the value of a full bar, None for no bars; `always` draws the bars even if output is piped or
    the terminal is narrow.
    """

    heading: str
    values: Sequence[Any]
    full: float | None = None
    always: bool = False


def console() -> Console:
    """A console that does not wrap tables when its output is piped."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=160, no_color=True)


def escape(text: str) -> str:
    """Escapes text for a table cell, so that markup in it is not interpreted."""
    return markup.escape(plain(text))


def bar(share: float, width: int = 10) -> str:
    if not np.isfinite(share):
        return " " * width
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_BLOCKS[part] if part else "")).ljust(width)


def print_table(columns: Sequence[Column], to: Console, *, title: str | None = None) -> None:
    """Prints columns; those for which a narrow terminal has no room follow in further tables.

    Bars need a wide enough terminal unless `always` is set. Piped output may be read by other programs and
    has no such bars.
    """
    count = len(columns)
    while count > 2 and not _fits(_table(columns[:count], title, False), to):
        count -= 1
    table = _table(columns[:count], title, to.is_terminal)
    to.print(table if _fits(table, to) else _table(columns[:count], title, False))
    if count < len(columns):
        to.print()
        print_table([columns[0], *columns[count:]], to)


def _fits(table: Table, to: Console) -> bool:
    return Measurement.get(to, to.options.update(max_width=10_000), table).maximum <= to.width


def _table(columns: Sequence[Column], title: str | None, all_bars: bool) -> Table:
    table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    cells: list[list[str]] = []
    for column in columns:
        text = all(isinstance(value, str) for value in column.values)
        side: JustifyMethod = "left" if text else "right"
        table.add_column(escape(column.heading), justify=side, no_wrap=not text, overflow="fold")
        cells.append(["" if value is None else _cell(value) for value in column.values])
        if column.full is not None and (all_bars or column.always):
            table.add_column("", no_wrap=True, style="cyan")
            scale = column.full or np.inf
            cells.append(["" if value is None else bar(value / scale) for value in column.values])
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def print_result(result: xr.DataTree, to: Console) -> None:
    """Prints a summary of a result: one table per metric, then the most selective units."""
    layers = result["layers"].to_dataset()
    names = [str(name) for name in layers["layer"].values]
    groups = summary_variables(layers)
    general = groups.pop("", [])  # the number of units comes first
    for own in list(groups.values()) or [[]]:
        columns = [column for name in [*general, *own] for column in _columns(layers, name)]
        general = []
        brief = any("short_name" in layers[name].attrs for name in own)
        shown = columns if brief else columns[:_MOST_COLUMNS]
        if any(column.always for column in shown):  # other columns have no bars then
            shown = [column if column.always else replace(column, full=None) for column in shown]
        print_table([Column("layer", names), *shown], to)
        if left_out := [escape(column.heading) for column in columns[len(shown) :]]:
            to.print(f"and {len(left_out)} more columns (--json has all): {', '.join(left_out)}")
        headings = {heading(layers[name]): label(layers[name]) for name in own}
        if explained := [f"{a}: {b}" for a, b in headings.items() if brief and a not in b]:
            to.print("; ".join(explained), markup=False, style="dim")
        to.print()
    if units := most_selective(result):
        columns = _of_rows(units, bars=["selectivity"])
        print_table(columns, to, title="most selective units")
        to.print()
    _print_network(result, names, to)


def _print_network(result: xr.DataTree, layers: Sequence[str], to: Console) -> None:
    facts: list[str] = []
    for attribute, part in by_attribute(result).items():
        numbers = {str(name): float(value) for name, value in part.data_vars.items()}
        facts = [
            f"{label(part.data_vars[name])} {value:.4f}{_over(part['layers'].to_dataset(), name)}"
            + (f" ({found[0]:.4f} to {found[1]:.4f})" if (found := ends(numbers, name)) else "")
            for name, value in numbers.items()
            if name.removesuffix("_low").removesuffix("_high") not in numbers.keys() - {name}
        ]
        if facts:
            of = f" ({attribute})" if attribute else ""
            to.print(f"network{of}: {', '.join(facts)}", markup=False)
    if facts:
        outer = [name for name in layers if any(one.startswith(f"{name}.") for one in layers)]
        if outer:
            to.print(
                f"note: {len(outer)} of the layers contain others ({escape(some_of(outer, 3))}); a "
                "mean over layers counts all of them"
            )
    if explained := interval_note(result["layers"].to_dataset()):
        to.print(f"note: {explained}", markup=False)
    metrics = facts_of(result.attrs).get("metrics", {})
    for name, options in metrics.items():
        if "method_used" in options:
            to.print(f"{_spaced(name)}: measured by {_spaced(str(options['method_used']))}")


def _over(layers: xr.Dataset, name: str) -> str:
    """The number of layers that a mean over layers includes, and their types if they differ.

    A merged result may lack some layers.
    """
    if not name.endswith("_mean"):
        return ""
    measured = layers.sel(layer=layers[name].notnull()) if name in layers else layers
    count = measured.sizes["layer"]
    types = Counter(measured["type"].values.tolist() if "type" in layers else ())
    listed = ", ".join(f"{number} {plain(kind)}" for kind, number in types.items())
    return f" over {count} layer{'s' * (count != 1)}" + (f" ({listed})" if len(types) > 1 else "")


def _columns(layers: xr.Dataset, name: str) -> Iterator[Column]:
    """A layer variable as columns, one per coordinate along a short additional dimension."""
    values = layers[name]
    others = [dim for dim in values.dims if dim != "layer"]
    text = plain(heading(values))
    if not others:
        rows, share = values.values.tolist(), is_share(values) and values.dtype.kind == "f"
        full = 1.0 if share else _highest(rows) if values.dtype.kind == "f" else None
        yield Column(text, rows, full, always=share)
    elif len(others) == 1 and values.sizes[others[0]] <= _MOST_PLACES:
        for place in values[others[0]].values.tolist():
            fraction = isinstance(place, float) and 0 < place <= 1
            where = f"{100 * place:g}%" if fraction else str(place)
            title = where if others[0] == "quantile" else f"{text} {where}"
            yield Column(title, values.sel({others[0]: place}).values.tolist())


def _highest(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None and np.isfinite(value)), default=0.0)


def print_plan(rows: Sequence[Mapping[str, Any]], to: Console) -> None:
    """Prints the plan of a recording and its totals; terminals also show a bar for the bytes."""
    shapes = [{**row, "shape": " x ".join(map(str, row["shape"]))} for row in rows]
    names = ("layer", "type", "shape", "unit_axis", "units", "calls", "bytes_per_sample")
    columns = [Column(_spaced(name), [row[name] for row in shapes]) for name in names]
    size = columns[-1]
    print_table([*columns[:-1], Column(size.heading, size.values, _highest(size.values))], to)
    units, total = (sum(row[name] for row in rows) for name in ("units", "bytes_per_sample"))
    to.print(f"\n{len(rows)} layers, {units:,} units, {total:,} bytes per sample")


def print_verification(
    rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], to: Console
) -> None:
    """Prints the comparison with a plain pass, with the names of the layers that differ."""
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
    """Prints one row per run of a sweep."""
    runs = table.drop_dims("layer").stack(run=("alpha", "seed"), create_index=False)
    columns = [
        Column("alpha", [f"{alpha:g}" for alpha in runs["alpha"].values]),
        Column("seed", [str(seed) for seed in runs["seed"].values]),
        Column("test accuracy", runs["test_accuracy"].values.tolist()),
        Column("mean selectivity", runs["selectivity_mean"].values.tolist(), 1.0, always=True),
    ]
    if "failure" in runs and any(runs["failure"].values):
        columns.append(Column("failure", list(map(str, runs["failure"].values))))
    print_table(columns, to)


def print_rows(
    rows: Sequence[Mapping[str, Any]], to: Console, *, bars: Sequence[str] = ("mean",)
) -> None:
    """Prints rows of values, with bars for some columns; missing values are empty cells."""
    print_table(_of_rows(rows, bars), to)


def _of_rows(rows: Sequence[Mapping[str, Any]], bars: Sequence[str]) -> list[Column]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        Column(_spaced(name), [row.get(name) for row in rows], 1.0 if name in bars else None)
        for name in names
    ]


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
    return escape(str(value))
