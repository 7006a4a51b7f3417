"""A recording in a zarr store: preallocated, written by region, resumable after any interruption."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor

from probekit.data.batches import Batch, Batches
from probekit.errors import DataError, OptionError, OutputError

__all__ = ["RecordingStore", "open_recording"]

_BLOCK_BYTES = 32 * 2**20
_PROGRESS = "recording-in-progress.json"


class RecordingStore:
    """One recording on disk.

    Arrays of the final size are made first; whole blocks of batches are then written to regions of
    their own, each followed by a note of how far the recording is. A block that was cut short is
    written again, so that the bytes at the end are those of a recording that was never interrupted.

    Args:
        path: The folder.
        frame: The unit coordinates and attributes.
        batches: What will be recorded.
        identity: What the recording is of: model, data, layers and options.
        overwrite: Begin anew where the folder exists.

    Raises:
        OutputError: The folder holds something else, or another recording.
        DataError: The number of samples is not known in advance.
    """

    def __init__(
        self,
        path: str | Path,
        frame: xr.Dataset,
        batches: Batches,
        identity: dict[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".zarr":
            raise OutputError(f"a recording is stored in a .zarr folder, not in {str(path)!r}")
        if batches.samples is None:
            raise DataError(
                "recording to a store needs data of known length; pass a data set, or record in memory"
            )
        if getattr(batches.source, "skip_bad", False):
            raise OptionError(
                "recording to a store keeps one row a sample and cannot skip unreadable images; "
                "remove them first, or record in memory"
            )
        self.samples = batches.samples
        self.units = frame.sizes["unit"]
        block = max(1, _BLOCK_BYTES // (4 * self.units * batches.batch_size))
        self.rows = block * batches.batch_size
        self._identity = json.loads(json.dumps(identity, default=str))
        self._pending: list[tuple[Tensor, Batch]] = []
        self.complete = False
        self.done = 0
        if self.path.exists() and overwrite:
            shutil.rmtree(self.path)
        if self.path.exists():
            self._resume()
        else:
            self._begin(frame)

    def check_room(self) -> None:
        """Raises `OutputError` where the disk cannot hold what is still to come, uncompressed."""
        needed = 4 * self.units * (self.samples - self.done)
        free = shutil.disk_usage(self.path).free
        if needed > 4 * free:
            raise OutputError(
                f"the recording takes up to {needed / 2**30:.1f} GiB and {str(self.path)!r} has "
                f"{free / 2**30:.1f} GiB left; choose fewer layers or samples, or spatial='mean'"
            )

    def _begin(self, frame: xr.Dataset) -> None:
        try:
            frame.to_zarr(self.path, mode="w-", zarr_format=3, consolidated=False)
            group = zarr.open_group(self.path, mode="r+")
            shape, chunks = (self.samples, self.units), (min(self.rows, self.samples), self.units)
            group.create_array(
                "activation", shape=shape, chunks=chunks, dtype="float32",
                dimension_names=["sample", "unit"], attributes={"coordinates": "layer channel"},
            )  # fmt: skip
            for name, fill in (("label", -1), ("sample", -1)):
                group.create_array(
                    name, shape=shape[:1], chunks=chunks[:1], dtype="int64",
                    dimension_names=["sample"], fill_value=fill,
                )  # fmt: skip
            group.attrs["identity"] = json.dumps(self._identity, sort_keys=True)
            self._note(0)
        except OSError as error:
            raise OutputError(f"{str(self.path)!r} cannot be written: {error}") from None

    def _resume(self) -> None:
        try:
            group = zarr.open_group(self.path, mode="r")
            found = json.loads(str(group.attrs["identity"]))
            shape = group["activation"].shape  # type: ignore[union-attr]
        except (OSError, KeyError, ValueError):
            raise OutputError(
                f"{str(self.path)!r} exists and is no recording that could go on; choose another "
                "name, or overwrite=True (--overwrite)"
            ) from None
        other = [key for key in self._identity if found.get(key) != self._identity[key]]
        if other or shape != (self.samples, self.units):
            raise OutputError(
                f"{str(self.path)!r} is a recording of another {' and '.join(other) or 'size'}; "
                "choose another name, or overwrite=True (--overwrite)"
            )
        progress = self.path / _PROGRESS
        self.complete = not progress.exists()
        self.done = self.samples if self.complete else int(json.loads(progress.read_text())["done"])

    def _note(self, done: int) -> None:
        draft = self.path / f".{_PROGRESS}"
        draft.write_text(json.dumps({"done": done}))
        os.replace(draft, self.path / _PROGRESS)
        self.done = done

    def append(self, table: Tensor, batch: Batch) -> None:
        """Takes in the activations (batch, units) of the next batch."""
        self._pending.append((table, batch))
        if sum(len(rows) for rows, _ in self._pending) >= self.rows:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        group = zarr.open_group(self.path, mode="r+")
        table = torch.cat([rows for rows, _ in self._pending])
        region = slice(self.done, self.done + len(table))
        columns = {
            "activation": table.numpy(),
            "label": torch.cat([batch.labels.cpu() for _, batch in self._pending]).numpy(),
            "sample": torch.cat([batch.index for _, batch in self._pending]).numpy(),
        }
        try:
            for name, values in columns.items():
                group[name][region] = np.ascontiguousarray(values)  # type: ignore[index]
            self._note(self.done + len(table))
        except OSError as error:
            raise OutputError(
                f"{str(self.path)!r} cannot be written ({error}); {self.done} samples are kept, and "
                "the same command goes on from there"
            ) from None
        self._pending = []

    def finish(self) -> None:
        """Writes what is left and marks the recording as complete.

        Raises:
            DataError: There were fewer samples than announced.
        """
        self._flush()
        if self.done != self.samples:
            raise DataError(f"{self.samples} samples were announced and {self.done} came")
        (self.path / _PROGRESS).unlink(missing_ok=True)
        self.complete = True

    def open(self) -> xr.Dataset:
        """The recording, with lazy activations and everything else in memory."""
        return open_recording(self.path)


def open_recording(path: str | Path) -> xr.Dataset:
    """Opens a stored recording: activations lazily through dask, everything else in memory.

    Raises:
        OutputError: There is none, or it is not finished.
    """
    path = Path(path)
    if not path.is_dir():
        raise OutputError(f"there is no recording {str(path)!r}")
    if (path / _PROGRESS).exists():
        raise OutputError(
            f"the recording {str(path)!r} is not finished; the command that began it goes on with it"
        )
    try:
        lazy = xr.open_zarr(path, consolidated=False, chunks={})
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{str(path)!r} is no recording: {error}") from None
    small = {name: lazy[name].load() for name in lazy.variables if name != "activation"}
    plain = {
        name: value.astype(object) if _is_text(value) else value for name, value in small.items()
    }
    coordinates = {name: value for name, value in plain.items() if name in lazy.coords}
    variables = {name: value for name, value in plain.items() if name in lazy.data_vars}
    found: xr.Dataset = lazy.assign(variables).assign_coords(coordinates)
    return found


def _is_text(values: xr.DataArray) -> bool:
    return values.dtype.kind in "TUO"
