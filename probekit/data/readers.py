"""Readers of the data sets of the papers, from the folders that their publishers ship."""

from __future__ import annotations

import gzip
import io
import math
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from probekit.data.images import TensorImages
from probekit.errors import DataError, foreign_file

__all__ = [
    "FASHION_MNIST_CLASSES",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "mnist",
    "read_idx",
    "tiny_imagenet",
]

Size = tuple[int, int, int] | None

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# More than any of these data sets has, and less than a bomb of compressed zeros.
_MOST_BYTES = 2**28
_MOST_AXES = 4
_IDX_COUNTS = {"train": 60_000, "test": 10_000}
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def read_idx(file: Path | Traversable) -> Tensor:
    """An array in the IDX format of MNIST, gzipped or not.

    Raises:
        DataError: The file is missing, cut short or of another format.
    """
    with foreign_file(f"{str(file)!r} cannot be read", DataError):
        raw = file.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(_MOST_BYTES)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{str(file)!r} is not an IDX file of bytes")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if not 0 < len(shape) <= _MOST_AXES:
        raise DataError(f"{str(file)!r} is no list of images or labels: it has {len(shape)} axes")
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{str(file)!r} is cut short: {shape} values announced, {len(raw) - start} found"
        )
    values = np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())


def mnist(root: Path, split: str, *, size: Size = None) -> TensorImages:
    """MNIST from its four IDX files, gzipped or not.

    Args:
        root: The folder of the files, or the one above `raw` or `MNIST/raw` (torchvision's layout).
        split: `train` (60,000) or `test` (10,000).
        size: What to fit the images to.

    Raises:
        DataError: A file is missing or incomplete; it is named.
    """
    classes = [str(digit) for digit in range(10)]
    return _idx_images("mnist", root, "MNIST", split, classes, size)


def fashion_mnist(root: Path, split: str, *, size: Size = None) -> TensorImages:
    """Fashion-MNIST from its four IDX files, as `mnist`; Debian's `dataset-fashion-mnist` too.

    Raises:
        DataError: A file is missing or incomplete; it is named.
    """
    return _idx_images("fashion-mnist", root, "FashionMNIST", split, FASHION_MNIST_CLASSES, size)


def _idx_images(
    name: str, root: Path, folder: str, split: str, classes: Sequence[str], size: Size
) -> TensorImages:
    prefix = {"train": "train", "test": "t10k"}[split]
    places = (root, root / "raw", root / folder / "raw")
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    files = [_first_file(name, places, (stem, f"{stem}.gz")) for stem in stems]
    images, labels = read_idx(files[0]), read_idx(files[1])
    for file, found in zip(files, (images, labels), strict=True):
        if len(found) != _IDX_COUNTS[split]:
            raise DataError(
                f"{str(file)!r} holds {len(found)} samples and not the {_IDX_COUNTS[split]} of "
                f"{name}; get the whole file"
            )
    return TensorImages(images[:, None], labels, classes, name, size)


def cifar10(root: Path, split: str, *, size: Size = None, per_file: int = 10_000) -> TensorImages:
    """CIFAR10 from its Python or its binary version.

    Args:
        root: The folder of the batches, or the one above `cifar-10-batches-py` or `-bin`.
        split: `train` (50,000) or `test` (10,000).
        size: What to fit the images to.
        per_file: Images a file.

    Raises:
        DataError: A file is missing or incomplete; it is named.
    """
    stems = (
        [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    )
    folder, binary = _cifar_folder(
        "cifar10", root, ("cifar-10-batches-py", "cifar-10-batches-bin"), stems
    )
    parts = []
    for stem in stems:
        file = _needed("cifar10", folder / (f"{stem}.bin" if binary else stem))
        parts.append(_cifar_binary(file, 1) if binary else _cifar_python(file, b"labels"))
        _check_count(file, len(parts[-1][1]), per_file)
    if binary:
        classes = _words_of(_needed("cifar10", folder / "batches.meta.txt"))
    else:
        classes = _class_names(_needed("cifar10", folder / "batches.meta"), b"label_names")
    return _cifar_images("cifar10", parts, classes, size)


def cifar100(
    root: Path, split: str, *, size: Size = None, train: int = 50_000, test: int = 10_000
) -> TensorImages:
    """CIFAR100 with its 100 fine labels, from its Python or its binary version.

    Args:
        root: The folder of the files, or the one above `cifar-100-python` or `-binary`.
        split: `train` (50,000) or `test` (10,000).
        size: What to fit the images to.
        train: Images in the training file.
        test: Images in the test file.

    Raises:
        DataError: A file is missing or incomplete; it is named.
    """
    folder, binary = _cifar_folder(
        "cifar100", root, ("cifar-100-python", "cifar-100-binary"), [split]
    )
    file = _needed("cifar100", folder / (f"{split}.bin" if binary else split))
    part = _cifar_binary(file, 2) if binary else _cifar_python(file, b"fine_labels")
    _check_count(file, len(part[1]), train if split == "train" else test)
    if binary:
        classes = _words_of(_needed("cifar100", folder / "fine_label_names.txt"))
    else:
        classes = _class_names(_needed("cifar100", folder / "meta"), b"fine_label_names")
    return _cifar_images("cifar100", [part], classes, size)


def _cifar_folder(
    name: str, root: Path, layouts: tuple[str, str], stems: Sequence[str]
) -> tuple[Path, bool]:
    """The folder that holds the files, and whether they are the binary version."""
    for folder in (root, *(root / layout for layout in layouts)):
        for suffix in ("", ".bin"):
            if any((folder / f"{stem}{suffix}").is_file() for stem in stems):
                return folder, bool(suffix)
    raise DataError(
        f"{name} is not in {str(root)!r}: expected {stems[0]} (or {stems[0]}.bin) there or in "
        f"{layouts[0]}; unpack the archive of {_CIFAR_URL} there"
    )


def _cifar_images(
    name: str, parts: Sequence[tuple[Any, Any]], classes: Sequence[str], size: Size
) -> TensorImages:
    images = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part[1] for part in parts]).astype(np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"{name} has the label {labels.max()} and {len(classes)} class names")
    return TensorImages(torch.from_numpy(images), torch.from_numpy(labels), classes, name, size)


def _cifar_python(file: Path, key: bytes) -> tuple[Any, Any]:
    found = _unpickle(file)
    with foreign_file(f"{str(file)!r} is not a batch of CIFAR's Python version", DataError):
        labels = np.asarray(found[key], np.int64)
        return np.asarray(found[b"data"], np.uint8).reshape(len(labels), 3072), labels


def _cifar_binary(file: Path, labels: int) -> tuple[Any, Any]:
    """Rows of label bytes (the last is the fine label) and 3072 bytes of image."""
    with foreign_file(f"{str(file)!r} cannot be read", DataError):
        raw = np.frombuffer(file.read_bytes(), np.uint8)
    if len(raw) % (labels + 3072):
        raise DataError(f"{str(file)!r} is cut short: {len(raw)} bytes are no whole images")
    rows = raw.reshape(-1, labels + 3072)
    return rows[:, labels:], rows[:, labels - 1]


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of dicts, lists and numpy arrays, and runs nothing else."""

    _KNOWN = ("_reconstruct", "ndarray", "dtype", "scalar")

    def find_class(self, module: str, name: str) -> Any:
        if module == "_codecs" and name == "encode":
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in self._KNOWN:
            home = "numpy._core.multiarray" if name in ("_reconstruct", "scalar") else "numpy"
            return super().find_class(home, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def _unpickle(file: Path) -> Any:
    with foreign_file(f"{str(file)!r} is damaged or no file of CIFAR", DataError):
        found = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    if not isinstance(found, dict):
        raise DataError(f"{str(file)!r} holds {type(found).__name__}, not a batch of CIFAR")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}


def _class_names(file: Path, key: bytes) -> list[str]:
    meta = _unpickle(file)
    with foreign_file(f"{str(file)!r} names no classes", DataError):
        return [bytes(name).decode() for name in meta[key]]


def _words_of(file: Path) -> list[str]:
    return _text_of(file).split()


def _text_of(file: Path) -> str:
    with foreign_file(f"{str(file)!r} cannot be read", DataError):
        return file.read_text(encoding="utf-8")


def tiny_imagenet(
    root: Path,
    split: str,
    *,
    size: Size = None,
    workers: int = 0,
    classes: int = 200,
    per_class: int = 500,
    test: int = 10_000,
) -> TensorImages:
    """Tiny ImageNet from its official folder; the official validation images are the test split.

    Args:
        root: The folder with `wnids.txt`, or the one above `tiny-imagenet-200`.
        split: `train` (200 x 500) or `test` (10,000, labelled by `val/val_annotations.txt`).
        size: What to fit the images to.
        workers: Threads that decode; 0 decodes in this one.
        classes: Number of classes.
        per_class: Training images a class.
        test: Number of test images.

    Raises:
        DataError: A file is missing or cannot be read; it is named.

    Source:
        Leavitt & Morcos 2020 (arXiv 2003.01262) test on the official validation set.
    """
    folder = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    names = sorted(_words_of(_needed("tiny-imagenet", folder / "wnids.txt", _TINY_URL)))
    if len(names) != classes:
        raise DataError(f"{str(folder / 'wnids.txt')!r} names {len(names)} classes, not {classes}")
    if split == "train":
        files, labels = _tiny_training(folder, names, per_class)
    else:
        files, labels = _tiny_test(folder, names, test)
    images = _decode(files, workers)
    shown = _tiny_class_names(folder, names)
    return TensorImages(images, torch.tensor(labels), shown, "tiny-imagenet", size)


def _tiny_training(
    folder: Path, names: Sequence[str], per_class: int
) -> tuple[list[Path], list[int]]:
    files, labels = [], []
    for label, name in enumerate(names):
        images = folder / "train" / name / "images"
        found = sorted(images.glob("*.JPEG")) if images.is_dir() else []
        if len(found) < per_class:
            have = {file.name for file in found}
            first = next(n for n in range(per_class) if f"{name}_{n}.JPEG" not in have)
            raise DataError(
                f"tiny-imagenet is incomplete: {str(images)!r} holds {len(found)} of {per_class} "
                f"images, {name}_{first}.JPEG is missing; unpack the whole archive of {_TINY_URL}"
            )
        files += found
        labels += [label] * len(found)
    return files, labels


def _tiny_test(folder: Path, names: Sequence[str], count: int) -> tuple[list[Path], list[int]]:
    table = _needed("tiny-imagenet", folder / "val" / "val_annotations.txt", _TINY_URL)
    rows = [line.split("\t") for line in _text_of(table).splitlines() if line.strip()]
    if len(rows) != count or any(len(row) < 2 for row in rows):
        raise DataError(f"{str(table)!r} has {len(rows)} lines of annotation, not {count}")
    number = {name: label for label, name in enumerate(names)}
    if unknown := [row[1] for row in rows if row[1] not in number]:
        raise DataError(f"{str(table)!r} names the class {unknown[0]!r}, which wnids.txt does not")
    files = [folder / "val" / "images" / row[0] for row in rows]
    for file in files:
        _needed("tiny-imagenet", file, _TINY_URL)
    return files, [number[row[1]] for row in rows]


def _tiny_class_names(folder: Path, names: Sequence[str]) -> list[str]:
    """The first English word of each class, or its WordNet number where that is not unique."""
    table = folder / "words.txt"
    lines = _text_of(table).splitlines() if table.is_file() else []
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    shown = [words.get(name, name).split(",")[0].strip() for name in names]
    return [
        word if shown.count(word) == 1 else f"{word} ({name})"
        for word, name in zip(shown, names, strict=True)
    ]


def _decode(files: Sequence[Path], workers: int) -> Tensor:
    images = torch.empty(len(files), 3, 64, 64, dtype=torch.uint8)

    def read(number: int) -> None:
        file = files[number]
        with (
            foreign_file(f"image {str(file)!r} cannot be read", DataError),
            Image.open(file) as image,
        ):
            pixels = np.array(image.convert("RGB"))
        if pixels.shape != (64, 64, 3):
            raise DataError(f"image {str(file)!r} is {pixels.shape[:2]} and not 64 x 64 pixels")
        images[number] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    if workers:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(read, range(len(files)), chunksize=64):
                pass
    else:
        for number in range(len(files)):
            read(number)
    return images


def _check_count(file: Path, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"{str(file)!r} holds {found} images and not {expected}; get the whole file"
        )


def _first_file(name: str, places: Iterable[Path], names: Sequence[str]) -> Path:
    places = list(places)
    for place in places:
        for file in names:
            if (place / file).is_file():
                return place / file
    raise DataError(
        f"{name} is not complete in {str(places[0])!r}: {' or '.join(names)} is missing; put the "
        "four IDX files there (gzipped or not)"
    )


def _needed(name: str, file: Path, url: str = _CIFAR_URL) -> Path:
    if not file.is_file():
        raise DataError(
            f"{name} is incomplete: {str(file)!r} is missing; unpack the whole archive of {url}"
        )
    return file
