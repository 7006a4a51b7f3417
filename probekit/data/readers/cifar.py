"""CIFAR-10 and CIFAR-100 from their Python or binary versions."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from probekit.data.images import Size, TensorImages
from probekit.data.readers.files import needed, words_of
from probekit.errors import DataError, foreign_file

Array: TypeAlias = npt.NDArray[Any]
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar.html"


def cifar10(root: Path, split: str, *, size: Size = None, per_file: int = 10_000) -> TensorImages:
    """Reads CIFAR10 from the files of its Python or binary version, in `root` or the folder below."""
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    stems = batches if split == "train" else ["test_batch"]
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin")
    names = ("batches.meta", "batches.meta.txt")
    return _read(
        "cifar10", root, stems, per_file, size, folders, names, (b"labels", b"label_names")
    )


def cifar100(
    root: Path, split: str, *, size: Size = None, train: int = 50_000, test: int = 10_000
) -> TensorImages:
    """Reads CIFAR100 with its 100 fine labels, as `cifar10` does."""
    count = train if split == "train" else test
    folders = ("cifar-100-python", "cifar-100-binary")
    names = ("meta", "fine_label_names.txt")
    keys = (b"fine_labels", b"fine_label_names")
    return _read("cifar100", root, [split], count, size, folders, names, keys, label_bytes=2)


def _read(
    name: str,
    root: Path,
    stems: Sequence[str],
    count: int,
    size: Size,
    folders: tuple[str, str],
    names: tuple[str, str],
    keys: tuple[bytes, bytes],
    label_bytes: int = 1,
) -> TensorImages:
    """Reads files with `count` images each, named without the ending of the binary version.

    `folders` and `names` (files of class names) are those of the Python and of the binary version;
    `keys` are those of labels and class names in the Python version.
    """
    folder, binary = _folder_of(name, root, folders, stems)
    parts = []
    for stem in stems:
        file = needed(name, folder / (f"{stem}.bin" if binary else stem), _CIFAR_URL)
        part = _from_binary(file, label_bytes) if binary else _from_python(file, keys[0])
        if len(part[1]) != count:
            raise DataError(
                f"{str(file)!r} holds {len(part[1])} images and not {count}; get the whole file"
            )
        parts.append(part)
    listed = needed(name, folder / names[binary], _CIFAR_URL)
    classes = words_of(listed) if binary else _class_names(listed, keys[1])
    images = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part[1] for part in parts]).astype(np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"{name} has the label {labels.max()} and {len(classes)} class names")
    return TensorImages(torch.from_numpy(images), torch.from_numpy(labels), classes, name, size)


def _folder_of(
    name: str, root: Path, layouts: tuple[str, str], stems: Sequence[str]
) -> tuple[Path, bool]:
    """The folder that contains the files, and whether they are the binary version."""
    for folder in (root, *(root / layout for layout in layouts)):
        for suffix in ("", ".bin"):
            if any((folder / f"{stem}{suffix}").is_file() for stem in stems):
                return folder, bool(suffix)
    raise DataError(
        f"{name} is not in {str(root)!r}: expected {stems[0]} (or {stems[0]}.bin) there or in "
        f"{layouts[0]}; unpack the archive of {_CIFAR_URL} there"
    )


def _from_python(file: Path, key: bytes) -> tuple[Array, Array]:
    found = _unpickle(file)
    with foreign_file(f"{str(file)!r} is not a batch of CIFAR's Python version", DataError):
        labels = np.asarray(found[key], np.int64)
        return np.asarray(found[b"data"], np.uint8).reshape(len(labels), 3072), labels


def _from_binary(file: Path, labels: int) -> tuple[Array, Array]:
    """Rows of label bytes (the last is the fine label) and 3072 bytes of image."""
    with foreign_file(f"{str(file)!r} cannot be read", DataError):
        raw = np.frombuffer(file.read_bytes(), np.uint8)
    if len(raw) % (labels + 3072):
        raise DataError(
            f"{str(file)!r} is truncated: {len(raw)} bytes are not a multiple of an image"
        )
    rows = raw.reshape(-1, labels + 3072)
    return rows[:, labels:], rows[:, labels - 1]


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of dicts, lists and numpy arrays, and rejects everything else."""

    _KNOWN = ("_reconstruct", "ndarray", "dtype", "scalar")

    def find_class(self, module: str, name: str) -> Any:
        if module == "_codecs" and name == "encode":
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in self._KNOWN:
            home = "numpy._core.multiarray" if name in ("_reconstruct", "scalar") else "numpy"
            return super().find_class(home, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _unpickle(file: Path) -> Any:
    with foreign_file(f"{str(file)!r} is damaged or not a file of CIFAR", DataError):
        found = _ArraysOnly(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    if not isinstance(found, dict):
        raise DataError(f"{str(file)!r} holds {type(found).__name__}, not a batch of CIFAR")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}


def _class_names(file: Path, key: bytes) -> list[str]:
    meta = _unpickle(file)
    with foreign_file(f"{str(file)!r} names no classes", DataError):
        return [bytes(name).decode() for name in meta[key]]
