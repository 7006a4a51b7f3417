"""Recordings in a zarr store: preallocated, written by region, resumable after any interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import ZstdCodec

from probekit.data.batches import Batches
from probekit.errors import DataError, OptionError, OutputError, foreign_file
from probekit.results.files import whole, writable
from probekit.results.labels import with_sample_names, with_variable_text
from probekit.results.provenance import as_stored, differences

_BLOCK_BYTES = 32 * 2**20
_PROGRESS = "recording-in-progress.json"
_COMPRESSOR = ZstdCodec(checksum=True)  # so that damaged chunks are not read


class RecordingStore:
    """One recording on disk.

    Arrays of the final size are created first. Blocks of batches are then written to separate
    regions, and the progress is saved after each block. An interrupted block is written again, so the
    final bytes equal those of an uninterrupted recording.
    """

    def __init__(
        self,
        path: str | Path,
        frame: xr.Dataset,
        batches: Batches,
        identity: dict[str, Any],
        *,
        itemsize: int,
        overwrite: bool,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".zarr":
            raise OutputError(f"a recording is stored in a .zarr folder, not in {str(path)!r}")
        if batches.samples is None:
            raise DataError(
                "recording to a store needs data of known length; pass a data set, or record in memory"
            )
        if batches.skips:
            raise OptionError(
                "recording to a store needs one row per sample and cannot skip unreadable images; "
                "remove them first, or record in memory"
            )
        if batches.drawn:
            raise DataError(
                f"the DataLoader of {batches.name} draws other samples each time, so a recording could "
                "not be resumed; use one without a random subset (shuffle=False, or drop_last=False), "
                "or record in memory"
            )
        self.samples = batches.samples
        self.units = frame.sizes["unit"]
        self._itemsize = itemsize
        block = max(1, _BLOCK_BYTES // (itemsize * self.units * batches.part.size))
        self.rows = block * batches.part.size
        data = batches.identity() | {"batch_size": batches.part.size}
        self._identity = as_stored(identity | {"data": data})
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.complete = False
        self.done = 0
        resumes = os.path.lexists(self.path) and not overwrite
        if resumes:
            self._resume()
        if not self.complete:
            self._check_room()
        if not resumes:
            self._begin(frame)

    def _check_room(self) -> None:
        """Raises `OutputError` if the remaining data, uncompressed, does not fit on the disk."""
        needed = self._itemsize * self.units * (self.samples - self.done)
        free = shutil.disk_usage(self.path.parent).free
        if needed > 4 * free:
            raise OutputError(
                f"the recording takes up to {needed / 2**30:.1f} GiB and {str(self.path)!r} has "
                f"{free / 2**30:.1f} GiB left; choose fewer layers or samples, or spatial='mean'"
            )

    def _begin(self, frame: xr.Dataset) -> None:
        """Creates the arrays at a temporary path and renames the finished store.

        If the process dies meanwhile, no incomplete store remains that a later call could open.
        """
        with whole(self.path) as draft:
            codec = {"compressors": _COMPRESSOR}
            frame.to_zarr(
                draft, mode="w-", zarr_format=3, consolidated=False,
                encoding=dict.fromkeys(map(str, frame.variables), codec),
            )  # fmt: skip
            group = zarr.open_group(draft, mode="r+")
            shape, chunks = (self.samples, self.units), (min(self.rows, self.samples), self.units)
            group.create_array(
                "activation", shape=shape, chunks=chunks, dtype=f"float{8 * self._itemsize}",
                dimension_names=["sample", "unit"], attributes={"coordinates": "layer channel"},
                fill_value=np.nan,  # so that a lost chunk is not read as zeros
                compressors=_COMPRESSOR,
            )  # fmt: skip
            for name in ("label", "sample"):
                group.create_array(
                    name, shape=shape[:1], chunks=chunks[:1], dtype="int64",
                    dimension_names=["sample"], fill_value=-1, compressors=_COMPRESSOR,
                )  # fmt: skip
            group.attrs["identity"] = json.dumps(self._identity, sort_keys=True)
            self._note(0, draft)

    def _resume(self) -> None:
        progress = self.path / _PROGRESS
        with foreign_file(
            f"{str(self.path)!r} exists and is not a recording that can be resumed",
            OutputError,
            "; choose another name, or overwrite=True (--overwrite)",
        ):
            group = zarr.open_group(self.path, mode="r")
            found = dict(json.loads(str(group.attrs["identity"])))
            shape = group["activation"].shape  # type: ignore[union-attr]  # it is an array
            complete = not progress.exists()
            done = self.samples if complete else int(json.loads(progress.read_text())["done"])
            if not 0 <= done <= self.samples:
                raise ValueError(f"{done} of {self.samples} samples are marked as done")
        differing = differences(found, self._identity)
        if differing or shape != (self.samples, self.units):
            raise OutputError(
                f"{str(self.path)!r} holds another recording "
                f"({'; '.join(differing) or f'{shape} samples and units'}); choose another name, or "
                "overwrite=True (--overwrite)"
            )
        self.complete, self.done = complete, done

    def _note(self, done: int, folder: Path) -> None:
        with whole(folder / _PROGRESS) as draft:
            draft.write_text(json.dumps({"done": done}))
        self.done = done

    def append(self, table: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds the activations (batch, units), labels and indices of the next batch."""
        self._pending.append((table, labels, index))
        if sum(len(rows) for rows, *_ in self._pending) >= self.rows:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        group = zarr.open_group(self.path, mode="r+")
        parts = [torch.cat(column).numpy() for column in zip(*self._pending, strict=True)]
        columns = dict(zip(("activation", "label", "sample"), parts, strict=True))
        region = slice(self.done, self.done + len(columns["activation"]))
        with writable(
            self.path, f"; {self.done} samples are stored; the same command resumes there"
        ):
            for name, values in columns.items():
                group[name][region] = np.ascontiguousarray(values)  # type: ignore[index]  # it is an array
            self._note(region.stop, self.path)
        self._pending = []

    def finish(self, notes: Sequence[str]) -> None:
        """Writes the remaining data and the notes, and marks the recording as complete."""
        self._flush()
        if self.done != self.samples:
            raise DataError(f"{self.samples} samples were expected, and the data has {self.done}")
        if notes:
            group = zarr.open_group(self.path, mode="r+")
            group.attrs["notes"] = "\n".join(dict.fromkeys(notes))
        (self.path / _PROGRESS).unlink(missing_ok=True)
        self.complete = True


class _StoredActivations(BackendArray):
    """The activations of an opened recording, which are read lazily.

    They are not read if they are damaged, or once another recording has replaced theirs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = self._version()
        group: Any = zarr.open_group(path, mode="r")
        self.array = group["activation"]
        self.shape = self.array.shape
        self.dtype = self.array.dtype

    def _version(self) -> tuple[int, int] | None:
        try:
            status = (self._path / "zarr.json").stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        with foreign_file(
            f"the activations of {str(self._path)!r} cannot be read",
            OutputError,
            "; copy all of it again, or record with overwrite=True (--overwrite)",
        ):
            found = self.array.oindex[key]
        if self._version() != self._opened:  # a recording is replaced as a whole
            raise OutputError(
                f"the recording {str(self._path)!r} was replaced or removed after it was opened; open it "
                "again"
            )
        return found


def open_recording(path: str | Path) -> xr.Dataset:
    """Opens a stored recording, with lazy activations and all other variables in memory.

    With dask installed (the `cluster` extra) the activations are a dask array.

    Raises:
        OutputError: The recording does not exist, or is incomplete. If another recording replaces it later,
            reading its activations raises this error too.

    Example:
        >>> import tempfile
        >>> import probekit as pk
        >>> store = f"{tempfile.mkdtemp()}/acts.zarr"
        >>> _ = pk.record("probekit:resnet20-fashion-mnist", "fashion-mnist", "layer3.2.relu2",
        ...               store=store, limit=20)
        >>> dict(pk.open_recording(store)["activation"].sizes)
        {'sample': 20, 'unit': 64}
    """
    path = Path(path)
    if not os.path.isdir(path):
        raise OutputError(f"there is no recording {str(path)!r}")
    if (path / _PROGRESS).exists():
        raise OutputError(
            f"the recording {str(path)!r} is not complete; run the same command again to resume it"
        )
    with foreign_file(f"{str(path)!r} is not a recording", OutputError):
        activations = _StoredActivations(path)
        array = activations.array
        small = xr.open_zarr(path, consolidated=False, chunks=None).drop_vars("activation").load()
        lazy = xr.Variable(("sample", "unit"), indexing.LazilyIndexedArray(activations))
        if find_spec("dask"):
            lazy = lazy.chunk(dict(zip(lazy.dims, array.chunks, strict=True)))
        _ = small["label"], small["layer"], small["channel"]
        lost = array.nchunks - array.nchunks_initialized if np.isnan(array.fill_value) else 0
        recording = with_sample_names(with_variable_text(small).assign(activation=lazy))
    if lost:
        raise OutputError(
            f"the recording {str(path)!r} lacks {lost} of {array.nchunks} files of its activations; copy "
            "all of it again, or record with overwrite=True (--overwrite)"
        )
    return recording
