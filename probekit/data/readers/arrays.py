"""Images and labels as arrays in HDF5 and NumPy files."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from probekit.data.decoding import is_channels_last, resize
from probekit.data.folders import numbered_after, training_beside
from probekit.data.images import Fetched, LabeledImages, Size
from probekit.data.labels import LABEL_KEYS, label_table, names_of_text
from probekit.errors import DataError, foreign_file, warn
from probekit.models.inputs import IMAGE_KEYS

ARRAY_SUFFIXES = (".npz", ".h5", ".hdf5")
_IMAGES = (*IMAGE_KEYS, "x", "X")
_LABELS = (*LABEL_KEYS, "y", "Y")
_SPLITS = ("train", "val", "valid", "test")
_KINDS = "uint8 from 0 to 255, or floats in [0, 1]"
_CHANNELS = (1, 3)
_HASHED_ROWS = 64
_TEXT = "OSU"  # kinds of arrays
_HEADER = 30  # bytes of a local file header in a zip archive, before the name


def array_file(path: Path, split: str | None, size: Size) -> ArrayImages:
    """Opens the images and labels of an `.npz` or HDF5 file; images are read when they are needed.

    Images are named `images`, `image`, `x`, ..., and labels `labels`, `label`, `y`, ..., with a split
    before or after (`x_train`, `train_images`), or in a group of that name in an HDF5 file. Without
    labels, all are -1. Compressed `.npz` files are read into memory. Nothing is unpickled.
    """
    with _reported(path):
        names = _npz_names(path) if path.suffix == ".npz" else _hdf5_names(path)
    read = _from_npz if path.suffix == ".npz" else _from_hdf5
    image = _named(names, _IMAGES, split)
    if image is None:
        splits = [one for one in _SPLITS if _named(names, _IMAGES, one)]
        if splits and split not in splits:
            raise DataError(
                f"{str(path)!r} has the splits {', '.join(splits)}, not {split!r}; choose one with "
                f"split={splits[-1]!r} (--split {splits[-1]})"
            )
        raise DataError(
            f"{str(path)!r} holds the arrays {', '.join(names) or 'none'}, and no images named "
            f"{', '.join(_IMAGES)}" + ("" if split is None else f" of a split {split!r}")
        )
    label = _named(names, _LABELS, split)
    with _reported(path):
        labels = None if label is None else np.array(read(path, label)[...])
    classes: list[str] = []
    notes: list[str] = []
    if labels is not None and labels.dtype.kind in _TEXT:
        labels = np.asarray(_texts(labels))
        others = {_named(names, _LABELS, one) for one in _SPLITS if one != split} - {None}
        with _reported(path):
            texts = [text for one in others for text in _texts(np.array(read(path, str(one))[...]))]
        classes = list(names_of_text([*labels, *texts]).values())
        if beside := training_beside(path):
            trained = array_file(beside, split, size).classes
            classes, notes = numbered_after(trained, classes, str(path))
    for sentence in notes:
        warn(sentence)
    images = ArrayImages(partial(read, path, image), labels, str(path), size, classes)
    images.notes = notes
    return images


class ArrayImages(LabeledImages):
    """Images in an array that is read row by row, and labels in memory.

    `opened` returns the array; it is called once in every process.
    """

    def __init__(
        self,
        opened: Callable[[], Any],
        labels: Any,
        name: str,
        size: Size,
        classes: Sequence[str] = (),
    ) -> None:
        self.name, self.size = name, size
        self._opened, self._array = opened, None
        shape, kind = tuple(self._images().shape), self._images().dtype
        if len(shape) not in (3, 4) or 0 in shape:
            raise DataError(
                f"the images of {name!r} have the shape {shape}; give (samples, channels, height, "
                "width), (samples, height, width, channels) or (samples, height, width)"
            )
        if kind.kind not in "bf" and kind != np.uint8:
            raise DataError(f"the images of {name!r} are {kind}; give {_KINDS}")
        if labels is not None and (not labels.ndim or len(labels) != shape[0]):
            raise DataError(
                f"{name!r} has {shape[0]} images and labels of shape {labels.shape}; give one label per "
                "image"
            )
        self.labels = label_table(labels, shape[0], dict(enumerate(classes)), {})
        self.classes = tuple(classes)
        self._last = len(shape) == 4 and is_channels_last(shape[1:], _CHANNELS, size)

    def _images(self) -> Any:
        if self._array is None:
            with _reported(self.name):
                self._array = self._opened()
        return self._array

    @property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when asked
        """Hash of the shape, the preprocessing, the labels and 64 of the images."""
        array = self._images()
        digest = hashlib.sha256(f"{array.shape}|{array.dtype}|{self.size}".encode())
        digest.update(self.labels.numpy().tobytes() + repr(self.classes).encode())
        for row in range(0, len(array), max(1, len(array) // _HASHED_ROWS)):
            digest.update(np.ascontiguousarray(array[row]).tobytes())
        return f"sha256:{digest.hexdigest()}"

    def content_of(self, numbers: Iterable[int]) -> str:
        digest = hashlib.sha256()
        for number in numbers:
            digest.update(np.ascontiguousarray(self._images()[number]).data)
        return f"sha256:{digest.hexdigest()}"

    def fetch(self, numbers: list[int]) -> Fetched:
        rows = np.unique(numbers)  # HDF5 selects distinct rows in increasing order
        with _reported(self.name):
            found = self._images()[rows][np.searchsorted(rows, numbers)]
        images = torch.from_numpy(np.ascontiguousarray(found, found.dtype.newbyteorder("=")))
        if images.ndim == 3:
            images = images[:, None]
        images = images.movedim(3, 1).contiguous() if self._last else images
        images = images / 255 if images.dtype == torch.uint8 else images
        images = images if images.dtype == torch.float64 else images.float()
        index = torch.as_tensor(numbers)
        return resize(images, self.size), self.labels[index], index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


def _texts(labels: Any) -> list[str]:
    return [one.decode() if isinstance(one, bytes) else str(one) for one in labels.ravel()]


def _named(names: Iterable[str], keys: Iterable[str], split: str | None) -> str | None:
    """The first name that stands for images or labels, of a split if one is given."""
    forms = ("{key}",) if split is None else ("{key}_{split}", "{split}_{key}", "{split}/{key}")
    wanted = [form.format(key=key, split=split) for key in keys for form in forms]
    there = set(names)
    return next((name for name in wanted if name in there), None)


def _reported(path: Path | str) -> AbstractContextManager[None]:
    return foreign_file(f"{str(path)!r} cannot be read", DataError)


def _hdf5_names(path: Path) -> list[str]:
    names: list[str] = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, one: names.append(name) if hasattr(one, "shape") else None)
    return names


def _from_hdf5(path: Path, name: str) -> Any:
    return h5py.File(path, "r")[name]


def _npz_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _from_npz(path: Path, name: str) -> Any:
    """An array of an `.npz` file, mapped into memory if it is not compressed."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[name]
        with archive.open(member) as header:
            version = np.lib.format.read_magic(header)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, kind = reader(header)
            inside = header.tell()
    if kind.hasobject:
        raise DataError(
            f"the array {name} in {str(path)!r} holds pickled objects; give numbers or text"
        )
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_HEADER)
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    start = member.header_offset + _HEADER + lengths + inside
    return np.memmap(path, kind, "r", start, shape, "F" if fortran else "C")
