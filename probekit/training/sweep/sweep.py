"""Runs of one recipe over alphas and seeds, and a table of their results."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from numbers import Real
from pathlib import Path
from typing import Any
from uuid import uuid4

import xarray as xr
from tqdm.auto import tqdm

from probekit.checks import non_negative_int, positive_int
from probekit.errors import (
    DataError,
    LayerError,
    ModelError,
    OptionError,
    OutputError,
    ProbekitError,
    warn,
)
from probekit.extras import optional
from probekit.runtime.progress import hidden
from probekit.training.regularizer.schedule import AlphaSchedule
from probekit.training.run.directory import (
    check_same,
    layer_names,
    locked,
    other_files,
    read_run,
    write_whole,
)
from probekit.training.run.recipes import Recipe, get_recipe
from probekit.training.sweep.table import (
    IDENTITY,
    read_failures,
    run_folder,
    run_key,
    write_failures,
    write_table,
)

_RUN_OPTIONS = (
    "data_root", "device", "layers", "workers", "checkpoint_minutes", "cuda_graph", "tensorboard",
)  # fmt: skip
# PyTorch and accelerate have one random state per process: runs in threads must take turns.
_ONE_AT_A_TIME = threading.Lock()
_PATIENCE = "20s"


def sweep(
    recipe: str | Recipe,
    alphas: Sequence[float],
    seeds: Sequence[int],
    out: str | Path,
    *,
    jobs: int = 1,
    scheduler: Any = None,
    retries: int = 2,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Trains one run for each alpha and seed; resumes an interrupted sweep.

    Each run has its folder in `out/runs`. `out/sweep.nc` holds the table of all runs that have ended,
    and is rewritten whenever a run ends. A run that fails (for example, because its loss became NaN)
    is reported in the table, and the others continue.

    Args:
        recipe: A name (`list_recipes()`) or a `Recipe`.
        alphas: Distinct numbers.
        seeds: Distinct non-negative integers.
        out: The folder of the sweep. Alphas and seeds may be added later.
        jobs: Number of runs to train in parallel on this machine, each in its own process; the cores
            are divided among them. Small networks leave most of a GPU idle, and two runs with one core
            each are more efficient than one run with two cores.
        scheduler: The address of a dask scheduler, or a `distributed.Client`, to which runs are sent;
            its workers must have access to the folder. If a worker dies, another one resumes its run
            from the last checkpoint. None trains on this machine.
        retries: Maximum number of retries for a run that failed for a temporary reason.
        progress: Show a progress bar when on a terminal.
        **options: Options for `train`: `data_root`, `device`, `layers`, ... or any field of the recipe.

    Returns:
        A dataset over `alpha`, `seed` and `layer`: `test_accuracy`, `validation_accuracy`,
        `best_epoch`, `selectivity_mean` (alpha, seed), `selectivity`, `dead_units` (alpha, seed,
        layer), and `failure` (alpha, seed), an empty string if there was none. Values of runs that have
        not ended are NaN, or -1 for integers.

    Raises:
        OptionError: There are no alphas or seeds, or one is repeated or out of range.
        OutputError: The folder holds another sweep, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = sweep("resnet20-digits", [0.0], [0], folder, epochs=1, limit=64,
        ...                   architecture="resnet8", device="cpu", progress=False)
        >>> dict(table["test_accuracy"].sizes)
        {'alpha': 1, 'seed': 1}
    """
    alphas, seeds = _checked(alphas, seeds)
    of_train = {name: options.pop(name) for name in _RUN_OPTIONS if name in options}
    if "alpha_schedule" in options:
        raise OptionError("a sweep goes over constant alphas; train a schedule with train()")
    chosen = get_recipe(recipe, **{name: x for name, x in options.items() if x is not None})
    if of_train.get("data_root") is not None:
        # Workers on other machines may have another working directory.
        of_train["data_root"] = str(Path(of_train["data_root"]).resolve())
    if scheduler is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            "a sweep is started as one process, not under torchrun or accelerate launch; pass "
            "scheduler=ADDRESS (--scheduler) to use several"
        )
    positive_int("jobs", jobs)
    if scheduler is not None and jobs > 1:
        raise OptionError(
            "a sweep is trained by jobs on this machine or by a scheduler, not by both"
        )
    if scheduler is not None or jobs > 1:
        with optional("distributed", "a sweep with several jobs or a scheduler"):
            import distributed  # noqa: F401
    folder = Path(out)
    grid = [(alpha, seed) for seed in seeds for alpha in alphas]
    identity = {"recipe": chosen.facts(), "layers": layer_names(of_train.get("layers"))}
    with _claimed(folder, identity):
        waiting = [run for run in grid if read_run(run_folder(folder, *run)) is None]
        if scheduler is None and jobs == 1:
            ended = _local(chosen, waiting, folder, of_train)
        else:
            cluster = _client(scheduler) if scheduler is not None else _workers(int(jobs))
            ended = _remote(chosen, waiting, folder, of_train, cluster=cluster, retries=retries)
        bar = tqdm(
            ended,
            total=len(grid),
            initial=len(grid) - len(waiting),
            desc=f"sweep {chosen.name}",
            unit="run",
            disable=hidden(progress),
        )
        with bar, closing(ended):
            for alpha, seed, failure in bar:
                _add_to_table(folder, alpha, seed, failure)
        table = write_table(folder)
    _warn_of_failures(table, grid)
    return table


def _add_to_table(folder: Path, alpha: float, seed: int, failure: str) -> None:
    """Updates the table after a run."""
    failures = read_failures(folder)
    failures.pop(run_key(alpha, seed), None)
    if failure:
        failures[run_key(alpha, seed)] = failure
    write_failures(folder, failures)
    write_table(folder)


def _warn_of_failures(table: xr.Dataset, grid: Sequence[tuple[float, int]]) -> None:
    every = [(a, s, str(table["failure"].sel(alpha=a, seed=s).values)) for a, s in grid]
    bad = [(alpha, seed, why) for alpha, seed, why in every if why]
    if bad:
        alpha, seed, why = bad[0]
        warn(f"{len(bad)} of {len(grid)} runs failed; alpha {alpha:g}, seed {seed}: {why}")


def _checked(alphas: Any, seeds: Any) -> tuple[list[float], list[int]]:
    for name, values in (("alphas", alphas), ("seeds", seeds)):
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise OptionError(f"{name} is a list of numbers, not {values!r}")
    plain = [float(a) if isinstance(a, Real) and not isinstance(a, bool) else a for a in alphas]
    numbers = [AlphaSchedule.constant(alpha).alpha(0) + 0.0 for alpha in plain]
    whole = [non_negative_int("every seed", seed) for seed in seeds]
    for name, found in (("alphas", numbers), ("seeds", whole)):
        if not found or len(set(found)) < len(found):
            raise OptionError(f"{name} must be one or more different numbers, not {found}")
    return numbers, whole


@contextmanager
def _claimed(folder: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Creates the folder of a sweep, or checks that it belongs to it, and locks it for this process."""
    file = folder / IDENTITY
    others = [] if os.path.isfile(file) else [x for x in other_files(folder) if x != "runs"]
    if others:
        raise OutputError(f"{str(folder)!r} is no sweep and not empty (it holds {others[0]})")
    with locked(file):
        if file.is_file():
            check_same(file, identity, "sweep")
        else:
            (folder / "runs").mkdir(exist_ok=True)
            write_whole(file, json.dumps(identity, indent=2) + "\n")
        yield


def _one_run(
    recipe: Mapping[str, Any], alpha: float, seed: int, folder: str, options: Mapping[str, Any]
) -> str:
    """Trains one run in this process; returns the reason for a failure, or an empty string."""
    from probekit.training.run.train import train

    with _ONE_AT_A_TIME:
        try:
            train(Recipe(**recipe), alpha, seed, folder, progress=False, **options)
        except ProbekitError as error:
            # An invalid option affects all runs; divergence affects only this one.
            if type(error) is not ProbekitError:
                raise
            return str(error)
    return ""


def _local(
    recipe: Recipe,
    waiting: Sequence[tuple[float, int]],
    folder: Path,
    options: Mapping[str, Any],
) -> Generator[tuple[float, int, str]]:
    for alpha, seed in waiting:
        where = str(run_folder(folder, alpha, seed))
        yield alpha, seed, _one_run(recipe.facts(), alpha, seed, where, options)


def _remote(
    recipe: Recipe,
    waiting: Sequence[tuple[float, int]],
    folder: Path,
    options: Mapping[str, Any],
    *,
    cluster: AbstractContextManager[Any],
    retries: int,
) -> Generator[tuple[float, int, str]]:
    """Sends the runs to a cluster; yields them in the order in which they end."""
    from distributed import as_completed

    with cluster as client:
        futures = {
            client.submit(
                _one_run,
                recipe.facts(),
                alpha,
                seed,
                str(run_folder(folder.resolve(), alpha, seed)),
                dict(options),
                key=f"probekit-{recipe.name}-{run_key(alpha, seed)}-{uuid4().hex[:8]}",
                pure=False,
                retries=retries,
            ): (alpha, seed)
            for alpha, seed in waiting
        }
        try:
            for future in as_completed(list(futures)):  # type: ignore[no-untyped-call]
                yield *futures[future], _outcome(future)
        finally:
            client.cancel(list(futures))


def _outcome(future: Any) -> str:
    error = future.exception()
    if error is None:
        return str(future.result())
    if isinstance(error, DataError | LayerError | ModelError | OptionError):
        raise error
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@contextmanager
def _client(scheduler: Any) -> Iterator[Any]:
    """A client of a cluster; a client passed by the caller stays open."""
    from distributed import Client

    if isinstance(scheduler, Client):
        yield scheduler
        return
    try:
        client = Client(scheduler, timeout=_PATIENCE)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise OptionError(
            f"no dask scheduler answers at {scheduler!r} ({error}); start one with `dask scheduler`, "
            "or leave scheduler out to train here"
        ) from None
    with client:
        yield client


@contextmanager
def _workers(jobs: int) -> Iterator[Any]:
    """A client of worker processes on this machine, which share its cores."""
    from distributed import Client, LocalCluster

    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    cluster = LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=jobs,
        threads_per_worker=1,
        memory_limit=None,
        dashboard_address=None,
        env=dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads),
    )
    with cluster, Client(cluster) as client:  # type: ignore[no-untyped-call]
        yield client
