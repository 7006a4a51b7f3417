"""Processes of the training tests that start and stop quickly."""

from __future__ import annotations

import multiprocessing
import os
import time
from typing import Any

import pytest

_IMPORTED = [
    "accelerate",
    "distributed",
    "sklearn.datasets",
    "probekit.analysis.analyze",
    "probekit.training.run.train",
]


@pytest.fixture(scope="session")
def processes() -> Any:
    """A context whose processes start with one thread and with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    first = context.Process(target=time.time)
    first.start()
    first.join()
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = threads
    return context
