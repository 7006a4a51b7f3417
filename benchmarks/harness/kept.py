"""Results that are kept: one JSON file of rows and of the runs that measured them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.row import Row


class Kept:
    """Rows in a file; a new row takes the place of the old one, and every case is saved when done.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: list[Row] = []
        self.runs: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            self.runs = stored["runs"]
            self.rows = [Row.from_plain(plain) for plain in stored["rows"]]

    def put(self, run: str, facts: dict[str, Any], rows: Iterable[Row]) -> None:
        """Takes in the rows of a case that is done."""
        new = [replace(row, run=run) for row in rows]
        cases = {(row.question, row.case, row.device) for row in new}
        places = [i for i, row in enumerate(self.rows) if _case(row) in cases]
        kept = [row for row in self.rows if _case(row) not in cases]
        place = places[0] if places else len(kept)
        self.rows = [*kept[:place], *new, *kept[place:]]
        self.runs[run] = facts
        self._save()

    def keep_only(self, question: str, device: str, cases: set[str]) -> None:
        """Drops cases that a question does not have any more."""
        self.rows = [
            row
            for row in self.rows
            if (row.question, row.device) != (question, device) or row.case in cases
        ]
        self._save()

    def has(self, question: str, case: str, device: str, commit: str) -> bool:
        """Whether a case was measured, with all its peers, at a commit."""
        rows = [row for row in self.rows if _case(row) == (question, case, device)]
        return bool(rows) and all(
            self.runs[row.run]["commit"] == commit and not row.missing for row in rows
        )

    def _save(self) -> None:
        if self._path is None:
            return
        used = {row.run for row in self.rows}
        stored = {
            "runs": {name: facts for name, facts in sorted(self.runs.items()) if name in used},
            "rows": [row.to_plain() for row in self.rows],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps(stored, indent=1) + "\n")
        os.replace(part, self._path)


def _case(row: Row) -> tuple[str, str, str]:
    return row.question, row.case, row.device
