"""The table of a sweep, made of what its runs have written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from probekit.errors import OutputError, foreign_file
from probekit.results.labels import strings
from probekit.results.provenance import provenance
from probekit.results.trees import netcdf
from probekit.training.run.checkpoint import write_text, write_whole
from probekit.training.run.folder import Run, read_run

__all__ = [
    "IDENTITY",
    "read_failures",
    "run_folder",
    "run_key",
    "sweep_table",
    "write_failures",
    "write_table",
]

IDENTITY = "sweep.json"
FAILURES = "failures.json"
TABLE = "sweep.nc"


def run_folder(out: str | Path, alpha: float, seed: int) -> Path:
    """The folder of one run of a sweep.

    >>> run_folder("sweep", -0.5, 3).name
    'alpha_-0.5_seed_3'
    """
    return Path(out, "runs", f"alpha_{_number(alpha)}_seed_{seed}")


def _number(alpha: float) -> str:
    return repr(float(alpha) + 0.0).removesuffix(".0")


def run_key(alpha: float, seed: int) -> str:
    """What a run is called where all are in one list."""
    return f"{_number(alpha)}|{seed}"


def sweep_table(out: str | Path) -> xr.Dataset:
    """The table of a sweep, from the runs in its folder as they are now.

    Raises:
        OutputError: The folder is no sweep.
    """
    folder = Path(out)
    if not (folder / IDENTITY).is_file():
        raise OutputError(f"{str(folder)!r} is not a sweep: it has no {IDENTITY}")
    runs = [run for path in (folder / "runs").iterdir() if (run := read_run(path)) is not None]
    failures = read_failures(folder)
    failed = [_alpha_and_seed(key) for key in failures]
    alphas = sorted({_alpha(run) for run in runs} | {alpha for alpha, _ in failed})
    seeds = sorted({run.seed for run in runs} | {seed for _, seed in failed})
    layers = list(runs[0].selectivity) if runs else []
    table = _empty_table(alphas, seeds, layers)
    for run in runs:
        here = {"alpha": _alpha(run), "seed": run.seed}
        for name in ("test_accuracy", "validation_accuracy", "best_epoch", "selectivity_mean"):
            value = getattr(run, name)
            if value is not None:
                table[name].loc[here] = value
        for name in ("selectivity", "dead_units"):
            values = getattr(run, name)
            table[name].loc[here] = [values[layer] for layer in layers]
    for (alpha, seed), why in zip(failed, failures.values(), strict=True):
        table["failure"].loc[{"alpha": alpha, "seed": seed}] = why
    with foreign_file(f"{str(folder / IDENTITY)!r} is damaged", OutputError):
        table.attrs["provenance"] = provenance(**json.loads((folder / IDENTITY).read_text()))
    return table


def _alpha(run: Run) -> float:
    if run.alpha is None:
        raise OutputError(f"{str(run.folder)!r} follows a schedule and is no run of a sweep")
    return run.alpha


def _empty_table(
    alphas: Sequence[float], seeds: Sequence[int], layers: Sequence[str]
) -> xr.Dataset:
    grid, by_layer = (len(alphas), len(seeds)), (len(alphas), len(seeds), len(layers))
    one, each = ("alpha", "seed"), ("alpha", "seed", "layer")
    return xr.Dataset(
        {
            "test_accuracy": (one, np.full(grid, np.nan)),
            "validation_accuracy": (one, np.full(grid, np.nan)),
            "best_epoch": (one, np.full(grid, -1)),
            "selectivity_mean": (one, np.full(grid, np.nan)),
            "selectivity": (each, np.full(by_layer, np.nan)),
            "dead_units": (each, np.full(by_layer, -1)),
            "failure": (one, np.full(grid, "", dtype=object)),
        },
        coords={
            "alpha": np.array(alphas, dtype=float),
            "seed": np.array(seeds, dtype=np.int64),
            "layer": strings(layers),
        },
    )


def write_table(folder: Path, table: xr.Dataset) -> None:
    """Writes the table of a sweep, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_whole(folder / TABLE, netcdf(table))


def read_failures(folder: Path) -> dict[str, str]:
    """Why runs of a sweep failed, by `run_key`."""
    file = folder / FAILURES
    if not file.is_file():
        return {}
    with foreign_file(f"{str(file)!r} is damaged", OutputError, "; remove it"):
        found = {str(key): str(why) for key, why in json.loads(file.read_text()).items()}
        for key in found:
            _alpha_and_seed(key)
    return found


def _alpha_and_seed(key: str) -> tuple[float, int]:
    """What `run_key` was made of."""
    alpha, _, seed = key.partition("|")
    return float(alpha), int(seed)


def write_failures(folder: Path, failures: Mapping[str, str]) -> None:
    """Writes them; nothing where there never were any."""
    if failures or (folder / FAILURES).exists():
        write_text(folder / FAILURES, json.dumps(dict(failures), indent=2) + "\n")
