"""The log of a run: one record per epoch, as JSON lines, as CSV, and for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from probekit.errors import OutputError
from probekit.extras import optional
from probekit.results.folders import write_whole


def read_log(file: Path) -> list[dict[str, Any]]:
    """Reads the records of a JSON-lines log; a truncated last line is ignored."""
    if not file.is_file():
        return []
    records = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            int(record["epoch"])
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        records.append(record)
    return records


class RunLog:
    """Writes `log.jsonl` and `log.csv` in a run's folder, in step with its checkpoints.

    A record is written before the checkpoint of its epoch. When a run resumes, records after its
    checkpoint are dropped, so no epoch is missing or repeated.

    Args:
        folder: The run's folder.
        epochs_done: Number of epochs before the checkpoint.
        tensorboard: Write event files to `tensorboard/` as well.

    Raises:
        OptionError: TensorBoard is requested but not installed.
    """

    def __init__(self, folder: Path, epochs_done: int, *, tensorboard: bool = False) -> None:
        self._lines = folder / "log.jsonl"
        self._table = folder / "log.csv"
        self.records = [record for record in read_log(self._lines) if record["epoch"] < epochs_done]
        self._writer = _tensorboard(folder, epochs_done) if tensorboard else None
        if self._lines.exists() or self.records:
            write_whole(self._lines, "".join(map(_line, self.records)))

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the record of an epoch: numbers, and mappings from layers to numbers.

        Raises:
            OutputError: The record cannot be written.
        """
        self.records.append(dict(record))
        try:
            with self._lines.open("a") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{str(self._lines)!r} cannot be written ({error.strerror}); make room and start "
                "again with the same options, which continues from the last checkpoint"
            ) from None
        write_whole(self._table, pd.json_normalize(self.records, sep="/").to_csv(index=False))
        if self._writer is not None:
            row = pd.json_normalize([dict(record)], sep="/").drop(columns="epoch").iloc[0]
            for name, value in pd.to_numeric(row, errors="coerce").dropna().items():
                self._writer.add_scalar(name, value, record["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _tensorboard(folder: Path, epochs_done: int) -> Any:
    with optional("tensorboard", "tensorboard=True"):
        from torch.utils.tensorboard import SummaryWriter
    writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done or None)
    return writer
