"""Images and labels in `.npz` and HDF5 files: names, layouts, laziness, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import probekit as pk
from probekit.data.batches import Batches
from probekit.errors import DataError, ProbekitWarning

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 2, 0, 0])


def write_hdf5(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array


WRITERS: dict[str, Callable[..., None]] = {
    "a.npz": np.savez,
    "compressed.npz": np.savez_compressed,
    "a.h5": write_hdf5,
    "a.hdf5": write_hdf5,
}
KINDS = pytest.mark.parametrize("name", WRITERS)


@KINDS
def test_images_and_labels_come_in_order(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, images=IMAGES, labels=LABELS)
    data = pk.load_data(tmp_path / name)
    assert data.labels.tolist() == LABELS.tolist()
    (batch,) = Batches(data, batch_size=7)
    torch.testing.assert_close(batch.images, torch.tensor(IMAGES / 255).movedim(3, 1).float())
    images, labels = pk.images_at(data, [6, 1, 6])
    assert labels.tolist() == [0, 0, 0]
    assert torch.equal(images, batch.images[[6, 1, 6]])


@KINDS
def test_a_model_is_analyzed_from_a_path(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, image=IMAGES.mean(3) / 255, y=LABELS[:, None])
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(1, 3, 10, 12))
    model = pk.ImageModel(net, (0.0,) * 3, (1.0,) * 3, (3, 10, 12))
    samples = pk.analyze(model, str(tmp_path / name), metrics=["selectivity"])["samples"]
    assert samples["label"].values.tolist() == LABELS.tolist()


@KINDS
def test_missing_labels_text_labels_and_one_hot_rows(name: str, tmp_path: Path) -> None:
    write, path = WRITERS[name], tmp_path / name
    write(path, x=IMAGES)
    assert pk.load_data(path).labels.tolist() == [-1] * 7
    assert Batches(pk.load_data(path)).source.labels() is None
    path = tmp_path / f"text-{name}"
    write(path, x=IMAGES, label=np.array([b"owl", b"cat", b"cat", b"owl", b"ant", b"cat", b"owl"]))
    data = pk.load_data(path)
    assert data.classes == ("ant", "cat", "owl")
    assert data.labels.tolist() == [2, 1, 1, 2, 0, 1, 2]
    path = tmp_path / f"rows-{name}"
    write(path, x=IMAGES, label=np.eye(3)[LABELS])
    assert pk.load_data(path).labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("keras.npz", {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:2], "y_test": [1, 2]}),
        ("medmnist.npz", {"train_images": IMAGES, "test_images": IMAGES[:2], "test_labels": [[1], [2]]}),
        ("a.h5", {"train__images": IMAGES, "test__images": IMAGES[:2], "test__labels": [1, 2]}),
    ],
)  # fmt: skip
def test_splits(file: str, split: dict[str, Any], tmp_path: Path) -> None:
    write = np.savez if file.endswith("npz") else write_hdf5
    write(tmp_path / file, **split)
    assert pk.load_data(tmp_path / file, split="test").labels.tolist() == [1, 2]
    assert len(pk.load_data(tmp_path / file, split="train")) == 7
    with pytest.raises(DataError, match=r"has the splits train, test, not None; choose one"):
        pk.load_data(tmp_path / file)
    write(tmp_path / file, images=IMAGES)
    with pytest.raises(DataError, match=r"and no images named image, .* of a split 'test'"):
        pk.load_data(tmp_path / file, split="test")


@KINDS
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES[0, 0]}, r"have the shape \(6, 3\); give \(samples, channels"),
        ({"images": IMAGES[:0]}, r"have the shape \(0, 5, 6, 3\)"),
        ({"images": IMAGES.astype(np.int64)}, "are int64; give uint8 from 0 to 255"),
        ({"images": IMAGES, "labels": LABELS[:3]}, r"7 images and labels of shape \(3,\)"),
        ({"images": IMAGES, "labels": np.float64(1)}, r"labels of shape \(\)"),
        ({"images": IMAGES, "labels": LABELS * 0.5}, "must be non-negative integers"),
        ({"images": IMAGES, "labels": -LABELS}, "label -2 is out of range"),
        ({"pictures": IMAGES}, "holds the arrays pictures, and no images named image"),
    ],
)
def test_wrong_arrays_are_refused(
    name: str, arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path / name, **arrays)
    with pytest.raises(DataError, match=message):
        pk.load_data(tmp_path / name)


class Harmful:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("key", ["images", "labels"])
def test_nothing_is_unpickled(
    write: Any, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = np.array([Harmful()] * 7, dtype=object)
    write("a.npz", **{"images": IMAGES, "labels": LABELS, key: pickled})
    with pytest.raises(DataError, match=r"pickled objects|allow_pickle=False"):
        pk.load_data("a.npz")
    assert not Path("harmed").exists()


@KINDS
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, images=IMAGES, labels=LABELS)
    for content in (b"", b"nothing", path.read_bytes()[: path.stat().st_size // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            pk.load_data(path)


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
def test_images_are_not_read_before_they_are_needed(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, images=IMAGES, labels=LABELS)
    data = pk.load_data(tmp_path / name)
    held = data._images()  # type: ignore[attr-defined]
    assert isinstance(held, np.memmap | h5py.Dataset)
    copy = pickle.loads(pickle.dumps(data))  # as for worker processes
    assert len(pickle.dumps(data)) < 5000
    assert torch.equal(copy[3][0], data[3][0])


@KINDS
def test_the_fingerprint_depends_on_content_labels_and_size(name: str, tmp_path: Path) -> None:
    def fingerprint(size: Any = None, **arrays: Any) -> str:
        WRITERS[name](tmp_path / name, **arrays)
        model = None if size is None else pk.ImageModel(nn.ReLU(), (0.0,), (1.0,), size)
        return pk.load_data(tmp_path / name, model).fingerprint

    plain = fingerprint(images=IMAGES, labels=LABELS)
    assert fingerprint(images=IMAGES, labels=LABELS) == plain
    others = [
        fingerprint(images=IMAGES // 2, labels=LABELS),
        fingerprint(images=IMAGES, labels=LABELS[::-1]),
        fingerprint((3, 8, 8), images=IMAGES, labels=LABELS),
    ]
    assert len({plain, *others}) == 4


@KINDS
def test_an_image_that_changed_in_the_middle_is_noticed(name: str, tmp_path: Path) -> None:
    found = []
    images = np.zeros((200, 4, 4, 1), np.uint8)
    for shade in (0, 1):
        images[33] = shade
        WRITERS[name](tmp_path / f"{shade}{name}", images=images)
        data = pk.load_data(tmp_path / f"{shade}{name}")
        found.append([data.fingerprint, data.content_of(range(200)), data.content_of(range(33))])
    assert [one == other for one, other in zip(*found, strict=True)][1:] == [False, True]


def test_the_input_size_tells_which_axis_is_the_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 3, 5, 3), np.float32)  # of 3 by 5 pixels
    np.savez(tmp_path / "last.npz", images=images)
    model = pk.ImageModel(torch.nn.ReLU(), (0.0,), (1.0,), (3, 3, 5))
    data = pk.load_data(tmp_path / "last.npz", model)
    assert np.array_equal(data[1][0].numpy(), images[1].transpose(2, 0, 1))
    with pytest.raises(DataError, match="may have their channels first or last"):
        pk.load_data(tmp_path / "last.npz")


def test_text_has_the_same_number_in_every_split(tmp_path: Path) -> None:
    labels = {"y_train": np.array(list("abcd")), "y_val": np.array(list("dca"))}
    images = {
        f"x_{split}": np.zeros((n, 4, 4), np.uint8) for split, n in (("train", 4), ("val", 3))
    }
    np.savez(tmp_path / "data.npz", **images, **labels)
    data = pk.load_data(tmp_path / "data.npz", split="val")
    assert data.classes == ("a", "b", "c", "d")
    assert data.labels.tolist() == [3, 2, 0]


def test_a_split_file_numbers_its_classes_as_the_training_file(tmp_path: Path) -> None:
    for split, names in (("train", "cabdcab"), ("test", "dxadadd")):
        np.savez(tmp_path / f"{split}.npz", images=IMAGES, labels=np.array(list(names)))
    with pytest.warns(ProbekitWarning, match="not in the training split .* after its 4 classes: x"):
        data = pk.load_data(tmp_path / "test.npz")
    assert data.classes == ("a", "b", "c", "d", "x")
    assert data.labels.tolist() == [3, 4, 0, 3, 0, 3, 3]
