"""Labelled images as map-style data sets that give whole batches in [0, 1]."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from probekit.errors import DataError, first_line

__all__ = [
    "FolderImages",
    "LabelledImages",
    "PreparedImages",
    "Size",
    "TensorImages",
    "prepare",
    "resize",
]

Size: TypeAlias = tuple[int, int, int] | None
Fetched: TypeAlias = "tuple[Tensor, Tensor, Tensor] | DataError"
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_PIXELS = 2**26
_HASHED_BYTES = 2**24
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class LabelledImages(Dataset[Any]):
    """A data set whose `data[i]` is (image in [0, 1], label) and which gives many at a time.

    Attributes:
        name: What the data set is called.
        classes: Names of the classes, in label order.
        labels: Label of every sample, int64.
        fingerprint: Hash of the content.
        skip_bad: Whether unreadable images are left out rather than an error.
        workers: How many processes should read ahead.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    fingerprint: str
    skip_bad: bool = False
    workers: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        fetched = self.fetch([range(len(self))[number]])
        if isinstance(fetched, DataError):
            raise fetched
        images, labels, _ = fetched
        if not len(images):
            raise DataError(f"sample {number} of {self.name} is unreadable and skipped")
        return images[0], int(labels[0])

    def fetch(self, numbers: list[int]) -> Fetched:
        """Images, labels and indices of several samples, or what went wrong."""
        raise NotImplementedError


class TensorImages(LabelledImages):
    """Images that lie in memory, as uint8 (n, channels, height, width) or floats in [0, 1].

    Raises:
        DataError: Shapes or ranges that are no images and labels.

    Example:
        >>> data = TensorImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
        >>> image, label = data[2]
        >>> image.shape, label
        (torch.Size([1, 8, 8]), 2)
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str] = (),
        name: str = "tensors",
        size: tuple[int, int, int] | None = None,
    ) -> None:
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise DataError(
                "images must be (n, channels, height, width) and labels (n,), not "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        self.images = images
        self.labels = labels.long()
        self.classes = tuple(classes)
        self.name = name
        self.size = size
        digest = hashlib.sha256(f"{tuple(images.shape)}|{images.dtype}|{size}".encode())
        for part in (images, self.labels):
            digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
        self.fingerprint = f"sha256:{digest.hexdigest()}"

    def fetch(self, numbers: list[int]) -> Fetched:
        index = torch.as_tensor(numbers)
        images = self.images[index]
        images = images.float().div_(255) if images.dtype == torch.uint8 else images
        return resize(images, self.size), self.labels[index], index


class FolderImages(LabelledImages):
    """Images in one folder per class, read and fitted to a model as they are needed.

    The shorter side is resized to the input's size over `crop_pct` and the centre is cut out, as
    timm and torchvision do for evaluation.

    Args:
        root: The folder of class folders.
        size: (channels, height, width) to fit to.
        crop_pct: Share of the resized image that the crop keeps.
        interpolation: nearest, bilinear, bicubic or lanczos.
        skip_bad: Leave unreadable images out; otherwise they are an error that names the file.

    Raises:
        DataError: No such folder, or no class folders with images in it.
    """

    def __init__(
        self,
        root: str | Path,
        size: tuple[int, int, int] = (3, 224, 224),
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        skip_bad: bool = False,
        workers: int = 0,
    ) -> None:
        root = Path(root)
        if not os.path.isdir(root):
            raise DataError(f"there is no folder {str(root)!r}")
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        files = [
            sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
            for folder in folders
        ]
        if not any(files):
            raise DataError(
                f"no images in {str(root)!r}: expected one folder a class with images in it "
                f"({', '.join(_SUFFIXES)}), found {len(folders)} folders"
            )
        kept = [(folder, found) for folder, found in zip(folders, files, strict=True) if found]
        self.paths = [path for _, found in kept for path in found]
        self.labels = torch.tensor([label for label, (_, found) in enumerate(kept) for _ in found])
        self.classes = tuple(_as_text(folder.name) for folder, _ in kept)
        self.name = str(root)
        self.root = root
        self.size, self.crop_pct, self.interpolation = size, crop_pct, interpolation
        self.skip_bad = skip_bad
        self.workers = workers
        self._fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Hash of the file names, sizes and preprocessing, and of the content of 64 of the files.

        What cannot be read counts as empty, so that data whose bad images are skipped has one too.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{self.size}|{self.crop_pct}|{self.interpolation}".encode())
            for path in self.paths:
                digest.update(os.fsencode(path.relative_to(self.root)) + b"|")
                digest.update(f"{_size(path)}|".encode())
            for path in self.paths[:: max(1, len(self.paths) // 64)]:
                digest.update(_beginning(path))
            self._fingerprint = f"sha256:{digest.hexdigest()}"
        return self._fingerprint

    def fetch(self, numbers: list[int]) -> Fetched:
        images, kept = [], []
        for number in numbers:
            try:
                with Image.open(self.paths[number]) as image:
                    images.append(prepare(image, self.size, self.crop_pct, self.interpolation))
            except Exception as error:  # decoders raise whatever a damaged file makes them
                if not self.skip_bad:
                    return DataError(
                        f"image {str(self.paths[number])!r} cannot be read ({first_line(error)}); "
                        "mend or remove it, or skip what cannot be read with skip_bad=True (--skip-bad)"
                    )
            else:
                kept.append(number)
        stacked = torch.stack(images) if images else torch.empty(0, *self.size)
        index = torch.tensor(kept, dtype=torch.long)
        return stacked, self.labels[index], index


def _as_text(name: str) -> str:
    """A folder's name without the bytes that are no text."""
    return os.fsencode(name).decode("utf-8", "replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _beginning(path: Path) -> bytes:
    """The content of a file, up to a bound that photographs hardly reach."""
    try:
        with path.open("rb") as file:
            return file.read(_HASHED_BYTES)
    except OSError:
        return b""


class PreparedImages(LabelledImages):
    """Any map-style data set of (PIL image or tensor, label), fitted to a model.

    Raises:
        DataError: Its items are not pairs of an image and a label.
    """

    def __init__(
        self,
        dataset: Any,
        size: tuple[int, int, int],
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
    ) -> None:
        self.dataset = dataset
        self.size, self.crop_pct, self.interpolation = size, crop_pct, interpolation
        self.name = type(dataset).__name__
        self.classes = tuple(str(name) for name in getattr(dataset, "classes", None) or ())
        self.fingerprint = f"{self.name} of {len(dataset)} samples, content not hashed"

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, numbers: list[int]) -> Fetched:
        images, labels = [], []
        for number in numbers:
            try:
                image, label = self.dataset[number]
            except (TypeError, ValueError):
                return DataError(f"item {number} of {self.name} is not a pair (image, label)")
            if isinstance(image, Image.Image):
                image = prepare(image, self.size, self.crop_pct, self.interpolation)
            elif not isinstance(image, Tensor):
                return DataError(
                    f"item {number} of {self.name} holds {type(image).__name__}, not an image"
                )
            images.append(image)
            labels.append(int(label))
        return torch.stack(images), torch.tensor(labels), torch.tensor(numbers)


def prepare(
    image: Image.Image,
    size: tuple[int, int, int],
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
) -> Tensor:
    """A PIL image as a tensor (channels, height, width) in [0, 1], resized and centre-cropped.

    >>> prepare(Image.new("RGB", (30, 20)), (3, 8, 8)).shape
    torch.Size([3, 8, 8])
    """
    channels, height, width = size
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        whole = int(height / crop_pct), int(width / crop_pct)
        scale = max(whole[0] / image.height, whole[1] / image.width)
        wide = max(width, int(image.width * scale + 1e-4))
        high = max(height, int(image.height * scale + 1e-4))
        left, top = round((wide - width) / 2), round((high - height) / 2)
        if wide * high <= _MOST_PIXELS:
            image = image.resize((wide, high), _RESAMPLING[interpolation])
            image = image.crop((left, top, left + width, top + height))
        else:  # of an image that is a line, only what is kept is made larger
            across, up = image.width / wide, image.height / high
            part = (left * across, top * up, (left + width) * across, (top + height) * up)
            image = image.resize((width, height), _RESAMPLING[interpolation], box=part)
    array = np.array(image, dtype=np.float32) / 255
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def resize(images: Tensor, size: tuple[int, int, int] | None) -> Tensor:
    """Images (n, channels, height, width) fitted to a size; grey and colour turn into each other."""
    if size is None or tuple(images.shape[1:]) == size:
        return images
    channels, height, width = size
    if images.shape[1] != channels:
        images = images.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    if images.shape[2:] != (height, width):
        images = functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images.contiguous()
