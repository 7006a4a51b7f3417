"""The table of a sweep, computed from the files of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from probekit.errors import OutputError, foreign_file
from probekit.results.folders import FAILURES, check_same, read_failures, read_identity
from probekit.results.labels import attributes, strings
from probekit.results.provenance import provenance
from probekit.training.regularizer.schedule import written
from probekit.training.run.directory import IGNORED, RUN, Run, read_run

IDENTITY = "sweep.json"
TABLE = "sweep.nc"
_OF_RUNS = {
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "best_epoch": "best epoch",
    "selectivity_mean": "mean class selectivity index",
}
_OF_LAYERS = {"selectivity": "mean class selectivity index", "dead_units": "dead units"}
_LABELS = _OF_RUNS | _OF_LAYERS | {"failure": "reason of the failure"}


def run_folder(out: str | Path, alpha: float, seed: int) -> Path:
    return Path(out, "runs", f"alpha_{written(alpha)}_seed_{seed}")


def run_key(alpha: float, seed: int) -> str:
    """The key of a run in a list of all runs."""
    return f"{written(alpha)}|{seed}"


def sweep_table(out: str | Path) -> xr.Dataset:
    """The table of a sweep, from the current state of the runs in its folder."""
    folder = Path(out)
    ended = ended_runs(folder)
    failures = {}
    with foreign_file(f"{str(folder / FAILURES)!r} is damaged", OutputError, "; remove it"):
        for key, why in read_failures(folder).items():
            alpha, _, seed = key.partition("|")
            failures[float(alpha), int(seed)] = why
    runs: dict[tuple[float, int], Run | None] = dict.fromkeys(failures)
    runs |= {(run.alpha or 0.0, run.seed): run for run in ended}
    if not runs:
        raise OutputError(f"no run of the sweep in {str(folder)!r} has ended")
    layers = list(ended[0].selectivity) if ended else []
    rows = [
        # A run may have ended on a cluster after this process noted a failure of an earlier try.
        outcomes(run, layers).assign(failure="" if run else failures[place])
        for place, run in runs.items()
    ]
    alphas, seeds = zip(*runs, strict=True)
    table = grid(xr.concat(rows, "run"), "alpha", np.array(alphas), seeds)
    for name in ("best_epoch", "dead_units"):
        if table[name].notnull().all():
            table[name] = table[name].astype(np.int64)
    table["failure"] = table["failure"].astype(object).fillna("")
    for name, long_name in _LABELS.items():
        table[name].attrs = attributes(long_name)
    identity = read_identity(folder / IDENTITY, "sweep")
    return table.assign_attrs(provenance=provenance(**identity))


def ended_runs(out: str | Path) -> list[Run]:
    """The finished runs of a sweep, each checked to belong to it and to be in the folder of its name."""
    identity = read_identity(Path(out, IDENTITY), "sweep")
    with foreign_file(f"{str(Path(out, IDENTITY))!r} is damaged", OutputError):
        # Each run has the precision of its machine.
        chosen = ["recipe.precision"] if identity["recipe"]["precision"] == "auto" else []
    runs = []
    for path in sorted(Path(out, "runs").iterdir()):
        run = read_run(path)
        if run is None:
            continue
        if run.alpha is None or run_folder(out, run.alpha, run.seed).name != path.name:
            raise OutputError(
                f"{str(path)!r} holds a run with alpha {run.alpha_schedule} and seed {run.seed}; move it "
                "away, or name the folder accordingly"
            )
        ignored = [*IGNORED, "alpha_schedule", "seed", *chosen]
        check_same(path / RUN, identity, "training run", ignored)
        runs.append(run)
    return runs


def outcomes(run: Run | None, layers: Sequence[str]) -> xr.Dataset:
    """The results of a run, also per `layer`; NaN for a run that failed."""
    table = xr.Dataset(coords={"layer": strings(layers)})
    for name in _OF_RUNS:
        value = getattr(run, name, None)
        table[name] = np.nan if value is None else float(value)
    for name in _OF_LAYERS:
        values = getattr(run, name, {})
        table[name] = ("layer", np.array([values.get(layer, np.nan) for layer in layers], float))
    return table


def grid(table: xr.Dataset, axis: str, values: npt.ArrayLike, seeds: Sequence[int]) -> xr.Dataset:
    """Reshapes a table over `run` to one over an axis and `seed`."""
    table = table.assign_coords({axis: ("run", values), "seed": ("run", list(seeds))})
    found: xr.Dataset = table.set_index(run=[axis, "seed"]).unstack("run")
    return found.transpose(axis, "seed", ...)
