"""Links, references and shown commands of README.md and docs/."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import probekit as pk
from pages import BLOCKS, LOOPS, PAGES, ROOT, RUN, SHOWN, blocks
from probekit.cli.app import app


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_code_is_in_executed_block_types(page: Path) -> None:
    for block in BLOCKS[page]:
        known = block.language.startswith("{") or block.language in RUN + SHOWN
        assert known, f"{block.place} is of the kind {block.language!r}"
        if block.language in ("text", ""):
            assert not re.match(r"(\$|probekit|import|pip|python) ", block.code), block.place


LINKED = [*PAGES, ROOT / "docs" / "llms.txt"]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http", "mailto:")):
            assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:probekit|tests|benchmarks|examples|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_and_options_in_text_and_tables_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\bpk\.((?:plot\.)?\w+)", text):
        operator.attrgetter(name)(pk)
    commands = typer.main.get_command(app).commands
    for name, rest in re.findall(r"\bprobekit (\w+)([^`|#\n]*)", text):
        if name in commands:
            known = {
                option for one in commands[name].params for option in one.opts + one.secondary_opts
            }
            assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", rest)) <= known | {"--help"}, rest


def test_the_readme_shows_every_command() -> None:
    commands = [one.code for one in BLOCKS[ROOT / "README.md"] if one.language == "sh"]
    shown = set(re.findall(r"^probekit (\w+) ", "\n".join(commands), re.M))
    assert {"analyze", "layers", "record", "robustness", "sweep", "train"} <= shown
    for name in shown:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_a_page_is_parsed_with_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n<!-- setup:\nx = 1\n-->\n\n```python\nprint(x)\n```\n\n```output\n1\n```\n\n"
        "<!-- not run: needs a moon -->\n<!-- exit: 2 -->\n```sh\nprobekit\n```\n\ntext\n```sh\nls\n```\n"
    )
    found = blocks(page)
    assert [one.code for one in found] == ["x = 1", "print(x)", "probekit", "ls"]
    assert [one.output for one in found] == [None, "1", None, None]
    assert found[2].marks == {"not run": "needs a moon", "exit": "2"}
    assert found[3].marks == {}


def test_every_kind_of_loop_is_shown_in_few_lines() -> None:
    loops = {
        one.marks["run"]: one.code
        for one in BLOCKS[ROOT / "docs" / "regularizer.md"]
        if "run" in one.marks
    }
    assert tuple(loops) == LOOPS
    for kind, code in loops.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= (
            16 if kind == "parts" else 12
        )
        if kind in ("timm", "lightning"):
            hook = code.split("\n\n", 1)[1]
            assert len([line for line in hook.splitlines() if line.strip()]) <= 10


def test_the_page_of_commands_shows_every_command() -> None:
    rows = re.findall(r"^\| `probekit (\w+)", (ROOT / "docs" / "commands.md").read_text(), re.M)
    names = [one.name or one.callback.__name__ for one in app.registered_commands]
    assert sorted(rows) == sorted(names)


def test_references_in_reliability_exist() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(?:[\w/.]+::)?(test_\w+)`", page)
    assert len(named) > 10
    for name in named:
        assert f"def {name}(" in sources, name


def _messages(source: str) -> Iterator[str]:
    """The string literals of a source file, with `...` for formatted values."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values
            )


def test_the_page_of_errors_quotes_messages_of_the_package() -> None:
    page = (ROOT / "docs" / "errors.md").read_text().partition("## Frequent messages")[2]
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.M)
    sources = (path.read_text() for path in (ROOT / "probekit").rglob("*.py"))
    messages = "\n".join(one for source in sources for one in _messages(source))
    assert len(quoted) > 5
    assert [one for one in quoted if one not in messages] == []
