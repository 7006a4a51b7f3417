"""Stored results: a JSON file of rows and runs, and the documentation page that shows them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from headlines import headlines

from harness.row import Question, Row

Line = tuple[Row | None, Row | None]


class Results:
    """Rows in a file; new rows replace old ones, and every case is saved when it is done.

    Args:
        path: The file; None to store nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: list[Row] = []
        self.runs: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            self.runs = stored["runs"]
            self.rows = [Row.from_plain(plain) for plain in stored["rows"]]

    def add(self, run: str, facts: dict[str, Any], rows: Iterable[Row]) -> None:
        """Adds the rows of a finished case, replacing its previous rows."""
        new = [replace(row, run=run) for row in rows]
        cases = {_case(row) for row in new}
        places = [i for i, row in enumerate(self.rows) if _case(row) in cases]
        others = [row for row in self.rows if _case(row) not in cases]
        place = places[0] if places else len(others)
        self.rows = [*others[:place], *new, *others[place:]]
        self.runs[run] = facts
        self._save()

    def drop_others(self, question: str, device: str, cases: set[str]) -> None:
        """Removes cases that a question no longer has."""
        asked = (question, device)
        self.rows = [x for x in self.rows if (x.question, x.device) != asked or x.case in cases]
        self._save()

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


def render(questions: Sequence[Question], results: Results) -> str:
    """The page in Markdown."""
    sections = [(one, lines_of(one, results.rows)) for one in questions]
    rows = [row for row in results.rows if row.question in {one.name for one in questions}]
    bounded = [row for row in rows if row.bound is not None]
    used = {row.run for row in rows}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.md.j2").render(
        sections=[(question, lines, remarks(lines)) for question, lines in sections if lines],
        questions=questions,
        runs=[facts for name, facts in sorted(results.runs.items()) if name in used],
        verdicts=Counter(row.verdict for row in bounded),
        bounds=len(bounded),
        headlines=headlines(rows),
        cell=cell,
    )


def lines_of(question: Question, rows: Sequence[Row]) -> list[Line]:
    """The rows of a question, with the results of a GPU next to those of the CPU."""
    found: dict[Any, dict[str, Row]] = {}
    for row in rows:
        if row.question == question.name:
            found.setdefault((row.case, row.ours, row.other), {})[row.device] = row
    return [(pair.get("cpu"), pair.get("cuda")) for pair in found.values()]


def remarks(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """The notes of rows with their cases; cases are omitted if a note applies to all."""
    found: dict[str, dict[str, None]] = {}
    places = set()
    for row in (row for line in lines for row in line if row is not None):
        place = f"{row.case}, GPU" if row.device == "cuda" else row.case
        places.add(place)
        if text := row.missing or row.note:
            found.setdefault(text, {})[place] = None
    return [
        ("" if set(where) == places else "; ".join(where), text) for text, where in found.items()
    ]


def cell(row: Row | None) -> str:
    """The ratio, quartiles and verdict as one table cell."""
    if row is None:
        return ""
    if row.ratio is None:
        return "not measured"
    verdict = f"**{row.verdict}**" if row.verdict == "not met" else row.verdict
    spread = f" ({row.quartiles})" if row.quartiles else ""
    return row.shown_ratio + spread + (f", {verdict}" if verdict else "")
