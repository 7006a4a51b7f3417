"""Commands that fail in this process without changing any files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from probekit.cli.app import app


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder, with its content; None for folders and links."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must fail with one sentence and exit status 2, and without changing any files.

    Returns the sentence.
    """
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, changes: bool = False) -> str:
        before = listing(tmp_path)
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 2, (done.exit_code, done.output, done.exception)
        said = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
        assert len(said) == 1, done.stderr
        assert said[0].startswith("probekit: ")
        assert said[0].isprintable()
        assert "Traceback" not in done.output
        assert changes or listing(tmp_path) == before
        return said[0].removeprefix("probekit: ")

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six valid images of two classes."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (30, 28), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"
