"""Truncated and malicious images, data sets and names: one sentence, no code executed."""

from __future__ import annotations

import dataclasses
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
from typer.testing import CliRunner

import probekit as pk
from damaged_files import BUNDLED, LAST, SMALL, Evil, Fails
from probekit.cli.app import app
from probekit.data.datasets import load_data
from probekit.errors import ProbekitError


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
    said = fails("analyze", SMALL, "photos", "-o", "r.nc")
    assert f"bad{ending}' cannot be read" in said
    done = CliRunner().invoke(app, ["analyze", SMALL, "photos", "--skip-bad", "-o", "r.nc"])
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


def test_an_image_one_pixel_wide_is_read(photos: Path) -> None:
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
    done = CliRunner().invoke(app, ["analyze", SMALL, "photos", "-o", "r.nc"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert all(line.isprintable() for line in done.output.splitlines())
    names = set(pk.open_result("r.nc")["units"]["class_name"].values)
    assert {*HOSTILE, "no\ufffdtext"} <= names
    listed = CliRunner().invoke(app, ["analyze", SMALL, "photos", "--json"])
    assert json.loads(listed.stdout)["layers"]


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
def test_a_model_is_restored_when_its_data_fails(
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
    assert not [one for one in threading.enumerate() if one.name.startswith("probekit-read-ahead")]
