"""Training runs that are interrupted, killed or out of disk space lose nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import probekit as pk
from probekit.errors import (
    OutputError,
    ProbekitWarning,
)
from probekit.training.run.directory import read_checkpoint, read_run, write_checkpoint
from quick_runs import QUICK, cut_after, quick, same, timeless, weights


@pytest.mark.parametrize(
    ("alpha", "minutes", "cuts"),
    [(0.0, 10.0, (2, 4)), (-1.0, 0.0, (1, 1, 2)), (-1.0, 10.0, (3, 0))],
)
def test_an_interrupted_run_ends_bitwise_equal_to_an_uninterrupted_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    baseline: Any,
    alpha: float,
    minutes: float,
    cuts: tuple[int, ...],
) -> None:
    whole = baseline if alpha == 0 else quick(tmp_path / "whole", alpha)
    for cut in cuts:
        with monkeypatch.context() as patch:
            cut_after(patch, cut)
            with pytest.raises(KeyboardInterrupt):
                quick(tmp_path / "cut", alpha, checkpoint_minutes=minutes)
    run = quick(tmp_path / "cut", alpha, checkpoint_minutes=minutes)
    assert same(weights(run.folder), weights(whole.folder))
    assert timeless(run.folder) == timeless(whole.folder)
    assert (run.best_epoch, run.test_accuracy) == (whole.best_epoch, whole.test_accuracy)
    last, plain = (read_checkpoint(r.folder / "last.safetensors")[0] for r in (run, whole))
    assert same(last, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the training run in")
def test_a_run_that_fails_at_any_write_resumes_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, baseline: Any
) -> None:
    replace = os.replace
    number, deadly = 0, 0

    def dying(*args: Any) -> None:
        nonlocal number
        number += 1
        if number == deadly:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", dying)
    quick(tmp_path / "counted")
    writes = number
    assert writes >= 8
    for deadly in range(1, writes + 1):
        out, number = tmp_path / f"{deadly}", 0
        with pytest.raises(KeyboardInterrupt):
            quick(out)
        if (out / "model.json").exists():
            pk.load_model(out)
        number = -1000
        run = quick(out)
        assert same(weights(out), weights(baseline.folder)), deadly
        assert timeless(out) == timeless(baseline.folder), deadly
        assert (run.best_epoch, run.selectivity) == (baseline.best_epoch, baseline.selectivity)
        files = {path.name for path in out.iterdir()}
        assert files == {path.name for path in baseline.folder.iterdir()}, deadly


LONG = {**QUICK, "epochs": 3, "limit": 128, "checkpoint_minutes": 0.0}


def _start(server: Any, out: Path) -> Any:
    process = server.Process(
        target=pk.train, args=("resnet20-digits", -1.0, 0, out), kwargs=LONG, daemon=True
    )
    process.start()
    return process


def _wait_for_checkpoints(process: Any, out: Path, count: int) -> None:
    """Waits until a run has written `count` more checkpoints."""
    file, seen, number = out / "last.safetensors", 0, None
    while process.is_alive() and seen < count:
        try:
            found = file.stat().st_ino
        except OSError:
            found = None
        seen += found is not None and found != number and number is not None
        number = found if found is not None else 0
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills and limits processes as Linux does")
def test_a_repeatedly_killed_run_ends_bitwise_equal(tmp_path: Path, server: Any) -> None:
    whole = _start(server, tmp_path / "whole")
    chance = random.Random(0)
    kills = 0
    out = tmp_path / "killed"
    for attempt in range(5):
        process = _start(server, out)
        _wait_for_checkpoints(process, out, 1 + (attempt == 2))
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills >= 4
    assert read_run(out) is None
    for process in (whole, _start(server, out)):
        process.join()
        assert process.exitcode == 0
    assert same(weights(out), weights(tmp_path / "whole"))
    assert timeless(out) == timeless(tmp_path / "whole")
    assert not list(out.glob(".draft-*"))
    run, other = read_run(out), read_run(tmp_path / "whole")
    assert run is not None
    assert other is not None
    assert (run.best_epoch, run.selectivity) == (other.best_epoch, other.selectivity)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills and limits processes as Linux does")
def test_a_full_disk_keeps_the_old_checkpoint_complete(tmp_path: Path, server: Any) -> None:
    out = tmp_path / "run"
    process = _start(server, out)
    _wait_for_checkpoints(process, out, 2)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    process.join()
    assert process.exitcode == 1
    _, facts = read_checkpoint(out / "last.safetensors")
    assert facts["place"]["epoch"] * 4 + facts["place"]["step"] >= 2
    assert not list(out.glob(".draft-*"))
    process = _start(server, out)
    process.join()
    assert process.exitcode == 0
    finished = read_run(out)
    assert finished is not None
    assert len(finished.log) == 3


def test_a_finished_run_is_returned_immediately(
    baseline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a finished run needs no data")

    monkeypatch.setattr("probekit.training.run.train.load_run_data", never)
    assert quick(baseline.folder) == baseline


def test_resuming_with_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            quick(tmp_path / "run")
    path = tmp_path / "run" / "last.safetensors"
    tensors, facts = read_checkpoint(path)
    write_checkpoint(path, tensors, {**facts, "data": "sha256:of other images"})
    with pytest.raises(OutputError, match="begun with other images"):
        quick(tmp_path / "run")


def test_a_finished_run_of_other_images_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = quick(out, epochs=1)
    assert quick(out, epochs=1, data_root=tmp_path) == run
    card = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(card | {"data": "sha256:of other images"}))
    with pytest.raises(OutputError, match="trained on other images than those in"):
        quick(out, epochs=1, data_root=tmp_path)


def test_a_run_on_a_folder_whose_files_changed_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for split, class_name, shade in itertools.product(("train", "test"), "ab", range(100)):
        file = images / split / class_name / f"{shade:03}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade + 100 * (class_name == "b") + (split == "test")).save(file)
    run = quick(tmp_path / "run", epochs=1, data=str(images), validation=8)
    assert quick(tmp_path / "run", epochs=1, data=str(images), validation=8) == run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pk.analyze(run, images / "test", progress=False)
    shutil.copytree(images / "train", tmp_path / "copy")
    with pytest.warns(ProbekitWarning, match="the model was trained on images of"):
        pk.analyze(run, tmp_path / "copy", progress=False)
    changed = images / "test" / "a" / "037.bmp"  # of the same size as before
    Image.new("L", (8, 8), 255).save(changed)
    with pytest.warns(ProbekitWarning, match="holds other images than when the model was trained"):
        pk.analyze(run, images / "test", progress=False)
    with pytest.raises(OutputError, match="trained on other images than those in"):
        quick(tmp_path / "run", epochs=1, data=str(images), validation=8)
