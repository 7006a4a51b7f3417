"""Progress bars are shown on a terminal and in a notebook, and nowhere else."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm.auto import tqdm

import probekit
from probekit.progress import hidden


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_a_terminal_shows_a_bar_that_is_wanted(progress: bool, shown: bool) -> None:
    screen = Terminal()
    list(tqdm(range(3), file=screen, disable=hidden(progress)))
    assert ("3/3" in screen.getvalue()) is shown


def test_a_file_has_no_bar() -> None:
    file = io.StringIO()
    list(tqdm(range(3), file=file, disable=hidden(True)))
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("shell", "shown"),
    [(SimpleNamespace(kernel=object()), True), (SimpleNamespace(), False), (None, False)],
)
def test_a_notebook_shows_it_and_a_python_shell_in_a_pipe_does_not(
    shell: object, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    file = io.StringIO()
    list(tqdm(range(3), file=file, disable=hidden(True)))
    assert ("3/3" in file.getvalue()) is shown


def test_every_bar_asks_here() -> None:
    package = Path(probekit.__file__).parent
    lines = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if "disable=" in line and "disable=hidden(" not in line
    ]
    assert lines == []


@pytest.mark.slow
def test_a_kernel_gets_the_notebooks_own_bar() -> None:
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    kernel, client = manager.start_new_kernel(startup_timeout=120)
    code = (
        "from tqdm.auto import tqdm\n"
        "from probekit.progress import hidden\n"
        "bar = tqdm(range(3), disable=hidden(True))\n"
        "list(bar)\n"
        "print(type(bar).__module__, bar.disable)"
    )
    told: list[str] = []

    def hear(message: dict) -> None:
        content = message["content"]
        told.extend(content.get("text", "").split())
        told.extend(content.get("data", {}))

    try:
        client.execute_interactive(code, output_hook=hear, timeout=120)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert "application/vnd.jupyter.widget-view+json" in told
    assert "tqdm.notebook" in told
    assert "False" in told
