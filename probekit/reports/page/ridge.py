"""The shape of a layer: how a number is spread over its units, on the scale of its column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from probekit.reports.page.figures import density, element, path, ticks

__all__ = ["axis", "ridge"]

_RUG = 200
_THIN = 0.004


def ridge(
    values: npt.NDArray[np.float64],
    low: float,
    high: float,
    mean: float,
    ends: tuple[float, float] | None = None,
    height: int = 34,
) -> Markup:
    """The units of a layer as a density with a rug, their mean, and its interval.

    Args:
        values: One number a unit.
        low: Where the range begins.
        high: Where it ends.
        mean: Drawn as a dot.
        ends: Drawn as a line.
        height: Of the row, in pixels.
    """
    grid, heights = density(values, low, high)
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
    known = np.unique(values[np.isfinite(values)].clip(low, high).round(4))
    if 0 < len(known) <= _RUG:
        marks = "".join(f"M{(x - low) / (high - low) * 100:.2f} {base + 1}v3.5" for x in known)
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
    """The numbers above a column of ridges."""
    marks = ticks(low, high)
    texts = [
        element(
            "text",
            f"{mark:g}".replace("-", "\N{MINUS SIGN}"),
            x=percent_of(mark, low, high),
            y=11,
            text_anchor="start" if mark <= low else "end" if mark >= high else "middle",
        )
        for mark in marks
    ]
    return element("svg", *texts, class_="axis", width="100%", height=14, aria_hidden="true")


def percent_of(value: float, low: float, high: float) -> str:
    """Where a value lies in a range, as a length in SVG."""
    return f"{max(0.0, min((value - low) / (high - low), 1.0)) * 100:.2f}%"
