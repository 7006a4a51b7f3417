"""The log of a run: one record an epoch, as JSON lines, as CSV, and for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probekit.errors import OutputError
from probekit.extras import optional
from probekit.training.run.checkpoint import write_text

__all__ = ["RunLog", "read_log"]


def read_log(file: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines log; a last line that was cut off is left out."""
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
    """Keeps `log.jsonl` and `log.csv` in a run's folder, in step with its checkpoints.

    A record is written before the checkpoint of its epoch; what lies beyond the checkpoint that a
    run resumes from is dropped, so that no epoch is missing and none is there twice.

    Args:
        folder: The run's folder.
        epochs_done: How many epochs the checkpoint has behind it.
        tensorboard: Write event files to `tensorboard/` as well.

    Raises:
        OptionError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, epochs_done: int, *, tensorboard: bool = False) -> None:
        self._lines = folder / "log.jsonl"
        self._table = folder / "log.csv"
        self.records = [record for record in read_log(self._lines) if record["epoch"] < epochs_done]
        self._writer = _tensorboard(folder, epochs_done) if tensorboard else None
        if self._lines.exists() or self.records:
            write_text(self._lines, "".join(map(_line, self.records)))

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes the record of an epoch: numbers, and mappings from layers to numbers.

        Raises:
            OutputError: It cannot be written.
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
                "again with the same options, which goes on from the last checkpoint"
            ) from None
        write_text(self._table, _as_csv(self.records))
        if self._writer is not None:
            for name, value in flat(record).items():
                if isinstance(value, int | float) and name != "epoch":
                    self._writer.add_scalar(name, value, record["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with `selectivity/layer1` for the entry `layer1` of the mapping `selectivity`.

    >>> flat({"epoch": 1, "selectivity": {"relu": 0.5}})
    {'epoch': 1, 'selectivity/relu': 0.5}
    """
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            row.update({f"{name}/{key}": inner for key, inner in value.items()})
        else:
            row[name] = value
    return row


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _as_csv(records: list[dict[str, Any]]) -> str:
    rows = [flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _tensorboard(folder: Path, epochs_done: int) -> Any:
    with optional("tensorboard", "tensorboard=True"):
        from torch.utils.tensorboard import SummaryWriter
    writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done or None)
    return writer
