"""Truncated, hostile and absurd files: one sentence, no code executed, no files left, nothing lost."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import pickle
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save, save_file
from torch import nn
from typer.testing import CliRunner

import probekit as pk
from probekit.capture.store import _PROGRESS
from probekit.cli.app import app
from probekit.data.datasets import load_data
from probekit.errors import ProbekitError

Fails = Callable[..., str]

BUNDLED = "probekit:resnet20-fashion-mnist"
ZOO = Path(pk.__file__).parent / "models" / "zoo"
LAST = ("--layers", "layer3.2.relu2")


class Evil:
    """Creates a file if its pickle is loaded unsafely."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harm",)


def safetensors(header: Any, size: int | None = None, rest: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + rest


@functools.cache
def sound_weights() -> bytes:
    return save(pk.load_model(BUNDLED).module.state_dict())


def damaged_weights() -> dict[str, tuple[str, bytes]]:
    """Invalid files of weights by their fault: the suffix and the content."""
    whole = sound_weights()
    absurd = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    return {
        "empty": (".safetensors", b""),
        "truncated header": (".safetensors", whole[:100]),
        "truncated values": (".safetensors", whole[: len(whole) // 2]),
        "header without end": (".safetensors", safetensors(b"{", 2**63)),
        "header as large as memory": (".safetensors", safetensors(b"{}", 2**40)),
        "header that is no object": (".safetensors", safetensors([1, 2])),
        "absurd shape": (".safetensors", safetensors({"conv1.weight": absurd})),
        "nothing in it": (".safetensors", safetensors({})),
        "text": (".pt", b"hello"),
        "empty pickle": (".pt", b""),
        "pickle that runs code": (".pt", pickle.dumps({"conv1.weight": Evil()})),
        "truncated pickle": (".pt", pickle.dumps({"a": [1] * 100})[:50]),
        "pickle without bottom": (".pt", b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"."),
        "pickle of something else": (".pt", pickle.dumps([1, 2])),
        "archive of nothing": (".pt", b"PK\x05\x06" + b"\0" * 18),
    }


@pytest.mark.parametrize("damage", damaged_weights())
def test_weights(damage: str, fails: Fails, tmp_path: Path) -> None:
    ending, content = damaged_weights()[damage]
    (tmp_path / f"weights{ending}").write_bytes(content)
    said = fails("analyze", BUNDLED, "fashion-mnist", "--weights", f"weights{ending}", "-o", "r.nc")
    assert f"weights{ending}" in said
    assert not (tmp_path / "harm").exists()


def test_weights_that_are_not_numbers(fails: Fails, tmp_path: Path) -> None:
    state = load(sound_weights())
    save_file({name: x * float("nan") for name, x in state.items()}, tmp_path / "nan.safetensors")
    said = fails(
        "analyze", BUNDLED, "fashion-mnist", "--weights", "nan.safetensors", "--limit", "4",
        "-o", "r.nc",
    )  # fmt: skip
    assert "gives NaN or infinity" in said


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A gray image with any header and any content."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def damaged_images() -> dict[str, tuple[str, bytes]]:
    zeros = zlib.compress(b"\0" * 10**6)
    sound = png(4, 4, zlib.compress(b"\0" * 20))
    return {
        "empty": (".png", b""),
        "text": (".jpg", b"not an image"),
        "truncated": (".png", sound[: len(sound) // 2]),
        "bomb": (".png", png(60_000, 60_000, zeros)),
        "absurd size": (".png", png(2**31 - 1, 2**31 - 1, zeros)),
        "no width": (".png", png(0, 4, zeros)),
        "no pixels": (".png", png(4, 4, b"")),
        "pixels that are not compressed": (".png", png(4, 4, b"\xff" * 40)),
        "tiff without directories": (".tif", b"II*\0\xff\xff\xff\xff"),
        "gif of nothing": (".gif", b"GIF89a" + b"\0" * 7),
        "header alone": (".bmp", b"BM" + b"\xff" * 52),
        "webp that ends": (".webp", b"RIFF\xff\xff\xff\xffWEBPVP8 "),
        "ppm of words": (".ppm", b"P6 many by many 255\n"),
    }


@pytest.mark.parametrize("damage", damaged_images())
def test_images(damage: str, fails: Fails, photos: Path) -> None:
    ending, content = damaged_images()[damage]
    (photos / "dog" / f"bad{ending}").write_bytes(content)
    said = fails("analyze", BUNDLED, "photos", *LAST, "-o", "r.nc")
    assert f"bad{ending}' cannot be read" in said
    done = CliRunner().invoke(
        app, ["analyze", BUNDLED, "photos", *LAST, "--skip-bad", "-o", "r.nc"]
    )
    assert done.exit_code == 0, done.output
    assert pk.open_result("r.nc")["samples"].sizes["sample"] == 6


def test_a_folder_with_the_name_of_an_image_contains_images(photos: Path) -> None:
    (photos / "dog" / "bad.png").mkdir()
    count = len(load_data(photos, pk.load_model(BUNDLED)))
    Image.new("L", (4, 4), 255).save(photos / "dog" / "bad.png" / "a.png")
    assert len(load_data(photos, pk.load_model(BUNDLED))) == count + 1


def test_a_broken_link_is_not_an_image(fails: Fails, photos: Path) -> None:
    (photos / "dog" / "bad.png").symlink_to("nowhere.png")
    assert "bad.png' cannot be read" in fails("record", BUNDLED, "photos", *LAST, "-o", "a.zarr",
                                              changes=True)  # fmt: skip
    data = load_data(photos, pk.load_model(BUNDLED), skip_bad=True)
    assert data.fingerprint.startswith("sha256:")


def test_a_line_is_an_image_too(photos: Path) -> None:
    Image.new("L", (1, 100_000), 255).save(photos / "dog" / "line.png")
    Image.new("L", (100_000, 1), 255).save(photos / "dog" / "row.png")
    data = load_data(photos, pk.load_model(BUNDLED))
    images = torch.stack([data[number][0] for number in (-1, -2)])
    assert images.shape == (2, 1, 28, 28)
    assert (images == 1).all()


HOSTILE = ("[bold red]x", "\x1b[2J\x1b[31mred", "two\nlines", "<img src=x onerror=alert(1)>", "%s{0}$HOME",
           "名前", "\u202etxet", "a" * 200, "' OR 1=1", "-o")  # fmt: skip


def test_names_of_classes(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*map(os.fsencode, HOSTILE), b"no\xfftext"):
        place = os.path.join(os.fsencode(photos), name)
        os.mkdir(place)
        with open(os.path.join(place, b"0.png"), "wb") as file:
            file.write((photos / "cat" / "0.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["analyze", BUNDLED, "photos", *LAST, "-o", "r.nc"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert all(line.isprintable() for line in done.output.splitlines())
    names = set(pk.open_result("r.nc")["units"]["class_name"].values)
    assert {*HOSTILE, "no\ufffdtext"} <= names
    listed = CliRunner().invoke(app, ["analyze", BUNDLED, "photos", *LAST, "--json"])
    assert json.loads(listed.stdout)["layers"]


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
    reference = ["--reference", path.name, "--corruptions", "contrast", "--limit", "4", *LAST]
    said = fails("robustness", BUNDLED, "fashion-mnist", *reference, "-o", "r.nc")
    assert damage == "another table" or f"other{ending}" in said


def recording_of(tmp_path: Path) -> Path:
    data = load_data("fashion-mnist", pk.load_model(BUNDLED))
    pk.record(BUNDLED, data, LAST[1], store=tmp_path / "a.zarr", limit=20, progress=False)
    return tmp_path / "a.zarr"


ODD_JSON = (
    "", "[]", "null", '{"done": -5}', '{"done": "x"}', '{"zarr_format": 3, "node_type": "group"}',
    "[" * 3000,
)  # fmt: skip


@pytest.mark.slow
def test_stores_of_recordings(fails: Fails, tmp_path: Path) -> None:
    store = recording_of(tmp_path)
    again = ["record", BUNDLED, "fashion-mnist", *LAST, "--limit", "20", "-o", "a.zarr"]
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
                assert "overwrite" in fails(*again)


def mutations(facts: dict[str, Any]) -> list[Any]:
    """A record with each of its fields missing or of another type, and values that are not records."""
    odd: list[Any] = [None, [], {}, "x", -1, 1e308, [[[]]], True]
    without = [{key: facts[key] for key in facts if key != lost} for lost in facts]
    other = [{**facts, key: value} for key in facts for value in odd]
    return [[], None, "x", 5, {}, *without, *other]


def test_cards_of_models(tmp_path: Path) -> None:
    card = json.loads((ZOO / "resnet20-fashion-mnist.json").read_text())
    (tmp_path / "run").mkdir()
    weights = "sound.safetensors"
    (tmp_path / "run" / weights).write_bytes(sound_weights())
    refused = 0
    for odd in mutations({**card, "weights": weights}):
        (tmp_path / "run" / "model.json").write_text(json.dumps(odd))
        try:
            pk.load_model(tmp_path / "run")
        except ProbekitError:
            refused += 1
    assert refused > 30


def test_a_card_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    card = json.loads((ZOO / "resnet20-fashion-mnist.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "secret.safetensors").write_bytes(sound_weights())
    card["weights"] = "../secret.safetensors"
    (tmp_path / "run" / "model.json").write_text(json.dumps(card))
    with pytest.raises(ProbekitError, match="there is no weights file"):
        pk.load_model(tmp_path / "run")


QUICK = {"epochs": 1, "architecture": "resnet8", "limit": 64, "device": "cpu", "progress": False}


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


def test_stores_of_conditions(fails: Fails, tmp_path: Path) -> None:
    command = ["robustness", BUNDLED, "fashion-mnist", "--corruptions", "contrast", "--severities", "1",
               "--limit", "40", "--store", "kept", *LAST]  # fmt: skip
    done = CliRunner().invoke(app, [*command, "-o", "r.nc"])
    assert done.exit_code == 0, done.output
    identity = tmp_path / "kept" / "identity.json"
    sound = identity.read_text()
    for odd in ("", "hello", "[]", "null", '{"model": 1}', "[" * 3000, "\udcff"):
        identity.write_bytes(odd.encode(errors="surrogateescape"))
        assert "another folder" in fails(*command, "-o", "s.nc")
    identity.write_text(sound)
    for kept in (tmp_path / "kept").glob("corruption*.nc"):
        kept.write_bytes(kept.read_bytes()[:1000])
    assert "is no result" in fails(*command, "-o", "s.nc")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t10k-images-idx3-ubyte.gz", b"\x1f\x8b" + b"\0" * 30),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03", mtime=0)),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\xff" + b"\xff" * 1020, mtime=0)),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\xff" + b"\0" * 1020),
        ("t10k-images-idx3-ubyte", b""),
    ],
)
def test_data_sets_of_idx(name: str, content: bytes, tmp_path: Path) -> None:
    for stem in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / stem).write_bytes(b"\0\0\x08\x01\0\0\0\x01\0")
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbekitError, match="t10k-images"):
        load_data("mnist", root=tmp_path)


@pytest.mark.parametrize(
    "batch",
    [
        pickle.dumps({b"data": Evil(), b"labels": [0]}),
        pickle.dumps({b"data": [[0] * 3072]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}),
        pickle.dumps({b"data": b"x", b"labels": "y"}),
        pickle.dumps([1]),
        b"\x80\x04" + b"]" * 5000,
        b"",
        b"cnumpy\n_reconstruct\n(tR.",
    ],
)
def test_data_sets_of_pickles(
    batch: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(batch)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"a"] * 10}))
    with pytest.raises(ProbekitError, match="test_batch"):
        load_data("cifar10", root=tmp_path)
    assert not (tmp_path / "harm").exists()


def test_published_arrays(tmp_path: Path) -> None:
    labels, images = tmp_path / "labels.npy", tmp_path / "fog.npy"
    np.save(labels, np.zeros(10, np.int64))
    sound = np.zeros((10, 4, 4, 3), np.uint8)

    def archive(file: Any) -> None:
        np.savez(file, sound)

    damages: list[Callable[[Any], None]] = [
        archive,
        lambda file: np.save(file, np.array([Evil()], object), allow_pickle=True),
        lambda file: file.write(b"\x93NUMPY\x01\x00\xff\xff{"),
        lambda file: file.write(b""),
        lambda file: np.save(file, sound[:3]),
    ]
    for damage in damages:
        with images.open("wb") as file:
            damage(file)
        with pytest.raises(ProbekitError, match=r"fog\.npy"):
            pk.load_published(tmp_path, corruptions=["fog"])
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("measure", ["analyze", "record", "robustness"])
def test_a_model_comes_back_when_data_breaks_off(
    measure: str, photos: Path, tmp_path: Path
) -> None:
    (photos / "dog" / "z.png").write_bytes(b"broken")
    model = dataclasses.replace(pk.load_model(BUNDLED), classes=())
    model.module.train()
    before = {name: x.clone() for name, x in model.module.state_dict().items()}
    data = load_data(photos, model)
    ask: dict[str, Any] = {"batch_size": 2, "progress": False}
    if measure == "robustness":
        ask |= {"corruptions": ["contrast"], "table": 32, "class_map": "index"}
    with pytest.raises(ProbekitError, match=r"z\.png"):
        getattr(pk, measure)(model, data, **ask)
    modules = list(model.module.modules())
    assert all(module.training for module in modules)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    for name, values in model.module.state_dict().items():
        assert torch.equal(values, before[name])
    assert not [one for one in threading.enumerate() if one.name == "probekit-read-ahead"]


@pytest.mark.parametrize(
    "out", ["no/such/folder/r.nc", "r.txt", "null\0byte.nc", "x" * 300 + ".nc", "photos", "old.nc"]
)
@pytest.mark.parametrize("command", ["analyze", "robustness"])
def test_places_that_cannot_be_written(
    command: str, out: str, fails: Fails, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.nc").write_bytes(b"precious")
    more = ["--corruptions", "contrast"] if command == "robustness" else []
    assert fails(command, BUNDLED, "fashion-mnist", "--limit", "4", *more, "-o", out)


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("record BUNDLED fashion-mnist --limit 4", "null\0byte.zarr"),
        ("record BUNDLED fashion-mnist --limit 4", "x" * 300 + ".zarr"),
        ("record BUNDLED fashion-mnist --limit 4", "a-file.zarr"),
        ("train resnet20-digits", "null\0byte"),
        ("train resnet20-digits", "x" * 300),
        ("train resnet20-digits", "a-file.zarr"),
        ("sweep resnet20-digits", "photos"),
        ("sweep resnet20-digits", "x" * 300),
    ],
)
def test_folders_that_cannot_be_written(
    command: str, out: str, fails: Fails, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "a-file.zarr").write_bytes(b"precious")
    assert fails(*command.replace("BUNDLED", BUNDLED).split(), "-o", out)


def test_unbounded_numbers_are_refused(fails: Fails) -> None:
    huge = "9" * 30
    for option in ("--batch-size", "--seed", "--workers"):
        said = fails("analyze", BUNDLED, "fashion-mnist", "--limit", "4", option, huge, *LAST)
        assert huge in said
    assert "workers" in fails("analyze", BUNDLED, "fashion-mnist", "--workers", "-1", *LAST)
    assert "seed" in fails("train", "resnet20-digits", "--seed", huge, "-o", "run")
