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


class Results:
    """Rows in a file, or only in memory; new rows replace old ones when a case is done."""

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
        replaced = [_case(row) in {_case(row) for row in new} for row in self.rows]
        others = [row for row, old in zip(self.rows, replaced, strict=True) if not old]
        place = replaced.index(True) if any(replaced) else len(others)
        self.rows = [*others[:place], *new, *others[place:]]
        self.runs[run] = facts
        self._save()

    def drop_others(self, question: str, cases: set[str]) -> None:
        """Removes cases that a question no longer has."""
        self.rows = [row for row in self.rows if row.question != question or row.case in cases]
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


def _case(row: Row) -> tuple[str, str]:
    return row.question, row.case


def render(questions: Sequence[Question], results: Results) -> str:
    """The page in Markdown."""
    by_question = {
        question: [row for row in results.rows if row.question == question.name]
        for question in questions
    }
    rows = [row for own in by_question.values() for row in own]
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
        sections=[(question, own, remarks(own)) for question, own in by_question.items() if own],
        questions=questions,
        runs=[facts for name, facts in sorted(results.runs.items()) if name in used],
        verdicts=Counter(row.verdict for row in bounded),
        bounds=len(bounded),
        headlines=headlines(rows),
    )


def remarks(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The notes of rows with their cases; cases are omitted if a note applies to all."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if text := row.missing or row.note:
            found.setdefault(text, {})[row.case] = None
    every = {row.case for row in rows}
    return [
        ("" if set(cases) == every else "; ".join(cases), text) for text, cases in found.items()
    ]
