"""Rows in the terminal, each as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from harness import words
from harness.row import Row

_COLUMNS = {"case": 44, "ours": 26, "beside": 24, "ours takes": 10, "ratio": 20, "quartiles": 18,
            "asked": 12, "": 13}  # fmt: skip
_STYLES = {"met": "green", "not met": "red", "within noise": "yellow", "not measured": "dim"}


def console() -> Console:
    """A console as wide as the table where the output is piped."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=190, no_color=True)


def show(screen: Console, rows: Iterable[Row], *, header: bool) -> None:
    """Prints rows, below the ones printed before."""
    table = Table(box=None, show_header=header, padding=(0, 1, 0, 0), width=min(screen.width, 190))
    for name, share in _COLUMNS.items():
        right = name in ("ours takes", "ratio")
        table.add_column(name, ratio=share, justify="right" if right else "left")
    for row in rows:
        style = _STYLES.get(row.verdict, "")
        cells = (
            row.case,
            row.ours,
            row.other,
            words.amount(row),
            words.ratio(row),
            words.quartiles(row),
            words.asked(row),
        )
        table.add_row(*cells, f"[{style}]{row.verdict}[/]" if style else row.verdict)
    screen.print(table)
    for remark in dict.fromkeys(row.missing or row.note for row in rows):
        if remark:
            screen.print(f"    {remark}", style="dim", markup=False)
