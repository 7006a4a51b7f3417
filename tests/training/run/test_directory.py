"""Checkpoints are complete, whatever happens while they are written."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from children import Child
from probekit.errors import OutputError
from probekit.results.files import remove_drafts
from probekit.results.folders import write_whole
from probekit.training.run.directory import (
    RunLog,
    TrainingState,
    read_checkpoint,
    read_log,
    write_checkpoint,
)


def test_tensors_of_all_kinds_are_restored(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "layout": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
    }
    facts = {"epoch": 3, "best": 0.1 + 0.2, "losses": [1.5, 2.5], "name": None}
    write_checkpoint(tmp_path / "x.safetensors", tensors, facts)
    found, header = read_checkpoint(tmp_path / "x.safetensors")
    assert header == facts
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_failed_write_keeps_the_old_file_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_whole(path, "old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*is intact; free some space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


_FULL = """
import resource, sys, torch
from pathlib import Path
from probekit.errors import OutputError
from probekit.training.run.directory import write_checkpoint
path = Path(sys.argv[1])
write_checkpoint(path, {"w": torch.ones(100)}, {"epoch": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    write_checkpoint(path, {"w": torch.ones(100_000)}, {"epoch": 2})
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_a_full_disk_keeps_the_old_checkpoint_complete(
    tmp_path: Path, start: Callable[..., Child]
) -> None:
    path = tmp_path / "last.safetensors"
    status, printed, errors = start([str(path)], code=_FULL).wait()
    assert status == 0, errors
    assert "File too large; the previous file is intact" in printed
    tensors, facts = read_checkpoint(path)
    assert facts == {"epoch": 1}
    assert torch.equal(tensors["w"], torch.ones(100))
    assert os.listdir(tmp_path) == ["last.safetensors"]


_WRITER = """
import sys, torch
from pathlib import Path
from probekit.training.run.directory import write_checkpoint
number = 0
while True:
    number += 1
    write_checkpoint(Path(sys.argv[1]), {"w": torch.full((200_000,), float(number))}, {"n": number})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_writer_killed_midway_leaves_a_complete_file(
    tmp_path: Path, start: Callable[..., Child]
) -> None:
    path = tmp_path / "last.safetensors"
    writer = start([str(path)], code=_WRITER)
    while not path.exists():
        time.sleep(0.01)
    deadline = time.monotonic() + 5
    while not list(tmp_path.glob(".draft-*")) and time.monotonic() < deadline:
        pass
    assert writer.kill()
    tensors, facts = read_checkpoint(path)
    assert torch.equal(tensors["w"], torch.full((200_000,), float(facts["n"])))
    remove_drafts(tmp_path)
    assert os.listdir(tmp_path) == ["last.safetensors"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x10" + b"\0" * 40])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.safetensors"
    write_whole(path, content)
    with pytest.raises(OutputError, match=r"last\.safetensors' cannot be read"):
        read_checkpoint(path)


def test_an_unrelated_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(OutputError, match="facts"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_momentum_randomness_and_progress_are_restored() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        return layers.to(memory_format=torch.channels_last)

    def step(module: nn.Module, optimizer: torch.optim.SGD, seed: int) -> None:
        images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(images).square().mean().backward()
        optimizer.step()

    def state(module: nn.Module) -> TrainingState:
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        losses = torch.zeros(3, 2)
        return TrainingState(
            module, optimizer, scaler, torch.device("cpu"), losses, torch.zeros(()).long()
        )

    one, two = state(network()), state(network())
    assert not [name for name in one.to_checkpoint()[0] if name.startswith("momentum")]
    step(one.module, one.optimizer, 1)
    one.best_accuracy, one.step = 0.5, 1
    one.losses[0] = 2.0
    tensors, facts = one.to_checkpoint()
    first = torch.rand(3)
    two.load_checkpoint({name: x.contiguous().clone() for name, x in tensors.items()}, facts)
    assert torch.equal(torch.rand(3), first)
    assert (two.best_accuracy, two.step, two.losses[0].tolist()) == (0.5, 1, [2.0, 2.0])
    step(one.module, one.optimizer, 2)
    step(two.module, two.optimizer, 2)
    for left, right in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(left, right)
    kernel = two.module[0].weight
    assert two.optimizer.state[kernel]["momentum_buffer"].stride() == kernel.stride()


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
