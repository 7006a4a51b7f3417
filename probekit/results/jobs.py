"""Runs independent jobs one after the other, in processes of this machine, or on a dask cluster.

Their results are stored in a folder with a table of all of them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from probekit.checks import positive_int
from probekit.errors import (
    DataError,
    LayerError,
    ModelError,
    OptionError,
    ProbekitError,
    first_line,
    optional,
)
from probekit.results.folders import note_failure
from probekit.results.provenance import Table
from probekit.results.trees import write_table
from probekit.runtime.progress import progress_bar

K = TypeVar("K", bound=Hashable)
_PATIENCE = "20s"
# PyTorch and accelerate have one random state per process: jobs in threads must take turns.
_TURN = threading.Lock()


def open_cluster(jobs: int, scheduler: Any, what: str) -> AbstractContextManager[Any] | None:
    """The client of the cluster that runs the jobs, opened on entry; None to run them in this process.

    A `distributed.Client` that is given as the scheduler stays open. `what` names the work in messages.
    """
    if scheduler is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"{what} must be started as one process, not under torchrun or accelerate launch; pass "
            "scheduler=ADDRESS (--scheduler) to use several"
        )
    positive_int("jobs", jobs)
    if scheduler is not None and jobs > 1:
        raise OptionError(f"{what} is run by jobs on this machine or by a scheduler, not by both")
    if scheduler is None and jobs == 1:
        return None
    with optional("distributed", f"{what} with several jobs or a scheduler"):
        import distributed  # noqa: F401
    return _client(scheduler) if scheduler is not None else _workers(int(jobs))


def run_jobs(
    work: Callable[..., str],
    tasks: Mapping[K, tuple[Any, ...]],
    cluster: AbstractContextManager[Any] | None = None,
    *,
    name: str = "job",
    retries: int = 2,
) -> Generator[tuple[K, str]]:
    """Calls a function once per task, and yields each key and result when the call ends.

    The function returns the reason of a failure, or an empty string. `tasks` are its arguments by key;
    `cluster` comes from `open_cluster`, on which jobs have names that begin with `name`, and `retries` limits
    retries after an exception or the death of a worker.
    """
    if cluster is None:
        for key, arguments in tasks.items():
            yield key, _in_turn(work, *arguments)
        return
    from distributed import as_completed

    with cluster as client:
        futures = {
            client.submit(
                _in_turn,
                work,
                *arguments,
                key=f"probekit-{name}-{key}-{uuid4().hex[:8]}",
                pure=False,
                retries=retries,
            ): key
            for key, arguments in tasks.items()
        }
        try:
            for future in as_completed(list(futures)):
                yield futures[future], _outcome(future)
        finally:
            client.cancel(list(futures))


def _in_turn(work: Callable[..., str], *arguments: Any) -> str:
    with _TURN:
        return work(*arguments)


def _outcome(future: Any) -> str:
    try:
        return str(future.result())
    except (DataError, LayerError, ModelError, OptionError):
        raise
    except CancelledError:
        raise ProbekitError(
            "the dask scheduler was lost, or it canceled the work; finished work is stored; repeat the "
            "call with a running scheduler to do the rest"
        ) from None
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error) if str(error) else ''}"


@contextmanager
def _client(scheduler: Any) -> Iterator[Any]:
    """A client of a cluster; a client passed by the caller stays open."""
    from distributed import Client

    if isinstance(scheduler, Client):
        yield scheduler
        return
    try:
        client = Client(scheduler, timeout=_PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise OptionError(
            f"no dask scheduler answers at {scheduler!r} ({error}); start one with `dask scheduler`, "
            "or leave scheduler out to run here"
        ) from None
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it prints a traceback when the scheduler is lost
    try:
        with client:
            yield client
    finally:
        log.setLevel(level)


@contextmanager
def _workers(jobs: int) -> Iterator[Any]:
    """A client of worker processes on this machine, which share its cores."""
    from distributed import Client, LocalCluster

    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    cluster = LocalCluster(
        n_workers=jobs,
        threads_per_worker=1,
        memory_limit=None,
        dashboard_address=None,
        env=dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads),
    )
    with cluster, Client(cluster) as client:
        yield client


def run_stored_jobs(
    work: Callable[..., str],
    tasks: Mapping[str, tuple[Any, ...]],
    cluster: AbstractContextManager[Any] | None,
    file: Path,
    table: Callable[[Path], Table],
    *,
    name: str,
    retries: int,
    done: int,
    unit: str,
    progress: bool,
) -> Table:
    """Runs jobs as `run_jobs` does, and rewrites their table and their failures whenever one ends.

    The keys of tasks are those of their failures. `table` computes the table from the folder of its
    file; `done` is the number of jobs that have ended before.
    """
    folder = file.parent
    ended = run_jobs(work, tasks, cluster, name=name, retries=retries)
    bar = progress_bar(
        total=done + len(tasks), initial=done, desc=name, unit=unit, progress=progress
    )
    written = None
    with bar, closing(ended):
        for key, failure in ended:
            note_failure(folder, key, failure)
            written = write_table(file, table(folder))
            bar.update()
    return written if written is not None else write_table(file, table(folder))
