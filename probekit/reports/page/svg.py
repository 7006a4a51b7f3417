"""SVG elements, scales and numbers as text, and the density ridge of the units of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import floor, isfinite, log10
from typing import SupportsFloat, TypeAlias

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from probekit.plot.density import density

UNKNOWN = "\N{EN DASH}"

Array = npt.NDArray[np.float64]
Scale: TypeAlias = Callable[[float], float]

# Maximum number of values with individual marks, and the height below which a density is not drawn.
_RUG = 200
_THIN = 0.004
_POINTS = 97


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
