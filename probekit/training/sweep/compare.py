"""Measurements, outcomes and logs of many finished runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from probekit.errors import OptionError, OutputError
from probekit.models.identity import text_of
from probekit.models.loading import load_model
from probekit.results.files import writable
from probekit.results.folders import read_identity
from probekit.results.labels import strings
from probekit.results.provenance import differences, provenance
from probekit.results.trees import write_table
from probekit.runtime.progress import hidden
from probekit.training.run.directory import CARD, IGNORED, RUN, Run, read_card, read_log, read_run
from probekit.training.sweep.table import grid, outcomes

_OF_EPOCHS = (
    "loss", "accuracy", "validation_loss", "validation_accuracy", "selectivity_mean",
    "dead_units_total", "alpha", "seconds",
)  # fmt: skip


def find_runs(folder: str | Path) -> list[Run]:
    """The finished runs in a folder and its subfolders, such as those of a sweep, sorted by name."""
    cards = sorted(Path(folder).rglob(CARD))
    runs = [run for card in cards if (run := read_run(card.parent)) is not None]
    if not runs:
        raise OutputError(f"there is no finished training run in {str(folder)!r}; train some first")
    return runs


def measure_runs(
    folder: str | Path,
    measure: Callable[..., xr.Dataset],
    store: str | Path,
    *,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Measures every finished run of a folder, each only once.

    The result of each run is stored in `store`, under a name that depends on the function's name, the
    options and the network's weights; a lambda, a `functools.partial`, a nested function or an object is
    identified by its values too. An interrupted call resumes where it stopped, and only runs that were
    added later are measured. Changes to the code of a named function are not detected: rename the
    function, or use an empty store.

    Args:
        folder: A sweep, or any folder with runs below it.
        measure: A function `measure(model, **options)` that returns a dataset or array with the same
            dimensions for every run.
        store: The folder of the stored results.
        progress: Show a progress bar when on a terminal.
        **options: Options for `measure`, as plain values that JSON can represent.

    Returns:
        The measurements over `alpha` and `seed` if the runs differ in nothing else; over `variant` and
        `seed` if all are in folders `VARIANT/seed_N`; otherwise over `run`, the run's folder, with the
        coordinates `alpha` (NaN under a schedule) and `seed`.

    Raises:
        OutputError: There are no finished runs, or a result cannot be written.
        OptionError: JSON cannot represent an option.

    Example:
        >>> import tempfile
        >>> from probekit.training.sweep.sweep import sweep
        >>> def weights(model, power):
        ...     return xr.Dataset({"size": (model.module.fc.weight**power).sum().item()})
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = sweep("resnet20-digits", [-1, 0], [0], out, epochs=1, limit=64, progress=False,
        ...               architecture="resnet8", device="cpu")
        ...     measure_runs(out, weights, f"{out}/measured", power=2)["size"].dims
        ('alpha', 'seed')
    """
    name = str(getattr(measure, "__name__", type(measure).__name__))
    try:
        asked = f"{_full_name(measure)}|{json.dumps(options, sort_keys=True)}"
    except TypeError as error:
        raise OptionError(f"options of {name} must be plain values: {error}") from None
    runs = find_runs(folder)
    place = Path(store)
    found = []
    for run in tqdm(runs, desc=name, unit="run", disable=hidden(progress)):
        network = read_card(run.folder)["hash"]
        digest = hashlib.sha256(f"{network}|{asked}".encode()).hexdigest()[:16]
        file = place / f"{name}-{digest}.nc"
        if not file.is_file():
            measured = measure(load_model(str(run.folder)), **options)
            if not isinstance(measured, xr.Dataset):
                raise OptionError(
                    f"a measure of runs returns an xarray Dataset, not {type(measured).__name__}"
                )
            with writable(file):
                place.mkdir(parents=True, exist_ok=True)
            write_table(file, measured)
        with xr.open_dataset(file, engine="h5netcdf") as stored:
            found.append(stored.load())
    table = _gathered(runs, found, Path(folder))
    facts = {"measure": name, "options": options, "runs": [str(run.folder) for run in runs]}
    return table.assign_attrs(provenance=provenance(**facts))


def training_history(folder: str | Path) -> xr.Dataset:
    """The logs of all finished runs of a folder, by epoch.

    Args:
        folder: A sweep, or any folder with runs below it.

    Returns:
        Over `epoch` and the dimensions of `measure_runs`, such as `alpha` and `seed`: `loss`,
        `accuracy`, `validation_accuracy`, `selectivity_mean`, `dead_units_total`, `alpha_of_epoch`
        (alpha in that epoch) and `seconds`; also over `layer`: `selectivity` and `dead_units`.

    Raises:
        OutputError: There are no finished runs.

    Example:
        >>> import tempfile
        >>> import probekit as pk
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = pk.train("resnet20-digits", out=f"{out}/run", epochs=2, limit=64,
        ...                  architecture="resnet8", device="cpu", progress=False)
        ...     pk.training_history(out)["selectivity_mean"].sizes["epoch"]
        2
    """
    runs = find_runs(folder)
    return _gathered(runs, [_history(run) for run in runs], Path(folder))


def run_outcomes(folder: str | Path) -> xr.Dataset:
    """The outcomes of the finished runs of a folder.

    Args:
        folder: A sweep, or any folder with runs below it.

    Returns:
        Over the dimensions of `measure_runs`, such as `alpha` and `seed`: `test_accuracy`,
        `validation_accuracy`, `best_epoch` and `selectivity_mean`; also over `layer`: `selectivity`
        and `dead_units`.

    Raises:
        OutputError: There are no finished runs.

    Example:
        >>> import tempfile
        >>> import probekit as pk
        >>> with tempfile.TemporaryDirectory() as out:
        ...     _ = pk.train("resnet20-digits", alpha=-1, seed=3, out=f"{out}/run", epochs=1, limit=64,
        ...                  architecture="resnet8", device="cpu", progress=False)
        ...     pk.run_outcomes(out).sel(alpha=-1, seed=3)["test_accuracy"].item() > 0.05
        True
    """
    runs = find_runs(folder)
    return _gathered(runs, [outcomes(run, list(run.selectivity)) for run in runs], Path(folder))


def _history(run: Run) -> xr.Dataset:
    records = read_log(run.folder / "log.jsonl")
    layers, epochs = list(run.selectivity), [record["epoch"] for record in records]
    table = xr.Dataset(coords={"epoch": epochs, "layer": strings(layers)})
    for name in _OF_EPOCHS:
        values = np.array([record.get(name) for record in records], dtype=float)  # None becomes NaN
        table["alpha_of_epoch" if name == "alpha" else name] = ("epoch", values)
    for name in ("selectivity", "dead_units"):
        rows = [[record[name][layer] for layer in layers] for record in records]
        table[name] = (("epoch", "layer"), np.array(rows, dtype=float))
    return table


def _full_name(measure: Callable[..., Any]) -> str:
    """The name of a function; with its values if it has no name of its own, or depends on others."""
    named = isinstance(measure, FunctionType) and measure.__name__ != "<lambda>"
    if named and not measure.__closure__:
        return f"{measure.__module__}.{measure.__qualname__}"
    return text_of(measure)


def _same_training(runs: Sequence[Run]) -> bool:
    """Whether runs differ in alpha and seed only, and in the precision that their machine selected."""
    files = [run.folder / RUN for run in runs]
    found = [read_identity(one, "training run") if one.is_file() else {} for one in files]
    ignored = [*IGNORED, "alpha_schedule", "seed", "recipe.precision"]
    return not any(differences(found[0], one, ignored) for one in found)


def _gathered(runs: Sequence[Run], found: Sequence[xr.Dataset], folder: Path) -> xr.Dataset:
    """One table of all runs, over the axes that distinguish them."""
    plain = [table.drop_attrs() for table in found]
    table = xr.concat(plain, "run", join="outer", coords="minimal", compat="override")
    names = [run.folder.relative_to(folder).as_posix() for run in runs]
    alphas = [np.nan if run.alpha is None else run.alpha for run in runs]
    seeds = [run.seed for run in runs]
    if all(name.endswith(f"/seed_{seed}") for name, seed in zip(names, seeds, strict=True)):
        variants = [name.rpartition("/")[0] for name in names]
        return grid(table, "variant", strings(variants), seeds)
    alone = len(set(zip(alphas, seeds, strict=True))) == len(runs)
    if alone and not np.isnan(alphas).any() and _same_training(runs):
        return grid(table, "alpha", np.array(alphas), seeds)
    return table.assign_coords(run=strings(names), alpha=("run", alphas), seed=("run", seeds))
