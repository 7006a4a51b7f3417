"""Damaged results, recordings and stores of conditions: one sentence, nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import probekit as pk
from damaged_files import SMALL, Fails
from probekit.capture.store import _PROGRESS
from probekit.data.datasets import load_data
from probekit.errors import ProbekitError


def one_result(**options: Any) -> Any:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    batch = torch.rand(8, 1, 8, 8), torch.tensor([0, 1] * 4)
    return pk.analyze(network, [batch], progress=False, **options)


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
@pytest.mark.parametrize("damage", ["truncated", "text", "nothing", "another table"])
def test_results(damage: str, ending: str, fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / f"other{ending}"
    pk.save_result(one_result(), path)
    files = [path] if ending == ".nc" else sorted(path.rglob("zarr.json"))
    if damage == "another table":
        one_result()["samples"].to_dataset().to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    for file in files:
        whole = file.read_bytes()
        content = {"truncated": whole[: len(whole) // 2], "text": b"hello", "nothing": b""}
        file.write_bytes(content.get(damage, whole))
    reference = ["--reference", path.name, "--corruptions", "contrast", "--limit", "4"]
    said = fails("robustness", SMALL, "fashion-mnist", *reference, "-o", "r.nc")
    assert damage == "another table" or f"other{ending}" in said


ODD_JSON = (
    "", "[]", "null", '{"done": -5}', '{"done": "x"}', '{"zarr_format": 3, "node_type": "group"}',
    "[" * 3000,
)  # fmt: skip


@pytest.mark.slow
def test_stores_of_recordings(fails: Fails, tmp_path: Path) -> None:
    model = pk.load_model(SMALL)
    data = load_data("fashion-mnist", model)
    again = {"store": tmp_path / "a.zarr", "limit": 20, "progress": False}
    pk.record(model, data, **again)
    store = tmp_path / "a.zarr"
    (store / _PROGRESS).write_text('{"done": 0}')
    sound = {file: file.read_bytes() for file in store.rglob("*.json")}
    for name in (_PROGRESS, "zarr.json", "activation/zarr.json", "layer/zarr.json"):
        for odd in ODD_JSON:
            for file, content in sound.items():
                file.write_bytes(content)
            (store / name).write_text(odd)
            if name == "layer/zarr.json":
                (store / _PROGRESS).unlink()
                with pytest.raises(ProbekitError, match=r"a\.zarr"):
                    pk.open_recording(store)
            else:
                with pytest.raises(ProbekitError, match="overwrite"):
                    pk.record(model, data, **again)
                assert (store / name).read_text() == odd
    for file, content in sound.items():
        file.write_bytes(content)
    (store / _PROGRESS).write_text("")
    said = fails("record", SMALL, "fashion-mnist", "--limit", "20", "-o", "a.zarr")
    assert "overwrite" in said


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_stores_of_conditions(fails: Fails, tmp_path: Path) -> None:
    model = pk.load_model(SMALL)
    data = load_data("fashion-mnist", model)

    def again() -> None:
        pk.robustness(model, data, "contrast", 1, limit=40, store=tmp_path / "kept", progress=False)

    again()
    identity = tmp_path / "kept" / "identity.json"
    sound = identity.read_text()
    for odd in ("", "hello", "[]", "null", '{"model": 1}', "[" * 3000, "\udcff"):
        identity.write_bytes(odd.encode(errors="surrogateescape"))
        with pytest.raises(ProbekitError, match="another folder"):
            again()
        assert identity.read_bytes() == odd.encode(errors="surrogateescape")
    identity.write_text(sound)
    for kept in (tmp_path / "kept").glob("corruption*.nc"):
        kept.write_bytes(kept.read_bytes()[:1000])
    command = ["robustness", SMALL, "fashion-mnist", "--corruptions", "contrast", "--severities", "1",
               "--limit", "40", "--store", "kept"]  # fmt: skip
    assert "is not a result" in fails(*command, "-o", "s.nc")
