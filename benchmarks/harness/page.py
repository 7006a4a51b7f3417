"""The page of the documentation that shows what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from harness import words
from harness.kept import Kept
from harness.question import Question
from harness.row import Row


@dataclass(frozen=True)
class Line:
    """A line of a table: a comparison on the CPU, on a GPU, or both."""

    cpu: Row | None
    gpu: Row | None

    @property
    def row(self) -> Row:
        """The one that names the comparison."""
        found = self.cpu or self.gpu
        assert found is not None
        return found


@dataclass(frozen=True)
class Section:
    """What the page says of one question."""

    question: Question
    lines: Sequence[Line]

    @property
    def has_gpu(self) -> bool:
        """Whether anything was measured on a GPU."""
        return any(line.gpu for line in self.lines)

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """What else was seen, with the cases of which it is true; none are named if that is all."""
        found: dict[str, dict[str, None]] = {}
        places = set()
        for line in self.lines:
            for row in filter(None, (line.cpu, line.gpu)):
                place = f"{row.case}, GPU" if row.device == "cuda" else row.case
                places.add(place)
                if text := row.missing or row.note:
                    found.setdefault(text, {})[place] = None
        return [
            ("" if set(where) == places else "; ".join(where), text)
            for text, where in found.items()
        ]


def render(questions: Sequence[Question], kept: Kept) -> str:
    """The page in Markdown."""
    sections = [Section(one, lines_of(one, kept.rows)) for one in questions]
    shown = [row for row in kept.rows if row.question in {one.name for one in questions}]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("page.md.j2")
    return template.render(
        sections=[one for one in sections if one.lines],
        questions=questions,
        runs=[facts for name, facts in sorted(kept.runs.items()) if _used(name, shown)],
        verdicts=Counter(row.verdict for row in shown if row.bound is not None),
        bounds=sum(row.bound is not None for row in shown),
        cell=cell,
        words=words,
    )


def lines_of(question: Question, rows: Sequence[Row]) -> list[Line]:
    """The rows of a question, with those of a GPU beside those of the CPU."""
    found: dict[Any, dict[str, Row]] = {}
    for row in rows:
        if row.question == question.name:
            found.setdefault((row.case, row.ours, row.other), {})[row.device] = row
    return [Line(pair.get("cpu"), pair.get("cuda")) for pair in found.values()]


def cell(row: Row | None) -> str:
    """Ratio, quartiles and verdict in one cell."""
    if row is None:
        return ""
    spread = f" ({words.quartiles(row)})" if words.quartiles(row) else ""
    verdict = {"": "", "met": ", met", "not met": ", **not met**"}
    if row.ratio is None:
        return "not measured"
    return f"{words.ratio(row)}{spread}{verdict.get(row.verdict, f', {row.verdict}')}"


def _used(run: str, rows: Sequence[Row]) -> bool:
    return any(row.run == run for row in rows)
