"""Saves results to files and opens them: trees of labeled tables."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from probekit.errors import OptionError, OutputError, foreign_file, some_of, warn
from probekit.results.files import check_output_path, whole
from probekit.results.folders import write_whole
from probekit.results.labels import with_variable_text
from probekit.results.provenance import Table

Result: TypeAlias = "xr.DataTree | xr.Dataset"
ResultOrFile: TypeAlias = "Result | str | os.PathLike[str]"

# The attribute of a zarr store that names its variables by node, because a folder has no order.
_ORDER = "variable_order"
# Attributes by which files state how their values are stored.
_ENCODING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "dtype", "_Unsigned")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # in text


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Checks, before any computation, that a result can be written."""
    return check_output_path(path, (".nc", ".zarr"), "a result", overwrite=overwrite)


def _storable(table: Result) -> Any:
    """A copy without the attributes that files cannot hold, or by which they change values; warns of them.

    A result is saved when its computation has ended, so it is too late to refuse them.
    """
    copied: Any = table.copy()
    left_out = []
    for node in copied.subtree if isinstance(copied, xr.DataTree) else [copied]:
        for name, owner in [("the result", node), *node.variables.items()]:
            kept = {key: value for key, value in owner.attrs.items() if _is_storable(key, value)}
            left_out += [f"{key!r} of {name}" for key in owner.attrs if key not in kept]
            owner.attrs = kept
    if left_out:
        warn(
            "attributes are left out, because a file cannot hold them or values would change when it is "
            f"read: {some_of(left_out)}; rename them, or give numbers or text"
        )
    return copied


def _is_storable(name: object, value: object) -> bool:
    """Whether netCDF and zarr can both hold an attribute, and xarray does not decode values by it."""
    if not isinstance(name, str) or name in _ENCODING:
        return False
    if name == "units" and " since " in str(value):
        return False
    try:
        values = np.asarray(value)
    except ValueError:  # lists of different lengths
        return False
    texts = values.ravel().tolist() if values.dtype.kind == "U" else []
    return values.dtype.kind in "iufU" and not any(_UNSTORABLE.search(text) for text in texts)


def netcdf(table: Result) -> memoryview:
    """The content of a netCDF file, written in memory.

    HDF5 crashes the process if the disk fills while it writes. Also, with an active dask cluster,
    xarray would lock the file by its name, which a file in memory does not have.

    Warns:
        ProbekitWarning: Attributes cannot be stored and are left out.
    """
    table = _storable(table)
    dask = sys.modules.get("dask")
    with dask.config.set(scheduler="threads") if dask else nullcontext():
        content: memoryview = table.to_netcdf(engine="h5netcdf")
    return content


def write_table(file: Path, table: Table) -> Table:
    """Writes a table atomically, and returns it."""
    write_whole(file, netcdf(table))
    return table


def save_result(result: xr.DataTree, path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a result atomically to a `.nc` or `.zarr` file.

    Raises:
        OutputError: As for `check_output`, or the disk is full.
        OptionError: The result is not a tree.

    Warns:
        ProbekitWarning: Attributes cannot be stored, or would change values, and are left out.

    Example:
        >>> import tempfile
        >>> import probekit as pk
        >>> result = pk.analyze(
        ...     "probekit:resnet20-fashion-mnist", "fashion-mnist", "layer3.2.relu2", limit=50)
        >>> pk.save_result(result, f"{tempfile.mkdtemp()}/result.nc").name
        'result.nc'
    """
    if not isinstance(result, xr.DataTree):
        raise OptionError(
            f"save_result(result, path) writes a result, not {type(result).__name__}; write other "
            "tables with their own to_netcdf or with pk.save_tables"
        )
    path = check_output(path, overwrite=overwrite)
    result = result.map_over_datasets(with_variable_text)
    with whole(path) as draft:
        if path.suffix == ".nc":
            draft.write_bytes(netcdf(result))
        else:
            result = _storable(result)
            variables = {node.path: list(node.variables) for node in result.subtree}
            result.attrs = result.attrs | {_ORDER: json.dumps(variables)}
            result.to_zarr(draft, consolidated=False)
    return path


def _in_order(tree: xr.DataTree) -> xr.DataTree:
    """A tree with the nodes and variables in the order in which they were saved."""
    order = json.loads(tree.attrs.pop(_ORDER, "{}"))
    nodes = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
    return xr.DataTree.from_dict(
        {
            path: nodes[path][_sorted(nodes[path].variables, order.get(path, ()))]
            for path in _sorted(nodes, list(order))
        }
    )


def _sorted(names: Iterable[Any], order: Sequence[str]) -> list[Any]:
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def as_tree(result: object) -> xr.DataTree:
    """Returns a result that is given itself or as its file."""
    if isinstance(result, xr.DataTree):
        return result
    if isinstance(result, str | os.PathLike):
        return open_result(result)
    raise OptionError(f"a result must be a DataTree or a file, not {type(result).__name__}")


def open_result(path: str | os.PathLike[str]) -> xr.DataTree:
    """Reads a result written by `save_result`, `to_netcdf` or `to_zarr`.

    Raises:
        OutputError: The file does not exist or cannot be read.
        OptionError: The path is not a path.

    Example:
        >>> import tempfile
        >>> import probekit as pk
        >>> result = pk.analyze(
        ...     "probekit:resnet20-fashion-mnist", "fashion-mnist", "layer3.2.relu2", limit=50)
        >>> file = pk.save_result(result, f"{tempfile.mkdtemp()}/result.nc")
        >>> pk.open_result(file)["units"].sizes["unit"]
        64
    """
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"open_result takes a path, not {type(path).__name__}")
    path = Path(path)
    if not os.path.exists(path):
        raise OutputError(f"there is no result {str(path)!r}")
    options: Mapping[str, Any] = (
        {"engine": "zarr", "consolidated": False} if path.is_dir() else {"engine": "h5netcdf"}
    )
    durations = xr.coders.CFTimedeltaCoder(decode_via_units=False)
    with (
        foreign_file(f"{str(path)!r} is not a result of probekit", OutputError),
        # Variables with a unit of time are numbers, unless they were durations when they were saved.
        xr.open_datatree(path, decode_timedelta=durations, **options) as tree,
    ):
        return _in_order(tree.load().map_over_datasets(with_variable_text))
