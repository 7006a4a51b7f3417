"""Reports that the tests of the page open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import probekit as pk


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a report."""

    def write(results: Any, **options: Any) -> Path:
        return pk.report(results, tmp_path / "report.html", **options)

    return write


@pytest.fixture(scope="module")
def usual(
    make_result: Callable[..., xr.DataTree], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The report of the usual result, which most tests only open."""
    return pk.report(make_result(), tmp_path_factory.mktemp("usual") / "report.html")
