"""Numbers of a row as a reader sees them, in the terminal and on the page."""

from __future__ import annotations

from harness.row import Row


def amount(row: Row) -> str:
    """Our median with its unit."""
    if row.value is None:
        return "-"
    if row.unit != "s":
        return f"{row.value:,.0f} {row.unit}" if row.value >= 10 else f"{row.value:.1f} {row.unit}"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if row.value >= size:
            return f"{row.value / size:.3g} {unit}"
    return f"{row.value:.1e} s"


def number(value: float) -> str:
    """A ratio with the digits that matter.

    >>> number(1.0449), number(12.34), number(2204.2)
    ('1.045', '12.3', '2,204')
    """
    return f"{value:.3f}" if value < 3 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ratio(row: Row) -> str:
    """The median ratio."""
    if row.ratio is None:
        return "-"
    return number(row.ratio.middle) + (" times as fast" if row.form == "gain" else "")


def quartiles(row: Row) -> str:
    """The quartiles of the ratio; nothing for a single number."""
    if row.ratio is None or row.rounds == 1:
        return ""
    return f"{number(row.ratio.low)} to {number(row.ratio.high)}"


def asked(row: Row) -> str:
    """The bound."""
    if row.bound is None:
        return ""
    return f"{'at most' if row.form == 'cost' else 'at least'} {row.bound:g}"
