"""Damaged folders of runs and sweeps: one sentence, nothing lost."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import probekit as pk
from damaged_files import QUICK, mutations, safetensors
from probekit.errors import ProbekitError


@pytest.mark.slow
def test_folders_of_runs(tmp_path: Path) -> None:
    def train() -> Any:
        return pk.train("resnet20-digits", 0.0, 0, tmp_path / "run", **QUICK)

    done = train()
    for name in ("run.json", "model.json"):
        file = tmp_path / "run" / name
        sound = file.read_text()
        for odd in mutations(json.loads(sound)):
            file.write_text(json.dumps(odd))
            before = (tmp_path / "run" / "final.safetensors").read_bytes()
            try:
                assert train().epochs == done.epochs
            except ProbekitError:
                assert (tmp_path / "run" / "final.safetensors").read_bytes() == before
            file.write_text(sound)
    assert train().test_accuracy == done.test_accuracy


@pytest.mark.slow
def test_checkpoints(tmp_path: Path) -> None:
    options = {**QUICK, "epochs": 2}
    pk.train("resnet20-digits", 0.0, 0, tmp_path / "run", **options)
    card = tmp_path / "run" / "model.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "finished": False}))
    last = tmp_path / "run" / "last.safetensors"
    sound, tensors = last.read_bytes(), load_file(last)
    kept = ("final.safetensors", "log.csv")
    before = [(tmp_path / "run" / name).read_bytes() for name in kept]
    size = struct.unpack("<Q", sound[:8])[0]
    facts = json.loads(json.loads(sound[8 : 8 + size])["__metadata__"]["facts"])
    damaged = [b"", sound[:50], sound[: len(sound) // 2], safetensors({})]
    for odd in mutations(facts):
        save_file(tensors, last, {"facts": json.dumps(odd)})
        damaged.append(last.read_bytes())
    few = {name: x for name, x in tensors.items() if not name.startswith("random.")}
    save_file(few, last, {"facts": json.dumps(facts)})
    damaged.append(last.read_bytes())
    for content in damaged[: 4 + 5 + len(facts)] + damaged[-1:]:
        last.write_bytes(content)
        with pytest.raises(ProbekitError, match="last"):
            pk.train("resnet20-digits", 0.0, 0, tmp_path / "run", **options)
    assert before == [(tmp_path / "run" / name).read_bytes() for name in kept]
    last.write_bytes(sound)
    pk.train("resnet20-digits", 0.0, 0, tmp_path / "run", **options)


@pytest.mark.slow
def test_folders_of_sweeps(tmp_path: Path) -> None:
    def sweep() -> Any:
        return pk.sweep("resnet20-digits", [0.0], [0], tmp_path / "sweep", **QUICK)

    whole = sweep()
    (tmp_path / "sweep" / "sweep.nc").write_bytes(b"truncated")
    xr_same(sweep(), whole)
    file = tmp_path / "sweep" / "sweep.json"
    sound = file.read_text()
    for odd in mutations(json.loads(sound))[:6]:
        file.write_text(json.dumps(odd))
        with pytest.raises(ProbekitError):
            sweep()
    file.write_text(sound)
    for odd in ("[]", "hello", '{"x": "y"}', '{"1|0": ["why"]}', "null"):
        (tmp_path / "sweep" / "failures.json").write_text(odd)
        with contextlib.suppress(ProbekitError):
            sweep()
    (tmp_path / "sweep" / "failures.json").unlink()
    xr_same(sweep(), whole)


def xr_same(one: Any, other: Any) -> None:
    for name in ("test_accuracy", "selectivity"):
        np.testing.assert_array_equal(one[name].values, other[name].values)
