"""Jobs whose results are stored in a folder with a table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

from probekit.results.folders import note_failure
from probekit.results.provenance import Table
from probekit.results.trees import write_table
from probekit.runtime.jobs import run_jobs
from probekit.runtime.progress import progress_bar


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
