"""Runs of one recipe over alphas and seeds, at the same time if that is faster, and their table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from torch.nn import functional

from probekit.capture.selection import layer_names
from probekit.checks import non_negative_int
from probekit.errors import OptionError, ProbekitError, warn
from probekit.models.architectures import ARCHITECTURES
from probekit.results.folders import claim, locked
from probekit.results.jobs import open_cluster, run_stored_jobs
from probekit.runtime.processes import Machine
from probekit.training.regularizer.schedule import AlphaSchedule
from probekit.training.run.directory import IGNORED, RUN, read_run
from probekit.training.run.minibatches import load_run_data
from probekit.training.run.recipes import Recipe, get_recipe
from probekit.training.run.train import check_same_data, train
from probekit.training.sweep.table import (
    IDENTITY,
    TABLE,
    ended_runs,
    run_folder,
    run_key,
    sweep_table,
)

_RUN_OPTIONS = (
    "data_root", "device", "layers", "workers", "checkpoint_minutes", "cuda_graph", "callbacks",
)  # fmt: skip
_WORTH_STARTING = 120.0
_LARGEST_BATCH = 128


def sweep(
    recipe: str | Recipe,
    alphas: Sequence[float],
    seeds: Sequence[int],
    out: str | Path,
    *,
    jobs: int | Literal["auto"] = 1,
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
            are divided among them. `"auto"` times a step of several networks with one core each and of
            one network with all cores, and uses the faster way; it trains one run after the other on a
            GPU, of which small networks leave most idle, without the package distributed, and for less
            than two minutes of training. With several jobs, a script must start the sweep under
            `if __name__ == "__main__":`, because each process imports it.
        scheduler: The address of a dask scheduler, or a `distributed.Client`, to which runs are sent;
            its workers must have access to the folder. If a worker dies, another one resumes its run
            from the last checkpoint. None trains on this machine.
        retries: Maximum number of retries for a run that failed for a temporary reason.
        progress: Show a progress bar when on a terminal.
        **options: Options for `train`: `data_root`, `device`, `layers`, `callbacks`, ... or any field of
            the recipe. Callbacks follow one run after the other; for other processes, they are pickled.

    Returns:
        A dataset over `alpha`, `seed` and `layer`: `test_accuracy`, `validation_accuracy`,
        `best_epoch`, `selectivity_mean` (alpha, seed), `selectivity`, `dead_units` (alpha, seed,
        layer), and `failure` (alpha, seed), an empty string if there was none. Values of runs that have
        not ended are NaN; counts and epochs are floats then.

    Raises:
        OptionError: There are no alphas or seeds, or one is repeated or out of range.
        OutputError: The folder holds another sweep or runs of one, its runs were trained on other
            images, or it cannot be written.

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
        raise OptionError("a sweep takes constant alphas; use train() for a schedule")
    chosen = get_recipe(recipe, **{name: x for name, x in options.items() if x is not None})
    if of_train.get("data_root") is not None:
        # Workers on other machines may have another working directory.
        of_train["data_root"] = str(Path(of_train["data_root"]).resolve())
    folder = Path(out)
    grid = [(alpha, seed) for seed in seeds for alpha in alphas]
    root, workers = of_train.get("data_root"), of_train.get("workers", 0)
    if jobs == "auto":
        remaining = sum(read_run(run_folder(folder, *one)) is None for one in grid)
        several = scheduler is None and remaining > 1
        jobs = (
            runs_at_once(chosen, remaining, of_train.get("device"), root, workers) if several else 1
        )
    cluster = open_cluster(jobs, scheduler, "a sweep")
    identity = {"recipe": chosen.facts(), "layers": layer_names(of_train.get("layers"), "a sweep")}
    with locked(folder / IDENTITY):
        claim(folder / IDENTITY, identity, "sweep", own=["runs"], ignored=IGNORED, inner=RUN)
        (folder / "runs").mkdir(exist_ok=True)
        ended = ended_runs(folder)
        check_same_data([run.folder for run in ended], chosen, root, workers)
        known = {(run.alpha, run.seed) for run in ended}
        tasks = {
            run_key(alpha, seed): (
                chosen.facts(), alpha, seed, str(run_folder(folder.resolve(), alpha, seed)), of_train
            )
            for alpha, seed in grid
            if (alpha, seed) not in known
        }  # fmt: skip
        table = run_stored_jobs(
            _one_run, tasks, cluster, folder / TABLE, sweep_table, name=f"sweep {chosen.name}",
            retries=retries, done=len(grid) - len(tasks), unit="run", progress=progress,
        )  # fmt: skip
    every = [(a, s, str(table["failure"].sel(alpha=a, seed=s).values)) for a, s in grid]
    if bad := [one for one in every if one[2]]:
        alpha, seed, why = bad[0]
        warn(f"{len(bad)} of {len(grid)} runs failed; alpha {alpha:g}, seed {seed}: {why}")
    return table


def _checked(alphas: Any, seeds: Any) -> tuple[list[float], list[int]]:
    for name, values in (("alphas", alphas), ("seeds", seeds)):
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise OptionError(f"{name} must be a list of numbers, not {values!r}")
    numbers = [AlphaSchedule.constant(alpha).alpha(0) + 0.0 for alpha in alphas]
    whole = [non_negative_int("every seed", seed) for seed in seeds]
    for name, found in (("alphas", numbers), ("seeds", whole)):
        if not found or len(set(found)) < len(found):
            raise OptionError(f"{name} must be one or more different numbers, not {found}")
    return numbers, whole


def _one_run(
    recipe: Mapping[str, Any], alpha: float, seed: int, folder: str, options: Mapping[str, Any]
) -> str:
    """Trains one run in this process; returns the reason for a failure, or an empty string."""
    try:
        train(Recipe(**recipe), alpha, seed, folder, progress=False, **options)
    except ProbekitError as error:
        # An invalid option affects all runs; divergence affects only this one.
        if type(error) is not ProbekitError:
            raise
        return str(error)
    return ""


def runs_at_once(
    recipe: Recipe, runs: int, device: str | None, root: str | None, workers: int
) -> int:
    """The number of runs to train at once: one, or one per core if that is measured to be faster.

    It is one on a GPU, without the package distributed, and for less than two minutes of training.
    """
    threads = torch.get_num_threads()
    several, machine = min(runs, threads), Machine.here(device)
    if several < 2 or find_spec("distributed") is None or machine.device.type != "cpu":
        return 1
    recipe = recipe.on(machine.device)
    alone = _seconds(recipe, 1, threads)
    images = len(load_run_data(recipe, 0, root, workers).train)
    batches = images / min(recipe.batch_size, _LARGEST_BATCH)
    if alone * batches * recipe.epochs * runs < _WORTH_STARTING:
        return 1
    return several if _seconds(recipe, several, threads // several) < several * alone else 1


def _seconds(recipe: Recipe, several: int, threads: int) -> float:
    """The time of one step, with this number of threads, of several networks at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    taken = []
    try:
        with ThreadPoolExecutor(several) as pool, torch.random.fork_rng(devices=[]):
            steps = [_step(recipe) for _ in range(several)]
            for _ in range(3):
                start = time.perf_counter()
                list(pool.map(lambda step: step(), steps))
                taken.append(time.perf_counter() - start)
        return min(taken)
    finally:
        torch.set_num_threads(before)


def _step(recipe: Recipe) -> Callable[[], None]:
    """Forward and backward pass of a new network with random images of a recipe's size."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    classes, batch = 10, min(recipe.batch_size, _LARGEST_BATCH)
    network = ARCHITECTURES[recipe.architecture](classes=classes, channels=recipe.input_size[0])
    network.to(memory_format=layout)
    images = torch.rand(batch, *recipe.input_size).to(memory_format=layout)
    labels = torch.arange(batch) % classes

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss = functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch

    return step
