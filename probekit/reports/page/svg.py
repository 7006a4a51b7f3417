"""SVG elements and scales, numbers as text, and the charts of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import SupportsFloat, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup, escape

from probekit.plot.density import density
from probekit.results.labels import shorten

UNKNOWN = "\N{EN DASH}"

Array = npt.NDArray[np.float64]
Scale: TypeAlias = Callable[[float], float]

# Maximum number of values with individual marks, and the height below which a density is not drawn.
_RUG = 200
_THIN = 0.004
_POINTS = 97
_WIDTH, _HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 40


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An element with escaped text and attributes; attributes that are None are omitted."""
    parts = [Markup("<"), Markup(name)]
    for key, value in attributes.items():
        if value is not None:
            called = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
            parts.append(Markup(' {}="{}"').format(Markup(called), _shown(value)))
    inside = join(children)
    parts.append(Markup(">{}</{}>").format(inside, Markup(name)) if inside else Markup("/>"))
    return Markup("").join(parts)


def text(content: object, x: float | str, y: float, class_: str | None, anchor: str) -> Markup:
    """A text anchored at a position by its start, middle or end."""
    children = content if isinstance(content, tuple) else (content,)
    return element("text", *children, class_=class_, x=x, y=y, text_anchor=anchor)


def join(parts: Iterable[object]) -> Markup:
    """Concatenates parts; plain text is escaped."""
    return Markup("").join(escape(part) for part in parts if part is not None)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if isfinite(value) else "0"
    return str(value)


def number(value: SupportsFloat, digits: int = 3) -> str:
    """A number as a page shows it.

    >>> number(0.23456), number(1234.5), number(1e-7), number(1.5e9)
    ('0.235', '1,234', '1.00e-07', '1.50e+09')
    """
    value = float(value)
    if not np.isfinite(value):
        return UNKNOWN if np.isnan(value) else ("∞" if value > 0 else "\N{MINUS SIGN}∞")
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")
    return f"{value:.2e}"


def scale(low: float, high: float, start: float, stop: float) -> Scale:
    """A function that maps [low, high] to [start, stop] and clips values outside."""
    ends = [low, high if high > low else low + 1.0]
    return lambda value: float(np.interp(value, ends, [start, stop]))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about five of them."""
    span = high - low
    if not (isfinite(span) and span > 0):
        return [low] if isfinite(low) else []
    rough = span / 5
    power = 10.0 ** floor(log10(rough))
    step = next((power * x for x in (1, 2, 5, 10) if power * x >= rough * 0.999), 10 * power)
    first = np.ceil(low / step - 1e-9)
    count = floor((high - first * step) / step + 1e-9)
    return [float(round((first + i) * step, 12)) for i in range(int(count) + 1)]


def path(xs: Sequence[float] | Array, ys: Sequence[float] | Array, close: bool = False) -> str:
    """The `d` attribute of a line through points."""
    points = [f"{_shown(float(x))} {_shown(float(y))}" for x, y in zip(xs, ys, strict=True)]
    return "M" + "L".join(points) + ("Z" if close else "")


def ridge(
    values: Array,
    low: float,
    high: float,
    mean: float,
    ends: tuple[float, float] | None = None,
    height: int = 34,
) -> Markup:
    """The units of a layer as a density with a rug, their mean, and its interval."""
    known = values[np.isfinite(values)].clip(low, high)
    grid = np.linspace(low, high, _POINTS)
    heights = density(known, grid) if len(known) else np.zeros(_POINTS)
    xs = (grid - low) / (high - low) * 100
    ys = height - 5 - heights * (height - 7)
    base = height - 5
    shapes = []
    if heights.any():
        there = np.flatnonzero(heights > _THIN)
        within = slice(max(there[0] - 1, 0), there[-1] + 2)
        xs, ys = xs[within], ys[within]
        area = path([xs[0], *xs, xs[-1]], [base, *ys, base], close=True)
        shapes = [
            element("path", class_="area", d=area),
            element("path", class_="edge", d=path(xs, ys)),
        ]
    marked = np.unique(known.round(4))
    if 0 < len(marked) <= _RUG:
        marks = "".join(f"M{(x - low) / (high - low) * 100:.2f} {base + 1}v3.5" for x in marked)
        shapes.append(element("path", class_="rug", d=marks))
    whole = element(
        "svg",
        *shapes,
        viewBox=f"0 0 100 {height}",
        width="100%",
        height=height,
        preserveAspectRatio="none",
        overflow="visible",
    )
    parts = [element("line", class_="base", x1="0", x2="100%", y1=base, y2=base), whole]
    if ends:
        left, right = (percent_of(x, low, high) for x in ends)
        parts.append(element("line", class_="sure", x1=left, x2=right, y1=base, y2=base))
    if np.isfinite(mean):
        parts.append(
            element("circle", class_="mean", cx=percent_of(mean, low, high), cy=base, r=3.2)
        )
    return element("svg", *parts, class_="ridge", width="100%", height=height, aria_hidden="true")


def axis(low: float, high: float) -> Markup:
    """The axis labels above a column of ridges."""
    marks = ticks(low, high)
    anchors = ["start" if mark <= low else "end" if mark >= high else "middle" for mark in marks]
    texts = [
        text(f"{mark:g}".replace("-", "−"), percent_of(mark, low, high), 11, None, anchor)
        for mark, anchor in zip(marks, anchors, strict=True)
    ]
    return element("svg", *texts, class_="axis", width="100%", height=14, aria_hidden="true")


def percent_of(value: float, low: float, high: float) -> str:
    """The position of a value in a range, as an SVG length."""
    return f"{max(0.0, min((value - low) / (high - low), 1.0)) * 100:.2f}%"


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
    y_low, y_high = (0.0, 1.0) if share else _range_with_zero(lines)
    x_low, x_high = float(xs.min()), float(xs.max())
    place_x = scale(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    place_y = scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    marks = x_ticks if x_ticks is not None else [(x, f"{x:g}") for x in ticks(x_low, x_high)]
    shapes = [element("title", title)]
    for y in ticks(y_low, y_high):
        at = place_y(y)
        shapes += [
            element("line", class_="gridline", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at),
            text(f"{y:g}", _LEFT - 8, at + 4, "tick", "end"),
        ]
    for x, mark in marks:
        anchor = "end" if x == x_high and len(mark) > 2 else "middle"
        shapes.append(text(mark, place_x(x), _HEIGHT - _BOTTOM + 16, "tick", anchor))
    return element(
        "svg",
        *shapes,
        text(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "label", "middle"),
        *[_band(line, place_x, place_y) for line in lines],
        *[_line(line, place_x, place_y) for line in lines],
        class_="chart",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title}; y axis: {y_label}",
    )


def _range_with_zero(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of the values and intervals of lines, with zero and some space above."""
    parts = [part for line in lines for part in (line.ys, line.low, line.high) if part is not None]
    ys = np.concatenate([np.asarray(part, float) for part in parts])
    ys = ys[np.isfinite(ys)]
    if not len(ys):
        return 0.0, 1.0
    low, high = min(float(ys.min()), 0.0), max(float(ys.max()), 0.0)
    return low, high * 1.05 if high > low else low + 1.0


def _band(line: Line, place_x: Scale, place_y: Scale) -> Markup | None:
    if line.low is None or line.high is None:
        return None
    ends = zip(line.xs, line.low, line.high, strict=True)
    known = [one for one in ends if np.isfinite(one).all()]
    if not known:
        return None
    xs = [place_x(x) for x, _, _ in known]
    lower, upper = ([place_y(one[end]) for one in known] for end in (1, 2))
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
