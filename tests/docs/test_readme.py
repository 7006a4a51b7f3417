"""The README's Python runs, and its commands are the ones that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from probekit.cli import app

README = Path(__file__).parents[2] / "README.md"


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) >= 2
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert (tmp_path / "result.nc").exists()
    printed = capsys.readouterr().out
    assert "layer1.0.relu_1" in printed
    assert "layer3.2.relu2" in printed


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if not link.startswith("http"):
            assert (README.parent / link).exists(), link


def test_commands_exist() -> None:
    lines = re.findall(r"^probekit (\w+) ", README.read_text(), re.M)
    assert {"analyze", "layers", "record", "robustness", "sweep", "train"} <= set(lines)
    for name in set(lines):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0
