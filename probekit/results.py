"""Results as labelled tables: assembling them, and keeping them in files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xarray as xr

from probekit.capture.layers import Layer
from probekit.errors import OutputError, first_line, foreign_file

__all__ = ["check_output", "open_result", "save_result", "unit_coordinates"]


def strings(values: Sequence[str]) -> np.ndarray[Any, Any]:
    """Text of any length, in the type that netCDF and zarr both keep."""
    return np.array(list(values), dtype=object)


def unit_coordinates(layers: Sequence[Layer]) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """The coordinates `layer` and `channel` of all units of some layers, in order."""
    names = [layer.name for layer in layers for _ in range(layer.units)]
    channels = [np.arange(layer.units) for layer in layers]
    return {
        "layer": ("unit", strings(names)),
        "channel": ("unit", np.concatenate(channels) if channels else np.empty(0, np.int64)),
    }


def check_output(path: str | Path, *, overwrite: bool = False) -> Path:
    """Makes sure, before any work, that a result can be written.

    Raises:
        OutputError: It exists already, is of an unknown kind, or its folder cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise OutputError(f"a result is written to a .nc or .zarr file, not to {str(path)!r}")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(
            f"{str(path)!r} exists already; choose another name, or overwrite=True (--overwrite)"
        )
    if os.path.isdir(path) and path.suffix == ".nc":
        raise OutputError(f"{str(path)!r} is a folder")
    trial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        trial.touch()
        trial.unlink()
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)!r} cannot be written: {reason}") from None
    return path


def netcdf(table: xr.Dataset | xr.DataTree) -> memoryview:
    """The content of a netCDF file, made in memory.

    HDF5 brings the process down where a disk fills while it writes. And where a dask cluster is in use,
    xarray would lock the file on it by a name that a file in memory does not have.
    """
    import dask

    with dask.config.set(scheduler="threads"):
        content: memoryview = table.to_netcdf(engine="h5netcdf")
    return content


def save_result(result: xr.DataTree, path: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a result to a `.nc` or `.zarr` file, whole or not at all.

    Raises:
        OutputError: As `check_output`, or the disk is full.
    """
    path = check_output(path, overwrite=overwrite)
    draft = path.with_name(f".{path.name}.{uuid4().hex}{path.suffix}")
    try:
        if path.suffix == ".nc":
            draft.write_bytes(netcdf(result))
        else:
            result.to_zarr(draft, consolidated=False)
            if path.exists():
                shutil.rmtree(path)
        os.replace(draft, path)
    except (OSError, UnicodeError) as error:  # text that is none is a UnicodeError
        raise OutputError(f"{str(path)!r} cannot be written: {first_line(error)}") from None
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)
    return path


def open_result(path: str | Path) -> xr.DataTree:
    """Reads a result that `save_result`, `to_netcdf` or `to_zarr` wrote.

    Raises:
        OutputError: There is none, or it cannot be read.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise OutputError(f"there is no result {str(path)!r}")
    options: Mapping[str, Any] = (
        {"engine": "zarr", "consolidated": False} if path.is_dir() else {"engine": "h5netcdf"}
    )
    with (
        foreign_file(f"{str(path)!r} is no result of probekit", OutputError),
        xr.open_datatree(path, **options) as tree,
    ):
        return tree.load()
