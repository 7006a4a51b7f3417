"""The documentation site builds without warnings and makes no network requests."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import probekit as pk
from children import start_child

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


BUILD = "import sys; from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
# The amounts in the notebooks that decide how long they run, and those that tests use.
AMOUNTS = {
    "limit": 30, "epochs": 1, "probes": 2, "samples": 4, "steps": 2, "permutations": 20, "replicates": 20,
}  # fmt: skip
# What else one of them computes more of, as its file writes it.
FEWER = {
    "alphas = [-1.0, 0.0, 1.0]": "alphas = [0.0, 1.0]",
    r"[\"gaussian_noise\", \"impulse_noise\", \"contrast\", \"pixelate\"]": r"[\"contrast\", \"pixelate\"]",
    "severities=(1, 3, 5)": "severities=(1, 5)",
    r"architecture=\"resnet8\"": r"architecture=\"resnet8\", limit=64",
}


@pytest.fixture(scope="module")
def site(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, whose notebooks use fewer images here."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for notebook in (folder / "docs" / "notebooks").glob("*.ipynb"):
        notebook.write_text(with_small_amounts(notebook.read_text()))
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", "trees", "docs", "html"]
    status, printed, errors = start_child(server, folder, options, code=BUILD).wait()
    assert status == 0, printed + errors
    return folder / "html"


def with_small_amounts(notebook: str) -> str:
    names = "|".join(AMOUNTS)
    smaller, count = re.subn(
        rf"\b({names})=\d+", lambda found: f"{found[1]}={AMOUNTS[found[1]]}", notebook
    )
    assert count > 2
    for shown, used in FEWER.items():
        assert shown in smaller or "alphas" not in smaller
        smaller = smaller.replace(shown, used)
    return smaller


class Requests(HTMLParser):
    """Collects the addresses that a browser requests when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.style = tag == "style"
        self.found += in_styles(given.get("style", ""))
        if tag in FETCHED and not (
            tag == "link" and set(given.get("rel", "").split()) & set(STAYS)
        ):
            self.found += [given.get(FETCHED[tag], ""), *given.get("srcset", "").split(",")]

    def handle_endtag(self, tag: str) -> None:
        self.style = False

    def handle_data(self, data: str) -> None:
        if self.style:
            self.found += in_styles(data)


def fetched(page: str) -> list[str]:
    """External addresses that a browser requests when it shows a page."""
    requests = Requests()
    requests.feed(page)
    requests.close()
    return [one for one in requests.found if ELSEWHERE.match(one)]


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
