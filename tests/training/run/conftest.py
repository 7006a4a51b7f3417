"""A short training run."""

from __future__ import annotations

from typing import Any

import pytest

from quick_runs import quick


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return quick(tmp_path_factory.mktemp("runs") / "baseline")
