"""Progress bars are shown only on a terminal and in a notebook."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm.auto import tqdm

import probekit
from probekit.runtime.progress import hidden, print_speed, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_a_terminal_shows_a_requested_bar(progress: bool, shown: bool) -> None:
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
def test_a_notebook_shows_a_bar_and_a_piped_python_shell_does_not(
    shell: object, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    file = io.StringIO()
    list(tqdm(range(3), file=file, disable=hidden(True)))
    assert ("3/3" in file.getvalue()) is shown


@pytest.mark.parametrize(
    ("waited", "limit", "share"), [(0.5, "the model", "5%"), (4.0, "reading the images", "40%")]
)
def test_a_terminal_shows_the_speed_of_a_pass_and_its_limit(
    waited: float, limit: str, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    print_speed(1_000, 10.0, waited, progress=True)
    assert screen.getvalue() == (
        f"1,000 images, 100 per second; {limit} was the limit "
        f"({share} of the time was spent waiting for images)\n"
    )


@pytest.mark.parametrize(("seconds", "shown"), [(59.0, False), (61.0, True)])
def test_a_file_shows_the_speed_of_long_passes_only(
    seconds: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    print_speed(1_000, seconds, 0.0, progress=True)
    assert bool(file.getvalue()) is shown
    print_speed(1_000, seconds, 0.0, progress=False)
    assert file.getvalue().count("\n") == shown


def test_every_bar_uses_hidden() -> None:
    package = Path(probekit.__file__).parent
    lines = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if "disable=" in line and "disable=hidden(" not in line
    ]
    assert lines == []


@pytest.mark.slow
def test_a_kernel_uses_the_notebook_bar() -> None:
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    kernel, client = manager.start_new_kernel(startup_timeout=120)

    def told(module: str, disable: str) -> str:
        """The MIME types and the text that a kernel shows for a bar."""
        code = (
            f"from {module} import tqdm\nfrom probekit.runtime.progress import hidden, progress_bar\n"
            f"list(tqdm(range(3), disable={disable}))"
        )
        parts: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            parts.extend([*message["content"].get("data", {}), message["content"].get("text", "")])

        done = client.execute_interactive(code, output_hook=hear, timeout=120)
        assert done["content"]["status"] == "ok"
        return " ".join(parts)

    widget = "application/vnd.jupyter.widget-view+json"
    try:
        assert widget in told("tqdm.auto", "hidden(True)")
        assert widget not in told("tqdm.auto", "hidden(False)")
        # The fallback when ipywidgets is not installed.
        assert "3/3" in told("tqdm", "hidden(True)")
        assert "3/3" not in told("tqdm", "None"), "tqdm knows a notebook: hidden is not needed"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_piped_output_has_a_line_per_minute_and_short_work_has_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, lines in ((60.0, 0), (0.0, 3)):
        monkeypatch.setattr("probekit.runtime.progress._SECONDS", seconds)
        with progress_bar(progress=True, total=3, desc="analyze", unit="image") as bar:
            for _ in range(3):
                bar.update(1)
        written = capsys.readouterr().err
        assert "\r" not in written
        assert len([line for line in written.splitlines() if "/3 [" in line]) >= lines
        assert bool(written) is bool(lines)
    with progress_bar(progress=False, total=3) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("total", "lines"), [(100, 1), (4, 0)])
def test_piped_output_has_an_early_estimate_of_long_work(
    total: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 6))
    monkeypatch.setattr("probekit.runtime.progress.monotonic", lambda: float(next(clock)))
    with progress_bar(progress=True, total=total) as bar:
        for _ in range(3):
            bar.update(1)
            bar.refresh()
    assert len(capsys.readouterr().err.splitlines()) == lines
