"""MNIST and Fashion-MNIST from their IDX files."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probekit.data.images import Size, TensorImages
from probekit.errors import DataError, foreign_file

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_MOST_BYTES = 2**28
_MOST_AXES = 4
_IDX_COUNTS = {"train": 60_000, "test": 10_000}


def read_idx(file: Path | Traversable) -> Tensor:
    """Reads an array in the IDX format of MNIST, gzipped or not."""
    with foreign_file(f"{str(file)!r} cannot be read", DataError):
        raw = file.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(_MOST_BYTES)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{str(file)!r} is not an IDX file of bytes")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if not 0 < len(shape) <= _MOST_AXES:
        raise DataError(
            f"{str(file)!r} is not a list of images or labels: it has {len(shape)} axes"
        )
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"{str(file)!r} is truncated: {shape} values announced, {len(raw) - start} found"
        )
    values = np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())


def mnist(root: Path, split: str, *, size: Size = None) -> TensorImages:
    """Reads MNIST from its IDX files, gzipped or not, in `root`, `raw` or `MNIST/raw` (torchvision)."""
    classes = [str(digit) for digit in range(10)]
    return _idx_images("mnist", root, "MNIST", split, classes, size)


def fashion_mnist(root: Path, split: str, *, size: Size = None) -> TensorImages:
    """Reads Fashion-MNIST, as `mnist` does; Debian's `dataset-fashion-mnist` works too."""
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


def _first_file(name: str, places: Sequence[Path], names: Sequence[str]) -> Path:
    for file in (place / name for place in places for name in names):
        if file.is_file():
            return file
    raise DataError(
        f"{name} is not complete in {str(places[0])!r}: {' or '.join(names)} is missing; put the "
        "four IDX files there (gzipped or not)"
    )
