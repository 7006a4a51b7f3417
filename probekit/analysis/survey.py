"""Analyses of many models on the same data, in one run that resumes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from probekit.analysis.analyze import analyze
from probekit.capture.recorder import Layers
from probekit.capture.selection import layer_names
from probekit.data.batches import Batches
from probekit.data.datasets import is_loadable, list_data, load_data
from probekit.data.decoding import DEFAULT_DECODER
from probekit.errors import (
    OptionError,
    OutputError,
    ProbekitError,
    ProbekitWarning,
    close_matches,
    first_line,
    foreign_file,
    plain,
    warn,
)
from probekit.metrics.metric import Metric, metric_options, resolve
from probekit.models.identity import describe
from probekit.models.image_model import ImageModel
from probekit.models.loading import load_model
from probekit.models.names import model_names
from probekit.results.files import remove_drafts
from probekit.results.folders import claim, locked, note_failure, read_failures, read_identity
from probekit.results.jobs import open_cluster, run_stored_jobs
from probekit.results.labels import attributes, strings, with_variable_text
from probekit.results.provenance import model_differences, provenance
from probekit.results.trees import save_result
from probekit.runtime.settings import own_settings

# Options of `analyze` that do not change its numbers.
_FREE = ("device", "workers", "compile")
_LIBRARIES = ("timm", "torchvision", "transformers")
_OUTDATED = "the stored result is of other weights or another version of the library"
IDENTITY = "survey.json"
TABLE = "survey.nc"
RESULTS = "results"
_LABELS = {
    "parameters": "number of parameters",
    "n_layers": "number of layers",
    "n_units": "number of units",
    "failure": "reason of the failure",
    "notes": "warnings of the analysis",
}


def survey(
    models: str | Path | Sequence[str | Path],
    data: Any,
    out: str | Path,
    layers: Layers = None,
    metrics: str | Metric | Sequence[str | Metric] = ("selectivity",),
    *,
    pretrained: bool = True,
    split: str | None = None,
    root: str | Path | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    jobs: int = 1,
    scheduler: Any = None,
    retries: int = 2,
    progress: bool = True,
    **options: Any,
) -> xr.DataTree:
    """Analyzes many models on the same data; resumes an interrupted survey.

    The result of each model is a file in `out/results`, as `analyze` returns it. `out/survey.nc` holds
    the table of all models so far and is rewritten whenever a model ends. A model that fails is
    reported in the table, and the others continue; the next call tries it again. Further models can be
    added to a survey, with the same data and options.

    Args:
        models: Names as for `load_model`, and globs of timm (`resnet*`), bundled (`probekit:*`) or
            torchvision models and of run folders (`sweep/runs/*`). A changed run is analyzed again.
        data: As for `analyze`; a name or a folder is loaded for the input size of each model.
        out: Folder of the survey.
        layers: Names or globs of layers; None selects the activation functions of each model.
        metrics: As for `analyze`.
        pretrained: Load published weights; False uses random weights, drawn from `seed`.
        split: Split of a named data set, or subfolder of a folder, as for `load_data`; None uses the test
            split of a named data set for every model.
        root: The folder with the files of a named data set, as for `load_data`.
        skip_bad: Skip images that cannot be read, as for `load_data`.
        seed: Seed of all random draws.
        jobs: Number of worker processes on this machine.
        scheduler: The address of a dask scheduler, or a `distributed.Client`; its workers must have
            access to the folder, the data and the models.
        retries: Maximum number of retries on a cluster after the death of a worker.
        progress: Show a progress bar when on a terminal.
        **options: Other options of `analyze`: `limit`, `batch_size`, `device`, `tokens`, ...

    Returns:
        A tree over `model`: `parameters`, `n_layers`, `n_units`, `accuracy` where it is known, the
        network's means such as `selectivity_mean`, `failure` (empty if there was none) and `notes`.
        Its node `/layers` (model, layer) has the layers' variables by position, with `layer_name` and
        `depth`, the fraction of the layers passed; positions that a model lacks are NaN.

    Raises:
        OptionError: An option, a metric or the layers are not valid, or the data has attributes or can
            be read only once.
        ModelError: A glob matches no model.
        DataError: The data does not exist or cannot be read.
        OutputError: The folder holds another survey, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = survey("probekit:resnet20-fashion-mnist-a*", "fashion-mnist", folder,
        ...                    "layer3.2.relu2", limit=200, progress=False)
        >>> found["selectivity_mean"].dims, int(found["parameters"][0])
        (('model',), 269434)
    """
    names = model_names(models, pretrained=pretrained)
    chosen = resolve(metrics)
    if unknown := options.keys() - signature(analyze).parameters.keys():
        near = close_matches(min(unknown), signature(analyze).parameters, what="option")
        raise OptionError(f"analyze has no option {min(unknown)!r}; {near}")
    data, loading = _loading(data, split, root, skip_bad)
    work = {"seed": seed, **options}
    identity = {
        "data": _data_identity(data, loading, work),
        "layers": layer_names(layers, "a survey"),
        "metrics": {metric.name: metric_options(metric) for metric in chosen},
        "pretrained": pretrained,
        "options": {name: value for name, value in work.items() if name not in _FREE},
    }
    cluster = open_cluster(jobs, scheduler, "a survey")
    folder = Path(out).resolve()
    work |= {"layers": layers, "metrics": chosen, "progress": False}
    with locked(folder / IDENTITY):
        claim(folder / IDENTITY, identity, "survey", own=[RESULTS])
        (folder / RESULTS).mkdir(exist_ok=True)
        remove_drafts(folder / RESULTS)
        tasks = {
            name: (name, _source(name), pretrained, data, loading, str(path), work)
            for name in names
            if not _is_stored(name, path := _file(folder, name), pretrained, seed)
        }
        for name in names:
            if _file(folder, name).exists():  # kept until the new result replaces it
                note_failure(folder, name, _OUTDATED if name in tasks else "")
        table = run_stored_jobs(
            _measure, tasks, cluster, folder / TABLE, survey_table, name="survey",
            retries=retries, done=len(names) - len(tasks), unit="model", progress=progress,
        )  # fmt: skip
    _warn_about(table, names)
    return table


def _loading(
    data: Any, split: str | None, root: str | Path | None, skip_bad: bool
) -> tuple[Any, dict[str, Any]]:
    """The data and the options of `load_data`, which mean the same for every model and worker."""
    if isinstance(data, str | Path):
        if str(data) in list_data():
            # The default of `load_data` depends on what a model was trained on.
            split = split or "test"
        elif os.path.exists(data):
            data = str(Path(data).resolve())  # workers may have another working directory
    resolved = None if root is None else str(Path(root).resolve())
    loading = {"split": split, "root": resolved, "skip_bad": skip_bad}
    if not is_loadable(data) and any(loading.values()):
        raise OptionError(
            "split, root and skip_bad are for data given by name, as a path or as a table; load other "
            "data with load_data first"
        )
    return data, loading


def _measure(
    name: str,
    source: str,
    pretrained: bool,
    data: Any,
    loading: Mapping[str, Any],
    path: str,
    options: Mapping[str, Any],
) -> str:
    """Analyzes one model and stores the result; returns the reason of a failure, or an empty string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ProbekitWarning)  # the result stores them
            model = _load(source, pretrained, options["seed"])
            images = load_data(data, model, **loading) if is_loadable(data) else data
            result = analyze(model, images, **options)
        parameters = sum(one.numel() for one in model.module.parameters())
        about = {"model": name, "parameters": parameters, "library": _library(model)}
        result.attrs["survey"] = json.dumps(about)
        save_result(result, path, overwrite=True)
    except ProbekitError as error:
        return plain(error)
    except Exception as error:  # a failure of one model must not end the others
        return plain(f"{type(error).__name__}: {first_line(error)}")
    return ""


def _load(source: str, pretrained: bool, seed: int) -> ImageModel:
    with own_settings():
        torch.manual_seed(seed % 2**63)
        return load_model(source, pretrained=pretrained)


def _source(name: str) -> str:
    """The name for `load_model`; a folder with its whole path, as workers may run elsewhere."""
    return str(Path(name).resolve()) if os.path.isdir(name) else name


def _file(folder: Path, name: str) -> Path:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return folder / RESULTS / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)[-80:]}-{digest}.nc"


def _is_stored(name: str, path: Path, pretrained: bool, seed: int) -> bool:
    """Whether the result of a model exists, as it is now: its weights and the version of its library."""
    if not path.exists():
        return False
    with (
        foreign_file(f"{str(path)!r} is not a result of a survey", OutputError, "; remove it"),
        xr.open_dataset(path, engine="h5netcdf") as opened,
    ):
        before = json.loads(opened.attrs["provenance"])["model"]
        library = json.loads(opened.attrs["survey"]).get("library")
    try:
        model = _load(_source(name), pretrained, seed)
    except ProbekitError:
        return False
    return library == _library(model) and not model_differences(before, describe(model))


def _library(model: ImageModel) -> str | None:
    """The library that defines a model and its version; None for other models.

    >>> _library(load_model("resnet10t", pretrained=False))[:5]
    'timm '
    """
    library = type(model.module).__module__.split(".")[0]
    return f"{library} {version(library)}" if library in _LIBRARIES else None


def _data_identity(data: Any, loading: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    loaded = load_data(data, **loading) if is_loadable(data) else data
    own = {
        name: options[name]
        for name in ("limit", "seed", "batch_size", "attributes")
        if name in options
    }
    # Images that are not arrays yet need some size.
    batches = Batches(loaded, decode=DEFAULT_DECODER, **own)
    if not batches.repeatable:
        raise OptionError(
            f"{batches.name} can be read only once, and a survey reads it once per model; give a list of "
            "batches, a DataLoader or a data set"
        )
    identity = {"name": batches.name, "split": loading["split"], **batches.identity()}
    if batches.attributes:
        raise OptionError(
            f"{batches.name} has several labels per image ({', '.join(batches.attributes)}), and a survey "
            "compares models by one; give the data with one of them"
        )
    return identity


def _warn_about(table: xr.DataTree, names: Sequence[str]) -> None:
    """Warns of failures, and of warnings about single models, which the table has in full."""
    asked = table.to_dataset().sel(model=list(names))
    for variable, what in (("failure", "failed"), ("notes", "have warnings")):
        texts = dict(zip(names, asked[variable].values, strict=True)) if variable in asked else {}
        found = [f"{name}: {text}" for name, text in texts.items() if text]
        if found:
            shown = found if variable == "failure" else [found[0].replace("\n", "; ")]
            warn(f"{len(found)} of {len(names)} models {what}; {'; '.join(shown)}")


def survey_table(out: str | Path) -> xr.DataTree:
    """The table of a survey, from the current state of its folder."""
    folder = Path(out)
    facts = read_identity(folder / IDENTITY, "survey")
    files = sorted((folder / RESULTS).glob("[!.]*.nc"))  # without those that are being written
    found = dict(_row(path, path.stat().st_mtime_ns) for path in files)
    empty = (
        xr.Dataset(),
        xr.Dataset({"layer_name": ("layer", strings([]))}, {"layer": np.arange(0)}),
    )
    failures = read_failures(folder)
    rows = {name: row for name, row in found.items() if name not in failures}  # others are outdated
    names = sorted({*rows, *failures})
    if not names:
        raise OutputError(f"no model of the survey in {str(folder)!r} has ended")
    models, layers = zip(*(rows.get(name, empty) for name in names), strict=True)
    along = xr.Variable("model", strings(names), {"long_name": "model"})
    table, by_layer = (
        xr.concat(parts, along, data_vars="all", join="outer", combine_attrs="drop_conflicts")
        for parts in (models, layers)
    )
    table["failure"] = ("model", strings([failures.get(name, "") for name in names]))
    for name in ("notes", "layer_name"):
        for part in (table, by_layer):
            if name in part:
                part[name] = part[name].astype(object).fillna("")
    for name, long_name in _LABELS.items():
        if name in table:
            table[name].attrs = attributes(long_name)
    tree = xr.DataTree.from_dict({"/": table, "layers": by_layer})
    tree.attrs["provenance"] = provenance(survey=facts)
    return tree


@lru_cache(maxsize=4096)  # the table is written again whenever a model ends
def _row(path: Path, changed: int) -> tuple[str, tuple[xr.Dataset, xr.Dataset]]:
    """The name of a model, its numbers, and those of its layers by position."""
    with foreign_file(f"{str(path)!r} is not a result of a survey", OutputError, "; remove it"):
        parts = []
        for group in ("/", "layers"):
            with xr.open_dataset(path, group=group, engine="h5netcdf") as opened:
                parts.append(with_variable_text(opened.load()))
        model, layers = parts
        about = json.loads(model.attrs["survey"])
        names = layers["layer"].values.tolist()
        numbers = layers[
            [x for x in layers if layers[x].dims == ("layer",) and x != "unit_axis"]
        ].drop_vars("layer")
        numbers = numbers[[name for name in numbers if numbers[name].dtype.kind in "fiu"]]
        numbers = numbers.astype(float)  # NaN for layers that a model lacks
        numbers = numbers.assign_coords(layer=np.arange(len(names)))
        numbers["layer_name"] = ("layer", strings(names))
        depth = np.linspace(0, 1, len(names)) if len(names) > 1 else np.zeros(1)
        numbers["depth"] = ("layer", depth, attributes("depth: fraction of the layers passed"))
        row = model[[name for name in model if not model[name].dims]].assign(
            parameters=about["parameters"],
            n_layers=len(names),
            n_units=int(layers["n_units"].sum()),
            notes=str(model.attrs.get("notes", "")),
        )
        row, numbers = (part.drop_attrs(deep=False).drop_encoding() for part in (row, numbers))
        return str(about["model"]), (row, numbers)
