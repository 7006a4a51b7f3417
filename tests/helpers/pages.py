"""The pages of the documentation and their blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("python", "sh")
SHOWN = ("output", "toml", "yaml", "text", "")


@dataclass
class Block:
    """A fenced block of a page, or a hidden setup."""

    page: Path
    line: int
    language: str
    code: str
    marks: dict[str, str] = field(default_factory=dict)
    output: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order, each with its markers and its output block."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    lines = enumerate(page.read_text().splitlines(), 1)
    for number, line in lines:
        if setup := re.match(r"<!-- setup:(.*)$", line):
            code = [setup[1], *(text for _, text in _until(lines, "-->"))]
            found.append(Block(page, number, "python", "\n".join(code).strip()))
        elif mark := re.match(r"<!-- ([a-z ]+?)(?:: (.*))? -->$", line):
            marks[mark[1]] = mark[2] or ""
        elif fence := re.match(r"(```+)\s*(\S*)", line):
            code = "\n".join(text for _, text in _until(lines, fence[1]))
            if fence[2] == "output":
                found[-1].output = code
            else:
                found.append(Block(page, number, fence[2], code, marks))
            marks = {}
        elif line.strip():
            marks = {}
    return found


def _until(lines: Iterator[tuple[int, str]], end: str) -> Iterator[tuple[int, str]]:
    for number, text in lines:
        if text == end:
            return
        yield number, text


BLOCKS = {page: blocks(page) for page in PAGES}

LOOPS = ("plain", "parts", "accelerate", "timm", "lightning")
