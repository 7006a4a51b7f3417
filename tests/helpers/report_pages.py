"""Reads the report page, as a file and in a browser."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

import probekit as pk


class Tags(HTMLParser):
    """The elements of a page, and its text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.found)


def payload(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), kind)


def columns_of(table: Any) -> dict[str, np.ndarray]:
    return {
        one["name"]: unpacked(one["values"], "<f8" if one["kind"] in ("class", "count") else "<f4")
        for one in table["columns"]
    }


def written(results: Any, folder: Path, **options: Any) -> str:
    return pk.report(results, folder / "report.html", **options).read_text("utf-8")


def column(page: Any, name: str) -> list[str]:
    """The contents of a column in the visible rows."""
    heads = page.locator("#head th")
    names = [heads.nth(at).get_attribute("data-name") for at in range(heads.count())]
    cells = page.locator(f"#body tr[data-place] td:nth-child({names.index(name) + 1})")
    return [text.strip() for text in cells.all_inner_texts()]
