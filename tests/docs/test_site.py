"""The documentation site builds without warnings and makes no network requests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import probekit as pk

pytest.importorskip("sphinx", reason="the site needs the docs extra: pip install '.[docs]'")
pytest.importorskip("furo", reason="the site needs the docs extra: pip install '.[docs]'")
pytest.importorskip("myst_nb", reason="the site needs the docs extra: pip install '.[docs]'")

from bs4 import BeautifulSoup

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(
    str(path.relative_to(DOCS).with_suffix(""))
    for kind in ("*.md", "*.ipynb")
    for path in DOCS.rglob(kind)
    if ".ipynb_checkpoints" not in path.parts
)
# Resources that a browser loads automatically, by the attribute that refers to them.
FETCHED = {
    "audio": "src", "embed": "src", "iframe": "src", "image": "href", "img": "src", "input": "src",
    "link": "href", "object": "data", "script": "src", "source": "src", "track": "src",
    "use": "href", "video": "src",
}  # fmt: skip
STAYS = ("canonical", "edit", "index", "next", "prev", "search")
ELSEWHERE = re.compile(r"^\s*(https?:)?//", re.I)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *command, str(DOCS), str(folder / "html")],
        cwd=DOCS.parent, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def fetched(page: str) -> list[str]:
    """External addresses that a browser requests when it shows a page."""
    found = []
    tree = BeautifulSoup(page, "html.parser")
    for tag in tree.find_all(list(FETCHED)):
        if tag.name == "link" and set(tag.get("rel") or ()) & set(STAYS):
            continue
        found += [tag.get(FETCHED[tag.name]), *str(tag.get("srcset") or "").split(",")]
    for tag in tree.find_all("style"):
        found += in_styles(tag.get_text())
    for tag in tree.find_all(style=True):
        found += in_styles(str(tag["style"]))
    return [str(one) for one in found if one and ELSEWHERE.match(str(one))]


def in_styles(text: str) -> list[str]:
    """The addresses that a style sheet requests."""
    named = re.findall(r"url\(\s*['\"]?([^'\")]+)", text)
    return named + re.findall(r"@import\s+['\"]([^'\"]+)", text)


def test_every_page_exists_and_is_reachable(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / f"{page}.html").is_file()
        assert page == "index" or f'href="{page}.html"' in index, page


def test_nothing_is_requested_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        assert fetched(page.read_text()) == [], page
    for sheet in site.rglob("*.css"):
        assert not [one for one in in_styles(sheet.read_text()) if ELSEWHERE.match(one)], sheet


def test_network_requests_are_detected() -> None:
    page = """<link rel="stylesheet" href="https://a.example/x.css"><script src="//b.example/x.js">
    </script><img src="x.png" srcset="http://c.example/x.png 2x"><a href="https://d.example">d</a>
    <style>@import "https://e.example/f.css"; p {background: url('http://f.example/x.svg')}</style>
    <p style="background: url(https://g.example/x.png)"></p><link rel="next" href="https://h.example">"""
    assert [re.sub(r".*//(.)\..*", r"\1", one) for one in fetched(page)] == list("abcfeg")


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    shown = {
        tag["id"]
        for page in (site / "api").glob("*.html")
        for tag in BeautifulSoup(page.read_text(), "html.parser").find_all("dt", id=True)
    }
    public = {*pk.__all__, *(f"plot.{name}" for name in pk.plot.__all__)} - {"__version__", "plot"}
    assert {name for name in public if f"probekit.{name}" not in shown} == set()


def test_docstrings_keep_their_symbols(site: Path) -> None:
    page = BeautifulSoup((site / "api" / "analysis.html").read_text(), "html.parser").get_text()
    assert "keeps (batch, units, *positions)" in " ".join(page.split())
    assert "in execution order: layer, type, shape" in " ".join(page.split())


def test_only_intended_files_are_published(site: Path) -> None:
    assert not [path for path in site.rglob("*.py") if "_modules" not in path.parts]
    assert not list(site.rglob("*.md"))
