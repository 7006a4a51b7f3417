"""Charts of a page: lines over layers or radii, and accuracy by corruption and severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from markupsafe import Markup

from probekit.reports.page.svg import (
    UNKNOWN,
    Scale,
    element,
    join,
    number,
    path,
    scale,
    text,
    ticks,
)
from probekit.results.labels import shorten

_WIDTH, _HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, points, color index, and interval (or None)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int = 0
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    share: bool = False,
    title: str,
) -> Markup:
    """Lines on shared axes."""
    xs = np.concatenate([np.asarray(line.xs, float) for line in lines])
    parts = [part for line in lines for part in (line.ys, line.low, line.high) if part is not None]
    ys = np.concatenate([np.asarray(part, float) for part in parts])
    ys = ys[np.isfinite(ys)]
    y_low, y_high = 0.0, 1.0
    if not share and len(ys):
        y_low, y_high = min(float(ys.min()), 0.0), float(ys.max())
        y_high = y_high * 1.05 if y_high > y_low else y_low + 1.0
    x_low, x_high = float(xs.min()), float(xs.max())
    place_x = scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    place_y = scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    marks = x_ticks if x_ticks is not None else [(x, f"{x:g}") for x in ticks(x_low, x_high)]
    return element(
        "svg",
        element("title", title),
        *[
            shape
            for mark, y in ((mark, place_y(mark)) for mark in ticks(y_low, y_high))
            for shape in (
                element("line", class_="gridline", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y),
                text(f"{mark:g}", _LEFT - 8, y + 4, "tick", "end"),
            )
        ],
        *[
            text(mark, place_x(x), _HEIGHT - _BOTTOM + 16, "tick", anchor)
            for x, mark in marks
            for anchor in ["end" if x == x_high and len(mark) > 2 else "middle"]
        ],
        text(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "label", "middle"),
        *[_band(line, place_x, place_y) for line in lines],
        *[_line(line, place_x, place_y) for line in lines],
        class_="chart",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}; y axis: {y_label}",
    )


def _band(line: Line, place_x: Scale, place_y: Scale) -> Markup | None:
    if line.low is None or line.high is None:
        return None
    xs = [place_x(x) for x in line.xs]
    lower, upper = ([place_y(y) for y in ys] for ys in (line.low, line.high))
    outline = path([*xs, *xs[::-1]], [*upper, *lower[::-1]], close=True)
    return element("path", class_=f"band m{line.color}", d=outline)


def _line(line: Line, place_x: Scale, place_y: Scale) -> Markup:
    points = [(place_x(x), place_y(y), y) for x, y in zip(line.xs, line.ys, strict=True)]
    known = [point for point in points if np.isfinite(point[2])]
    dots = [
        element("circle", element("title", f"{line.name}: {number(value)}"), cx=x, cy=y, r=2.6)
        for x, y, value in known
    ]
    drawn = element("path", d=path([x for x, _, _ in known], [y for _, y, _ in known]), fill="none")
    return element("g", drawn if len(known) > 1 else None, *dots, class_=f"line m{line.color}")


def heat_map(accuracy: xr.DataArray, clean: float) -> Markup:
    """Accuracy by corruption (rows) and severity (columns), as numbers in shaded cells."""
    rows = [str(name) for name in accuracy["corruption"].values]
    columns = [str(level) for level in accuracy["severity"].values]
    name_width, cell, height = 168, 62, 26
    width = name_width + cell * (len(columns) + 1)
    parts = [
        text(title, name_width + cell * (at + 0.5), 14, "tick", "middle")
        for at, title in enumerate([*columns, "mean"])
    ]
    values = accuracy.transpose("corruption", "severity").values
    for at, name in enumerate(rows):
        y = 22 + at * height
        shown = (shorten(name.replace("_", " "), 24), element("title", name))
        parts.append(text(shown, name_width - 12, y + height / 2 + 4, "rowname", "end"))
        known = values[at][np.isfinite(values[at])]
        mean = known.mean() if len(known) else np.nan
        for column, value in enumerate([*values[at], mean]):
            parts.append(_heat_cell(value, clean, name_width + cell * column, y, cell, height))
    return element(
        "svg",
        element("title", "accuracy by corruption and severity"),
        *parts,
        class_="chart heat",
        viewBox=f"0 0 {width} {26 + len(rows) * height}",
        width=width,
        role="img",
    )


def _heat_cell(
    value: float, clean: float, x: float, y: float, width: float, height: float
) -> Markup:
    """A cell, darker where more of the clean accuracy is lost."""
    center, base = x + width / 2, y + height / 2 + 4
    if not np.isfinite(value):
        return text(UNKNOWN, center, base, "tick", "middle")
    lost = min(max(1 - float(value) / clean, 0.0), 1.0) if clean else 0.0
    box = {"x": x + 1, "y": y + 1, "width": width - 2, "height": height - 2, "rx": 2}
    class_ = "cellvalue strong" if lost > 0.65 else "cellvalue"
    return join(
        [
            element("rect", class_="cell", **box, fill_opacity=0.06 + 0.84 * lost),
            text(f"{100 * float(value):.1f}", center, base, class_, "middle"),
        ]
    )
