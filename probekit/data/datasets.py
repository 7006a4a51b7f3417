"""Data by name or folder, fitted to a model."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from probekit.data.images import FolderImages, LabelledImages, PreparedImages, TensorImages
from probekit.errors import DataError, close_matches

__all__ = ["FASHION_MNIST_CLASSES", "list_data", "load_data", "read_idx"]

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(file: Path | Traversable) -> Tensor:
    """An array in the IDX format of MNIST, gzipped or not.

    Raises:
        DataError: The file is missing, cut short or of another format.
    """
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise DataError(f"{str(file)!r} cannot be read: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{str(file)!r} is not an IDX file of bytes")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) - start != int(np.prod(shape)):
        raise DataError(
            f"{str(file)!r} is cut short: {shape} values announced, {len(raw) - start} found"
        )
    values = np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(values.copy())


def _fashion_mnist(size: tuple[int, int, int] | None) -> TensorImages:
    folder = resources.files("probekit.data") / "bundled"
    images = read_idx(folder / "t10k-images-idx3-ubyte.gz")[:, None]
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    return TensorImages(images, labels, FASHION_MNIST_CLASSES, "fashion-mnist", size)


def _digits(size: tuple[int, int, int] | None) -> TensorImages:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target)
    return TensorImages(images, labels, [str(digit) for digit in range(10)], "digits", size)


_BY_NAME: dict[str, Callable[[tuple[int, int, int] | None], LabelledImages]] = {
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
}


def list_data() -> list[str]:
    """The names that `load_data` knows."""
    return sorted(_BY_NAME)


def load_data(source: Any, model: Any = None, *, skip_bad: bool = False) -> LabelledImages:
    """Labelled images, fitted to what a model expects.

    Args:
        source: A name (`fashion-mnist`, its 10,000 test images; `digits`, scikit-learn's 1,797), a
            folder with one folder of images a class, or a map-style data set of torchvision or timm
            whose items are (PIL image or tensor, label).
        model: An `ImageModel`, whose input size, crop and interpolation are used; None keeps images
            as they are, folders at 224 px.
        skip_bad: Leave out images that cannot be read rather than stop at the first.

    Returns:
        A map-style data set of (image in [0, 1], label), with `classes` and a `fingerprint`.

    Raises:
        DataError: No such name or folder, no images in it, or a data set of another kind.

    Example:
        >>> data = load_data("digits")
        >>> len(data), data.classes[:3], data[0][0].shape
        (1797, ('0', '1', '2'), torch.Size([1, 8, 8]))
    """
    size = getattr(model, "input_size", None)
    fit = (getattr(model, "crop_pct", 1.0), getattr(model, "interpolation", "bicubic"))
    if isinstance(source, LabelledImages):
        return source
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        return PreparedImages(source, size or (3, 224, 224), *fit)
    if isinstance(source, str | Path):
        if str(source) in _BY_NAME:
            return _BY_NAME[str(source)](size)
        if Path(source).is_dir():
            return FolderImages(source, size or (3, 224, 224), *fit, skip_bad=skip_bad, workers=1)
        raise DataError(
            f"{str(source)!r} is neither a data set nor a folder; "
            f"{close_matches(str(source), _BY_NAME, what='data set')}"
        )
    raise DataError(
        "load_data takes a name, a folder or a map-style data set, not "
        f"{type(source).__name__}; other iterables go to analyze as they are"
    )
