"""The log agrees with the checkpoints after any interruption."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from probekit.errors import OutputError
from probekit.training.run.log import RunLog, read_log


def record(epoch: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": 1.0 / (epoch + 1),
        "selectivity": {"relu": 0.5, "a.b": 0.25},
        **more,
    }


def written(folder: Path) -> list[int]:
    with (folder / "log.csv").open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_records_are_read_from_both_files(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.add(record(0, validation_accuracy=None))
    log.add(record(1, validation_accuracy=0.5))
    assert read_log(tmp_path / "log.jsonl") == log.records
    assert (tmp_path / "log.csv").read_text().splitlines() == [
        "epoch,loss,validation_accuracy,selectivity/relu,selectivity/a.b",
        "0,1.0,,0.5,0.25",
        "1,0.5,0.5,0.5,0.25",
    ]


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_records_after_the_checkpoint_are_dropped(tmp_path: Path, done: int) -> None:
    log = RunLog(tmp_path, 0)
    for epoch in range(3):
        log.add(record(epoch))
    again = RunLog(tmp_path, done)
    assert [one["epoch"] for one in read_log(tmp_path / "log.jsonl")] == list(range(done))
    again.add(record(done))
    assert written(tmp_path) == list(range(done + 1))


def test_a_truncated_line_is_ignored(tmp_path: Path) -> None:
    RunLog(tmp_path, 0).add(record(0))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps(record(1))[:20])
    log = RunLog(tmp_path, 2)
    log.add(record(1))
    assert [one["epoch"] for one in read_log(tmp_path / "log.jsonl")] == [0, 1]
    assert written(tmp_path) == [0, 1]


def test_a_log_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"log\.jsonl' cannot be written: Is a directory"):
        log.add(record(0))
