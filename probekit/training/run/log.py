"""The log of a run: one record per epoch, as JSON lines and as CSV."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from probekit.results.files import writable
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
    """

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self._lines = folder / "log.jsonl"
        self._table = folder / "log.csv"
        self.records = [record for record in read_log(self._lines) if record["epoch"] < epochs_done]
        if self._lines.exists() or self.records:
            write_whole(self._lines, "".join(map(_line, self.records)))

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the record of an epoch: numbers, and mappings from layers to numbers."""
        self.records.append(dict(record))
        advice = "; free some space and start again with the same options, which resumes"
        with writable(self._lines, advice), self._lines.open("a") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        write_whole(self._table, pd.json_normalize(self.records, sep="/").to_csv(index=False))


def measures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The known numbers of a record, except the epoch; those of layers are named `NAME/LAYER`."""
    row = pd.json_normalize([dict(record)], sep="/").drop(columns="epoch").iloc[0]
    known = pd.to_numeric(row, errors="coerce").dropna()
    return {str(name): float(value) for name, value in known.items()}


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
