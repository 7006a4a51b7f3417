"""Which files in a folder are images, and which folders are classes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

import probekit as pk
from probekit.data.decoding import ImageDecoder
from probekit.data.folders import FolderImages
from probekit.errors import DataError, ProbekitWarning


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes with two images each, whose brightness identifies the class."""
    for label, name in enumerate("abc"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.new("L", (4, 4), 100 * label + number)
            image.save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def labels_by_brightness(data: FolderImages) -> list[int]:
    return [int(float(data[number][0].mean()) * 255 / 100 + 0.005) for number in range(len(data))]


def test_an_empty_class_keeps_its_number(root: Path) -> None:
    for file in (root / "b").iterdir():
        file.unlink()
    with pytest.warns(ProbekitWarning, match="1 of 3 class folders .* keep their numbers: b"):
        data = FolderImages(root, ImageDecoder((1, 4, 4)))
    assert data.classes == ("a", "b", "c")
    assert data.labels.tolist() == labels_by_brightness(data) == [0, 0, 2, 2]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
def test_hidden_and_system_folders_are_not_classes(name: str, root: Path) -> None:
    for place in (root / name, root / "a" / name):
        place.mkdir()
        Image.new("L", (4, 4)).save(place / "0.png")
    data = FolderImages(root)
    assert data.classes == ("a", "b", "c")
    assert len(data) == 6


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"])
def test_hidden_and_system_files_are_ignored(name: str, root: Path) -> None:
    (root / "a" / name).write_bytes(b"no image")
    (root / name).write_bytes(b"no image")
    assert len(FolderImages(root)) == 6


def test_uppercase_and_rare_suffixes_are_images(root: Path) -> None:
    Image.new("L", (4, 4)).save(root / "a" / "2.PNG")
    for suffix in (".jfif", ".jpe"):
        Image.new("L", (4, 4)).save(root / "a" / f"3{suffix}", "JPEG")
    assert len(FolderImages(root)) == 9


def test_files_of_unknown_kinds_are_counted(root: Path) -> None:
    for place in ("a/2.heic", "a/3.heic", "b/notes.txt", "c/image"):
        (root / place).write_bytes(b"?")
    Image.new("L", (4, 4)).save(root / "stray.png")
    known = ".heic" in Image.registered_extensions()
    with pytest.warns(ProbekitWarning, match=f"{3 if known else 5} files .* are left out") as told:
        assert len(FolderImages(root)) == 6 + 2 * known
    assert "1 .txt" in str(told[0].message)
    assert "1 .png" in str(told[0].message)


@pytest.mark.filterwarnings("ignore::probekit.errors.ProbekitWarning")
def test_warnings_of_loading_are_notes_of_every_result(root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    (root / "a" / "list.txt").touch()
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    model = pk.ImageModel(net, (0.0,), (1.0,), (1, 32, 32))
    data = pk.load_data(root, model)
    for given in (data, torch.utils.data.DataLoader(torch.utils.data.Subset(data, range(5)))):
        for result in (
            pk.analyze(model, given, progress=False),
            pk.record(model, given, progress=False),
            pk.record(model, given, store=tmp_path / f"{len(given)}.zarr", progress=False),
        ):
            assert "1 files in" in result.attrs["notes"]
            assert "1 of 4 class folders" in result.attrs["notes"]
        assert (
            pk.open_recording(tmp_path / f"{len(given)}.zarr").attrs["notes"]
            == result.attrs["notes"]
        )


def test_links_are_followed_without_cycles(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("L", (4, 4), 200).save(elsewhere / "0.png")
    (root / "c" / "more").symlink_to(elsewhere)
    (root / "c" / "up").symlink_to(root / "c")
    (root / "c" / "all").symlink_to(root)
    (root / "c" / "above").symlink_to(root.parent)
    (root / "c" / "self").symlink_to(root / "c" / "self")
    (root / "a" / "2.png").symlink_to(root / "a" / "0.png")
    (root / "d").symlink_to(elsewhere)
    with pytest.warns(ProbekitWarning, match="1 files"):  # the link to itself
        data = FolderImages(root, ImageDecoder((1, 4, 4)))
    assert data.classes == ("a", "b", "c", "d")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3]


def test_a_broken_link_is_named(root: Path) -> None:
    (root / "b" / "2.png").symlink_to(root / "gone.png")
    data = FolderImages(root, ImageDecoder((1, 4, 4)))
    assert len(data) == 7
    with pytest.raises(DataError, match=r"b/2\.png.*cannot be read"):
        data[4]


def splits(root: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (root.parent / "divided").mkdir(exist_ok=True)
        os.symlink(root, root.parent / "divided" / name)
    return root.parent / "divided"


@pytest.mark.parametrize(
    "names", [("train", "val"), ("test", "train"), ("train",), ("train", "val", "x")]
)
def test_splits_are_not_classes(names: tuple[str, ...], root: Path) -> None:
    divided = splits(root, names)
    with pytest.raises(DataError, match=r"are splits of the data.*--split"):
        pk.load_data(divided)
    data = pk.load_data(divided, split="train")
    assert data.classes == ("a", "b", "c")
    assert data.split == "train"
    with pytest.raises(DataError, match=r"no folder 'dev'.*holds .*train"):
        pk.load_data(divided, split="dev")


def test_a_class_may_be_called_train(root: Path) -> None:
    (root / "a").rename(root / "train")
    assert FolderImages(root).classes == ("b", "c", "train")


def test_threads_are_not_pickled(root: Path) -> None:
    data = FolderImages(root, ImageDecoder((1, 4, 4)))
    images = data.fetch([0, 5])[0]
    again = pickle.loads(pickle.dumps(data)).fetch([0, 5])[0]
    assert torch.equal(images, again)


def test_a_split_numbers_its_classes_as_the_training_split(tmp_path: Path) -> None:
    for split, names in (("train", "bcde"), ("val", "bde"), ("test", "abcde")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / split / name / "0.png")
    assert FolderImages(tmp_path / "train").labels.tolist() == [0, 1, 2, 3]
    with pytest.warns(ProbekitWarning, match=r"1 of 4 class folders .* keep their numbers: c"):
        data = FolderImages(tmp_path / "val", ImageDecoder((1, 4, 4)))
    assert data.classes == ("b", "c", "d", "e")
    assert data.labels.tolist() == [0, 2, 3]
    with pytest.warns(ProbekitWarning, match=r"not in the training split .* its 4 classes: a"):
        data = FolderImages(tmp_path / "test", ImageDecoder((1, 4, 4)))
    assert data.classes == ("b", "c", "d", "e", "a")
    assert [path.parent.name for path in data.paths] == list("bcdea")


@pytest.mark.parametrize(
    "names", [("test_set", "train_set"), ("art", "photo", "sketch"), ("images",)]
)
def test_folders_of_the_same_folders_are_reported(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        for label in ("cat", "dog", f"only in {name}"):
            (tmp_path / name / label).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / name / label / "0.png")
    with pytest.warns(ProbekitWarning, match=f"cat, dog.* above them, .*{names[-1]}"):
        assert FolderImages(tmp_path).classes == names
    assert FolderImages(tmp_path / names[0]).classes[:2] == ("cat", "dog")
