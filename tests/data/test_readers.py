"""Data set readers on small files written in the publishers' formats."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import probekit as pk
from probekit.data import readers
from probekit.errors import DataError, OptionError

RANDOM = np.random.default_rng(0)


def _idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


@pytest.fixture
def small_idx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers.idx, "_IDX_COUNTS", {"train": 6, "test": 4})


def _write_mnist(folder: Path, *, zipped: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, prefix, count in (("train", "train", 6), ("test", "t10k", 4)):
        images = RANDOM.integers(0, 256, (count, 28, 28), np.uint8)
        labels = RANDOM.integers(0, 10, count).astype(np.uint8)
        for stem, values in (("images-idx3", images), ("labels-idx1", labels)):
            raw = _idx(values)
            name = f"{prefix}-{stem}-ubyte{'.gz' if zipped else ''}"
            (folder / name).write_bytes(gzip.compress(raw) if zipped else raw)
        written[split] = (images, labels)
    return written


@pytest.mark.usefixtures("small_idx")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize(
    ("folder", "zipped"),
    [("", True), ("raw", False), ("torchvision", True), ("torchvision", False)],
)
def test_idx_files_are_read(tmp_path: Path, name: str, folder: str, zipped: bool) -> None:
    if folder == "torchvision":
        folder = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}[name]
    written = _write_mnist(tmp_path / folder, zipped=zipped)
    for split, (images, labels) in written.items():
        data = pk.load_data(name, root=tmp_path, split=split)
        np.testing.assert_array_equal(data.images[:, 0].numpy(), images)
        np.testing.assert_array_equal(data.labels.numpy(), labels)
        assert len(data.classes) == 10


@pytest.mark.usefixtures("small_idx")
@pytest.mark.parametrize("missing", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_the_missing_idx_file_is_named(tmp_path: Path, missing: str) -> None:
    _write_mnist(tmp_path, zipped=True)
    (tmp_path / f"{missing}.gz").unlink()
    with pytest.raises(DataError, match=missing):
        pk.load_data("mnist", root=tmp_path, split="train")
    assert len(pk.load_data("mnist", root=tmp_path, split="test")) == 4


def test_an_idx_file_with_too_few_images_is_named(tmp_path: Path) -> None:
    _write_mnist(tmp_path, zipped=True)
    with pytest.raises(DataError, match=r"t10k-images.*holds 4 samples and not the 10000"):
        pk.load_data("mnist", root=tmp_path)


@pytest.mark.usefixtures("small_idx")
def test_a_cut_gzip_file_is_named(tmp_path: Path) -> None:
    _write_mnist(tmp_path, zipped=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        pk.load_data("mnist", root=tmp_path, split="train")


PER_FILE = 12
LABEL_NAMES = [f"kind{n}" for n in range(10)]


def _write_cifar10(folder: Path, *, binary: bool) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    for stem in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        images = RANDOM.integers(0, 256, (PER_FILE, 3072), np.uint8)
        labels = RANDOM.integers(0, 10, PER_FILE).astype(np.uint8)
        parts["test" if stem == "test_batch" else "train"].append((images, labels))
        if binary:
            rows = np.concatenate([labels[:, None], images], axis=1)
            (folder / f"{stem}.bin").write_bytes(rows.tobytes())
        else:
            batch = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"part"}
            (folder / stem).write_bytes(pickle.dumps(batch, protocol=2))
    if binary:
        (folder / "batches.meta.txt").write_text("\n".join(LABEL_NAMES) + "\n\n")
    else:
        names = {b"label_names": [name.encode() for name in LABEL_NAMES]}
        (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return {
        split: (np.concatenate([p[0] for p in part]), np.concatenate([p[1] for p in part]))
        for split, part in parts.items()
    }


LAYOUTS = [("cifar-10-batches-py", False), ("cifar-10-batches-bin", True), ("", False), ("", True)]


@pytest.mark.parametrize(("folder", "binary"), LAYOUTS)
def test_cifar10_is_read(tmp_path: Path, folder: str, binary: bool) -> None:
    root = tmp_path / "data"
    for split, (images, labels) in _write_cifar10(root / folder, binary=binary).items():
        data = readers.cifar10(root, split, per_file=PER_FILE)
        np.testing.assert_array_equal(data.images.flatten(1).numpy(), images)
        np.testing.assert_array_equal(data.labels.numpy(), labels)
        assert data.classes == tuple(LABEL_NAMES)


def test_cifar10_planes_are_red_green_blue(tmp_path: Path) -> None:
    images, _ = _write_cifar10(tmp_path / "cifar-10-batches-py", binary=False)["test"]
    data = readers.cifar10(tmp_path, "test", per_file=PER_FILE)
    assert data.images[3, 1, 5, 7] == images[3, 1024 + 5 * 32 + 7]


@pytest.mark.parametrize(("folder", "binary"), LAYOUTS[:2])
@pytest.mark.parametrize("missing", ["data_batch_3", "batches.meta"])
def test_the_missing_file_of_cifar10_is_named(
    tmp_path: Path, folder: str, binary: bool, missing: str
) -> None:
    _write_cifar10(tmp_path / folder, binary=binary)
    suffix = (".txt" if missing == "batches.meta" else ".bin") if binary else ""
    (tmp_path / folder / f"{missing}{suffix}").unlink()
    with pytest.raises(DataError, match=f"{missing}{suffix}' is missing"):
        readers.cifar10(tmp_path, "train", per_file=PER_FILE)


@pytest.mark.parametrize("binary", [True, False])
def test_an_incomplete_batch_of_cifar10_is_named(tmp_path: Path, binary: bool) -> None:
    folder = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
    _write_cifar10(tmp_path / folder, binary=binary)
    file = tmp_path / folder / ("data_batch_2.bin" if binary else "data_batch_2")
    with pytest.raises(DataError, match=r"data_batch_1.*holds 12 images and not 10000"):
        readers.cifar10(tmp_path, "train")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"data_batch_2.*(truncated|damaged)"):
        readers.cifar10(tmp_path, "train", per_file=PER_FILE)


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    _write_cifar10(folder, binary=False)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": _Evil()}))
    with pytest.raises(DataError, match="is damaged or not a file of CIFAR"):
        readers.cifar10(tmp_path, "test", per_file=PER_FILE)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("binary", [True, False])
def test_cifar100_uses_the_fine_labels(tmp_path: Path, binary: bool) -> None:
    folder = tmp_path / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir()
    images = RANDOM.integers(0, 256, (8, 3072), np.uint8)
    fine = RANDOM.integers(0, 100, 8).astype(np.uint8)
    coarse = np.full(8, 3, np.uint8)
    names = [f"fine{n}" for n in range(100)]
    if binary:
        rows = np.concatenate([coarse[:, None], fine[:, None], images], axis=1)
        (folder / "train.bin").write_bytes(rows.tobytes())
        (folder / "fine_label_names.txt").write_text("\n".join(names))
    else:
        part = {b"data": images, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
        (folder / "train").write_bytes(pickle.dumps(part, protocol=2))
        meta = {b"fine_label_names": [name.encode() for name in names]}
        (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    data = readers.cifar100(tmp_path, "train", train=8)
    np.testing.assert_array_equal(data.labels.numpy(), fine)
    np.testing.assert_array_equal(data.images.flatten(1).numpy(), images)
    assert data.classes[42] == "fine42"
    with pytest.raises(DataError, match="cifar100 is not in"):
        readers.cifar100(tmp_path / "elsewhere", "train")


WNIDS = ["n02", "n01", "n03"]
read_tiny = partial(readers.tiny_imagenet, classes=3, per_class=4, test=5)


def _write_tiny(folder: Path) -> dict[str, int]:
    """Each image has a unique gray level that identifies it (JPEG stores constant gray exactly)."""
    grays: dict[str, int] = {}
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\n")
    lines = []
    for number in range(5):
        name = f"val_{number}.JPEG"
        grays[name] = 10 * number + 5
        Image.new("RGB", (64, 64), (grays[name],) * 3).save(folder / "val" / "images" / name)
        lines.append(f"{name}\t{WNIDS[number % 3]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    for place, wnid in enumerate(WNIDS):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for number in range(4):
            name = f"{wnid}_{number}.JPEG"
            grays[name] = 100 + 20 * place + number
            mode, color = ("L", grays[name]) if number == 2 else ("RGB", (grays[name],) * 3)
            Image.new(mode, (64, 64), color).save(images / name)
    return grays


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("above", ["", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read(tmp_path: Path, above: str, workers: int) -> None:
    grays = _write_tiny(tmp_path / above)
    train = read_tiny(tmp_path, "train", workers=workers)
    assert train.classes == ("goldfish", "crane (n02)", "crane (n03)")
    assert train.images.shape == (12, 3, 64, 64)
    found = [
        (label, gray)
        for label, gray in zip(
            train.labels.tolist(), train.images[:, 0, 0, 0].tolist(), strict=True
        )
    ]
    expected = [
        (label, grays[f"{wnid}_{number}.JPEG"])
        for label, wnid in enumerate(sorted(WNIDS))
        for number in range(4)
    ]
    assert found == expected
    test = read_tiny(tmp_path, "test", workers=workers)
    assert test.labels.tolist() == [sorted(WNIDS).index(WNIDS[n % 3]) for n in range(5)]
    assert test.images[:, 1, 9, 9].tolist() == [grays[f"val_{n}.JPEG"] for n in range(5)]


@pytest.mark.parametrize(
    ("missing", "split"),
    [
        ("train/n01/images/n01_2.JPEG", "train"),
        ("wnids.txt", "train"),
        ("val/val_annotations.txt", "test"),
        ("val/images/val_3.JPEG", "test"),
    ],
)
def test_the_missing_file_of_tiny_imagenet_is_named(
    tmp_path: Path, missing: str, split: str
) -> None:
    _write_tiny(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=Path(missing).name):
        read_tiny(tmp_path, split)


def test_a_damaged_image_of_tiny_imagenet_is_named(tmp_path: Path) -> None:
    _write_tiny(tmp_path)
    (tmp_path / "val" / "images" / "val_1.JPEG").write_bytes(b"no image")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"val_1\.JPEG"):
            read_tiny(tmp_path, "test", workers=workers)


def test_digits_are_split_into_disjoint_parts() -> None:
    whole, train, test = (pk.load_data("digits", split=s) for s in (None, "train", "test"))
    assert (len(whole), len(train), len(test)) == (1797, 1437, 360)
    assert torch.equal(torch.cat([train.images, test.images]), whole.images)


def test_invalid_requests_explain_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pass root=DIR"):
        pk.load_data("cifar10")
    with pytest.raises(DataError, match="there is no folder"):
        pk.load_data("cifar10", root=tmp_path / "none")
    with pytest.raises(DataError, match="expected data_batch_1"):
        pk.load_data("cifar10", root=tmp_path, split="train")
    with pytest.raises(OptionError, match=r"splits train, test, not 'dev'"):
        pk.load_data("mnist", root=tmp_path, split="dev")
    with pytest.raises(OptionError, match="workers"):
        pk.load_data("tiny-imagenet", root=tmp_path, workers=-1)
    with pytest.raises(DataError, match=r"close matches: .*cifar10"):
        pk.load_data("cifar1")


def test_subfolders_of_a_folder_are_its_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / name / f"{split}.png")
    assert pk.load_data(tmp_path, split="train").paths[0].name == "train.png"
    with pytest.raises(DataError, match="no folder 'dev'"):
        pk.load_data(tmp_path, split="dev")


def test_the_bundled_test_images_equal_those_of_debian() -> None:
    from probekit.data.datasets import DEBIAN_FASHION_MNIST

    if not DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    bundled = pk.load_data("fashion-mnist")
    installed = pk.load_data("fashion-mnist", root=DEBIAN_FASHION_MNIST)
    assert bundled.fingerprint == installed.fingerprint
    assert len(pk.load_data("fashion-mnist", split="train")) == 60_000
