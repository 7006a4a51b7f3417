"""The table of a survey, computed from the stored results of its models."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import xarray as xr

from probekit.errors import OutputError, foreign_file
from probekit.results.attributes import attributes
from probekit.results.folders import read_failures, read_identity
from probekit.results.labels import strings, with_variable_text
from probekit.results.provenance import provenance

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


def survey_table(out: str | Path) -> xr.DataTree:
    """The table of a survey, from the current state of its folder."""
    folder = Path(out)
    facts = read_identity(folder / IDENTITY, "survey")
    files = sorted((folder / RESULTS).glob("*.nc"))
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
