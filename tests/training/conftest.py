"""Shared setup of the training tests: one thread, and processes that start and stop quickly."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

_IMPORTED = [
    "accelerate",
    "distributed",
    "sklearn.datasets",
    "probekit.analysis.analyze",
    "probekit.training.run.train",
]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Results are bitwise equal only if the number of threads is equal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
