"""The page about metrics and statistics of one's own runs from top to bottom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probekit.metrics import registry

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def no_metric_stays() -> Iterator[None]:
    known = {*registry._REGISTERED, *registry.BUILT_IN}
    yield
    for name in {*registry._REGISTERED} - known:
        del registry._REGISTERED[name]


@pytest.mark.slow
def test_its_code_runs_as_one_program(no_metric_stays: None, capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 10
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "selectivity_margin" in printed
    assert "unit metric 'forgetful' must return numbers with the dimension 'unit'" in printed
    assert 0 < namespace["result"]["layers"]["monopoly"].max() <= 1


def test_its_links_and_paths_lead_somewhere() -> None:
    root = PAGE.parents[1]
    for path in re.findall(r"`((?:probekit|tests)/[\w./]+)`", PAGE.read_text()):
        assert (root / path).exists(), path
